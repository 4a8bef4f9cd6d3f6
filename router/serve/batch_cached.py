"""Items of a new batch that the cache has answers for, and answers of a batch that go into the cache.

Only a rule with `cache: {…, batches: true}` has either. An item has the cache key of the same request by itself, not
streamed, so that answers in real time serve batches and the other way round. Look-ups go out together, for many items
at once; they take part in no lead, and all of them together have only so long: what was not looked up is sent.

An item whose answer is known is left out of the body that goes up. The line of its result is kept first, beside the
decisions about the batch (`batch_kept.py` gives it out): only what the store has taken is left out, and where anything
fails everything is sent. One item goes up whatever is known, the one with the smallest `params`: so there is a batch
upstream, with an id and a life of its own.
"""

from __future__ import annotations

import asyncio
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import orjson

from router.cache.entry import CacheEntry
from router.facts.inspect import Caller
from router.jobs.decision import ItemDecision, Keeping
from router.policy.written import CacheDirective
from router.seams import BatchDecisions, CacheBackend
from router.serve.batch_kept import KeptWriter
from router.serve.cached import STORABLE_STOPS, is_fresh
from router.serve.exchange import Exchange
from router.serve.headers import RawHeaders, first, upstream_headers
from router.serve.plan import Planner
from router.trace.record import Trace
from router.wire.messages import MessagesRequest, object_spans, value_end

_PATH = b"/v1/messages"
_BETA = b"message-batches-2024-09-24"  # of batches alone, and needed no more: a request by itself does not name it
_TOGETHER = 256  # items that are looked up in one go
_IN_FLIGHT = 64  # look-ups
_PATIENCE_S = 2.0  # for all look-ups of a batch, and
_PATIENCE_PER_ITEM_S = 0.0003
_BREATH_S = 0.001
_PLAIN = re.compile(rb'\{"custom_id":"[\w-]{1,64}","result":\{"type":"succeeded","message":(?=\{)', re.ASCII)
_LINE = b'{"custom_id":"%b","result":{"type":"succeeded","message":%b}}\n'
_AT_ONCE = 64  # answers that are looked at before other requests get their turn
_MOST_KEYED = 1024 * 1024  # bytes of `params`: what is larger would hold up others while its key is made, and is sent
_IN_THE_LOOP = 64 * 1024  # bytes of an answer that is read without a thread
_ENDS_A_BATCH_S = 86_400.0  # after which every batch has ended. Source: batch documentation


@dataclass(frozen=True, slots=True)
class _Sought:
    place: int
    custom_id: str
    key: str
    directive: CacheDirective
    size: int  # of its `params`


class KnownItems:
    """What the cache knows of one batch. `ticket` is what the answers are kept under.

    `keyed` counts the items that may be cached, `found` those whose answer is known.
    """

    def __init__(
        self, exchange: Exchange, planner: Planner, cache: CacheBackend, store: BatchDecisions, ticket: str
    ) -> None:
        self._exchange = exchange
        self._planner = planner
        self._cache = cache
        self._writer = KeptWriter(store, ticket)
        incoming = exchange.incoming
        self._headers = _alone(upstream_headers(incoming.headers, incoming.credential, is_metered=True))
        self._target = _PATH + b"?" + incoming.query if incoming.query else _PATH
        self._asked_at_ns = cache.now_ns()
        self._starts = array("Q")
        self._ends = array("Q")
        self._sought: list[_Sought] = []
        self._waited_s = 0.0
        self._left_out: list[int] = []  # places, of those whose lines are written
        self._held: tuple[_Sought, bytes] | None = None  # the smallest of them so far, and its line: it may be sent
        self.keyed = 0
        self.found = 0

    def at(self, start: int, end: int) -> int:
        """Take note of the next item of the body → its number."""
        self._starts.append(start)
        self._ends.append(end)
        return len(self._starts) - 1

    def note(
        self,
        place: int,
        custom_id: str,
        request: MessagesRequest,
        model: str,
        directive: CacheDirective,
        caller: Caller,
    ) -> tuple[str, Keeping] | None:
        """Have the answer to an item looked for, as `model` is sent it → what it is to be cached under, if it is."""
        if not directive.in_batches or len(request.raw) > _MOST_KEYED:
            return None
        if not request.is_compact and orjson.dumps(request.body) == request.raw:  # only what stands around it is not
            request = replace(request, is_compact=True)
        key, may_look_up = self._planner.item_key(
            request, caller, directive, model=model, target=self._target, headers=self._headers
        )
        if key is None:
            return None
        self.keyed += 1
        if may_look_up:
            self._sought.append(_Sought(place, custom_id, key, directive, len(request.raw)))
        return key, Keeping(directive.ttl_s, directive.max_bytes, self._asked_at_ns, caller.tenant)

    async def look_up(self, *, is_last: bool = False) -> None:
        """Look for the answers to the items noted so far, once they are enough to be worth it."""
        if not self._sought or (len(self._sought) < _TOGETHER and not is_last):
            return
        sought, self._sought = self._sought, []
        found = {each.place: entry for each in sought if (entry := self._cache.near(each.key)) is not None}
        missing = iter([each for each in sought if each.place not in found])
        began_s = self._exchange.clock.now_s()
        until_s = began_s + _PATIENCE_S + _PATIENCE_PER_ITEM_S * self.keyed - self._waited_s
        await asyncio.gather(
            *(self._ask(missing, found, until_s) for _ in range(_IN_FLIGHT if len(found) < len(sought) else 0))
        )
        self._waited_s += self._exchange.clock.now_s() - began_s
        for number, each in enumerate(sought, start=1):
            entry = found.get(each.place)
            if entry is not None and is_fresh(entry, each.directive, self._cache.now_ns()):
                await self._take(each, entry)
            if number % _AT_ONCE == 0:
                await asyncio.sleep(_BREATH_S)

    async def places(self) -> list[tuple[int, int]]:
        """Offsets of what is to be left out of the body, in order, once all their lines are kept; none where not."""
        await self.look_up(is_last=True)
        if self._held is not None and self.found < len(self._starts):
            await self._write(*self._held)
        if not self._left_out or not await self._writer.finish():
            self.found = 0
            return []
        self.found = len(self._left_out)
        self._left_out.sort()
        starts, ends, sent = self._starts, self._ends, 0
        while sent < len(self._left_out) and self._left_out[sent] == sent:
            sent += 1  # it ends at the first item that is sent
        # With the comma behind it where nothing that is sent stands before it, else with the one before it.
        return [
            (starts[place], starts[place + 1]) if place < sent else (ends[place - 1], ends[place])
            for place in self._left_out
        ]

    async def _ask(self, missing: Iterator[_Sought], found: dict[int, CacheEntry], until_s: float) -> None:
        """One of those that look up what is missing, one after the other, until time is up."""
        clock = self._exchange.clock
        for each in missing:
            if clock.now_s() >= until_s:
                return
            told = await self._cache.look_up(each.key, each.directive.max_bytes, is_claiming=False)
            if told.entry is not None:
                found[each.place] = told.entry

    async def _take(self, sought: _Sought, entry: CacheEntry) -> None:
        """Keep an answer; the smallest item so far waits, because it may have to be sent after all."""
        body = entry.body
        kind = first(entry.headers, b"content-type") or b""
        if entry.status != 200 or not kind.startswith(b"application/json") or b"\n" in body or b"\r" in body:
            return  # a line has no line ends in it
        size = len(body) + len(_LINE) + len(sought.custom_id) + (len(self._held[1]) if self._held else 0)
        if not self._writer.has_room(size):
            return
        if not (_is_message(body) if len(body) <= _IN_THE_LOOP else await asyncio.to_thread(_is_message, body)):
            return
        line = _LINE % (sought.custom_id.encode(), body)
        self.found += 1
        if self._held is None:
            self._held = sought, line
        elif sought.size < self._held[0].size:
            held, self._held = self._held, (sought, line)
            await self._write(*held)
        else:
            await self._write(sought, line)

    async def _write(self, sought: _Sought, line: bytes) -> None:
        self._left_out.append(sought.place)
        await self._writer.add(line)


async def keep_answer(cache: CacheBackend, decision: ItemDecision, item: Trace, line: bytes) -> bool:
    """Put the answer of an item, whose line of results this is, into the cache; whether it took it.

    Its time begins when the results are first fetched, but no later than a batch can have ended: who fetches them again
    and again makes nothing last longer. In a batch it cost half; who gets it in real time saves the whole price.
    """
    keeping, key = decision.keeping, decision.key
    if keeping is None or key is None or item.usage is None or item.stop_reason not in STORABLE_STOPS:
        return False
    if len(line) <= _IN_THE_LOOP:
        body = _message_of(line)
    elif len(line) <= keeping.max_bytes + 1024:
        body = await asyncio.to_thread(_message_of, line)
    else:
        return False
    if not body or len(body) > keeping.max_bytes:
        return False
    stored_ns = min(cache.now_ns(), keeping.asked_at_ns + int(_ENDS_A_BATCH_S * 1e9))
    entry = CacheEntry(
        status=200,
        headers=[(b"content-type", b"application/json")],
        body=body,
        usage=replace(item.usage, service_tier="standard"),
        model_answered=item.model_answered,
        stop_reason=item.stop_reason,
        asked_at_ns=keeping.asked_at_ns,
        expires_at_ns=stored_ns + int(keeping.ttl_s * 1e9),
        stored_at_ns=stored_ns,
        tenant=keeping.tenant,
        rule=decision.rule,
        model=decision.model_sent,
    )
    return cache.put(key, entry)


def _alone(headers: RawHeaders) -> RawHeaders:
    """The headers that a request by itself has, of those of a batch."""
    found: RawHeaders = []
    for name, value in headers:
        if name == b"anthropic-beta" and _BETA in value:
            value = b",".join(beta for beta in value.split(b",") if beta.strip(b" \t") != _BETA)
            if not value:
                continue
        found.append((name, value))
    return found


def _is_message(body: bytes) -> bool:
    try:
        value: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    return isinstance(value, dict) and value.get("type") == "message"


def _message_of(line: bytes) -> bytes:
    """The bytes of the message in a line of results (valid JSON); b"" where there is none."""
    plain = _PLAIN.match(line)
    if plain is not None and value_end(line, plain.end()) == len(line) - 2:
        return line[plain.end() : -2]
    result = object_spans(line).get("result", (0, 0))
    inner = line[slice(*result)]
    return inner[slice(*object_spans(inner).get("message", (0, 0)))] if inner[:1] == b"{" else b""
