"""Where pushed policies are: versions in Redis, which of them is in force, and which processes there are.

Four keys that lie together, in a cluster too. `now` is the number of the version in force, a few digits, which every
process reads again and again. `notes` has what is known of each version, `files` its texts, `processes` a line of each
process with the time when Redis took it: by that clock alone it is told who is alive.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from router.errors import PolicyError
from router.policy.pushed import (
    MAX_PACKED_BYTES,
    MOST_VERSIONS,
    Standing,
    Version,
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

ROLL_S = 1.0  # between two words of a process
LEASE_MS = 5_000  # a process that was not heard of for so long is not alive
_STALE_MS = 60_000  # and one for so long is forgotten
_NOBODY_S = 1.5  # after a loss of Redis every process is heard of again within this
_STEP_S = 0.05
_MOST_DIGITS = 9  # of a number; with more of them it is none of ours

# KEYS processes; ARGV name, revision, what it says, milliseconds of a lease, of staleness. → alive, with
# another revision.
ANNOUNCE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local said = redis.pcall('HSET', KEYS[1], ARGV[1], string.format('%.0f %s %s', now, ARGV[2], ARGV[3]))
if type(said) == 'table' then
  if string.find(said['err'], 'READONLY', 1, true) then return redis.error_reply('READONLY a replica') end
  return said
end
redis.call('PEXPIRE', KEYS[1], ARGV[5])
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
return {alive, others}
"""

# KEYS now, notes, files; ARGV least number so far, note, files or '', most versions, version whose files it takes or
# '', version that must be in force or ''. → number, milliseconds | 0, which is in force | -1, the files are not there.
# What is in force is written last: a store that is full in between has changed nothing that anybody sees.
PUSH = """
local now = redis.call('GETRANGE', KEYS[1], 0, 9)
if not string.match(now, '^%d+$') or string.len(now) > 9 then now = '0' end
if ARGV[6] ~= '' and tonumber(ARGV[6]) ~= tonumber(now) then return {0, now} end
local files = ARGV[3]
if ARGV[5] ~= '' then
  files = redis.call('HGET', KEYS[3], ARGV[5])
  if not files then return {-1, now} end
end
local last, known = math.max(tonumber(now), tonumber(ARGV[1])), {}
for _, field in ipairs(redis.call('HKEYS', KEYS[2])) do
  if string.match(field, '^%d+$') and string.len(field) < 10 then
    known[#known + 1] = tonumber(field)
    last = math.max(last, tonumber(field))
  end
end
table.sort(known)
local time = redis.call('TIME')
local at = time[1] * 1000 + math.floor(time[2] / 1000)
if #known > 0 then
  local note = redis.call('HGET', KEYS[2], string.format('%.0f', known[#known]))
  local before = tonumber(string.match(note or '', '^(%d+) ') or '0')
  if before >= at and before < at + 3600000 then at = before + 1 end
end
local number = string.format('%.0f', last + 1)
local said = redis.pcall('HSET', KEYS[2], number, string.format('%.0f %s', at, ARGV[2]))
if type(said) == 'table' then
  if string.find(said['err'], 'READONLY', 1, true) then return redis.error_reply('READONLY a replica') end
  return said
end
if files ~= '' then redis.call('HSET', KEYS[3], number, files) end
redis.call('SET', KEYS[1], number)
for at = 1, #known + 1 - tonumber(ARGV[4]) do
  local gone = string.format('%.0f', known[at])
  redis.call('HDEL', KEYS[2], gone)
  redis.call('HDEL', KEYS[3], gone)
end
return {number, string.format('%.0f', at)}
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


class PushStore:
    """The versions over a link. Everything raises RedisUnavailable when Redis does not answer."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link

    async def number(self, within_s: float | None = None) -> int:
        """The version in force; 0 where nothing was ever pushed (or Redis has lost it)."""
        said = await self._link.ask("GETRANGE", NOW, 0, _MOST_DIGITS, within_s=within_s)
        if said == b"":
            return 0
        if not isinstance(said, bytes) or not said.isdigit() or len(said) > _MOST_DIGITS:
            raise RedisUnavailable("an answer that is no version", is_reply=True)
        return int(said)

    async def now_ms(self, within_s: float | None = None) -> int:
        """Unix milliseconds by the clock of Redis."""
        return _time_ms(await self._link.ask("TIME", within_s=within_s))

    async def version(self, number: int, within_s: float | None = None) -> Version | None:
        """What is known of a version; None when it is not there, or not of this form."""
        said = await self._link.ask("HGET", NOTES, str(number), within_s=within_s)
        return unpack_version(number, said) if isinstance(said, bytes) else None

    async def files(self, version: Version, within_s: float | None = None) -> dict[str, bytes]:
        """The files of a version. Raises PolicyError when they are not what was pushed."""
        field = str(version.number)
        length = await self._link.ask("HSTRLEN", FILES, field, within_s=within_s)
        if not isinstance(length, int) or not 0 < length <= MAX_PACKED_BYTES:  # before it is fetched
            raise PolicyError(f"version #{version.number}: what the store holds of it is damaged")
        said = await self._link.ask("HGET", FILES, field, within_s=within_s)
        return unpack_files(said if isinstance(said, bytes) else b"", version)

    async def versions(self) -> list[Version]:
        """All versions that are kept, oldest first."""
        said = await self._link.ask("HGETALL", NOTES)
        found = [
            unpack_version(int(field), value)
            for field, value in _pairs(said)
            if field.isdigit() and len(field) <= _MOST_DIGITS
        ]
        return sorted((each for each in found if each is not None), key=lambda version: version.number)

    async def push(
        self, version: Version, files: bytes = b"", *, files_of: int | None = None, in_force: int | None = None
    ) -> Version:
        """Put a version in force → the same with its number and time. `over` is filled in with the folders there are.

        `files` are those that `pack_files` gives, or those of the version `files_of`. With `in_force` that version must
        be the one in force. Raises Overtaken when it is not, and PolicyError when the files are gone, or when a sticky
        version has no process to stand for.
        """
        alive = [each for each in await self.processes() if each.silent_ms <= LEASE_MS]
        over = tuple(sorted({each.folder for each in alive if each.folder}))
        version = replace(version, over=over)
        if version.is_sticky and not over:
            raise PolicyError(
                "no process was heard of, so nobody knows which folders a sticky version stands before",
                hint="is this the Redis that your routers use? without `--sticky` it can be pushed",
            )
        number, at = await self._link.run(
            PUSH,
            [NOW, NOTES, FILES],
            [
                max((each.looked for each in alive), default=0),  # what Redis has lost is not counted twice
                pack_version(version),
                files,
                MOST_VERSIONS,
                "" if files_of is None else files_of,
                "" if in_force is None else in_force,
            ],
        )
        if int(number) == 0:
            raise Overtaken(int(at))
        if int(number) < 0:
            raise PolicyError(f"the files of version #{files_of} are not there any more")
        return replace(version, number=int(number), at_ms=int(at))

    async def announce(self, standing: Standing) -> tuple[int, int]:
        """Say how this process stands → (processes alive, those of them with another revision)."""
        alive, others = await self._link.run(
            ANNOUNCE,
            [PROCESSES],
            [standing.name, standing.revision, pack_standing(standing), LEASE_MS, _STALE_MS],
        )
        return int(alive), int(others)

    async def leave(self, name: str) -> None:
        """Be no longer among the processes."""
        await self._link.ask("HDEL", PROCESSES, name)

    async def processes(self) -> list[Standing]:
        """Every process that was heard of within a minute, by name."""
        said, moment = await asyncio.gather(self._link.ask("HGETALL", PROCESSES), self._link.ask("TIME"))
        now_ms = _time_ms(moment)
        found = (unpack_standing(name, line, now_ms) for name, line in _pairs(said))
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


def _row(standing: Standing, version: Version) -> Row:
    if standing.looked_ms > version.at_ms:
        return Row("refused", f"it is at version #{standing.looked} already", standing)
    if not standing.has_answered(version):
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


def _time_ms(reply: Any) -> int:
    try:
        seconds, microseconds = reply
        return int(seconds) * 1000 + int(microseconds) // 1000
    except (TypeError, ValueError):
        raise RedisUnavailable("an answer that is no time", is_reply=True) from None
