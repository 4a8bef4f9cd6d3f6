"""The calls of the Message Batches API that the deferred lane makes for itself, with the credential of an owner."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import orjson

from router.errors import (
    ClientGone,
    MissingCredential,
    RouterError,
    UnknownTarget,
    UpstreamBroken,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from router.seams import Body, Deadlines, Upstream, UpstreamCall, UpstreamReply
from router.serve.attempts import retry_after_s
from router.serve.headers import Credential, RawHeaders
from router.wire.jsonl import LineReader, read_line

_BATCHES = b"/v1/messages/batches"
_BATCH_ID = re.compile(r"[A-Za-z0-9_-]{1,128}", re.ASCII)  # it goes into a path
_VERSION = (b"anthropic-version", b"2023-06-01")
_MOST_BODY = 8 * 1024 * 1024  # bytes of an answer that is no results
_MOST_LINE = 40 * 1024 * 1024  # bytes of one result: a whole answer, which a real-time one may be as well
_PAGE = 1_000
_MOST_PAGES = 50
_NOT_DONE = (408, 409, 425, 429, 503, 529)  # nothing was made, and later it may be


@dataclass(frozen=True, slots=True)
class Made:
    """The batch is there."""

    batch: str


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing was made. `is_for_now`: later the same may be taken; `wait_s` is when, where that was said."""

    status: int
    body: bytes
    is_for_now: bool
    wait_s: float | None = None


@dataclass(frozen=True, slots=True)
class Unknown:
    """It may have been made: nobody knows."""

    why: str


class BatchCalls:
    """Calls to the upstream's batches. `create_s` bounds the making of a batch, first byte to last, in seconds."""

    def __init__(self, upstream: Upstream, deadlines: Deadlines, create_s: float) -> None:
        self._upstream = upstream
        self._read = replace(deadlines, first_byte=60.0, idle=60.0, total=3600.0)
        self._create = replace(deadlines, first_byte=create_s, idle=create_s, total=create_s)

    async def create(
        self, credential: Credential, target: bytes, headers: RawHeaders, body: Body, now_s: float
    ) -> Made | Refused | Unknown:
        """Make a batch, once. `now_s` is Unix time, to which a `retry-after` that is a date is held."""
        sent = [*_completed(headers, credential), (b"content-type", b"application/json")]
        call = UpstreamCall("POST", target, sent, body, self._create, is_once=True)
        try:
            reply, answer = await self._whole(call)
        except UpstreamUnreachable as exc:
            return Refused(exc.status, exc.to_wire(""), is_for_now=True)
        except (UpstreamBroken, UpstreamTimeout) as exc:
            return Unknown(exc.message)
        except RouterError as exc:  # no file descriptor is left, or the like: nothing went out
            return Refused(exc.status, exc.to_wire(""), is_for_now=True)
        if reply.status < 300:
            batch = _object(answer).get("id")
            is_named = isinstance(batch, str) and _BATCH_ID.fullmatch(batch)
            return Made(str(batch)) if is_named else Unknown("the answer names no batch")
        if reply.status in _NOT_DONE:
            return Refused(reply.status, answer, is_for_now=True, wait_s=retry_after_s(reply.headers, now_s))
        if reply.status < 500:
            # What is no error of the API is said by something in between, and not of these requests.
            is_the_apis = isinstance(_object(answer).get("error"), dict)
            return Refused(reply.status, answer, is_for_now=not is_the_apis)
        return Unknown(f"the upstream answered {reply.status}")

    async def retrieve(self, credential: Credential, batch: str) -> Mapping[str, Any] | None:
        """A batch as the API shows it; None where there is none.

        Raises MissingCredential, and RouterError when it cannot be known now.
        """
        reply, answer = await self._whole(self._get(credential, b"/" + batch.encode()))
        if reply.status == 404:
            return None
        _check(reply.status, "a look at a batch")
        return _object(answer)

    async def cancel(self, credential: Credential, batch: str) -> None:
        """Ask for the end of a batch; that it ended meanwhile is no error. Raises RouterError."""
        target = _BATCHES + b"/" + batch.encode() + b"/cancel"
        await self._whole(UpstreamCall("POST", target, _completed([], credential), b"", self._read))

    async def made_since(self, credential: Credential, since: str) -> list[Mapping[str, Any]]:
        """The batches that were made at `since` (RFC 3339, UTC, ending in `Z`) or later, newest first.

        Raises RouterError.
        """
        found: list[Mapping[str, Any]] = []
        cursor = ""
        for _ in range(_MOST_PAGES):
            query = f"?limit={_PAGE}" + (f"&after_id={cursor}" if cursor else "")
            reply, answer = await self._whole(self._get(credential, query.encode()))
            page = _object(answer)
            entries = page.get("data")
            _check(reply.status, "a list of batches")
            if not isinstance(entries, list):
                raise UpstreamUnreachable("the upstream's list of batches cannot be read", retryable=True)
            for entry in entries:
                if isinstance(entry, dict) and _BATCH_ID.fullmatch(str(entry.get("id"))):
                    if str(entry.get("created_at", "")) < since:
                        return found
                    found.append(entry)
            cursor = str(page.get("last_id") or "")
            if page.get("has_more") is not True or not cursor:
                return found
        raise UpstreamUnreachable("the upstream's list of batches has no end", retryable=True)

    async def results(self, credential: Credential, batch: str) -> AsyncGenerator[list[bytes]]:
        """The lines of the results, as they come. Raises RouterError, also when they do not come to their end."""
        reply = await self._answered(self._get(credential, b"/" + batch.encode() + b"/results"))
        try:
            _check(reply.status, "a fetch of results")
            lines = LineReader(_MOST_LINE)
            while chunk := await reply.read():
                if found := lines.feed(chunk):
                    yield found
            if rest := lines.rest():
                yield [rest]
        finally:
            reply.abort()

    async def result_names(self, credential: Credential, batch: str, most: int) -> frozenset[str]:
        """The `custom_id`s of the results of a batch, up to `most` and one more; none where there are no results.

        Raises RouterError.
        """
        names: set[str] = set()
        try:
            async with aclosing(self.results(credential, batch)) as results:
                async for lines in results:
                    names.update(str(read_line(line).get("custom_id")) for line in lines)
                    if len(names) > most:
                        break
        except UnknownTarget:
            return frozenset()
        return frozenset(names)

    def _get(self, credential: Credential, rest: bytes) -> UpstreamCall:
        return UpstreamCall("GET", _BATCHES + rest, _completed([], credential), b"", self._read)

    async def _answered(self, call: UpstreamCall) -> UpstreamReply:
        pending = self._upstream.start(call)
        try:
            return await pending.reply()
        except asyncio.CancelledError:
            pending.abort()
            raise

    async def _whole(self, call: UpstreamCall) -> tuple[UpstreamReply, bytes]:
        reply = await self._answered(call)
        chunks: list[bytes] = []
        size = 0
        try:
            while chunk := await reply.read():
                chunks.append(chunk)
                size += len(chunk)
                if size > _MOST_BODY:
                    raise UpstreamBroken("the upstream's answer about a batch is too long")
        except ClientGone as exc:
            raise UpstreamBroken("the call was ended") from exc
        finally:
            reply.abort()
        return reply, b"".join(chunks)


def _check(status: int, what: str) -> None:
    """Raises the error that an answer with another status than 200 is to us."""
    said = f"the upstream answered {status} to {what}"
    if status in (401, 403):
        raise MissingCredential(said)
    if status in (404, 410):
        raise UnknownTarget(said)
    if status != 200:
        raise UpstreamUnreachable(said, retryable=True)


def _completed(headers: RawHeaders, credential: Credential) -> RawHeaders:
    has_version = any(name == b"anthropic-version" for name, _ in headers)
    return [
        *headers,
        *(() if has_version else (_VERSION,)),
        (b"accept", b"application/json"),
        (b"accept-encoding", b"identity"),
        (credential.header, credential.value),
    ]


def _object(text: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}
