"""What is kept of a deferred request, as bytes: what it says, what was decided, how it ended; and shapes of answers.

`meta` is what decided and what is told, `request` what was sent, `note` what the answer cost. None of it is read by the
store.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from router.errors import error_body
from router.jobs.deferred import PREFIX, JobAnswer, Requested
from router.seams import Body
from router.serve.headers import RawHeaders

PATH = "/v1/messages/deferred"
_OPENS, _ITEM, _ENDS = b'{"requests":[', b',{"custom_id":"%b","params":', b"]}"
_MOST_LISTED = 500  # characters of one list of facts; a longer one is left out, and so unknown

# Source: API reference, "Errors".
_STATUSES = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "conflict_error": 409,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "timeout_error": 504,
    "overloaded_error": 529,
}


@dataclass(frozen=True, slots=True)
class Meta:
    """What was decided about a job, in the words of `trace.record.Trace`, and where its client is told of it."""

    tenant: str
    key: str
    policy: str
    revision: str
    rule: str
    lane: str
    model_asked: str
    model_sent: str
    client: str = ""
    session: str | None = None
    conversation: str | None = None
    why: Sequence[str] = ()
    tags: Sequence[str] = ()
    edits: Sequence[str] = ()
    labels: Mapping[str, Any] | None = None
    facts: Mapping[str, Any] | None = None
    location: str = ""
    webhook: str = ""
    answers_late: bool = False  # in real time, when its batch does not answer it
    cache_key: str | None = None  # where its answer is to be cached
    keeping: Sequence[Any] = ()  # seconds, bytes at the most, when it was asked (ns, by the clock of the cache)

    def packed(self) -> bytes:
        """As bytes; a count beyond 64 bits is said as text."""
        facts = {name: value for name, value in (self.facts or {}).items() if not _is_long(value)}
        values = {name: getattr(self, name) for name in self.__slots__} | {"facts": facts}
        try:
            return orjson.dumps(values)
        except orjson.JSONEncodeError:
            return orjson.dumps(values | {"facts": {}, "labels": None}, default=str)

    @staticmethod
    def of(packed: bytes) -> Meta:
        """What `packed` gave; fields of other versions are passed over."""
        known = Meta.__slots__
        return Meta(**{name: value for name, value in orjson.loads(packed).items() if name in known})


@dataclass(frozen=True, slots=True)
class Said:
    """What a client asked: enough to ask it again, in a batch or by itself. `headers` hold no credential.

    The `params` of the item are `body` with the bytes from `start` to `end` replaced by `new`.
    """

    headers: RawHeaders
    path: bytes
    query: bytes
    body: bytes
    start: int
    end: int
    new: bytes

    def packed(self) -> bytes:
        """As bytes: a line of JSON, and the body as it came."""
        head = {
            "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in self.headers],
            "path": self.path.decode("latin-1"),
            "query": self.query.decode("latin-1"),
            "splice": [self.start, self.end, self.new.decode()],
        }
        return orjson.dumps(head) + b"\n" + self.body

    @staticmethod
    def of(packed: bytes) -> Said:
        """What `packed` gave."""
        at = packed.index(b"\n")
        head = orjson.loads(packed[:at])
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in head["headers"]]
        start, end, new = head["splice"]
        path, query = head["path"].encode("latin-1"), head["query"].encode("latin-1")
        return Said(headers, path, query, packed[at + 1 :], start, end, new.encode())

    def params(self) -> bytes:
        """The item as it goes up."""
        if self.start == self.end:
            return self.body
        return b"".join((self.body[: self.start], self.new, self.body[self.end :]))

    def create_target(self) -> bytes:
        """Path and query that its batch is made at."""
        return b"/v1/messages/batches" + (b"?" + self.query if self.query else b"")

    def create_headers(self) -> RawHeaders:
        """The headers that a batch of it is made with: those that say how the API reads it."""
        return [(name, value) for name, value in self.headers if name.startswith(b"anthropic-")]


@dataclass(frozen=True, slots=True)
class Note:
    """What is known of an answer besides its bytes. Money in pico-dollars, None for unknown."""

    cost_pusd: int | None = None
    saved_pusd: int | None = None
    model: str = ""  # the one that was asked in the end
    lane: str = ""
    is_real_time: bool = False

    def packed(self) -> bytes:
        """As bytes."""
        return orjson.dumps({name: getattr(self, name) for name in self.__slots__})

    @staticmethod
    def of(packed: bytes) -> Note:
        """What `packed` gave."""
        values = orjson.loads(packed) if packed else {}
        return Note(**{name: value for name, value in values.items() if name in Note.__slots__})


class Joined(Body):
    """The body of a batch of jobs: joined from what each says as it is sent, so that it is in memory once."""

    def __init__(self, jobs: Sequence[Requested]) -> None:
        self._jobs = jobs
        self._splices = [_splice(job.request) for job in jobs]
        self._size = len(_OPENS) + len(_ENDS) - 1  # there is no comma before the first
        for job, (at, start, end, new) in zip(jobs, self._splices, strict=True):
            self._size += len(_ITEM % job.id.encode()) + len(job.request) - at - (end - start) + len(new) + 1

    def __len__(self) -> int:
        return self._size

    def pieces(self, most_bytes: int) -> Iterator[memoryview]:
        """See `Body`."""
        held: list[memoryview] = []
        size = 0
        for part in self._parts():
            rest = memoryview(part)
            while size + len(rest) >= most_bytes:
                room = most_bytes - size
                held.append(rest[:room])
                yield memoryview(b"".join(held))
                held, size, rest = [], 0, rest[room:]
            if rest:
                held.append(rest)
                size += len(rest)
        if held:
            yield memoryview(b"".join(held))

    def _parts(self) -> Iterator[bytes | memoryview]:
        yield _OPENS
        for number, (job, (at, start, end, new)) in enumerate(zip(self._jobs, self._splices, strict=True)):
            item, body = _ITEM % job.id.encode(), memoryview(job.request)[at:]
            yield item if number else item[1:]
            yield body[:start]
            yield new
            yield body[end:]
            yield b"}"
        yield _ENDS


def _splice(packed: bytes) -> tuple[int, int, int, bytes]:
    """Of a packed `Said`: where its body begins, and what is replaced in that."""
    at = packed.index(b"\n")
    start, end, new = orjson.loads(packed[:at])["splice"]
    return at + 1, start, end, new.encode()


def group_of(policy: str, lane: str, said: Said) -> str:
    """What jobs of one owner have in common that may share a batch: policy, lane, and how the API reads them."""
    parts = [policy, lane, said.query.decode("latin-1")]
    parts += [f"{name.decode('latin-1')}: {value.decode('latin-1')}" for name, value in sorted(said.create_headers())]
    return hashlib.blake2b(orjson.dumps(parts), digest_size=16).hexdigest()


def item_size(params: int) -> int:
    """What an item takes in the body of its batch, in bytes."""
    return params + len(PREFIX) + 32 + len('{"custom_id":"","params":},')


def error_answer(kind: str, message: str, job_id: str, now_s: float) -> JobAnswer:
    """An answer of our own making, in the API's shape."""
    status = _STATUSES.get(kind, 500)
    return JobAnswer(status, error_body(kind, message, job_id), Note().packed(), now_s)


def status_of(error: Any) -> int:
    """The HTTP status that the API gives such an error; `error` is the parsed envelope."""
    inner = error.get("error") if isinstance(error, dict) else None
    kind = inner.get("type") if isinstance(inner, dict) else None
    return _STATUSES.get(kind, 500) if isinstance(kind, str) else 500


def pending_body(job_id: str, created_s: float) -> bytes:
    """The body of a 202."""
    created = datetime.fromtimestamp(created_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return orjson.dumps({"id": job_id, "type": "deferred_message", "status": "pending", "created_at": created})


def deleted_body(job_id: str) -> bytes:
    """The body of the answer to a DELETE."""
    return orjson.dumps({"id": job_id, "type": "deferred_message_deleted"})


def _is_long(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len("".join(map(str, value))) > _MOST_LISTED
