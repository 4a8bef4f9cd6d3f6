"""What was decided about the items of Message Batches, and whose batches are, in Redis: for several replicas.

A ticket is a hash with a field for each entry; a batch is a small hash that names its ticket and its tenant. Both go by
themselves when the results can be fetched no longer. Redis should keep them: with `maxmemory-policy` `noeviction` or
`volatile-ttl`, which lets what lasts longest go last.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence

from router.errors import JobsUnavailable
from router.jobs.decision import KEPT
from router.jobs.sqlite import KEPT_S
from router.redis_link import RedisLink, RedisUnavailable

PREFIX = "router:v1:batch:"  # with the batch's id
TICKET_PREFIX = "router:v1:batch-ticket:"
_PUT_BYTES = 256 * 1024  # of entries in one command
_PUT_PARTS = 4_000  # names and values in one command; a script takes at most 8,000
_MOST_OWED = 1_000
_MOST_REMEMBERED = 1_000
_OWNERS_AT_ONCE = 200

_log = logging.getLogger("router")

_PUT = """
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
return redis.call('EXPIRE', KEYS[1], ARGV[1])
"""


class RedisDecisions:
    """A `seams.BatchDecisions` over a link, which is not closed with it. `kept_s` is how long entries stay."""

    def __init__(self, link: RedisLink, *, kept_s: float = KEPT_S) -> None:
        self._link = link
        self._kept_s = int(kept_s)
        self._owed: dict[str, tuple[str, str]] = {}  # batch -> ticket and tenant that Redis did not take
        self._tickets: dict[str, str] = {}  # of batches asked for, which never change
        self._counts = dict.fromkeys(("put", "linked", "found", "missing", "failures"), 0)

    async def put(self, ticket: str, entries: Mapping[str, bytes]) -> bool:
        """See `BatchDecisions`."""
        parts: list[str | bytes] = []
        size = 0
        try:
            for name, value in entries.items():
                parts += (name, value)
                size += len(name) + len(value)
                if size >= _PUT_BYTES or len(parts) >= _PUT_PARTS:
                    await self._link.run(_PUT, [TICKET_PREFIX + ticket], [self._kept_s, *parts])
                    parts, size = [], 0
            if parts:
                await self._link.run(_PUT, [TICKET_PREFIX + ticket], [self._kept_s, *parts])
        except RedisUnavailable:
            self._counts["failures"] += 1
            return False
        self._counts["put"] += len(entries)
        await self._pay()
        return True

    async def link(self, ticket: str, batch: str, tenant: str) -> bool:
        """See `BatchDecisions`."""
        self._owed[batch] = ticket, tenant
        while len(self._owed) > _MOST_OWED:
            lost = next(iter(self._owed))
            del self._owed[lost]
            _log.error("jobs: whose batch `%s` is could not be kept; nobody can reach it through the router", lost)
        await self._pay()
        return batch not in self._owed

    async def forget(self, ticket: str) -> None:
        """See `BatchDecisions`."""
        try:
            await self._link.ask("UNLINK", TICKET_PREFIX + ticket)
            await self._pay()
        except RedisUnavailable:
            self._counts["failures"] += 1

    async def of(self, batch: str, names: Sequence[str]) -> Mapping[str, bytes] | None:
        """See `BatchDecisions`."""
        if not names:
            return {}
        found: dict[str, bytes] = {}
        try:
            ticket = await self._ticket(batch)
            if ticket is not None:
                values = await self._link.ask("HMGET", TICKET_PREFIX + ticket, *names)
                found = {name: value for name, value in zip(names, values, strict=True) if value is not None}
        except RedisUnavailable:
            self._counts["failures"] += 1
            return None
        await self._pay()
        self._counts["found"] += len(found)
        self._counts["missing"] += sum(name not in found for name in names if not name.startswith(KEPT))
        return found

    async def owners(self, batches: Sequence[str]) -> Mapping[str, str]:
        """See `BatchDecisions`."""
        found = {batch: self._owed[batch][1] for batch in batches if batch in self._owed}
        asked = [batch for batch in dict.fromkeys(batches) if batch not in found]
        try:
            for at in range(0, len(asked), _OWNERS_AT_ONCE):
                some = asked[at : at + _OWNERS_AT_ONCE]
                # asked in one turn of the loop, they go out together; one command could not name keys of several slots
                looked_up = (self._link.ask("HGET", PREFIX + batch, "tenant") for batch in some)
                told = await asyncio.gather(*looked_up, return_exceptions=True)
                for batch, tenant in zip(some, told, strict=True):
                    if isinstance(tenant, BaseException):
                        raise tenant
                    if tenant is not None:
                        found[batch] = tenant.decode("utf-8", "replace")
        except RedisUnavailable as exc:
            self._counts["failures"] += 1
            raise JobsUnavailable("whose a batch is cannot be looked up now", retryable=True) from exc
        if asked:
            await self._pay()
        return found

    async def some(self, batch: str, limit: int) -> Mapping[str, bytes]:
        """See `BatchDecisions`."""
        found: dict[str, bytes] = {}
        try:
            ticket = await self._ticket(batch)
            cursor: bytes | str = "0"
            while ticket is not None and len(found) < limit:
                cursor, flat = await self._link.ask("HSCAN", TICKET_PREFIX + ticket, cursor, "COUNT", 2 * limit)
                pairs = zip(flat[::2], flat[1::2], strict=True)
                found.update((name.decode(), value) for name, value in pairs if not name.startswith(b"#"))
                if cursor == b"0":
                    break
        except RedisUnavailable:
            self._counts["failures"] += 1
        return dict(sorted(found.items())[:limit])

    def stats(self) -> Mapping[str, int]:
        """Counts since the start; `owed` are batches whose owner is known to this process alone."""
        return {**self._counts, "owed": len(self._owed)}

    async def close(self) -> None:
        """Write what is owed, while the link is still open. Nothing else is under way: whoever asked has waited."""
        await self._pay()
        for lost in self._owed:
            _log.error("jobs: whose batch `%s` is could not be kept; nobody can reach it through the router", lost)

    async def _pay(self) -> None:
        """Write whose batches are that Redis did not take before. Never raises."""
        for batch, (ticket, tenant) in list(self._owed.items()):
            try:
                await self._link.run(_PUT, [PREFIX + batch], [self._kept_s, "ticket", ticket, "tenant", tenant])
            except RedisUnavailable:
                self._counts["failures"] += 1
                return
            self._counts["linked"] += self._owed.pop(batch, None) is not None

    async def _ticket(self, batch: str) -> str | None:
        known = self._owed.get(batch)
        ticket = known[0] if known is not None else self._tickets.get(batch)
        if ticket is None:
            said = await self._link.ask("HGET", PREFIX + batch, "ticket")
            if said is None:
                return None
            ticket = said.decode("utf-8", "replace")
            if len(self._tickets) >= _MOST_REMEMBERED:
                self._tickets.clear()
            self._tickets[batch] = ticket
        return ticket
