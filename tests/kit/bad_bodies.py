"""Bad bodies for `bad_requests.py`, and what stands around them: each function makes one case from dice and a nonce."""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kit.bad_heads import Made, kept

BLANK = b"nonce" + b"0" * 12  # where the nonce goes
_SERVED = (200,)
_REFUSED = (400,)
_EITHER = (200, 400)


# Valid bodies, and where each value of theirs stands


@dataclass(frozen=True, slots=True)
class _Value:
    """One value of a template: its place, and the member or element that it is part of."""

    path: str
    start: int
    end: int
    begins: int  # with its key


class Template:
    """A valid body and its parts."""

    def __init__(self, body: dict[str, Any]) -> None:
        self.text = json.dumps(body, separators=(",", ":"))
        self.raw = self.text.encode()
        self.values: list[_Value] = []
        self._walk(0, 0, "")
        self.strings = [each for each in self.values if self.text[each.start] == '"']
        self.objects = [each for each in self.values if self.text[each.start] == "{" and each.end > each.start + 2]
        self.containers = [each for each in self.values if self.text[each.start] in "{["]
        self.members = [each for each in self.values if each.begins < each.start]

    def _walk(self, at: int, begins: int, path: str) -> int:
        text, start = self.text, at
        if text[at] in "{[":
            is_object = text[at] == "{"
            at += 1
            index = 0
            while text[at] not in "}]":
                at += text[at] == ","
                key, member = str(index), at
                if is_object:
                    key, at = json.JSONDecoder().raw_decode(text, at)
                    at += 1
                at = self._walk(at, member, f"{path}.{key}" if path else key)
                index += 1
            at += 1
        else:
            _, at = json.JSONDecoder().raw_decode(text, at)
        self.values.append(_Value(path, start, at, begins))
        return at


_SCHEMA = {
    "type": "object",
    "properties": {"model": {"type": "string"}, "depth": {"type": "integer"}},
    "required": ["model"],
}
_TOOL = {"name": "look_up", "description": "Look a thing up", "input_schema": _SCHEMA}
_IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
_PAPER = {
    "type": "document",
    "title": "Report",
    "source": {"type": "text", "media_type": "text/plain", "data": "Sales"},
}
_ASKED = f"Classify this ticket as billing or technical: it fails. {BLANK.decode()}"
_PLAIN = {
    "model": "claude-sonnet-5-5",
    "max_tokens": 64,
    "messages": [{"role": "user", "content": _ASKED}],
}
_RICH = [
    _PLAIN,
    {**_PLAIN, "stream": True, "temperature": 0.5, "top_p": 0.9, "top_k": 40, "stop_sequences": ["###"]},
    {**_PLAIN, "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
     "metadata": {"user_id": "user-1"}, "service_tier": "auto"},
    {**_PLAIN, "model": "claude-haiku-5-5", "thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 2048},
    {**_PLAIN, "model": "claude-opus-5-5", "tools": [_TOOL, {"type": "web_search_20250305", "name": "web_search"}],
     "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
    {**_PLAIN, "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": _SCHEMA}}},
    {**_PLAIN, "tools": [_TOOL], "messages": [
        {"role": "user", "content": [{"type": "text", "text": _ASKED}, _IMAGE, _PAPER]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"},
            {"type": "tool_use", "id": "toolu_1", "name": "look_up", "input": {"model": "a", "depth": 1}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "toolu_1", "is_error": False,
             "content": [{"type": "text", "text": "found"}]},
            {"type": "text", "text": "Go on", "cache_control": {"type": "ephemeral"}}]}]},
    {**_PLAIN, "container": "c1", "context_management": {"edits": [{"type": "clear_tool_uses_20250919", "keep": 1}]},
     "mcp_servers": [{"type": "url", "url": "https://mcp.test", "name": "m", "authorization_token": "t"}]},
]  # fmt: skip
TEMPLATES = [Template(body) for body in _RICH]
_MINIMAL = b'{"model":"claude-sonnet-5-5","max_tokens":9,"messages":[{"role":"user","content":"%b"}]'  # without its end


def _json_kind(dice: random.Random, nonce: bytes) -> Made:
    """A body that is no JSON (F37)."""
    template = dice.choice(TEMPLATES)
    raw = template.raw
    way = dice.randrange(13)
    if way == 0:
        at = dice.choice(template.containers).end - 1
        raw = raw[:at] + b"," + raw[at:]
    elif way == 1:
        raw = dice.choice((b"\xef\xbb\xbf", b"/* a */", b"// a\n", b"\0", b"\x0b", b"\xc2\xa0", b"#\n")) + raw
    elif way == 2:
        raw += dice.choice((raw, b"{}", b"x", b"// a", b"\0", b",", b"}", b"\x1a", b";", b"\n{", b" 1"))
    elif way == 3:
        raw = raw.decode().encode(dice.choice(("utf-16", "utf-16-le", "utf-16-be", "utf-32")))
    elif way == 4:
        raw = dice.choice(
            (b"", b" ", b"1", b"null", b"true", b'"x"', b"[]", b"[{}]", b"-", b"{", b"nul", b'"', b"\n\n")
        )
    elif way == 5:
        raw = raw[: dice.randrange(1, len(raw))]
    elif way == 6:
        raw = raw.replace(b'"', b"'")
    elif way == 7:
        each = dice.choice(template.members)
        key = raw[each.begins : each.start - 1]
        raw = raw[: each.begins] + key.replace(b'"', b"") + raw[each.start - 1 :]
    elif way == 8:
        each = dice.choice(template.members)
        raw = raw[: each.start - 1] + dice.choice((b"", b"=", b"::", b";", b",")) + raw[each.start :]
    elif way == 9:
        at = dice.choice(template.strings).start + 1
        raw = raw[:at] + bytes([dice.choice((*range(0x20), 0x22))]) + raw[at:]
        if raw[at : at + 2] == b'""' or raw[at] == 0x22:
            raw = raw[: at + 1] + b"x" + raw[at + 1 :]
    elif way == 10:
        at = dice.choice(template.strings).start + 1
        raw = raw[:at] + dice.choice((b"\\x41", b"\\a", b"\\u12 ", b"\\u12g4", b"\\'", b"\\U0001f600")) + raw[at:]
    elif way == 11:
        at = dice.choice(template.strings).start + 1
        raw = raw[:at] + dice.choice(_BROKEN_TEXT) + raw[at:]
    else:
        each = dice.choice(template.values)
        raw = raw[: each.start] + dice.choice(_NO_VALUES) + raw[each.end :]
    return _posted(dice, nonce, raw, _REFUSED, calls=0)


_BROKEN_TEXT = (
    b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xed\xb0\x80", b"\xf5\x80\x80\x80", b"\xe2\x82", b"\x80",
    b"\xf4\x90\x80\x80",
    b"\\ud800", b"\\udc00", b"\\udc00\\ud800", b"\\ud83dx", b"\xfe", b"\xf8\x88\x80\x80\x80", b"\xe0\x80\xaf",
)  # fmt: skip
_NO_VALUES = (
    b"NaN", b"Infinity", b"-Infinity", b"nan", b"undefined", b"None", b"True", b"01", b"+1", b".5", b"1.", b"0x10",
    b"1e", b"1e+", b"--1", b"1_0", b"\xef\xbc\x91", b"-", b"1,000", b",", b"{1:2}", b"[1 2]", b"'x'", b"`x`", b"0b1",
    b"-01", b"1.e5", b"{,}", b"[,]", b"<x/>", b"-NaN",
)  # fmt: skip


def _duplicate(dice: random.Random, nonce: bytes) -> Made:
    """A key that comes twice, perhaps in another spelling (F39)."""
    template = dice.choice(TEMPLATES)
    raw = template.raw
    each = dice.choice(template.members)
    key, value = raw[each.begins : each.start - 1], raw[each.start : each.end]
    if dice.random() < 0.5:  # `model` → `mod\u0065l`
        at = dice.randrange(1, len(key) - 1)
        code = dice.choice((b"\\u%04x", b"\\u%04X")) % key[at]
        key = key[:at] + code + key[at + 1 :]
    if dice.random() < 0.5:
        value = dice.choice((b'"claude-opus-5-5"', b"null", b"1", b"{}", value))
    member = dice.choice((b"%b:%b", b"%b : %b", b"%b:\n%b")) % (key, value)
    if dice.random() < 0.5:
        raw = raw[: each.begins] + member + b"," + raw[each.begins :]
    else:
        raw = raw[: each.end] + b"," + member + raw[each.end :]
    return _posted(dice, nonce, raw, _REFUSED, calls=0)


_NUMBERS = (
    b"1e400", b"-1e400", b"-0", b"-0.0", b"1E5", b"1e-400", b"123456789012345678901234567890", b"9007199254740993",
    b"18446744073709551615", b"18446744073709551616", b"-9223372036854775809", b"0.1000000000000000055511151231257827",
    b"1" * 300, b"1" * 5000, b"0." + b"3" * 4000, b"1e" + b"9" * 20, b"1.0", b"64.0", b"5e-324", b"1" * 4301,
)  # fmt: skip
_ODD = (
    *_NUMBERS, b"null", b"true", b"false", b"0", b"1", b"-1", b'""', b'" "', b'"x"', b"[]", b"{}", b"[[]]", b"[null]",
    b"[{}]", b'{"":null}', b'{"type":null}', b'{"type":"text"}', b'[{"type":"text","text":null}]', b'{"type":[]}',
    b'[{"type":"tool_use","input":[]}]', b'"\\u0000"', b'"auto"', b'"lane:nowhere"', b'"lane:"', b'"ephemeral"',
    b'{"type":"ephemeral","ttl":1}', b"[1,2,3]", b'[["a","b"]]', b'"' + b"x" * 2000 + b'"', b"[" * 60 + b"]" * 60,
    b'{"a":' * 100 + b"1" + b"}" * 100, b'"\\r\\nx-evil: 1"', b'"\\u2028"', b'"../../etc/passwd"', b'"{{7*7}}"',
)  # fmt: skip


def _typed(dice: random.Random, nonce: bytes) -> Made:
    """Values of a wrong type or size in any place (F38, wrong types); what the router reads itself is refused."""
    template = dice.choice(TEMPLATES)
    raw = template.raw
    chosen = sorted(dice.sample(template.values, dice.choice((1, 1, 1, 2, 3))), key=lambda each: -each.end)
    last = len(raw) + 1
    paths = set()
    for each in chosen:
        if each.end > last:
            continue
        paths.add(each.path)
        last = each.begins
        way = dice.random()
        if way < 0.75 or not each.path:
            raw = raw[: each.start] + dice.choice(_ODD) + raw[each.end :]
        elif way < 0.9:  # taken out
            end = each.end + (raw[each.end : each.end + 1] == b",")
            begins = each.begins - (end == each.end and raw[each.begins - 1 : each.begins] == b",")
            raw = raw[:begins] + raw[end:]
        elif each.begins == each.start:  # an element, many times
            raw = raw[: each.end] + (b"," + raw[each.start : each.end]) * dice.randrange(1, 30) + raw[each.end :]
    return _posted(dice, nonce, raw, _REFUSED if paths <= {""} else (200, 400, 404))  # 404: a lane that is not there


def _own(dice: random.Random, nonce: bytes) -> Made:
    """A wrong type in what the router itself must read: it is refused here."""
    name, wrong = dice.choice(_OWN)
    template = dice.choice(TEMPLATES)
    raw = template.raw
    [each] = [each for each in template.values if each.path == name]
    value = dice.choice(wrong)
    return _posted(dice, nonce, raw[: each.start] + value + raw[each.end :], _REFUSED, calls=0)


_OWN = (
    ("model", (b"null", b"1", b"[]", b"{}", b'""', b"true", b'"' + b"m" * 5000 + b'"', b'["claude-haiku-5-5"]')),
    ("messages", (b"null", b"1", b"[]", b"{}", b'"x"', b"[1]", b"[null]", b"[[]]",
                  b'[{"content":"x"}]', b'[{"role":1}]')),
    ("max_tokens", (b"null", b'"64"', b"1.5", b"-1", b"true", b"[]", b"{}", b"64.0", b"6e1", b"-100000")),
)  # fmt: skip


def _deep(dice: random.Random, nonce: bytes) -> Made:
    """Nesting, width and length (F40)."""
    way = dice.random()
    if way < 0.8:
        depth = dice.choice((256, 300, 500, 1000, 1000, 2000, 5000) if way < 0.76 else (20_000, 100_000))
        opened, closed = dice.choice(((b"[", b"]"), (b'{"a":', b"}"), (b'[{"a":', b"}]")))
        nest = opened * depth + b"1" + closed * depth
        if dice.random() < 0.2:
            nest = opened * depth  # and no end
        return _posted(dice, nonce, _MINIMAL % nonce + b',"x":%b}' % nest, (400, 413), calls=0)
    if way < 0.95:
        count = dice.choice((200, 1000, 1000, 20_000 if way > 0.94 else 500))
        spelling = dice.choice((b'"k%d":%d', b'"%d":%d', b'"\\u0061%d":%d', b'"aaaaaaaaaaaaaaaa%d":%d'))
        wide = b",".join(spelling % (number, number) for number in range(count))
        if dice.random() < 0.5:
            wide += b"," + spelling % (dice.randrange(count), 0)
            return _posted(dice, nonce, _MINIMAL % nonce + b',"x":{%b}}' % wide, _REFUSED, calls=0)
        return _posted(dice, nonce, _MINIMAL % nonce + b',"x":{%b}}' % wide, _SERVED)
    size = dice.choice((10_000, 50_000, 100_000, 100_000 if way < 0.998 else 1_500_000))
    filler = dice.choice((b"a", b"\\n", b"\\u0000", b"\xcc\x81", b"\xf0\x9f\x98\x80", b'\\"', b"model"))
    text = filler * (size // len(filler))
    return _posted(dice, nonce, _MINIMAL % (nonce + text) + b"}", _SERVED)


def _text(dice: random.Random, nonce: bytes) -> Made:
    """Odd text that is JSON all the same (F41): it passes as it is."""
    template = dice.choice(TEMPLATES)
    raw = template.raw
    text = dice.choice(_ODD_TEXT) * dice.choice((1, 1, 5, 50))
    each = dice.choice([each for each in template.strings if each.path != "model"])
    at = each.start + 1
    return _posted(dice, nonce, raw[:at] + text + raw[at:], _EITHER)


_ODD_TEXT = tuple(
    text.encode()
    for text in (
        "\\u0000", "\u202e", "\u0301" * 40, "\u2028", "\ufeff", "\uffff", "\U0010ffff", "\\ud83d\\ude00", "\ud7ff",
        "\u200b", "\\r\\n\\r\\n", "event: error\\ndata: {}\\n\\n", "<script>", "%s%n", "$(id)", "\\u001b[31m", "\x7f",
        "\u0085",
        "=1+1", "';--", "\\\\", '\\"', "\ufdd0", "\ue000", "ﷺ", "ⅷ", "\u1160", "\\b\\f", "data: [DONE]",
    )
)  # fmt: skip


def _around(dice: random.Random, nonce: bytes) -> Made:
    """Content types (F42), content codings (F43), the router's own headers and others with odd values."""
    template = dice.choice(TEMPLATES)
    way = dice.randrange(4)
    if way == 0:
        kind = dice.choice(_TYPES)
        return _posted(dice, nonce, template.raw, _SERVED, headers=() if kind is None else (b"content-type: " + kind,))
    if way == 1:
        coding = dice.choice(
            (b"gzip", b"br", b"zstd", b"deflate", b"x", b"gzip, gzip", b"GZIP", b"identity, gzip", b"*")
        )
        body = dice.choice((template.raw, zlib.compress(template.raw), _BOMB, b"\x1f\x8b"))
        return _posted(dice, nonce, body, (400, 415), calls=0, headers=(b"content-encoding: " + coding,))
    name = dice.choice(_OWN_HEADERS if way == 2 else _OTHER_HEADERS)
    value = dice.choice(_HEADER_VALUES)
    return _posted(dice, nonce, template.raw, (200, 400, 403, 404, 422), headers=(name + b": " + value,), body=None)


_BOMB = zlib.compress(b"[" * 10_000_000, 9)
_TYPES = (
    None, b"", b"text/plain", b"application/x-www-form-urlencoded", b"multipart/form-data; boundary=x", b"*/*", b"x",
    b"application/json; charset=utf-16", b"application/json;charset=latin-1", b"application/xml", b"APPLICATION/JSON",
    b"application/json, text/plain", b"application/json;;;", b'application/json; charset="', b"\xff",
)  # fmt: skip
_OWN_HEADERS = (
    b"x-router-lane", b"x-router-cache", b"x-router-policy", b"x-router-model", b"x-router-trace", b"x-router-rule",
    b"traceparent", b"tracestate", b"baggage",
)  # fmt: skip
_OTHER_HEADERS = (
    b"anthropic-beta", b"user-agent", b"accept", b"accept-encoding", b"idempotency-key", b"x-forwarded-for",
    b"x-stainless-retry-count", b"x-request-id", b"forwarded", b"via", b"cookie", b"range", b"if-match", b"te",
    b"x-claude-code-session-id", b"origin", b"x-http-method-override", b"proxy-authorization", b"cache-control",
)  # fmt: skip
_HEADER_VALUES = (
    b"", b"haiku", b"HAIKU", b"nowhere", b"lane:haiku", b"haiku, opus", b"no-store", b"refresh", b"no-cache,refresh",
    b"off", b"x" * 4000, b"\xff\xfe", b"\xe2\x80\xae", b"../../x", b"' or 1=1 --", b"%0d%0aset-cookie: a", b"{}",
    b"null", b"*", b"0", b"00-00000000000000000000000000000000-0000000000000000-00",
    b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01", b"ff-x-y-z",
    b"00-" + b"A" * 32 + b"-" + b"b" * 16 + b"-01-extra", b"a=1," * 500, b"respond-async", b"wait=-1",
    b"context-1m-2025-08-07", b"a,b,,c, ,", b"\t", b'"', b"=?utf-8?q?x?=", b"127.0.0.1, 10.0.0.1",
    b"bytes=0-0,1-1,2-2", b"1" * 400, b"-1", b"NaN",
)  # fmt: skip


_TARGETS = (b"/v1/messages",) * 12 + (
    b"/v1/messages?beta=true", b"/v1/messages/count_tokens", b"/p/swap/v1/messages", b"/p/swap/v1/messages",
    b"/p/adapt/v1/messages", b"/p/adapt/v1/messages", b"/p/swap/v1/messages/count_tokens",
)  # fmt: skip


def _posted(
    dice: random.Random, nonce: bytes, raw: bytes, statuses: tuple[int, ...], *, calls: int = 1,
    headers: tuple[bytes, ...] = (), body: bytes | None = b"",
) -> Made:  # fmt: skip
    """A body in a proper request; `body` is left out where what reaches the upstream is not to be compared."""
    raw = raw.replace(BLANK, nonce)
    target = dice.choice(_TARGETS)
    data = kept(b"POST %b HTTP/1.1" % target, nonce, raw, headers)
    expected = raw if body is not None and not target.startswith(b"/p/adapt") else None
    if calls and target.endswith(b"count_tokens") and 200 not in statuses:
        statuses = (*statuses, 200)
    return Made("", data, statuses, calls, expected)


BODIES: tuple[tuple[str, Callable[[random.Random, bytes], Made], float], ...] = (
    ("no json", _json_kind, 16), ("key twice", _duplicate, 8), ("wrong values", _typed, 20),
    ("wrong own values", _own, 6), ("deep, wide, long", _deep, 2), ("odd text", _text, 5), ("around", _around, 7),
)  # fmt: skip
