"""What the shared store holds: the names of its keys, and the two small programs that must run there in one piece.

An entry and the flight beside it (who makes the upstream call at present, or what it handed over) carry their hash as
a hash tag, so that in a cluster both lie on one node. Everything that varies goes in as a key or an argument.
"""

from __future__ import annotations

ENTRY_PREFIX = "router:v1:cache:"  # the version is that of the codec; another version of us never reads these
FLIGHT_PREFIX = "router:v1:flight:"
HANDED_PREFIX = "router:v1:handed:"
PURGES = "router:v1:{cache-fleet}:purges"  # hash: purge id → purge
PROCESSES = "router:v1:{cache-fleet}:processes"  # hash: process → when it was last heard of, purges known, counts

# KEYS entry, flight, handed; ARGV last byte to read, own token, token waited for, milliseconds a lead lasts unrenewed.
# → entry VALUE | handed VALUE | leader TOKEN | lead | alone. Nothing is written where there is an entry or a leader.
# A store that takes no writes (full, or its disk is) still reads: then the caller is alone. One that has become a
# replica says so, and the link looks for the master; in our words, because Redis 6 puts its own behind `@user_script`.
# A leader whose token lasts longer than any lead does is nothing that we wrote.
LOOK_UP = """
local value = redis.pcall('GETRANGE', KEYS[1], 0, ARGV[1])
if type(value) == 'table' then return value end
if value ~= '' then return {'entry', value} end
local state = redis.pcall('GETRANGE', KEYS[2], 0, ARGV[1])
if type(state) == 'table' then return state end
local kind, token = string.sub(state, 1, 1), string.sub(state, 2, 33)
if kind == 'L' and string.len(state) == 33 then
  local left = redis.call('PTTL', KEYS[2])
  if left >= 0 and left <= tonumber(ARGV[4]) then return {'leader', token} end
end
if ARGV[3] ~= '' then
  local handed = redis.pcall('GETRANGE', KEYS[3], 0, ARGV[1])
  if type(handed) == 'table' then return handed end
  if string.sub(handed, 1, 32) == ARGV[3] then return {'handed', string.sub(handed, 33)} end
end
local taken = redis.pcall('SET', KEYS[2], 'L' .. ARGV[2], 'PX', ARGV[4])
if taken['err'] then
  if string.find(taken['err'], 'READONLY', 1, true) then return redis.error_reply('READONLY a replica') end
  return {'alone'}
end
return {'lead'}
"""

# KEYS entry, flight, handed; ARGV own token, entry or '', its milliseconds, what is handed over or '', milliseconds of
# that.
# The flight is ended only if it is still one's own.
FINISH = """
local kept = 1
if ARGV[2] ~= '' then kept = redis.pcall('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
if redis.pcall('GETRANGE', KEYS[2], 0, 33) == 'L' .. ARGV[1] then
  redis.call('DEL', KEYS[2])
  if ARGV[4] ~= '' then redis.pcall('SET', KEYS[3], ARGV[1] .. ARGV[4], 'PX', ARGV[5]) end
end
if type(kept) == 'table' and kept['err'] then
  if string.find(kept['err'], 'READONLY', 1, true) then return redis.error_reply('READONLY a replica') end
  return kept
end
return 1
"""

# KEYS flight; ARGV own token, milliseconds.
RENEW = """
if redis.pcall('GETRANGE', KEYS[1], 0, 33) == 'L' .. ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 0
"""

# KEYS a hash of ours; ARGV bytes of the longest line. Deletes what is longer, which nobody could read in time.
TRIM = """
local longest = tonumber(ARGV[1])
for _, name in ipairs(redis.call('HKEYS', KEYS[1])) do
  if string.len(name) > longest or redis.call('HSTRLEN', KEYS[1], name) > longest then
    redis.call('HDEL', KEYS[1], name)
  end
end
return 1
"""


def entry_key(key: str) -> str:
    """Where the entry of a cache key is kept."""
    return f"{ENTRY_PREFIX}{{{key}}}"


def flight_key(key: str) -> str:
    """Where it is said who makes the upstream call of a cache key."""
    return f"{FLIGHT_PREFIX}{{{key}}}"


def handed_key(key: str) -> str:
    """Where an answer is left for those who wait for it now."""
    return f"{HANDED_PREFIX}{{{key}}}"


def keys_of(key: str) -> list[str]:
    """All that is kept of a cache key, in the order of the programs."""
    return [entry_key(key), flight_key(key), handed_key(key)]
