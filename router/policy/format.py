"""Policy files in the house layout: comments, key order and quotes stay as they were written.

`ruamel.yaml` reads and writes, because it is the one writer that keeps comments; what it makes of the text is then
put right line by line: comments stand where the line after them stands, one blank line between rules, no trailing
spaces. Nothing is believed: the result must hold the same values for our strict reader, every comment of the text, and
come out of a second run unchanged, else the file is refused and left alone.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.resolver import VersionedResolver
from ruamel.yaml.tag import Tag
from ruamel.yaml.tokens import (
    BlockEndToken,
    BlockEntryToken,
    BlockMappingStartToken,
    BlockSequenceStartToken,
    FlowMappingEndToken,
    FlowMappingStartToken,
    FlowSequenceEndToken,
    FlowSequenceStartToken,
    ScalarToken,
)

from router.errors import PolicyError
from router.policy.source import Diagnostic, Node, read_source, render

_WIDEST = 1 << 20  # columns: a flow list or a long text stays on its line
_SPACED = ("rules", "tests")  # lists of the top level with a blank line between their items
_Kind = tuple[str, Any]


def format_policy(name: str, data: bytes, label: str = "") -> bytes:
    """The file in the house layout; UTF-8, two spaces of indent, one final newline.

    `label` is how the file is called in messages. Raises PolicyError, with the diagnostics of the strict reader when
    it cannot read the file, or when the text holds something that the layout would lose.
    """
    source = read_source(name, data, label)
    if source.diagnostics or source.root is None:
        raise PolicyError(render(source.diagnostics), hint="a file is formatted once it can be read")
    text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    formatted = _laid_out(text, source.label)
    read = read_source(name, formatted.encode(), label)
    if read.root is None or _values(read.root) != _values(source.root):
        raise _cannot(source.label, 0, "the layout would change a value", "write long texts in double quotes")
    stood = list(_comments(text))
    lost = Counter(comment for _, comment in stood) - Counter(comment for _, comment in _comments(formatted))
    for line, comment in stood:
        if comment in lost:
            raise _cannot(source.label, line, f"the comment `{comment[:60]}` has no place in the layout",
                          "put it on a line of its own, outside `{…}` and `[…]`")  # fmt: skip
    if _laid_out(formatted, source.label) != formatted:
        raise _cannot(source.label, 0, "the layout does not come to rest", "move comments to lines of their own")
    return formatted.encode()


def _cannot(label: str, line: int, problem: str, hint: str) -> PolicyError:
    return PolicyError(Diagnostic(label, line, 1, f"cannot be formatted: {problem}", hint).render())


class _AsWritten(VersionedResolver):
    """Every scalar is text, so that `0.50` and `null` are written back as they stood."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        """The tag of a node; an empty value alone is not text."""
        if kind is ScalarNode:
            return Tag(suffix=f"tag:yaml.org,2002:{'null' if value == '' and implicit[0] else 'str'}")
        return super().resolve(kind, value, implicit)


class _Written(RoundTripRepresenter):
    """Writes an empty value as `null`, which cannot be overlooked."""

    def represent_none(self, data: Any) -> Any:
        """The node of an empty value."""
        return self.represent_scalar("tag:yaml.org,2002:str", "null")


_Written.add_representer(type(None), _Written.represent_none)


def _yaml() -> YAML:
    yaml = YAML()
    yaml.Resolver = _AsWritten
    yaml.Representer = _Written
    yaml.preserve_quotes = True
    yaml.brace_single_entry_mapping_in_flow_sequence = True  # `[{a: 1}]`, not `[a: 1]`
    yaml.width = _WIDEST
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def _laid_out(text: str, label: str) -> str:
    yaml, out = _yaml(), io.StringIO()
    try:
        yaml.dump(yaml.load(text), out)
        return _spaced(out.getvalue())
    except MarkedYAMLError as exc:  # stricter than our reader in small things, such as a tab between two words
        line = exc.problem_mark.line + 1 if exc.problem_mark is not None else 0
        raise _cannot(label, line, str(exc.problem), "write it more plainly, in quotes and with spaces") from exc
    except (YAMLError, AttributeError, AssertionError, IndexError, TypeError, ValueError) as exc:
        # the library's own slips on odd texts; the file stays as it is, and the reason is said
        raise _cannot(label, 0, f"{type(exc).__name__} in the YAML writer", "write it more plainly") from exc


def _values(node: Node) -> _Kind:
    """A node without its place."""
    if node.kind == "list":
        return node.kind, [_values(item) for item in node.value]
    if node.kind == "map":
        return node.kind, [(key.value, _values(value)) for key, value in node.value]
    return node.kind, node.value


def _tokens(text: str) -> Iterator[Any]:
    yield from YAML(typ="safe", pure=True).scan(text)


def _comments(text: str) -> Iterator[tuple[int, str]]:
    """The comments of a text with their lines: whatever `#` begins between two tokens, or after `|` and `>`."""
    end = 0
    for token in _tokens(text):
        start = token.start_mark.index
        if start > end:
            yield from _comments_between(text, end, start)
        end = max(end, token.end_mark.index)
        if isinstance(token, ScalarToken) and token.style in ("|", ">"):
            yield from _comments_between(text, start, text.find("\n", start) % (len(text) + 1))
    yield from _comments_between(text, end, len(text))


def _comments_between(text: str, start: int, end: int) -> Iterator[tuple[int, str]]:
    if text.find("#", start, end) < 0:
        return
    line = text.count("\n", 0, start) + 1
    for number, part in enumerate(text[start:end].split("\n"), line):
        if "#" in part:
            yield number, part[part.index("#") :].strip()


def _spaced(text: str) -> str:
    """The text with its comments and blank lines in their places; the lines of block scalars are not touched."""
    lines = text.split("\n")
    blocks, firsts = _blocks_and_firsts(text, lines)
    out: list[str] = []
    gap: list[str] = []
    last_indent = 0
    for number, line in enumerate(lines):
        if number in blocks:
            out.append(line)
        elif line.strip()[:1] in ("", "#"):
            gap.append(line.rstrip())
        else:
            indent = len(line) - len(line.lstrip())
            out += _gap(gap, indent, last_indent, is_spaced=number in firsts)
            out.append(line.rstrip())
            gap, last_indent = [], indent
    out += _gap(gap, 0, last_indent, is_spaced=False)
    while out and not out[-1]:  # never of a block: its last line with something in it is the last that is one
        out.pop()
    return "\n".join(out).lstrip("\n") + "\n"


def _gap(gap: list[str], indent: int, last_indent: int, *, is_spaced: bool) -> list[str]:
    """Comments and blank lines before a line: no two blank lines together, comments indented as the line is.

    A comment with a blank line or a key of the top level after it may belong to what stands above: if it stands deeper,
    it stays there.
    """
    if is_spaced and "" not in gap:
        gap = ["", *gap]
    out: list[str] = []
    for number, line in enumerate(gap):
        if not line:
            if number == 0 or gap[number - 1]:
                out.append("")
            continue
        own = len(line) - len(line.lstrip())
        is_detached = "" in gap[number:]
        deep = min(own + own % 2, last_indent) if is_detached or not indent else 0
        out.append(" " * max(indent, deep) + line.lstrip())
    return out


def _blocks_and_firsts(text: str, lines: list[str]) -> tuple[set[int], set[int]]:
    """Line numbers from 0: those inside of a text of several lines; those where a later item of `_SPACED` begins."""
    blocks: set[int] = set()
    firsts: set[int] = set()
    depth, key, items = 0, "", 0
    for token in _tokens(text):
        if isinstance(
            token, BlockMappingStartToken | BlockSequenceStartToken | FlowMappingStartToken | FlowSequenceStartToken
        ):
            depth += 1
        elif isinstance(token, BlockEndToken | FlowMappingEndToken | FlowSequenceEndToken):
            depth -= 1
        elif isinstance(token, BlockEntryToken) and depth == 2 and key in _SPACED:
            if items:
                firsts.add(token.start_mark.line)
            items += 1
        elif isinstance(token, ScalarToken):
            if depth == 1 and token.start_mark.column == 0:
                key, items = token.value, 0
            if token.style in ("|", ">"):
                start, end = token.start_mark.line + 1, token.end_mark.line + bool(token.end_mark.column)
                is_kept = "+" in lines[start - 1][token.start_mark.column :][:3]
                while not is_kept and end > start and not lines[end - 1].strip():
                    end -= 1
                blocks.update(range(start, end))
            else:
                blocks.update(range(token.start_mark.line + 1, token.end_mark.line + 1))
    return blocks, firsts
