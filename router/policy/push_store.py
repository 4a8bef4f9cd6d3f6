"""Where pushed policies are: versions in Redis, which of them is in force, and which processes there are.

Keys that lie together, in a cluster too. `now` is the number of the version in force, a few digits, which every process
reads again and again. `notes` has what is known of each version, `files` its texts, `processes` a line of each process
with the time when Redis took it: by that clock alone it is told who is alive. `since` tells since when there are such
lines, `left` of which sticky version somebody's folder is newer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from router.errors import PolicyError
from router.policy.pushed import (
    MAX_PACKED_BYTES,
    MOST_NUMBER,
    MOST_VERSIONS,
    Standing,
    Version,
    has_seal,
    is_sealed,
    pack_standing,
    pack_version,
    unpack_files,
    unpack_standing,
    unpack_version,
)
from router.redis_link import RedisLink, RedisUnavailable

NOW = "router:v1:{policies}:now"
NOTES = "router:v1:{policies}:notes"
FILES = "router:v1:{policies}:files"
PROCESSES = "router:v1:{policies}:processes"
SINCE = "router:v1:{policies}:since"
LEFT = "router:v1:{policies}:left"

ROLL_S = 1.0  # between two words of a process
LEASE_MS = 5_000  # a process that was not heard of for so long is not alive
_STALE_MS = 60_000  # and one for so long is forgotten
_NOBODY_S = 1.5  # after a loss of Redis every process is heard of again within this
_MOST_PUSHES = 20  # at once, until one gives up
_MOST_AHEAD = 1_000  # by so much a number that nobody signed may be ahead of those that are
_STEP_S = 0.05
_MOST_DIGITS = 9  # of a number; with more of them it is none of ours

# `since` begins anew where there were no lines, or where this process could not write its own for a lease: the others
# may not have been able to either.
# KEYS processes, since; ARGV name, revision, what it says, milliseconds of a lease, of staleness. → alive, with
# another revision, its milliseconds.
ANNOUNCE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local before = redis.call('HGET', KEYS[1], ARGV[1])
local when_before = before and tonumber(string.match(before, '^(%d+) ') or '0')
local is_lost = redis.call('EXISTS', KEYS[1]) == 0 or (when_before and now - when_before > tonumber(ARGV[4]))
local said = redis.pcall('HSET', KEYS[1], ARGV[1], string.format('%.0f %s %s', now, ARGV[2], ARGV[3]))
if type(said) == 'table' then
  if string.find(said['err'], 'READONLY', 1, true) then return redis.error_reply('READONLY a replica') end
  return said
end
redis.call('PEXPIRE', KEYS[1], ARGV[5])
if is_lost then redis.call('SET', KEYS[2], string.format('%.0f', now))
else redis.call('SET', KEYS[2], string.format('%.0f', now), 'NX') end
local alive, others = 0, 0
local lines = redis.call('HGETALL', KEYS[1])
for at = 1, #lines, 2 do
  local when, revision = string.match(lines[at + 1], '^(%d+) (%S+) ')
  local silent = when and now - tonumber(when)
  if not silent or math.abs(silent) > tonumber(ARGV[5]) then
    redis.call('HDEL', KEYS[1], lines[at])
  elseif silent <= tonumber(ARGV[4]) then
    alive = alive + 1
    if revision ~= ARGV[2] then others = others + 1 end
  end
end
return {alive, others, string.format('%.0f', now)}
"""

# KEYS now, notes, files; ARGV what `now` must hold, number, note, files or '', version whose files it takes or '',
# and then the numbers that are kept no longer. → 1 | 0, `now` holds something else | -1, the files are not there.
# What is in force is written last: a store that is full in between has changed nothing that anybody sees.
PUSH = f"""
if redis.call('GETRANGE', KEYS[1], 0, {_MOST_DIGITS}) ~= ARGV[1] then return 0 end
local files = ARGV[4]
if ARGV[5] ~= '' then
  files = redis.call('HGET', KEYS[3], ARGV[5])
  if not files then return -1 end
end
local said = 0
if files ~= '' then said = redis.pcall('HSET', KEYS[3], ARGV[2], files) end
if type(said) ~= 'table' then said = redis.pcall('HSET', KEYS[2], ARGV[2], ARGV[3]) end
if type(said) == 'table' then
  if string.find(said['err'], 'READONLY', 1, true) then return redis.error_reply('READONLY a replica') end
  return said
end
redis.call('SET', KEYS[1], ARGV[2])
for at = 6, #ARGV do
  redis.call('HDEL', KEYS[2], ARGV[at])
  redis.call('HDEL', KEYS[3], ARGV[at])
end
return 1
"""


class Overtaken(Exception):
    """Another version came into force meanwhile; `number` is that version's."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass(frozen=True, slots=True)
class Row:
    """How one process stands to a version; `state` is taken, refused or silent, and `reason` says why not taken."""

    state: str
    reason: str
    standing: Standing

    def shown(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "name": self.standing.name,
            "state": self.state,
            "reason": self.reason,
            "revision": self.standing.revision,
            "source": self.standing.source,
        }


@dataclass(frozen=True, slots=True)
class Found:
    """What the store holds under a number: a version or none, and why it is not to be taken, or nothing.

    `is_signed`: with some key, whichever.
    """

    number: int
    version: Version | None
    problem: str = ""
    is_signed: bool = False


class PushStore:
    """The versions over a link. Everything raises RedisUnavailable when Redis does not answer.

    With a `key` a version is signed when it is pushed, and one that is not signed with it has a `problem`.
    """

    def __init__(self, link: RedisLink, key: bytes | None = None) -> None:
        self._link = link
        self._key = key
        self._ahead_ms: int | None = None  # the clock of Redis, of this process's

    async def number(self, within_s: float | None = None) -> int:
        """The version in force; 0 where nothing was ever pushed (or Redis has lost it)."""
        said = await self._now(within_s)
        if said == b"":
            return 0
        if not said.isdigit() or len(said) > _MOST_DIGITS:
            raise RedisUnavailable("an answer that is no version", is_reply=True)
        return int(said)

    async def now_ms(self, within_s: float | None = None) -> int:
        """Unix milliseconds by the clock of Redis."""
        return _time_ms(await self._link.ask("TIME", within_s=within_s))

    async def version(self, number: int, within_s: float | None = None) -> Found | None:
        """What is held of a version; None when nothing is."""
        said = await self._link.ask("HGET", NOTES, str(number), within_s=within_s)
        return self._found(number, said) if isinstance(said, bytes) else None

    async def files(self, version: Version, within_s: float | None = None) -> dict[str, bytes] | None:
        """The files of a version; None when nothing is held. Raises PolicyError when they are not what was pushed."""
        field = str(version.number)
        length = await self._link.ask("HSTRLEN", FILES, field, within_s=within_s)
        if length == 0:
            return None
        if not isinstance(length, int) or not 0 < length <= MAX_PACKED_BYTES:  # before it is fetched
            raise PolicyError(f"version #{version.number}: what the store holds of it is damaged")
        said = await self._link.ask("HGET", FILES, field, within_s=within_s)
        return unpack_files(said, version) if isinstance(said, bytes) else None

    async def versions(self) -> list[Version]:
        """All versions that are kept and can be taken, oldest first."""
        return [each.version for each in await self.held() if each.version is not None and not each.problem]

    async def held(self) -> list[Found]:
        """All that is kept, versions and what is none, by number."""
        fields = ((field, value) for field, value in _pairs(await self._link.ask("HGETALL", NOTES)))
        numbered = [(int(field), value) for field, value in fields if field.isdigit() and len(field) <= _MOST_DIGITS]
        return [self._found(number, value) for number, value in sorted(numbered)]

    def _found(self, number: int, data: bytes) -> Found:
        version = unpack_version(number, data)
        if version is None:
            return Found(number, None, f"version #{number}: what the store holds of it is damaged")
        if self._key is not None and not is_sealed(number, data, self._key):
            return Found(number, version, f"version #{number} is not signed with the `tenant_secret` of this process")
        return Found(number, version, is_signed=has_seal(data))

    async def push(
        self, version: Version, files: bytes = b"", *, files_of: Version | None = None, in_force: int | None = None
    ) -> Version:
        """Put a version in force → the same with its number and time. `over` is filled in with the folders there are.

        `files` are those that `pack_files` gives, or those of another version, `files_of`. With `in_force` that version
        must be the one in force. Raises Overtaken when it is not, and PolicyError when the files are gone, or when a
        sticky version has no process to stand for.
        """
        await self._all_are_heard()
        digest = files_of.digest if files_of is not None else sha256(files).hexdigest() if files else ""
        for _ in range(_MOST_PUSHES):
            now, held, processes, at_ms = await asyncio.gather(
                self._now(), self.held(), self.processes(), self.now_ms()
            )
            number_now = int(now) if now.isdigit() else 0
            if in_force is not None and number_now != in_force:
                raise Overtaken(number_now)
            known = [each.number for each in held if not each.problem]
            alive = [each for each in processes if each.silent_ms <= LEASE_MS]
            if alive and all(each.trust == "foreign" for each in alive):
                raise PolicyError(
                    "the processes that were heard of have another `tenant_secret`: they would refuse what is pushed",
                    hint="give this command theirs: `--config FILE`, or ROUTER_TENANT_SECRET",
                )
            if self._key is None and any(each.is_signed and each.number == number_now for each in held):
                raise PolicyError(
                    "what is in force is signed: without the `tenant_secret` of the routers nothing takes its place",
                    hint="give this command theirs: `--config FILE`, or ROUTER_TENANT_SECRET",
                )
            ours = [each for each in alive if each.trust == "ours"]
            over = tuple(sorted({each.folder for each in ours if each.folder}))
            if version.is_sticky and not over:
                who = "no process that was heard of has this `tenant_secret`" if alive else "no process was heard of"
                raise PolicyError(
                    f"{who}, so nobody knows which folders a sticky version stands before",
                    hint="is this the Redis that your routers use? without `--sticky` it can be pushed",
                )
            others = [each.number for each in held if each.problem]  # perhaps of somebody with another secret
            number = _next(
                [*known, *(each.last for each in ours)], [number_now, *others, *(each.last for each in alive)]
            )
            new = replace(version, number=number, at_ms=at_ms, over=over, digest=digest)
            gone = [*known[: 1 - MOST_VERSIONS], *others[:-MOST_VERSIONS]]
            done = await self._link.run(
                PUSH,
                [NOW, NOTES, FILES],
                [now, new.number, pack_version(new, self._key), files, files_of.number if files_of else "", *gone],
            )
            if done == 1:
                return new
            if done == -1:
                raise PolicyError(f"the files of version #{files_of.number if files_of else 0} are not there any more")
        raise RedisUnavailable("others push all the time", is_reply=True)

    async def _all_are_heard(self) -> None:
        """Wait until every process that lives has been heard of, if Redis has lost them a moment ago."""
        until_s = time.monotonic() + _NOBODY_S
        while time.monotonic() < until_s:
            since, now_ms = await asyncio.gather(self._link.ask("GETRANGE", SINCE, 0, 15), self.now_ms())
            if isinstance(since, bytes) and since.isdigit() and not 0 <= now_ms - int(since) < _NOBODY_S * 1000:
                return
            await asyncio.sleep(_STEP_S)

    async def _now(self, within_s: float | None = None) -> bytes:
        said = await self._link.ask("GETRANGE", NOW, 0, _MOST_DIGITS, within_s=within_s)
        if not isinstance(said, bytes):
            raise RedisUnavailable("an answer that is no version", is_reply=True)
        return said

    async def give_way(self, number: int) -> None:
        """Keep that some process serves its folder in place of this sticky version, because the folder is newer."""
        await self._link.ask("SET", LEFT, str(number))

    async def left(self, within_s: float | None = None) -> int:
        """The last version that somebody's folder was newer than; 0 for none."""
        said = await self._link.ask("GETRANGE", LEFT, 0, _MOST_DIGITS, within_s=within_s)
        return int(said) if isinstance(said, bytes) and said.isdigit() and len(said) <= _MOST_DIGITS else 0

    async def announce(self, standing: Standing) -> tuple[int, int]:
        """Say how this process stands → (processes alive, those of them with another revision)."""
        if self._ahead_ms is None:
            self._ahead_ms = await self.now_ms() - _clock_ms()
        said = replace(standing, said_ms=max(0, _clock_ms() + self._ahead_ms))
        alive, others, now_ms = await self._link.run(
            ANNOUNCE,
            [PROCESSES, SINCE],
            [said.name, said.revision, pack_standing(said, self._key), LEASE_MS, _STALE_MS],
        )
        self._ahead_ms = int(now_ms) - _clock_ms()
        return int(alive), int(others)

    async def leave(self, name: str) -> None:
        """Be no longer among the processes."""
        await self._link.ask("HDEL", PROCESSES, name)

    async def processes(self) -> list[Standing]:
        """Every process that was heard of within a minute, by name."""
        said, moment = await asyncio.gather(self._link.ask("HGETALL", PROCESSES), self._link.ask("TIME"))
        now_ms = _time_ms(moment)
        found = (unpack_standing(name, line, now_ms, self._key) for name, line in _pairs(said))
        kept = [each for each in found if each is not None and abs(each.silent_ms) <= _STALE_MS]
        return sorted(kept, key=lambda standing: standing.name)

    async def acknowledged(self, version: Version, limit_s: float) -> list[Row]:
        """Wait until every process that is alive has taken or refused a version → how each stands to it, by name.

        One that ends in good order meanwhile has no row. One that is not heard of any more is silent.
        """
        began_s = time.monotonic()
        seen: dict[str, Standing] = {}
        while True:
            passed_s = time.monotonic() - began_s
            try:
                found = {each.name: each for each in await self.processes()}
            except RedisUnavailable:
                if passed_s > limit_s:
                    raise
                await asyncio.sleep(_STEP_S)
                continue
            alive = {name for name, each in found.items() if each.silent_ms <= LEASE_MS}
            seen = {name: each for name, each in found.items() if name in alive or name in seen}
            is_awaited = any(not found[name].has_answered(version) for name in alive)
            if passed_s > limit_s or (not is_awaited and (alive or passed_s > _NOBODY_S)):
                return [_row(each, version) for each in seen.values()]
            await asyncio.sleep(_STEP_S)


def _next(known: list[int], said: list[int]) -> int:
    """The next number: what Redis has lost is not counted twice. `known` are signed; others may `said` anything."""
    last = max(known, default=0)
    number = 1 + max((last, *(each for each in said if each <= last + _MOST_AHEAD)))
    if number > MOST_NUMBER:
        raise PolicyError(
            f"#{MOST_NUMBER} is the last number that a version can have",
            hint="stop all routers, delete the keys `router:v1:{policies}:*` of the fleet's Redis, start them again",
        )
    return number


def _row(standing: Standing, version: Version) -> Row:
    if standing.is_beyond(version):
        return Row("refused", f"it is at version #{standing.looked} already", standing)
    if not standing.has_answered(version):
        if standing.looked > version.number:
            return Row("silent", f"it went on to version #{standing.looked}, which it {standing.state}", standing)
        working = " (it is still checking)" if standing.state == "checking" else ""
        return Row("silent", f"not heard of it for {max(0, standing.silent_ms) / 1000:.1f} s{working}", standing)
    if standing.state == "taken":
        return Row("taken", "", standing)
    if standing.state == "left":
        return Row("refused", "its folder has changed since", standing)
    return Row("refused", standing.reason or "it was pushed before this process began", standing)


def _pairs(reply: Any) -> Iterator[tuple[bytes, bytes]]:
    if not isinstance(reply, list) or len(reply) % 2 or not all(isinstance(part, bytes) for part in reply):
        raise RedisUnavailable("an answer that is no hash", is_reply=True)
    return zip(reply[::2], reply[1::2], strict=True)


def _clock_ms() -> int:
    return int(time.monotonic() * 1000)


def _time_ms(reply: Any) -> int:
    try:
        seconds, microseconds = reply
        return int(seconds) * 1000 + int(microseconds) // 1000
    except (TypeError, ValueError):
        raise RedisUnavailable("an answer that is no time", is_reply=True) from None
