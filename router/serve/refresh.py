"""Asks the upstream's own list of models what they take, now and then, and lets the catalogue follow.

Requests never wait for it: they read the catalogue as it is. Whatever goes wrong changes nothing and is counted; what
was learned last stays in force. An answer is taken whole or not at all, and always laid over the catalogue's file, so
that what is in force depends on the file and the last good answer alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

import orjson

from router.catalog.capabilities import MAX_RECORDS, with_capabilities
from router.catalog.lookup import Catalog
from router.errors import ClientGone, RouterError
from router.seams import Deadlines, PendingCall, Upstream, UpstreamCall
from router.serve.headers import Credential, RawHeaders

DEADLINE_S = 10.0
AFTER_FAILURE_S = 60.0  # the next try after a failure, where the owner's interval is longer
MAX_PAGES = 8
# All pages together; the real list has some 35 kB. JSON made of empty lists takes the parser 50 ms at twice this size.
MAX_BYTES = 256 * 1024
_MAX_ID = 256

# The beta form also names the allowed fallbacks; retired models are listed only when asked for.
_TARGET = "/v1/models?beta=true&limit=1000" + "".join(
    f"&lifecycle%5B%5D={name}" for name in ("active", "deprecated", "retired")
)


class _Unusable(Exception):
    """An answer that is no list of models; the message says why."""


class ModelRefresh:
    """Keeps what the models of `catalog` take up to date with the upstream's `GET /v1/models`.

    `credential` is a key of the router's own. It asks every `every_s` seconds, after a failure at least once a minute;
    one refresh, all pages, takes `deadline_s` at most. `observe(is_ok, text)` is told of the first failure in a row,
    and of a success after one or with something else to say than the last. `wall_clock` gives Unix seconds.
    """

    def __init__(
        self,
        upstream: Upstream,
        catalog: Catalog,
        credential: Credential,
        every_s: float,
        *,
        wall_clock: Callable[[], float],
        observe: Callable[[bool, str], None],
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self._upstream = upstream
        self._catalog = catalog
        self._file = catalog.with_models(catalog.models)  # what the file says, kept apart
        self._headers: RawHeaders = [
            (b"anthropic-version", b"2023-06-01"),
            (b"accept", b"application/json"),
            (b"accept-encoding", b"identity"),
            (credential.header, credential.value),
        ]
        self._every_s = every_s
        self._deadline_s = deadline_s
        self._deadlines = Deadlines(first_byte=deadline_s, idle=deadline_s)
        self._wall_clock = wall_clock
        self._observe = observe
        self._pending: PendingCall | None = None
        self._is_stopping = False
        self._refreshed = self._failed = 0
        self._failure: str | None = None  # of the last try
        self._last_success_s: float | None = None
        self._changed: tuple[str, ...] = ()
        self._notes: tuple[str, ...] = ()

    async def run(self, stop: asyncio.Event) -> None:
        """Refresh at once and then at intervals until `stop`; a refresh under way then is given up."""
        stopping = asyncio.get_running_loop().create_task(stop.wait())
        stopping.add_done_callback(self._give_up)
        try:
            while not stop.is_set():
                is_ok = await self.once()
                wait_s = self._every_s if is_ok else min(self._every_s, AFTER_FAILURE_S)
                await asyncio.wait((stopping,), timeout=wait_s)
        finally:
            stopping.cancel()

    async def once(self) -> bool:
        """One refresh → whether it succeeded. Never raises for what the upstream does."""
        try:
            async with asyncio.timeout(self._deadline_s):
                records = await self._records()
        except ClientGone:  # given up at the end of the program
            return False
        except TimeoutError:
            return self._fail(f"no whole answer within {self._deadline_s:g} s")
        except RouterError as exc:
            return self._fail(exc.message)
        except _Unusable as exc:
            return self._fail(str(exc))
        self._take(records)
        return True

    def status(self) -> Mapping[str, Any]:
        """For the owner: counts since start, the last success (Unix seconds), the failure if the last try was one.

        `changed` are the models that take something else than the catalogue's file says; `notes` what was not taken.
        """
        return {
            "every_s": self._every_s,
            "refreshed": self._refreshed,
            "failed": self._failed,
            "last_success_s": self._last_success_s,
            "failure": self._failure,
            "changed": list(self._changed),
            "notes": list(self._notes),
        }

    def stats(self) -> Mapping[str, int]:
        """Counts for metrics: `refreshed` and `failed` since start, `changed` models now."""
        return {"refreshed": self._refreshed, "failed": self._failed, "changed": len(self._changed)}

    async def _records(self) -> list[object]:
        """The entries of all pages. Raises RouterError or `_Unusable`."""
        records: list[object] = []
        left = MAX_BYTES
        target, seen = _TARGET, set()
        for _ in range(MAX_PAGES):
            body = await self._body(target, left)
            left -= len(body)
            try:
                page = orjson.loads(body)
            except orjson.JSONDecodeError as exc:
                raise _Unusable("the answer is not JSON") from exc
            data, has_more = (page.get("data"), page.get("has_more")) if isinstance(page, dict) else (None, None)
            if not isinstance(data, list) or not isinstance(has_more, bool):
                raise _Unusable("the answer is no page of models")
            records += data
            if len(records) > MAX_RECORDS:
                raise _Unusable(f"more than {MAX_RECORDS} models")
            if not has_more:
                break
            last = page.get("last_id")
            if not isinstance(last, str) or not 0 < len(last) <= _MAX_ID or last in seen:
                raise _Unusable("the pages do not end: `last_id` does not lead on")
            seen.add(last)
            target = f"{_TARGET}&after_id={quote(last, safe='')}"
        else:
            raise _Unusable(f"more than {MAX_PAGES} pages")
        if not any(self._is_known(record) for record in records):
            raise _Unusable("no model of the catalogue is listed")
        return records

    async def _body(self, target: str, max_bytes: int) -> bytes:
        """One page as it came. Raises RouterError or `_Unusable`; the connection is not left half read."""
        if self._is_stopping:
            raise ClientGone("the router is shutting down")
        call = self._upstream.start(UpstreamCall("GET", target.encode(), self._headers, b"", self._deadlines))
        self._pending = call
        try:
            reply = await call.reply()
            if reply.status != 200:
                raise _Unusable(f"the upstream answered {reply.status}")
            body = bytearray()
            while chunk := await reply.read():
                body += chunk
                if len(body) > max_bytes:
                    raise _Unusable(f"the answer is longer than {MAX_BYTES} bytes")
            return bytes(body)
        finally:
            self._pending = None
            call.abort()  # harmless where the answer is complete

    def _is_known(self, record: object) -> bool:
        name = record.get("id") if isinstance(record, dict) else None
        return isinstance(name, str) and self._file.find(name) is not None

    def _take(self, records: list[object]) -> None:
        made, notes = with_capabilities(self._file, records)
        self._catalog.adopt(made)
        changed = tuple(new.id for new, old in zip(made.models, self._file.models, strict=True) if new != old)
        is_news = self._refreshed == 0 or self._failure is not None or (changed, tuple(notes)) != self._said()
        self._refreshed += 1
        self._failure = None
        self._last_success_s = self._wall_clock()
        self._changed, self._notes = changed, tuple(notes)
        if is_news:
            self._observe(True, "; ".join([_named(changed), *notes]))

    def _said(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return self._changed, self._notes

    def _fail(self, text: str) -> bool:
        is_news = self._failure is None
        self._failed += 1
        self._failure = text
        if is_news:
            self._observe(False, text)
        return False

    def _give_up(self, _: asyncio.Task[bool]) -> None:
        self._is_stopping = True
        if self._pending is not None:
            self._pending.abort()


def _named(changed: tuple[str, ...]) -> str:
    if not changed:
        return "every model takes what the catalogue says"
    return "other than the catalogue says: " + ", ".join(f"`{name}`" for name in changed)
