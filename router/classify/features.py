"""A Messages request as sparse features: bounded reads of its edges, at a cost that no document size moves.

Theory. The instruction of a request stands in the system prompt, or in the first or the last line of the last user
turn; what lies between is mostly the document it speaks about. So the request is read as five places of text: the
head of the system prompt, the first line, the last line, and a stretch next to each of these two; and a sixth of
structure: tools, parameters, lengths, signs. The places are judged apart and mixed by the model, so that an
instruction outvotes a document. Words are bytes: one `bytes.translate` folds case, digits and punctuation in a fixed
number of C calls, and words and neighbouring pairs are looked up in the model's vocabulary as they are. Sentences
that talk about the routing are taken out first (`classify.pressure`).

Every function takes any JSON value and treats what it does not know as absent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from itertools import pairwise
from typing import Any

from router.classify.pressure import has_cue, without_pressure
from router.value import value_class

# Characters read at each place; together they bound the cost of a label.
SYSTEM_HEAD, SYSTEM_TAIL = 600, 200
EDGE, LINE, STRETCH, SHAPE = 660, 180, 260, 330
# Blocks, tools and properties looked at, from either end; a body may legally hold thousands.
MAX_BLOCKS, MAX_TOOLS, MAX_PROPERTIES, MAX_TURNS_BACK = 8, 12, 12, 8
# Words kept of a place; only scripts without blanks, where a word is a pair of characters, come near.
SYSTEM_WORDS, TAIL_WORDS, LINE_WORDS, STRETCH_WORDS = 130, 40, 40, 60


def _fold_table() -> bytes:
    """ASCII upper case to lower, digits to `0`, all other ASCII that is no letter to a blank; UTF-8 bytes stay."""
    table = bytearray(b" " * 128 + bytes(range(128, 256)))
    for code in range(128):
        character = chr(code)
        if character.isalpha():
            table[code] = ord(character.lower())
        elif character.isdigit():
            table[code] = ord("0")
    return bytes(table)


_FOLD = _fold_table()


# Quotes, dashes and signs of Latin texts outside ASCII; folded to a blank before the words are cut.
_MARKS = tuple(mark.encode() for mark in "“”«»–—…¿¡")
_CODE_WORDS = (b"def ", b"import ", b"return ", b"self.")
# Made of signs but for `{` and a line break; looked for among the few signs before the text is searched.
_CODE_SIGNS = ((b"```", b"```"), (b"{", b"{\n"), (b");", b");"), (b"};", b"};"), (b"=>", b"=>"), (b"()", b"()"))
_OPTION_MARKS = (b"\nA)", b"\nA.", b"(A) ", b"ptions", b"hoices")
# What `bytes.translate` deletes to leave only digits, the signs that programs are full of, or those of maths.
_NO_DIGITS = bytes(sorted(set(range(256)) - set(b"0123456789")))
# Names of the steps of a coarse count; no text in memory is longer than the last.
_STEPS = tuple(str(step).encode() for step in range(33))
_NO_SIGNS = bytes(sorted(set(range(256)) - set(b"{}[]()=<>;_#*/+`")))
_NO_MATHS = bytes(sorted(set(range(256)) - set(b"$\\^=%")))


# A feature is a key of some kind, looked up among its own: a word, a pair as a tuple of its two words, or a shape that
# starts with `#`. A pair's name is its two words and the blank between them.
PLAIN, PAIR = range(2)
Key = bytes | tuple[bytes, bytes]
Part = tuple[int, Set[Key]]


@value_class(frozen=True, slots=True)
class Features:
    """What was read of one request: by place, the distinct keys of each kind that occurs there.

    `places` are the system prompt, the first and the last line of the last user turn, the stretch after the first and
    the stretch before the last, and at the end the structure. `length` counts the characters of that turn.
    """

    places: tuple[list[Part], ...]
    length: int


def names(parts: Iterable[Part]) -> list[bytes]:
    """The names of the features of a place, as the weights file spells them."""
    return [key if isinstance(key, bytes) else key[0] + b" " + key[1] for _, keys in parts for key in keys]


def kind_and_key(name: bytes) -> tuple[int, Key]:
    """The kind and the key of a feature by its name: `names` read backwards."""
    left, blank, right = name.partition(b" ")
    return (PAIR, (left, right)) if blank and not name.startswith(b"#") else (PLAIN, name)


def extract(body: Mapping[str, Any]) -> Features:
    """The features of one parsed Messages body; never raises, whatever the fields hold."""
    structure: list[bytes] = []
    head, tail, length = _last_user_text(body.get("messages"), structure)
    system_head, system_tail = _text_edges(body.get("system"), SYSTEM_HEAD, SYSTEM_TAIL)
    _parameters(body, structure)
    tool_words = _tools(body, structure)
    _shape_of_text(head, tail, length, structure)
    structure.append(b"#system=" + _bucket(len(system_head)))

    system = [_first_words(system_head, SYSTEM_WORDS)] if system_head else []
    if system_tail:
        system.append(_last_words(system_tail, TAIL_WORDS))
    first, last, front, back = _runs(head, tail)
    if has_cue(first) or has_cue(last) or has_cue(front) or has_cue(back):
        first, last, front, back = _runs(*_without_pressure(head, tail))
    return Features(
        (
            _words_and_pairs(system, tool_words),
            _words_and_pairs([first]),
            _words_and_pairs([last]),
            [(PLAIN, set(front))] if front else [],
            [(PLAIN, set(back))] if back else [],
            [(PLAIN, set(structure))],
        ),
        length,
    )


def _without_pressure(head: str, tail: str) -> tuple[str, str]:
    """Both edges without the sentences that talk about the routing."""
    cleaned = without_pressure(head)
    return cleaned, cleaned if head is tail else without_pressure(tail)


def _runs(head: str, tail: str) -> tuple[list[bytes], list[bytes], list[bytes], list[bytes]]:
    """The words of the first line, of the last one, of the stretch after the first and of the stretch before the
    last."""
    text = head.lstrip()
    first = text[:LINE].split("\n", 1)[0]
    if head is tail:
        rest = text[len(first) :].rstrip()
        last = rest[-LINE:].rsplit("\n", 1)[-1]
        between = rest[: len(rest) - len(last)]
        front, back = between[:STRETCH], between[STRETCH:][-STRETCH:]
    else:
        rest = tail.rstrip()
        last = rest[-LINE:].rsplit("\n", 1)[-1]
        front, back = text[len(first) :][:STRETCH], rest[: len(rest) - len(last)][-STRETCH:]
    return (
        _first_words(first, LINE_WORDS),
        _last_words(last, LINE_WORDS) if last else [],
        _first_words(front, STRETCH_WORDS) if front else [],
        _last_words(back, STRETCH_WORDS) if back else [],
    )


def _words_and_pairs(runs: list[list[bytes]], also: Iterable[bytes] = ()) -> list[Part]:
    """The distinct words of some runs and their neighbouring pairs; `also` are plain keys. Nothing where none is
    said."""
    plain: set[bytes] = set(also)
    pairs: set[tuple[bytes, bytes]] = set()
    for run in runs:
        plain.update(run)
        pairs.update(pairwise(run))
    return [(PLAIN, plain), (PAIR, pairs)] if plain else []


def words(text: str) -> list[bytes]:
    """The words of a text, folded: lower case, every digit `0`; scripts without blanks give character pairs."""
    if text.isascii():
        return text.encode().translate(_FOLD, b"'").split()
    raw = text.lower().encode("utf-8", "replace")
    if b"\xe2\x80" in raw or b"\xc2" in raw:  # one look for the blocks where all the marks stand
        for mark in _MARKS:
            raw = raw.replace(mark, b" ")
    found: list[bytes] = []
    for word in raw.translate(_FOLD, b"'").split():
        if len(word) > 12 and word[0] >= 0xE0:
            # Scripts of three bytes a character, most of them without blanks: pairs of characters stand for words.
            found += [word[at : at + 6] for at in range(0, len(word) - 3, 3)]
        else:
            found.append(word)
    return found


def _first_words(text: str, most: int) -> list[bytes]:
    """The first words of a text; one in a wide script is cut first, so that no pairs are made to be thrown away."""
    if text.isascii():
        return text.encode().translate(_FOLD, b"'").split(None, most)[:most]
    return words(text[: most + 1] if _is_wide(text) else text)[:most]


def _last_words(text: str, most: int) -> list[bytes]:
    """The last words of a text, with the same care."""
    if text.isascii():
        return text.encode().translate(_FOLD, b"'").split()[-most:]
    return words(text[-most - 1 :] if _is_wide(text) else text)[-most:]


def _is_wide(text: str) -> bool:
    """Whether most of three characters looked at belong to a script that is written without blanks (U+2E80 and up)."""
    step = len(text) // 4
    return sum([text[at] >= "\u2e80" for at in (step, 2 * step, 3 * step)]) >= 2


def _last_user_text(messages: Any, structure: list[bytes]) -> tuple[str, str, int]:
    """Head and tail of the last user turn that holds text, and its length; notes the shape of the conversation."""
    if not isinstance(messages, list) or not messages:
        structure.append(b"#turns=none")
        return "", "", 0
    count = len(messages)
    structure.append(b"#turns=" + (b"1" if count == 1 else b"3" if count <= 3 else b"7" if count <= 7 else b"many"))
    last = messages[-1]
    if isinstance(last, dict) and last.get("role") == "assistant":
        structure.append(b"#prefill")
    for back in range(1, min(count, MAX_TURNS_BACK) + 1):
        message = messages[-back]
        if not isinstance(message, dict):
            continue
        content = message.get("content")
        if message.get("role") == "assistant":
            if any(block.get("type") == "tool_use" for block in _blocks(content)):
                structure.append(b"#called")
            continue
        for block in _blocks(content):
            kind = block.get("type")
            if kind != "text" and isinstance(kind, str):
                structure.append(b"#block=" + kind[:16].encode("utf-8", "replace"))
        head, tail = _text_edges(content, EDGE, EDGE)
        if head:
            if back > 1:
                structure.append(b"#text-back")
            return head, tail, _length(content)
    return "", "", 0


def _blocks(content: Any) -> Iterator[dict[str, Any]]:
    """The first and last content blocks that are objects."""
    if isinstance(content, list):
        chosen = content if len(content) <= 2 * MAX_BLOCKS else content[:MAX_BLOCKS] + content[-MAX_BLOCKS:]
        for block in chosen:
            if isinstance(block, dict):
                yield block


def _text_edges(content: Any, head_chars: int, tail_chars: int) -> tuple[str, str]:
    """Head and tail of a string or of text blocks, which may share text; the same object twice where one holds all."""
    if isinstance(content, str):
        if len(content) <= head_chars:
            return content, content if tail_chars >= head_chars else ""
        return content[:head_chars], content[-tail_chars:]
    if not isinstance(content, list):
        return "", ""
    parts = [block["text"] for block in _blocks(content) if isinstance(block.get("text"), str)]
    if not parts:
        return "", ""
    if len(parts) == 1:
        return _text_edges(parts[0], head_chars, tail_chars)
    # Each part is cut before the join: a block may hold a megabyte.
    limit = head_chars + tail_chars
    return _text_edges(
        "\n".join([part if len(part) <= limit else part[:head_chars] + "\n" + part[-tail_chars:] for part in parts]),
        head_chars,
        tail_chars,
    )


def _length(content: Any) -> int:
    """Characters of the text that was looked at."""
    if isinstance(content, str):
        return len(content)
    return sum(len(block["text"]) for block in _blocks(content) if isinstance(block.get("text"), str))


def _bucket(count: int) -> bytes:
    """A count on a coarse scale of powers of four: 0, 1, 4, 16 … as the name of a step."""
    return _STEPS[(count.bit_length() + 1) // 2]


def _shape_of_text(head: str, tail: str, length: int, structure: list[bytes]) -> None:
    """Length, script, code, maths, tables, options and how the text ends."""
    text = head[:SHAPE] if head is tail else head[:SHAPE] + "\n" + tail[-SHAPE:]
    raw = text.encode("utf-8", "replace")
    structure.append(b"#length=" + _bucket(length))
    structure.append(b"#lines=" + _bucket(raw.count(b"\n")))
    signs = raw.translate(None, _NO_SIGNS)
    structure.append(b"#signs=" + _bucket(len(signs)))
    if len(signs) > 3:  # searching for marks costs more than all counting; prose is spared it
        code = sum([word in raw for word in _CODE_WORDS])
        code += sum([first in signs and mark in raw for first, mark in _CODE_SIGNS])
        structure.append(b"#code=" + (b"0" if not code else b"1" if code < 3 else b"3"))
        if b"```" in signs and b"```" in raw:
            structure.append(b"#fence")
        if b"</" in signs and b"</" in raw:
            structure.append(b"#tags")
        if sum([mark in raw for mark in _OPTION_MARKS]):
            structure.append(b"#options")
    maths = len(set(raw.translate(None, _NO_MATHS)))
    structure.append(b"#maths=" + (b"0" if not maths else b"1" if maths < 3 else b"3"))
    if raw.count(b"|") > 6:
        structure.append(b"#table")
    questions = raw.count(b"?")
    structure.append(b"#questions=" + _bucket(questions))
    end = tail.rstrip()[-1:]
    if end:
        structure.append(b"#end=" + (b"word" if end.isalnum() else end.encode("utf-8", "replace")))
    if questions and end == "?" and length < 160:
        structure.append(b"#short-question")
    if not text.isascii():
        edge = text[:200] + text[-200:]
        wide = sum(map("\u02ff".__lt__, edge))
        structure.append(
            b"#script=" + (b"latin" if wide * 8 < len(edge) else b"mixed" if wide * 2 < len(edge) else b"other")
        )
    structure.append(b"#digits=" + _bucket(len(raw.translate(None, _NO_DIGITS))))


def _parameters(body: Mapping[str, Any], structure: list[bytes]) -> None:
    """Sampling, output limits, thinking and structured output; leanings, never proofs."""
    limit = body.get("max_tokens")
    if isinstance(limit, int):
        structure.append(b"#limit=" + (b"tiny" if limit <= 64 else b"small" if limit <= 512 else b"large"))
    temperature = body.get("temperature")
    if isinstance(temperature, (int, float)):
        structure.append(b"#cold" if temperature < 0.25 else b"#warm")
    thinking = body.get("thinking")
    if isinstance(thinking, dict) and thinking.get("type") != "disabled":
        structure.append(b"#thinking")
    if body.get("stop_sequences"):
        structure.append(b"#stops")
    output = body.get("output_config")
    form = output.get("format") if isinstance(output, dict) else None
    if isinstance(form, dict):
        structure.append(b"#format")
        structure += [b"#" + name for name in _schema(form.get("schema"), b"format")]


def _tools(body: Mapping[str, Any], structure: list[bytes]) -> list[bytes]:
    """Number, choice and vocabulary of the tools: words of names and descriptions, properties of the first schemas."""
    tools = body.get("tools")
    if not isinstance(tools, list) or not tools:
        return []
    count = len(tools)
    structure.append(b"#tools=" + (b"1" if count == 1 else b"3" if count <= 3 else b"many"))
    choice = body.get("tool_choice")
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind in ("tool", "any"):
        structure.append(b"#forced" if count > 1 else b"#forced-one")
    elif kind == "none":
        structure.append(b"#no-call")
    found: list[bytes] = []
    for tool in tools[:MAX_TOOLS]:
        if not isinstance(tool, dict):
            continue
        name, description = tool.get("name"), tool.get("description")
        if isinstance(name, str):
            found += [b"tool:" + word for word in words(name[:40])]
        if isinstance(description, str):
            found += [b"tool:" + word for word in words(description[:80])]
        if count <= 3:
            found += _schema(tool.get("input_schema"), b"tool")
    return found


def _schema(schema: Any, tag: bytes) -> list[bytes]:
    """Property names of a JSON schema and whether one is a choice from a list."""
    properties = schema.get("properties") if isinstance(schema, dict) else None
    if not isinstance(properties, dict):
        return []
    found: list[bytes] = []
    for at, (name, value) in enumerate(properties.items()):
        if at == MAX_PROPERTIES:
            break
        if isinstance(name, str):
            found += [tag + b"." + word for word in words(name[:40])]
        if isinstance(value, dict) and "enum" in value:
            found.append(tag + b".enum")
    return found
