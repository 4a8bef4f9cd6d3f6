"""YAML text → nodes with line and column; the diagnostics that every later step adds to.

PyYAML's own constructors are too kind: duplicate keys keep the last, `no` is False, `012` is 10, `1:30` is 90, `1e3` is
a string, and a 300-byte alias bomb explodes when walked. So only its C scanner is used: we read its events, build our
own nodes without recursion, refuse what surprises people, and stop at fixed sizes. A value is text, a whole or decimal
number, `true`, `false`, `null`, a list or a mapping. Source: YAML 1.1 and 1.2, section 10 (tag resolution).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml
from yaml._yaml import CParser

MAX_FILE_BYTES = 1024 * 1024
MAX_FOLDER_BYTES = 4 * MAX_FILE_BYTES
MAX_DEPTH = 40
MAX_LINES = 50_000
MAX_NODES = 25_000  # a thousand rules of two dozen values each
MAX_DIAGNOSTICS = 200  # of one folder: enough to work on, and a bound on what a broken file can cost
_MOST_NUMBER_CHARS = 64
_SHOWN_CHARS = 140  # of a source line

# `unclear` is a value that has been complained of already; nothing more is said about it.
NodeKind = Literal["text", "integer", "number", "flag", "null", "list", "map", "unclear"]


@dataclass(frozen=True, slots=True)
class Node:
    """One value of a YAML file and where it stands; `line` and `col` count from 1.

    `value` is str, int, float, bool, None, a tuple of Nodes (list) or a tuple of (key Node, value Node) pairs (map).
    """

    kind: NodeKind
    value: Any
    line: int
    col: int
    width: int = 1  # characters of it on its first line

    def pairs(self) -> Iterator[tuple[Node, Node]]:
        """The entries of a mapping; nothing for any other kind."""
        return iter(self.value if self.kind == "map" else ())

    def plain(self) -> Any:
        """The value as plain Python data. Depth is bounded by MAX_DEPTH."""
        if self.kind == "list":
            return [item.plain() for item in self.value]
        if self.kind == "map":
            return {key.value: value.plain() for key, value in self.value}
        return self.value


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One thing wrong with a policies folder: where, what, and what to do about it. `line` 0 means the whole file."""

    file: str
    line: int
    col: int
    message: str
    hint: str = ""
    source: str = ""  # the line of the file
    width: int = 1

    def render(self) -> str:
        """The diagnostic as people read it: place and message, the source line, a caret under it, the hint."""
        if not self.line:
            text = f"{self.file}: {visible(self.message)}"
        else:
            text = f"{self.file}:{self.line}:{self.col}: {visible(self.message)}"
            if self.source.strip():
                start = max(0, self.col - 1 - _SHOWN_CHARS // 2) if len(self.source) > _SHOWN_CHARS else 0
                shown = self.source[start : start + _SHOWN_CHARS].rstrip()
                caret = "^" * max(1, min(self.width, len(shown) - (self.col - 1 - start)))
                text += f"\n{self.line:>5} | {visible(shown)}\n      | {' ' * (self.col - 1 - start)}{caret}"
        return f"{text}\n  hint: {visible(self.hint)}" if self.hint else text


@dataclass(slots=True)
class Source:
    """One policy file as read: its nodes, its lines, and what is wrong with it so far.

    `root` is None when the text is not YAML of the kind we take. `name` is the file's name, `label` how it is printed.
    """

    name: str
    label: str
    lines: list[str]
    root: Node | None = None
    diagnostics: list[Diagnostic] = field(default_factory=list)

    def report(self, at: Node | None, message: str, hint: str = "") -> None:
        """Add a diagnostic at a node, or about the whole file; an `unclear` node has had its own."""
        if at is None:
            self.diagnostics.append(Diagnostic(self.label, 0, 0, message, hint))
        elif at.kind != "unclear":
            self.report_place(at.line, at.col, message, hint, at.width)

    def report_place(self, line: int, col: int, message: str, hint: str = "", width: int = 1) -> None:
        """Add a diagnostic at a line and column, both from 1."""
        text = self.lines[line - 1] if line <= len(self.lines) else ""
        self.diagnostics.append(Diagnostic(self.label, line, col, message, hint, text, width))


def render(diagnostics: list[Diagnostic]) -> str:
    """All diagnostics as one text, in the order given; a very long list is cut and says so."""
    shown = [diagnostic.render() for diagnostic in diagnostics[:MAX_DIAGNOSTICS]]
    if len(diagnostics) > MAX_DIAGNOSTICS:
        shown.append(f"and {len(diagnostics) - MAX_DIAGNOSTICS} more")
    return "\n".join(shown)


def read_source(name: str, data: bytes, label: str = "") -> Source:
    """Read one file. Never raises: what is wrong is in `diagnostics`, and then `root` may be None."""
    source = Source(name, visible(label or name), [])
    if len(data) > MAX_FILE_BYTES:
        source.report(
            None, f"{len(data):,} bytes, at most {MAX_FILE_BYTES:,} are read", "split the policy into several"
        )
        return source
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        source.report_place(line, 1, f"byte 0x{data[error.start]:02x} is not UTF-8", "save the file as UTF-8")
        return source
    for odd in _ODD_BREAKS:
        if odd in text:
            at = text.index(odd)
            line, col = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
            message = f"U+{ord(odd):04X} is a line break for some readers of YAML and a character for others"
            source.report_place(line, col, message, "take it out, or write it as an escape in double quotes")
            return source
    source.lines = text.splitlines()
    if len(source.lines) > MAX_LINES:
        problem = f"{len(source.lines):,} lines, at most {MAX_LINES:,} are read"
        source.lines = []
        source.report(None, problem, "split the policy into several")
        return source
    for number, line_text in enumerate(source.lines, 1):
        indent = line_text[: len(line_text) - len(line_text.lstrip())]
        if "\t" in indent and line_text.strip():
            source.report_place(number, indent.index("\t") + 1, "a tab indents this line", "use spaces")
    if source.diagnostics:
        return source
    try:
        root = _Builder(source).build(text)
    except _TooMuch:
        return source
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, col = (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
        problem = " ".join(str(part) for part in (error.context, error.problem) if part)
        source.report_place(line, col, f"not YAML: {problem}", "look at the indentation, quotes and brackets here")
        return source
    except yaml.YAMLError as error:  # the one other kind: a character that no YAML file may hold
        position = getattr(error, "position", 0)
        line, col = text.count("\n", 0, position) + 1, position - text.rfind("\n", 0, position)
        source.report_place(line, col, f"not YAML: {getattr(error, 'reason', error)}", "take the character out")
        return source
    if root is None or root.kind == "null":
        source.report(None, "the file holds nothing")
        return source
    source.root = root
    return source


_ODD_BREAKS = ("\x85", "\u2028", "\u2029")  # line breaks in YAML 1.1, not in 1.2


class _TooMuch(Exception):
    """The file is refused already; there is no use in reading on."""


class _Builder:
    """Events of the scanner → nodes, with a stack instead of recursion."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._nodes = 0

    def build(self, text: str) -> Node | None:
        parser = CParser(text)
        stack: list[tuple[Any, list[Node]]] = []
        root: Node | None = None
        documents = 0
        try:
            while parser.check_event():
                event = parser.get_event()
                if isinstance(event, yaml.DocumentStartEvent):
                    documents += 1
                    if documents > 1:
                        self._refuse(event, "a second document starts here", "one policy per file")
                        raise _TooMuch
                elif isinstance(event, yaml.AliasEvent):
                    self._refuse(event, f"alias `*{event.anchor}` is not taken", "write the value out")
                    raise _TooMuch
                elif isinstance(event, yaml.NodeEvent):
                    self._check(event, len(stack))
                    if isinstance(event, yaml.CollectionStartEvent):
                        stack.append((event, []))
                    elif isinstance(event, yaml.ScalarEvent):
                        root = self._put(stack, self._scalar(event), root)
                elif isinstance(event, yaml.CollectionEndEvent):
                    start, items = stack.pop()
                    root = self._put(stack, self._collection(start, event, items), root)
        finally:
            parser.dispose()
        return root

    @staticmethod
    def _put(stack: list[tuple[Any, list[Node]]], node: Node, root: Node | None) -> Node | None:
        if not stack:
            return node
        stack[-1][1].append(node)
        return root

    def _check(self, event: Any, depth: int) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            self._refuse(event, f"more than {MAX_NODES:,} values in one file", "split the policy into several")
            raise _TooMuch
        if depth > MAX_DEPTH:
            self._refuse(event, f"nested more than {MAX_DEPTH} deep", "a condition this deep cannot be read either")
            raise _TooMuch
        if event.anchor is not None:
            self._refuse(event, f"anchor `&{event.anchor}` is not taken", "write the value out where it is used")
        if event.tag is not None:
            self._refuse(event, f"tag `{event.tag}` is not taken", "quote the value if it is meant as text")

    def _refuse(self, event: Any, message: str, hint: str) -> None:
        mark = event.start_mark
        width = event.end_mark.column - mark.column if event.end_mark.line == mark.line else 1
        self._source.report_place(mark.line + 1, mark.column + 1, message, hint, max(1, width))

    def _collection(self, start: Any, end: Any, items: list[Node]) -> Node:
        mark = start.start_mark
        is_flow_line = bool(start.flow_style) and end.end_mark.line == mark.line
        place = (mark.line + 1, mark.column + 1, end.end_mark.column - mark.column if is_flow_line else 1)
        if isinstance(start, yaml.SequenceStartEvent):
            return Node("list", tuple(items), *place)
        pairs: list[tuple[Node, Node]] = []
        seen: dict[str, Node] = {}
        for key, value in zip(items[::2], items[1::2], strict=True):
            if key.kind != "text":
                self._source.report(key, f"a key must be text, this is {_a(key.kind)}", "quote it")
            elif key.value == "<<":
                self._source.report(key, "a merge key (`<<`) is not taken", "write the entries out")
            elif key.value in seen:
                self._source.report(
                    key, f"key `{_short(key.value)}` appears twice", f"the first is on line {seen[key.value].line}"
                )
            else:
                seen[key.value] = key
                pairs.append((key, value))
        return Node("map", tuple(pairs), *place)

    def _scalar(self, event: Any) -> Node:
        mark, end = event.start_mark, event.end_mark
        width = end.column - mark.column if end.line == mark.line else 1
        place = (mark.line + 1, mark.column + 1, max(1, width))
        text: str = event.value
        if event.tag is not None:
            return Node("unclear", text, *place)
        if event.style not in (None, ""):  # quoted or a block: always text
            return Node("text", text, *place)
        kind, value, surprise = resolve(text)
        if surprise:
            self._source.report(Node(kind, value, *place), f"`{_short(text)}` {surprise[0]}", surprise[1])
            return Node("unclear", value, *place)
        return Node(kind, value, *place)


_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})\Z")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,17})\.[0-9]{1,18}\Z")
# What may run on without end among the forms below: it is refused by its length, before a slower expression sees it.
_LIKE_A_NUMBER = re.compile(r"[-+.]{0,2}[0-9][-+0-9A-Fa-fxo_.:]*\Z")
_YES_NO = frozenset(("yes", "no", "on", "off", "y", "n"))
_QUOTE = 'quote it if it is meant as text: "…"'
_DATE = (re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt ].*)?\Z"), "is a date to some YAML readers", _QUOTE)
_SURPRISES = (
    (re.compile(r"[-+]?0[0-9_]+\Z"), "is octal to some YAML readers", "leave the leading zeros out, or quote it"),
    (re.compile(r"[-+]?0[xob][0-9a-fA-F_]+\Z"), "is not a decimal number", "write it in decimal, or quote it"),
    (re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9]*)?\Z"), "is a base-60 number to some YAML readers", _QUOTE),
    (re.compile(r"[-+]?(\.[0-9]+|[0-9]+\.?[0-9]*)[eE][-+]?[0-9]+\Z"), "is a number to some YAML readers only",
     "write the number out, or quote it"),
    (re.compile(r"[-+]?\.(inf|Inf|INF)\Z|\.(nan|NaN|NAN)\Z"), "is not a number that can be compared", _QUOTE),
    _DATE,
    (re.compile(r"[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)\Z"), "is not a number as we write them",
     "digits, at most one point with digits on both sides, no `+`, no `_`; or quote it"),
)  # fmt: skip


def resolve(text: str) -> tuple[NodeKind, Any, tuple[str, str] | None]:
    """What an unquoted scalar means: kind, value, and a complaint with a hint when YAML readers disagree on it."""
    if text in ("true", "false"):
        return "flag", text == "true", None
    if text in ("null", ""):
        return "null", None, None
    first = text[0]
    if first.isdigit() or first in "-+.":
        if len(text) > _MOST_NUMBER_CHARS and _LIKE_A_NUMBER.match(text):
            return "text", text, ("is too long for a number", "quote it if it is meant as text")
        if _INTEGER.match(text):
            return "integer", int(text), None
        if _NUMBER.match(text):
            return "number", float(text), None
        for pattern, problem, hint in _SURPRISES if len(text) <= _MOST_NUMBER_CHARS else (_DATE,):
            if pattern.match(text):
                return "text", text, (problem, hint)
    lower = text.lower()
    if lower in _YES_NO:
        return "text", text, ("is a truth value to some YAML readers", "write `true` or `false`, or quote it")
    if lower in ("true", "false", "null") or text == "~":
        proper = "null" if text == "~" else lower
        return "text", text, (f"is not how we write `{proper}`", f"write `{proper}`, or quote it")
    return "text", text, None


def visible(text: str) -> str:
    """Text for a terminal or a log: a control character, which could rewrite either, shows as a dot.

    So does half of a surrogate pair, which is how a byte of a file's name that is not UTF-8 reads.
    """
    return text if text.isprintable() else "".join(char if char.isprintable() else "·" for char in text)


def _a(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"


def _short(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else f"{text[:limit]}…"
