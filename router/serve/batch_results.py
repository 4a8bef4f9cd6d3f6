"""The results of a Message Batch: passed on byte for byte, while a copy is read line by line and each item is booked.

An item that succeeded becomes one trace. Its id is a hash of the batch and of the item's name there, so that it is the
same whenever, by whomever and through whichever process the results are fetched: sinks count it once. Nothing is
remembered here between two fetches. What was decided about an item when its batch was made is looked up, for all items
of a chunk at once; where nothing is known of it, its baseline is the price of the model that answered. While it cannot
be looked up the lines pass unmetered: what is booked once stays so, and would have saved nothing. A fetch that breaks
off has booked the whole lines that passed; the next one books the others. What succeeded not costs nothing, and
is only counted, in the trace of the fetch.

A hundred thousand items are more than a sink can hold. While it has no room the upstream is not read, and so the client
waits. One that has no room for `PATIENCE_S` takes nothing at all, and no client is held up for that: lines pass
unmetered then, are counted as such, and the next fetch books them. Of a long line only what it is booked by is read,
slice by slice, so that no line holds up other requests for more than a few milliseconds.

Where answers were known when the batch was made, their lines (`batch_kept.py`) follow those of the upstream, and are
booked as hits of the cache. Where a rule caches what batches bring, the answers that pass are put into the cache.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from dataclasses import replace
from typing import Any

import orjson

from router.catalog.lookup import Catalog
from router.errors import ClientGone, UpstreamBroken, UpstreamTimeout
from router.jobs.decision import DecisionReader, ItemDecision
from router.jobs.deferred import JOB_ID
from router.seams import BatchDecisions, CacheBackend, ItemSink, UpstreamReply
from router.serve.batch_cached import keep_answer
from router.serve.batch_kept import KeptLines
from router.serve.exchange import Exchange
from router.serve.ledger import book
from router.serve.relay import timed_read
from router.trace.record import BATCH_ITEM, Attempt, Trace
from router.usage import UsageMeter
from router.wire.jsonl import LineReader, Skim

KINDS = ("succeeded", "errored", "canceled", "expired")
UNMETERED = "unmetered"  # lines that could not be read or booked; an answer that came compressed counts as one
PATIENCE_S = 30.0
_PAUSE_S = 0.02
_AT_ONCE = 16  # lines of up to 4 kB read before other requests get their turn: about half a millisecond
_WEIGHED = 4_096  # bytes that count as one more of them
_WHOLE = 64 * 1024  # bytes of a line that is read as it is
_LEFT = 512 * 1024  # bytes that a longer one may have besides its long strings: some 20 milliseconds at the worst
_BREATH_S = 0.001  # of that turn: without it, reading here and storing there would take all of the process
_FAMILY = "/v1/messages/batches/"

_log = logging.getLogger("router")


def batch_named(path: str) -> tuple[str | None, bool]:
    """The batch that a path of the family names, None for none, and whether it asks for its results.

    The path is spelled plainly (`api` refuses any other spelling): else the same items would be booked as others.
    """
    batch, _, rest = path.removeprefix(_FAMILY).partition("/") if path.startswith(_FAMILY) else ("", "", "")
    return batch or None, bool(batch) and rest == "results"


def item_id(batch: str, custom_id: str) -> str:
    """The trace id of an item: 32 hex digits. `custom_id` is unique within its batch."""
    named = f"model-router batch item\0{batch}\0{custom_id}"
    return hashlib.blake2b(named.encode("utf-8", "replace"), digest_size=16).hexdigest()


class BatchResultsRelay:
    """A `relay.Relay` of JSON lines. `policy` is the name that the items are booked under.

    `settle` is to be called once nothing more is read. `is_readable` False: the bytes are compressed, and none is read.
    `kept` are the lines that follow the upstream's, `cache` is where answers go that a rule wants cached.
    """

    def __init__(
        self,
        exchange: Exchange,
        reply: UpstreamReply,
        attempt: Attempt,
        items: ItemSink,
        catalog: Catalog,
        decisions: BatchDecisions | None = None,
        *,
        kept: KeptLines | None = None,
        cache: CacheBackend | None = None,
        batch: str,
        policy: str,
        is_readable: bool = True,
        max_line_bytes: int | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._exchange = exchange
        self._reply = reply
        self._attempt = attempt
        self._items = items
        self._catalog = catalog
        self._decisions = decisions
        self._reader = DecisionReader()
        self._kept = kept
        self._cache = cache
        self._is_at_kept = False
        self._ends_line = True
        self._batch = batch
        self._policy = policy
        self._is_readable = is_readable
        self._lines = LineReader() if max_line_bytes is None else LineReader(max_line_bytes)
        self._patience_s = patience_s
        self._is_patient = True
        self._counts = dict.fromkeys(KINDS, 0)
        self._unmetered = 0 if is_readable else 1
        self.is_complete = False

    async def read(self) -> bytes:
        """See `Relay`. The lines that end in a chunk are booked before it is given out."""
        if self._is_at_kept:
            return await self._next_kept()
        try:
            chunk = await timed_read(self._exchange, self._reply)
        except UpstreamTimeout:
            self._attempt.outcome = "timeout"
            await self._book_rest()
            raise
        except UpstreamBroken:
            self._attempt.outcome = "cut"
            await self._book_rest()
            raise
        except ClientGone:
            self._attempt.outcome = "client_closed"
            raise
        if not chunk:
            await self._book_rest()
            if self._kept is not None:
                self._is_at_kept = True
                return await self._next_kept() if self._ends_line else b"\n"
            self.is_complete = True
            return b""
        if self._is_readable:
            await self._note(self._lines.feed(chunk))
            await self._room()
        self._ends_line = chunk.endswith(b"\n")
        return chunk

    async def _next_kept(self) -> bytes:
        """The next piece of the kept lines. Raises JobsUnavailable where it cannot be had: the answer is not whole."""
        assert self._kept is not None
        watch = self._exchange.watch
        watch.check()
        if watch.is_stopping:
            raise ClientGone("the server is stopping")
        piece = await self._kept.read()
        if not piece:
            self.is_complete = True
            return b""
        await self._note(self._lines.feed(piece))
        await self._room()
        return piece

    def abort(self) -> None:
        """See `Relay`."""
        if not self.is_complete:
            self._reply.abort()

    def settle(self) -> None:
        """Say in the trace what passed. A line whose end nobody waited for is not booked: the next fetch does that."""
        trace = self._exchange.trace
        if self._lines.rest():
            self._unmetered += 1
        trace.batch_lines = {**self._counts, UNMETERED: self._unmetered + self._lines.too_long}
        self._attempt.ended_s = self._exchange.clock.now_s()

    async def _book_rest(self) -> None:
        """Book what stands behind the last line end, if it is whole."""
        rest = self._lines.rest()
        if rest:
            await self._note([rest])

    async def _note(self, lines: list[bytes]) -> None:
        """Count lines, and book those that are answers."""
        answers: list[tuple[str, dict[str, Any], bytes]] = []
        weight = 0
        for line in lines:
            entry = _object(line) if len(line) <= _WHOLE else await _read(line)
            result = entry.get("result")
            custom_id = entry.get("custom_id")
            kind = result.get("type") if isinstance(result, dict) else None
            message = result.get("message") if isinstance(result, dict) else None
            if not isinstance(custom_id, str) or kind not in KINDS:
                self._unmetered += 1
            elif kind != "succeeded":
                self._counts[kind] += 1
            elif isinstance(message, dict):
                answers.append((custom_id, _without_content(message), line))
            else:
                self._unmetered += 1
            weight += 1 + len(line) // _WEIGHED
            if weight >= _AT_ONCE:
                weight = 0
                await self._others()
        decided = await self._decided([custom_id for custom_id, _, _ in answers])
        if decided is None:  # booked now, they would lose what they saved for good: the next fetch books them
            self._unmetered += len(answers)
            return
        for number, (custom_id, message, line) in enumerate(answers, start=1):
            if self._is_patient or self._items.has_room():
                decision = decided.get(custom_id)
                if decision is None and JOB_ID.fullmatch(custom_id):  # the deferred lane books its own
                    self._counts["succeeded"] += 1
                    continue
                item = self._booked(custom_id, message, decision)
                if decision is not None and decision.key is not None and not self._is_at_kept:
                    await self._store(decision, item, line)
                self._items.write(item)
                self._counts["succeeded"] += 1
            else:
                self._unmetered += 1
            if number % _AT_ONCE == 0:
                await self._others()

    async def _decided(self, custom_ids: list[str]) -> dict[str, ItemDecision] | None:
        """What was decided about these items, as far as it is known; None when it cannot be looked up now."""
        store, reader = self._decisions, self._reader
        if store is None or not custom_ids:
            return {}
        entries = await store.of(self._batch, custom_ids)
        if entries is None:
            return None
        missing = reader.missing(entries.values())
        if missing:
            shared = await store.of(self._batch, missing)
            if shared is None:
                return None
            reader.share(missing, shared)
        found: dict[str, ItemDecision] = {}
        for custom_id, entry in entries.items():
            decision = reader.decision(entry)
            if decision is not None:
                found[custom_id] = decision
        return found

    def _booked(self, custom_id: str, message: dict[str, Any], decision: ItemDecision | None) -> Trace:
        """The trace of an item; where nothing is known of it, it is taken to have asked for what answered."""
        fetch = self._exchange.trace
        meter = UsageMeter(None if decision is None else decision.model_sent)
        meter.message(message)
        usage, model, message_id = meter.usage(), meter.model or "", message.get("id")
        item = Trace(
            item_id(self._batch, custom_id),
            fetch.started_at_ns + int(self._exchange.clock.now_s() * 1e9),
            endpoint=BATCH_ITEM,
            method=fetch.method,
            path=fetch.path,
            request_id=message_id if isinstance(message_id, str) else None,
            tenant=fetch.tenant,
            key=fetch.key,
            client=fetch.client,
            batch=self._batch,
            policy=self._policy,
            model_asked=model,
            model_sent=model,
            model_answered=meter.model,
            # The tier is what says afterwards (in reports, in booking again) that batch prices hold.
            usage=None if usage is None else replace(usage, service_tier="batch"),
            status=200,
            stop_reason=meter.stop_reason,
        )
        if decision is not None:
            _add(item, decision)
        if self._is_at_kept:
            item.cache = "hit"
        book(item, self._catalog, is_hit=self._is_at_kept)
        return item

    async def _store(self, decision: ItemDecision, item: Trace, line: bytes) -> None:
        """Put an answer into the cache. It fails open, as it does for a request."""
        item.cache = "miss"
        if self._cache is not None:
            try:
                item.is_stored = await keep_answer(self._cache, decision, item, line)
            except Exception:
                _log.exception("an answer of batch `%s` could not be put into the cache", self._batch)

    async def _others(self) -> None:
        """Let other requests have their turn, and the sink its time."""
        await asyncio.sleep(_BREATH_S)
        await self._room()

    async def _room(self) -> None:
        """Wait until the sink has room, the client leaves or patience ends."""
        if self._items.has_room() or not self._is_patient:
            return
        clock, watch = self._exchange.clock, self._exchange.watch
        until_s = clock.now_s() + self._patience_s
        while not (self._items.has_room() or watch.is_gone or watch.is_stopping):
            if clock.now_s() >= until_s:
                self._is_patient = False
                return
            await asyncio.sleep(_PAUSE_S)


async def _read(line: bytes) -> dict[str, Any]:
    """As `_object`, for a line of any length: of a long one, without its long strings."""
    if len(line) <= _WHOLE:
        return _object(line)
    skim = Skim(line, _LEFT)
    while skim.step():  # noqa: ASYNC110 - nothing is waited for: each turn does a slice of the work
        await asyncio.sleep(_BREATH_S)
    entry = _object(skim.text, _LEFT)
    return entry if entry.get("custom_id") else {}  # one that was left out is nobody's name


def _object(line: bytes, most: int = _WHOLE) -> dict[str, Any]:
    """The JSON object of a line; an empty one for anything else, and for a line of over `most` bytes."""
    if len(line) > most:
        return {}
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        if len(line) > _WHOLE:
            return {}
        try:
            # An answer may hold half a surrogate pair, which is no text, and costs what it costs all the same.
            value = orjson.loads(json.dumps(json.loads(line), ensure_ascii=False).encode("utf-8", "replace"))
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}


def _without_content(message: dict[str, Any]) -> dict[str, Any]:
    """What is read of a message: the text of a whole chunk of answers need not wait for the look-up."""
    return {name: value for name, value in message.items() if name != "content"}


def _add(item: Trace, decision: ItemDecision) -> None:
    """What was decided about an item, in its trace."""
    item.policy, item.revision, item.rule, item.lane = decision.policy, decision.revision, decision.rule, decision.lane
    item.model_asked, item.model_sent = decision.model_asked, decision.model_sent
    item.client, item.session, item.conversation = decision.client, decision.session, decision.conversation
    item.why, item.tags, item.edits = decision.why, decision.tags, decision.edits
    item.labels, item.facts = decision.labels, decision.facts or None
