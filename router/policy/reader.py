"""Values of a given shape out of nodes: what has another shape is reported and left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unicodedata import category

from router.policy.grammar import VERSION, KeySpec
from router.policy.source import Node, Source
from router.policy.words import duration_s, near, seen, shown

_CONTROLS = ("Cc", "Zl", "Zp")  # of Unicode: control characters, separators of lines and paragraphs


class Reader:
    """Reads the nodes of one source."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def keys(self, node: Node | None, table: Sequence[KeySpec], what: str) -> dict[str, Node] | None:
        """The entries of a mapping whose keys `table` declares; None (reported) when it is not a mapping."""
        if node is None:
            return None
        if node.kind != "map":
            self.source.report(node, f"{what} must be a mapping, this is {seen(node)}")
            return None
        names = [spec.name for spec in table]
        found: dict[str, Node] = {}
        for key, value in node.pairs():
            if key.value not in names:
                hint = near(key.value, names, f"{what} takes {', '.join(f'`{name}`' for name in names)}")
                self.source.report(key, f"unknown key `{key.value[:60]}` in {what}", hint)
            elif value.kind == "null":
                is_required = any(spec.name == key.value and spec.is_required for spec in table)
                hint = "give it one" if is_required else "give it one or take the key out"
                self.source.report(key, f"`{key.value}` of {what} has no value", hint)
                found.pop(key.value, None)
            else:
                found[key.value] = value
        written = {key.value for key, _ in node.pairs()}
        for spec in table:
            if spec.is_required and spec.name not in written:
                self.source.report(
                    node, f"{what} has no `{spec.name}`", spec.meaning[0].lower() + spec.meaning[1:].rstrip(".")
                )
        return found

    def items(self, node: Node | None, what: str, limit: int) -> tuple[Node, ...]:
        """The items of a list; nothing (reported) when it is another thing or too long."""
        if node is None:
            return ()
        if node.kind != "list":
            self.source.report(node, f"`{what}` must be a list, this is {seen(node)}", "begin each entry with `- `")
            return ()
        if len(node.value) > limit:
            self.source.report(node, f"{len(node.value):,} {what}, at most {limit:,} are taken")
            return ()
        return tuple(node.value)

    def version(self, node: Node | None) -> None:
        """Report a version that is not ours."""
        if node is not None and (node.kind != "integer" or node.value != VERSION):
            self.source.report(
                node, f"version `{shown(node)}` is not known", f"this router reads `version: {VERSION}`, without quotes"
            )

    def text(self, node: Node, what: str) -> str | None:
        """A text that says something."""
        if node.kind == "text" and node.value.strip():
            return str(node.value)
        self.source.report(
            node,
            f"{what} must be a text, this is {seen(node)}",
            "quote it" if node.kind in ("integer", "number", "flag") else "",
        )
        return None

    def line(self, node: Node, what: str) -> str | None:
        """A text that goes into headers, logs and lines of reports: no line breaks, no other control characters."""
        text = self.text(node, what)
        odd = next((char for char in text or "" if category(char) in _CONTROLS), None)
        if odd is None:
            return text
        hint = "a block scalar that ends in `-`, as in `>-`, is one line" if odd == "\n" else "take it out"
        self.source.report(node, f"{what} holds the control character U+{ord(odd):04X}", hint)
        return None

    def choice(self, node: Node | None, what: str, choices: tuple[str, ...]) -> Any:
        """One of `choices`; the first of them when nothing or another thing stands there."""
        if node is None:
            return choices[0]
        if node.value not in choices:
            listed = " or ".join(f"`{choice}`" for choice in choices)
            self.source.report(node, f"{what} must be {listed}, this is {seen(node)}", near(str(node.value), choices))
            return choices[0]
        return node.value

    def texts(self, node: Node | None, what: str) -> tuple[str, ...]:
        """One line, or a list of lines."""
        if node is None:
            return ()
        nodes = node.value if node.kind == "list" else (node,)
        return tuple(text for item in nodes if (text := self.line(item, f"an entry of {what}")) is not None)

    def duration(self, node: Node, what: str) -> float | None:
        """Seconds."""
        seconds = duration_s(node.value)
        if seconds is None:
            self.source.report(
                node, f"{what} must be a duration, this is {seen(node)}", "such as `500ms`, `30s`, `5m`, `1h` or `7d`"
            )
        return seconds

    def flag(self, node: Node | None, what: str, *, otherwise: bool) -> bool:
        """`true` or `false`."""
        if node is None:
            return otherwise
        if node.kind != "flag":
            hint = "take the quotes away" if node.value in ("true", "false") else ""
            self.source.report(node, f"{what} must be `true` or `false`, this is {seen(node)}", hint)
            return otherwise
        return node.value is True
