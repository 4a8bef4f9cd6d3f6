"""The strict YAML reader: what it takes, what it refuses, and that nothing makes it fall over."""

from __future__ import annotations

import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from router.policy.source import MAX_FILE_BYTES, Diagnostic, Node, read_source, render, resolve

plain_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**17), 10**17) | st.text(st.characters(codec="utf-8"), max_size=12),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("abcxyz ", min_size=1, max_size=6), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(plain_values)
def test_what_a_dumper_writes_is_read_back(value: object) -> None:
    """For text that YAML readers agree on, our nodes hold what PyYAML put in."""
    text = yaml.safe_dump({"value": value}, allow_unicode=True)
    source = read_source("x.yaml", text.encode("utf-8", "surrogatepass"))
    unclear = any(node.kind == "unclear" for node in nodes(source.root))
    if source.root is not None and not source.diagnostics and not unclear:
        assert source.root.plain() == {"value": value}


def nodes(root: Node | None) -> list[Node]:
    if root is None:
        return []
    inner = [part for pair in root.pairs() for part in pair] if root.kind == "map" else []
    inner += root.value if root.kind == "list" else []
    return [root, *(node for part in inner for node in nodes(part))]


@given(st.binary(max_size=200) | st.text("abc: -[]{}#&*!|>'\"%@`,?\n\t 01._~<=", max_size=80).map(str.encode))
def test_no_bytes_make_the_reader_fail(data: bytes) -> None:
    """Whatever a file holds, the answer is nodes or a diagnostic that prints on lines of its own."""
    source = read_source("x.yaml", data)
    assert (source.root is None) <= bool(source.diagnostics)
    printed = render(source.diagnostics)
    assert all(line == "" or line.isprintable() for line in printed.split("\n"))


@pytest.mark.parametrize(
    "data",
    [
        b"x" * (50 * 1024 * 1024),
        b"- {name: a, when: {stream: true}, route: x}\n" * 24_000,
        b"[" * 20_000,
        b"a: " * 300_000,
        b"".join(b"%s- a:\n" % (b"  " * i) for i in range(1000)),
        b"a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: [*b,*b,*b,*b,*b,*b,*b,*b,*b]",
    ],
    ids=["50 MB", "24,000 rules", "20,000 deep", "one long line", "1,000 deep blocks", "alias bomb"],
)
def test_a_bomb_is_refused_at_once(data: bytes) -> None:
    """Size, depth, count and alias caps: under a second, whatever the file."""
    before = time.process_time()
    source = read_source("x.yaml", data)
    assert source.diagnostics
    assert time.process_time() - before < 1


SURPRISES = (
    "no Yes ON off y 012 -07 0o17 0x1F 1:30 12:30:00 1e3 1.5E-2 .5 5. +1 1_000 .inf -.INF .nan "
    "2026-11-22 2026-11-22T10:00:00Z True FALSE Null ~ 9999999999999999999"
)


@pytest.mark.parametrize("text", SURPRISES.split())
def test_what_readers_disagree_on_is_a_surprise(text: str) -> None:
    """An unquoted scalar that another YAML reader would take for something else is refused by name."""
    assert resolve(text)[2] is not None
    quoted = read_source("x.yaml", f'a: "{text}"'.encode())
    assert quoted.diagnostics == []
    assert quoted.root is not None
    assert quoted.root.plain() == {"a": text}


PLAIN = {"true": True, "false": False, "null": None, "0": 0, "-5": -5, "0.5": 0.5}


@pytest.mark.parametrize("text", [*PLAIN, "1h", "500ms", "1MB", "claude-haiku-5-5", "note", "-", "1.2.3"])
def test_what_readers_agree_on_is_taken(text: str) -> None:
    """`true`, `false`, `null`, whole and decimal numbers; everything else is text."""
    assert resolve(text)[1:] == (PLAIN.get(text, text), None)


def test_a_long_line_is_shown_around_the_caret() -> None:
    """The caret stands under the fault, however far right it is, and a fault is never printed by the kilobyte."""
    text = "a: [" + "x, " * 500 + "no]"
    printed = render(read_source("x.yaml", text.encode()).diagnostics).split("\n")
    assert len(printed[1]) < 160
    assert printed[1][printed[2].index("^") :].startswith("no]")


def test_very_many_diagnostics_are_cut() -> None:
    """A hopeless file does not fill the log."""
    printed = render([Diagnostic("x.yaml", 0, 0, "wrong")] * 1000)
    assert printed.endswith("and 800 more")


def test_a_file_just_over_the_limit_is_refused() -> None:
    """1 MiB is read, one byte more is not."""
    comment = b"a: 1\n#"
    assert read_source("x", comment + b"x" * (MAX_FILE_BYTES - len(comment))).diagnostics == []
    assert read_source("x", comment + b"x" * (MAX_FILE_BYTES - len(comment) + 1)).diagnostics


@pytest.mark.parametrize("odd", ["\x85", "\u2028", "\u2029"])
def test_a_character_that_only_some_readers_take_for_a_line_break_is_refused(odd: str) -> None:
    """YAML 1.1 and 1.2 disagree on it, so the file would say two things."""
    [found] = read_source("x.yaml", f"a: 1\nb: x{odd}y\n".encode()).diagnostics
    assert (found.line, found.col) == (2, 5)
