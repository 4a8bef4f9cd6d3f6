"""The body of a Message Batch, sans I/O: bytes → items with their places, one at a time, never parsed as a whole.

A batch may have 256 MB and 100,000 items. The frame around the items is read by eye; each item is cut out, parsed by
itself as strictly as a request is, and let go. No step of the search is longer than a millisecond or two, whatever
stands there, and an item that is larger than a request may be is never parsed. What the API refuses as a whole (a frame
that is none, a `custom_id` that is none or comes twice, `params` that are no object) is refused here, before anything
is sent. What it would let fail alone is left as it is: such an item has no `request`, and its bytes go up untouched.

`Spliced` is the body that goes up: the bytes that came, with other bytes in some places. It is written piece by piece,
so that the body is in memory once.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from router.errors import InvalidRequest, RequestTooLarge
from router.wire.messages import MAX_DEPTH, UP_TO_BRACKET, MessagesRequest, object_spans, read_json, request_of

MAX_ITEMS: Final = 100_000
MAX_ITEM_BYTES: Final = 32 * 1024 * 1024  # as of a request: what stands in an item is one
_SEARCHED_AT_ONCE = 2_000  # brackets of one item that are followed in one step: less than a millisecond
STEP_BYTES: Final = 64 * 1024  # of one item that are looked at in one step: a millisecond where all are brackets
_MOST_SPACE = 1024 * 1024  # bytes of white space in a row: half a millisecond, and nobody sends that
_MOST_SCALAR = 64 * 1024  # bytes of a key of the frame, and of a number
_FRAME_DEPTH = 3  # levels around the `params` of an item
_SPACE = re.compile(rb"[ \t\n\r]*+")
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_IN_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_SCALAR = re.compile(rb'[^,\]}\s"]++')
_CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}", re.ASCII)
_NOT_IN_BATCHES = ("speed", "thread", "fallbacks", "fallback_credit_token")  # Source: batch documentation


@dataclass(frozen=True, slots=True)
class BatchItem:
    """One item: its name, where its `params` stand in the body, and the request that they are.

    `request` is None where the API would not take them in a batch; `why_not` says what is wrong then.
    """

    custom_id: str
    start: int
    end: int
    request: MessagesRequest | None
    why_not: str = ""


class BatchReader:
    """Reads one body: `spans` gives the places of the items in order, `read` what stands there.

    `takes_unknown` lets fields pass that the API does not have today: with a beta it may have them. `step_bytes` (2 at
    least: an escape is that long) are looked at in one step.
    """

    def __init__(self, raw: bytes, *, takes_unknown: bool = False, step_bytes: int = STEP_BYTES) -> None:
        self._raw = raw
        self._takes_unknown = takes_unknown
        self._step_bytes = step_bytes
        self._seen: set[str] = set()

    def spans(self) -> Iterator[tuple[int, int] | None]:
        """The offsets of each item; None after each long step, so that whoever reads can let others have their turn.

        Raises InvalidRequest for a frame that the API refuses, and RequestTooLarge for an item over `MAX_ITEM_BYTES`.
        """
        raw = self._raw
        at = self._next(0)
        if raw[at : at + 1] in (b"[", b'"'):
            raise InvalidRequest("the body must be a JSON object")
        if raw[at : at + 1] != b"{":
            read_json(raw[: at + 64])  # raises for what is no JSON at all
            raise InvalidRequest("the body must be a JSON object")
        at = self._next(at + 1)
        extra = ""
        has_requests = False
        while raw[at : at + 1] == b'"':
            key = _STRING.match(raw, at, at + _MOST_SCALAR)
            if key is None:
                raise _invalid(at)
            name = _loaded(key[0], at)
            at = self._next(key.end())
            if raw[at : at + 1] != b":":
                raise _invalid(at)
            at = self._next(at + 1)
            if name == "requests":
                if has_requests:
                    raise InvalidRequest("the request body has the key `requests` twice in one object")
                has_requests = True
                at = yield from self._items(at)
            else:
                extra = extra or str(name)
                at = yield from self._value_end(at)
            at = self._next(at)
            if raw[at : at + 1] != b",":
                break
            at = self._next(at + 1)
            if raw[at : at + 1] != b'"':
                raise _invalid(at)
        if raw[at : at + 1] != b"}" or self._next(at + 1) != len(raw):
            raise _invalid(at)
        if not has_requests:
            raise InvalidRequest("requests: Field required")
        if extra and not self._takes_unknown:
            raise InvalidRequest(f"{extra[:64]}: Extra inputs are not permitted")

    def read(self, start: int, end: int) -> BatchItem:
        """The item that stands there; items are to be read in order. Raises InvalidRequest as `spans`."""
        where = f"requests.{len(self._seen)}"
        piece = self._raw[start:end]
        try:
            value, is_compact = read_json(piece)
        except InvalidRequest as error:
            raise InvalidRequest(f"{where}: {error.message}") from error
        custom_id, params = self._checked(where, value)
        first, last = _params_span(piece, value, custom_id, is_compact)
        wrong = wrong_in_batches(params)
        request = None
        if not wrong:
            try:
                request = request_of(piece[first:last], params, is_compact)
            except InvalidRequest as error:
                wrong = error.message
        return BatchItem(custom_id, start + first, start + last, request, wrong)

    def _checked(self, where: str, value: object) -> tuple[str, dict[str, Any]]:
        if not isinstance(value, dict):
            raise InvalidRequest(f"{where}: Input should be a valid dictionary")
        for name in ("custom_id", "params"):
            if name not in value:
                raise InvalidRequest(f"{where}.{name}: Field required")
        if len(value) > 2 and not self._takes_unknown:
            extra = next(name for name in value if name not in ("custom_id", "params"))
            raise InvalidRequest(f"{where}.{extra[:64]}: Extra inputs are not permitted")
        custom_id, params = value["custom_id"], value["params"]
        if not isinstance(custom_id, str) or _CUSTOM_ID.fullmatch(custom_id) is None:
            raise InvalidRequest(f"{where}.custom_id: String should match pattern '^[a-zA-Z0-9_-]{{1,64}}$'")
        if custom_id in self._seen:
            raise InvalidRequest(f"{where}.custom_id: must be unique within the batch")
        if not isinstance(params, dict):
            raise InvalidRequest(f"{where}.params: Input should be a valid dictionary")
        self._seen.add(custom_id)
        return custom_id, params

    def _items(self, at: int) -> Generator[tuple[int, int] | None, None, int]:
        """The places of the items of the list that begins at `at`; returns where it ends."""
        raw = self._raw
        if raw[at : at + 1] != b"[":
            raise InvalidRequest("requests: Input should be a valid list")
        at = self._next(at + 1)
        count = 0
        while raw[at : at + 1] != b"]":
            if count:
                if raw[at : at + 1] != b",":
                    raise _invalid(at)
                at = self._next(at + 1)
            count += 1
            if count > MAX_ITEMS:
                raise InvalidRequest(f"requests: from 1 to {MAX_ITEMS} items are allowed. Found more.")
            start = at
            at = yield from self._value_end(at, f"requests.{count - 1}")
            yield start, at
            at = self._next(at)
        if not count:
            raise InvalidRequest(f"requests: from 1 to {MAX_ITEMS} items are allowed. Found 0.")
        return at + 1

    def _value_end(self, at: int, item: str = "") -> Generator[None, None, int]:
        """Looks for the offset behind the value that begins at `at`, and returns it; an `item` has a largest size."""
        raw = self._raw
        last = at + MAX_ITEM_BYTES if item else len(raw)
        if raw[at : at + 1] == b'"':
            return (yield from self._string_end(at + 1, last, item))
        if raw[at : at + 1] not in (b"{", b"["):
            found = _SCALAR.match(raw, at, at + _MOST_SCALAR)
            if found is None:
                raise _invalid(at)
            return found.end()
        depth, at, steps = 1, at + 1, 0
        stop = at + self._step_bytes
        while depth:
            found = UP_TO_BRACKET.match(raw, at, stop)
            assert found is not None  # it matches nothing at all, too
            at = found.end()
            if at >= len(raw):
                raise _invalid(at)
            is_in_string = at < stop and raw[at] == 0x22  # it ends behind this step
            if at < stop and not is_in_string:
                depth += 1 if raw[at] in b"{[" else -1
                at += 1
                steps += 1
                if depth > MAX_DEPTH + _FRAME_DEPTH:
                    raise InvalidRequest(f"the request body is nested deeper than {MAX_DEPTH} levels")
            if is_in_string or steps == _SEARCHED_AT_ONCE or at >= stop:
                _check_size(at, last, item)
                yield None
                if is_in_string:
                    at = yield from self._string_end(at + 1, last, item)
                steps, stop = 0, at + self._step_bytes
        _check_size(at, last, item)
        return at

    def _string_end(self, at: int, last: int, item: str) -> Generator[None, None, int]:
        """The offset behind the string whose text begins at `at`."""
        raw = self._raw
        while True:
            found = _IN_STRING.match(raw, at, at + self._step_bytes)
            assert found is not None  # it matches nothing at all, too
            if raw[found.end() : found.end() + 1] == b'"':
                return found.end() + 1
            if found.end() == at:  # nothing more, or a backslash with nothing behind
                raise _invalid(at)
            at = found.end()
            _check_size(at, last, item)
            yield None

    def _next(self, at: int) -> int:
        """The offset of what follows white space."""
        found = _SPACE.match(self._raw, at, at + _MOST_SPACE)
        assert found is not None  # it matches nothing at all, too
        if found.end() - at == _MOST_SPACE:
            raise InvalidRequest(f"the request body has {_MOST_SPACE} bytes of white space in a row near byte {at}")
        return found.end()


class Spliced:
    """The bytes of a body with other bytes in some places: a `seams.Body` that is never joined.

    `replace` is called from left to right, and no two places overlap.
    """

    __slots__ = ("_ends", "_new", "_raw", "_size", "_starts")

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._starts = array("Q")
        self._ends = array("Q")
        self._new: list[bytes] = []
        self._size = len(raw)

    def __len__(self) -> int:
        return self._size

    def replace(self, start: int, end: int, new: bytes) -> None:
        """Put `new` in the place of the bytes from `start` to `end`."""
        assert start >= (self._ends[-1] if self._ends else 0)
        self._starts.append(start)
        self._ends.append(end)
        self._new.append(new)
        self._size += len(new) - (end - start)

    def without(self, places: Sequence[tuple[int, int]]) -> Spliced:
        """The same body without these places too, which are in order; a replacement that lies in one goes with it."""
        made, done, gone_to = Spliced(self._raw), 0, 0
        for start, end, new in zip(self._starts, self._ends, self._new, strict=True):
            while done < len(places) and places[done][0] <= start:
                made.replace(*places[done], b"")
                gone_to = places[done][1]
                done += 1
            if start >= gone_to:
                made.replace(start, end, new)
        for place in places[done:]:
            made.replace(*place, b"")
        return made

    @property
    def is_changed(self) -> bool:
        """Whether anything was replaced."""
        return bool(self._new)

    def pieces(self, most_bytes: int) -> Iterator[memoryview]:
        """All bytes in order, at most `most_bytes` at a time."""
        held: list[bytes | memoryview] = []
        size = 0
        for part in self._parts():
            rest = memoryview(part)
            while size + len(rest) >= most_bytes:
                room = most_bytes - size
                held.append(rest[:room])
                yield memoryview(b"".join(held)) if len(held) > 1 else rest[:room]
                held, size, rest = [], 0, rest[room:]
            if rest:
                held.append(rest)
                size += len(rest)
        if held:
            yield memoryview(b"".join(held))

    def _parts(self) -> Iterator[bytes | memoryview]:
        view = memoryview(self._raw)
        done = 0
        for start, end, new in zip(self._starts, self._ends, self._new, strict=True):
            yield view[done:start]
            yield new
            done = end
        yield view[done:]


def wrong_in_batches(params: Mapping[str, Any]) -> str:
    """For parsed `params`: what the API does not take inside a batch though it takes it outside; empty for nothing."""
    if params.get("stream") is True:
        return "stream: not supported in Message Batches"
    for name in _NOT_IN_BATCHES:
        if params.get(name) is not None:
            return f"{name}: not supported in Message Batches"
    if params.get("max_tokens") == 0:
        return "max_tokens: 0 is not supported in Message Batches"
    billing = params.get("billing_policy")
    if isinstance(billing, dict) and billing.get("bill_to") == "user_profile":
        return "billing_policy.bill_to: not supported in Message Batches"
    return ""


def _params_span(piece: bytes, value: Mapping[str, Any], custom_id: str, is_compact: bool) -> tuple[int, int]:
    """Where `params` stands in the item."""
    if is_compact and len(value) == 2:  # the name is plain ASCII, so its length is what it takes
        if next(iter(value)) == "custom_id":
            return len(b'{"custom_id":"","params":') + len(custom_id), len(piece) - 1
        return len(b'{"params":'), len(piece) - len(b',"custom_id":""}') - len(custom_id)
    return object_spans(piece)["params"]


def _loaded(text: bytes, at: int) -> object:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        raise _invalid(at) from None


def _check_size(at: int, last: int, item: str) -> None:
    if item and at > last:
        raise RequestTooLarge(f"{item}: over {MAX_ITEM_BYTES} bytes, which is the most that a request may have")


def _invalid(at: int) -> InvalidRequest:
    return InvalidRequest(f"the request body is not valid JSON near byte {at}")
