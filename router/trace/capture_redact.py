"""What is taken out of captured content before anything is written: rules over bytes, in time linear in the text.

A secret is looked for in every form it may have: as it stands, and behind one, two or three layers of JSON escapes (a
tool's arguments are JSON inside JSON). All rules see the same text; what any of them finds goes, so that the order of
rules has no meaning. The text is cut behind that: a secret that lies across the cut is seen whole.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import re2

from router.errors import SettingsError

MARGIN = 4_096  # bytes behind the cut that the rules still see
_LAYERS = 3
_MOST_MEMORY = 8 * 1024 * 1024  # bytes for one compiled rule
_MOST_RULES = 100
_LEAST_SECRET = 8  # bytes: a shorter credential would take ordinary words along

_NAMED = (  # what a secret is called
    r"(?i:pass(?:word|wd|phrase)|pwd|secret|token|"
    r"(?:api|access|account|private|secret|signing|encryption|subscription)[_-]?key)"
)
_QUOTED = r"""(?:"((?:[^"\\]|\\.){6,})|'((?:[^'\\]|\\.){6,}))"""  # up to the closing quote

# A rule with groups takes out only what its first group matched.
BUILT_IN = {
    "credentials": "|".join(
        (
            r"\b(?:sk|rk|pk)[-_][A-Za-z0-9_-]{8,}",  # the API's own keys among them
            r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
            r"\bgh[opsur]_[A-Za-z0-9]{16,}|\bgithub_pat_\w{16,}|\bglpat-[\w-]{16,}",
            r"\bxox[a-z]-[A-Za-z0-9-]{8,}",
            r"\bAIza[\w-]{30,}",
            r"\beyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?",  # a JSON web token
            r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----(?s:.*?)(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\z)",
            r"(?i:\bbearer)\s+([A-Za-z0-9._~+/=-]{16,})",
            r"\bhf_[A-Za-z0-9]{16,}|\bSG\.[\w-]{16,}\.[\w-]{16,}",
            r"""(?i:authorization)["']?\s*[:=]\s*["']?(?i:basic|token|bearer|api-?key)\s+([^\s"',;\\]{8,})""",
            r"""(?i:\bcookie)["']?\s*[:=]\s*["']?([\w.%-]+=[^\r\n"'\\]{4,})""",
            _NAMED + r"""["']?\s*[:=]\s*""" + _QUOTED,
            _NAMED + r"""["']?\s*[:=]\s*([^\s"',;&<>{}()\[\]][^\s"',;&}\]]{5,})""",
            r""""(?i:name|key)"\s*:\s*"[^"\s]*""" + _NAMED + r"""[^"\s]*"\s*,\s*"(?i:value)"\s*:\s*""" + _QUOTED,
            r""""(?i:value)"\s*:\s*"((?:[^"\\]|\\.){6,})"\s*,\s*"(?i:name|key)"\s*:\s*"[^"\s]*""" + _NAMED,
            r"[a-zA-Z][a-zA-Z0-9+.-]*://[^\s:/@\"']*:([^\s@/\"']+)@",  # a password in a URL
            # One with a slash; what is only digits before the slash is a port. Bounded: else time is not linear.
            r"[a-zA-Z][a-zA-Z0-9+.-]*://[^\s:/@\"']*:(\d*[^\s@/\"'\d][^\s@/\"']*/[^\s@\"']{0,100})@",
        )
    ),
    "email": r"[\pL\pN._%+-]+@[\pL\pN-]+(?:\.[\pL\pN-]+)+",
    # No check digit is asked for: a long number too many is better gone than a card number kept.
    "card": r"\b\d(?:[ -]?\d){12,}\b",
    "phone": r"(?:\+|\b00)[1-9](?:[ ()./-]{0,2}\d){6,14}\b|(?:\(\d{3}\) ?|\b\d{3}[ .-])\d{3}[ .-]\d{4}\b",
}
DEFAULT = ", ".join(BUILT_IN)

_ESCAPE = re.compile(rb"\\(?:u[0-9a-fA-F]{4}|.)", re.DOTALL)
_PLAIN = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"b": b"\b", b"f": b"\f", b'"': b'"', b"\\": b"\\", b"/": b"/"}


@dataclass(frozen=True, slots=True)
class Rule:
    """A name, which stands in the place of what is taken out, and a compiled regex."""

    name: str
    regex: Any


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A text without what the rules found. `found` counts the places; `is_cut` says that it went on."""

    text: bytes
    is_cut: bool
    found: int


def read_rules(text: str) -> tuple[Rule, ...]:
    """The rules of a `capture_redact` setting: `off`, names of built-in rules with commas, or a JSON list of names and
    regexes of one's own. Raises SettingsError for a rule that is broken, unknown or takes out nothing."""
    text = text.strip()
    if text == "off":
        return ()
    if not text.startswith("["):
        return tuple(_built_in(name.strip()) for name in text.split(","))
    try:
        entries = json.loads(text)
    except ValueError:
        entries = None
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise SettingsError(
            f"`capture_redact` is `{text:.80}`, expected a JSON list of texts", hint='["credentials", "ACME-[0-9]{6}"]'
        )
    if len(entries) > _MOST_RULES:
        raise SettingsError(f"`capture_redact` has {len(entries)} rules, expected at most {_MOST_RULES}")
    return tuple(_built_in(entry) if entry in BUILT_IN else _own(entry) for entry in entries)


def _built_in(name: str) -> Rule:
    if name not in BUILT_IN:
        near = get_close_matches(name, BUILT_IN, 1)
        raise SettingsError(
            f"`capture_redact`: there is no built-in rule `{name:.80}`, expected some of {DEFAULT}",
            hint=f"did you mean `{near[0]}`?" if near else 'a regex stands in a JSON list: ["ACME-[0-9]{6}"]',
        )
    return Rule(name, _compiled(BUILT_IN[name]))


def _own(pattern: str) -> Rule:
    near = get_close_matches(pattern, BUILT_IN, 1, 0.8)
    if near and pattern.isalpha():
        raise SettingsError(
            f"`capture_redact`: the rule `{pattern}` is nearly the built-in `{near[0]}`",
            hint=f"a word of your own is written `(?:{pattern})`",
        )
    rule = Rule("own", _compiled(pattern))
    if rule.regex.search(b"") is not None:
        raise SettingsError(f"`capture_redact`: the rule `{pattern:.80}` also matches no text at all, expected one")
    return rule


def _compiled(pattern: str) -> Any:
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MOST_MEMORY
    try:
        return re2.compile(pattern, options=options)
    except re2.error as exc:
        reason = exc.args[0] if exc.args else ""
        reason = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        raise SettingsError(
            f"`capture_redact`: the rule `{pattern:.80}` is no regex: {reason}",
            hint="the syntax is RE2's: no look-around, no back-references",
        ) from exc


def clean(text: bytes, rules: Sequence[Rule], limit: int, secrets: Sequence[bytes] = ()) -> Cleaned:
    """`text` up to its byte `limit`, each find replaced by `[redacted:NAME]`; `secrets` are taken out as they are."""
    finds: list[tuple[int, int, str]] = []
    sought = [secret for secret in secrets if len(secret) >= _LEAST_SECRET]
    for layer in _layers(text):
        for rule in rules:
            finds += [(layer.outer(a), layer.outer(b), rule.name) for a, b in _spans(rule.regex, layer.text)]
        for secret in sought:
            finds += [(layer.outer(a), layer.outer(b), "credentials") for a, b in _places(secret, layer.text)]
    pieces: list[bytes] = []
    at = found = 0
    for start, end, name in sorted(finds):
        if start >= limit:
            break
        if start >= at:
            pieces += [text[at:start], f"[redacted:{name}]".encode()]
            found += 1
        at = max(at, end)
    pieces.append(text[at : max(at, limit)])
    return Cleaned(b"".join(pieces), len(text) > max(at, limit), found)


def _spans(regex: Any, text: bytes) -> Iterator[tuple[int, int]]:
    for match in regex.finditer(text):
        groups = [match.span(number) for number in range(1, regex.groups + 1)]
        start, end = next((span for span in groups if span[0] >= 0), match.span())
        if end > start:
            yield start, end


def _places(secret: bytes, text: bytes) -> Iterator[tuple[int, int]]:
    at = text.find(secret)
    while at >= 0:
        yield at, at + len(secret)
        at = text.find(secret, at + len(secret))


class _Layer:
    """A text with one more layer of escapes undone, and the way back to offsets of the outermost text."""

    def __init__(self, text: bytes, below: _Layer | None, own: list[int], outer: list[int]) -> None:
        self.text = text
        self._below = below
        self._own, self._outer = own, outer  # offsets behind each escape, here and one layer out

    def outer(self, offset: int) -> int:
        """The offset in the outermost text."""
        if self._below is None:
            return offset
        place = bisect_right(self._own, offset) - 1
        if place >= 0:
            offset = self._outer[place] + offset - self._own[place]
        return self._below.outer(offset)


def _layers(text: bytes) -> Iterator[_Layer]:
    layer = _Layer(text, None, [], [])
    yield layer
    for _ in range(_LAYERS):
        if b"\\" not in layer.text:
            return
        layer = _unescaped(layer)
        yield layer


def _unescaped(layer: _Layer) -> _Layer:
    text, pieces, own, outer = layer.text, [], [], []
    at = size = 0
    for escape in _ESCAPE.finditer(text):
        start, end = escape.span()
        code = text[start + 1 : end]
        if len(code) == 5:
            meant = chr(int(code[1:], 16)).encode("utf-8", "surrogatepass")
        else:
            meant = _PLAIN.get(code, text[start:end])
        pieces += [text[at:start], meant]
        size += start - at + len(meant)
        at = end
        own.append(size)
        outer.append(end)
    pieces.append(text[at:])
    return _Layer(b"".join(pieces), layer, own, outer)
