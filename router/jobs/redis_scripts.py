"""What Redis does with deferred requests, in Lua: each of these happens as a whole or not at all.

All keys of an owner have one hash tag, so that they are on one node of a cluster. `ARGV[1]` is what they begin with:

    seq                 the number of the latest job            job:ID      a hash: what is small of a job
    load                a hash: unended jobs and their bytes    request:ID  what it is sent by
    waiting             jobs by number                          answer:ID   how it ended
    open                submissions that are not closed         sub:ID      a hash: a submission
    batches             by when they are forgotten              members:ID  its jobs by number
    lease               who works for the owner

Jobs that have not ended, and submissions that were not closed, have no time to live. Lists of ids come as JSON: a
command takes some 8,000 arguments in a script.
"""

from __future__ import annotations

_HEAD = """
local P = ARGV[1]
local call = redis.call
local function unload(bytes)
  call('HINCRBY', P .. 'load', 'jobs', -1)
  call('HINCRBY', P .. 'load', 'bytes', -bytes)
end
local function drop(id, is_ended, bytes)
  if not is_ended then unload(bytes) end
  call('UNLINK', P .. 'job:' .. id, P .. 'request:' .. id, P .. 'answer:' .. id)
end
"""

_CLOSE = (
    _HEAD
    + """
local function close(sub, now, until_s, kept_ms)
  local S = P .. 'sub:' .. sub
  if call('EXISTS', S) == 0 or call('HSETNX', S, 'closed', now) == 0 then return end
  call('ZREM', P .. 'open', sub)
  call('HSET', S, 'until', until_s)
  call('PEXPIRE', S, kept_ms)
  call('PEXPIRE', P .. 'members:' .. sub, kept_ms)
  local batch = call('HGET', S, 'batch')
  if batch then call('ZADD', P .. 'batches', until_s, batch) end
  call('ZREMRANGEBYSCORE', P .. 'batches', '-inf', '(' .. now)
end
"""
)

# id, most jobs, most bytes, request, fields and values → 1 accepted, 0 it was, -1 too many
ACCEPT = (
    _HEAD
    + """
local id, request = ARGV[2], ARGV[5]
if call('EXISTS', P .. 'job:' .. id) == 1 then return 0 end
local load = call('HMGET', P .. 'load', 'jobs', 'bytes')
if (tonumber(load[1]) or 0) >= tonumber(ARGV[3]) then return -1 end
if (tonumber(load[2]) or 0) + #request > tonumber(ARGV[4]) then return -1 end
local seq = call('INCR', P .. 'seq')
call('HSET', P .. 'job:' .. id, 'seq', seq, 'bytes', #request, unpack(ARGV, 6))
call('SET', P .. 'request:' .. id, request)
call('ZADD', P .. 'waiting', seq, id)
call('HINCRBY', P .. 'load', 'jobs', 1)
call('HINCRBY', P .. 'load', 'bytes', #request)
return 1
"""
)

# id, tenant → created, due, meta, submission, batch, ended, status, note, answer
LOOK = (
    _HEAD
    + """
local id = ARGV[2]
local job = P .. 'job:' .. id
local h = call('HMGET', job, 'tenant', 'canceled', 'created', 'due', 'meta', 'sub', 'ended', 'status', 'note')
if h[1] ~= ARGV[3] or h[2] then return false end
local batch = h[6] and call('HGET', P .. 'sub:' .. h[6], 'batch') or false
local answer = h[7] and call('GET', P .. 'answer:' .. id) or false
return {h[3], h[4], h[5], h[6], batch, h[7], h[8], h[9], answer}
"""
)

# id, tenant → what became of it
CANCEL = (
    _HEAD
    + """
local id = ARGV[2]
local h = call('HMGET', P .. 'job:' .. id, 'tenant', 'canceled', 'ended', 'sub', 'bytes')
if h[1] ~= ARGV[3] or h[2] then return 'unknown' end
if h[4] and call('ZSCORE', P .. 'open', h[4]) then
  call('HSET', P .. 'job:' .. id, 'canceled', 1)
  call('HDEL', P .. 'job:' .. id, 'status', 'note')
  call('UNLINK', P .. 'answer:' .. id)
else
  call('ZREM', P .. 'waiting', id)
  if h[4] then call('ZREM', P .. 'members:' .. h[4], id) end
  drop(id, h[3], h[5])
end
return h[3] and 'ended' or h[4] and 'marked' or 'removed'
"""
)

# holder, milliseconds, a holder that is gone → who leads
LEAD = (
    _HEAD
    + """
local now = call('GET', P .. 'lease')
if now and now ~= ARGV[2] and now ~= ARGV[4] then return now end
call('SET', P .. 'lease', ARGV[2], 'PX', ARGV[3])
return ARGV[2]
"""
)

# holder
LEAVE = (
    _HEAD
    + """
if call('GET', P .. 'lease') == ARGV[2] then call('DEL', P .. 'lease') end
return 1
"""
)

# ids → group, created, due, late, most, size, before of each that waits
WAITING = (
    _HEAD
    + """
local found = {}
for _, id in ipairs(cjson.decode(ARGV[2])) do
  local job = P .. 'job:' .. id
  local h = call('HMGET', job, 'group', 'created', 'due', 'late', 'most', 'size', 'before', 'sub', 'ended')
  if h[1] and not h[8] and not h[9] then found[#found + 1] = {id, h[1], h[2], h[3], h[4], h[5], h[6], h[7]} end
end
return found
"""
)

# holder, submission, group, started, batch, ids → how many it took, ids and bytes of those that it has
BEGIN = (
    _HEAD
    + """
local sub, took, names, sizes = ARGV[3], 0, {}, {}
local S = P .. 'sub:' .. sub
if call('GET', P .. 'lease') ~= ARGV[2] or call('HEXISTS', S, 'closed') == 1 then return {0, {}, {}} end
for _, id in ipairs(cjson.decode(ARGV[7])) do
  local seq = call('ZSCORE', P .. 'waiting', id)
  if seq then
    call('ZREM', P .. 'waiting', id)
    call('HSET', P .. 'job:' .. id, 'sub', sub)
    call('ZADD', P .. 'members:' .. sub, seq, id)
    took = took + 1
  end
  local h = call('HMGET', P .. 'job:' .. id, 'sub', 'ended', 'canceled', 'bytes')
  if h[1] == sub and not h[2] and not h[3] then
    names[#names + 1] = id
    sizes[#sizes + 1] = tonumber(h[4])
  end
end
if took > 0 then
  if call('HINCRBY', S, 'items', took) == took then
    call('HSET', S, 'group', ARGV[4], 'started', ARGV[5])
    call('ZADD', P .. 'open', ARGV[5], sub)
    if ARGV[6] ~= '' then
      call('HSET', S, 'batch', ARGV[6])
      call('ZADD', P .. 'batches', '+inf', ARGV[6])
    end
  end
end
return {took, names, sizes}
"""
)

# ids → id, meta and request of each that has not ended and was not canceled
REQUESTS = (
    _HEAD
    + """
local found = {}
for _, id in ipairs(cjson.decode(ARGV[2])) do
  local h = call('HMGET', P .. 'job:' .. id, 'meta', 'ended', 'canceled')
  local request = h[1] and not h[2] and not h[3] and call('GET', P .. 'request:' .. id)
  if request then found[#found + 1] = {id, h[1], request} end
end
return found
"""
)

# submission, batch → how many jobs were sent
SENT = (
    _HEAD
    + """
local S = P .. 'sub:' .. ARGV[2]
if call('EXISTS', S) == 0 or call('HSETNX', S, 'batch', ARGV[3]) == 0 then return 0 end
local h = call('HMGET', S, 'items', 'until')
call('ZADD', P .. 'batches', h[2] or '+inf', ARGV[3])
return tonumber(h[1])
"""
)

# submission, now, when it is forgotten, milliseconds until then, not before, most → how many wait again
UNSENT = (
    _CLOSE
    + """
local sub, count = ARGV[2], 0
local M = P .. 'members:' .. sub
if not call('ZSCORE', P .. 'open', sub) or call('HEXISTS', P .. 'sub:' .. sub, 'batch') == 1 then return 0 end
local all = call('ZRANGE', M, 0, -1, 'WITHSCORES')
for at = 1, #all, 2 do
  local id = all[at]
  local h = call('HMGET', P .. 'job:' .. id, 'sub', 'ended', 'canceled', 'bytes')
  if h[1] == sub and h[3] then
    call('ZREM', M, id)
    drop(id, h[2], h[4])
  elseif h[1] == sub and not h[2] then
    call('ZREM', M, id)
    call('HDEL', P .. 'job:' .. id, 'sub')
    call('HSET', P .. 'job:' .. id, 'before', ARGV[6])
    if ARGV[7] ~= '' then call('HSET', P .. 'job:' .. id, 'most', ARGV[7]) end
    call('ZADD', P .. 'waiting', all[at + 1], id)
    count = count + 1
  end
end
close(sub, ARGV[3], ARGV[4], ARGV[5])
return count
"""
)

# submission, now, when it is forgotten, milliseconds until then
CLOSE = (
    _CLOSE
    + """
local sub = ARGV[2]
local M = P .. 'members:' .. sub
for _, id in ipairs(call('ZRANGE', M, 0, -1)) do
  local h = call('HMGET', P .. 'job:' .. id, 'sub', 'ended', 'canceled', 'bytes')
  if h[1] == sub and h[3] then
    call('ZREM', M, id)
    drop(id, h[2], h[4])
  elseif h[1] == sub then
    call('UNLINK', P .. 'request:' .. id)
  end
end
close(sub, ARGV[3], ARGV[4], ARGV[5])
return 1
"""
)

# → id, group, started, items and batch of each that is open
OPEN = (
    _HEAD
    + """
local found = {}
for _, sub in ipairs(call('ZRANGE', P .. 'open', 0, -1)) do
  local h = call('HMGET', P .. 'sub:' .. sub, 'group', 'started', 'items', 'batch')
  found[#found + 1] = {sub, h[1], h[2], h[3], h[4]}
end
return found
"""
)

# submission, ids → id, ended, canceled, late and meta of each that is in it
MEMBERS = (
    _HEAD
    + """
local found = {}
for _, id in ipairs(cjson.decode(ARGV[3])) do
  local h = call('HMGET', P .. 'job:' .. id, 'sub', 'ended', 'canceled', 'late', 'meta')
  if h[1] == ARGV[2] then found[#found + 1] = {id, h[2], h[3], h[4], h[5]} end
end
return found
"""
)

# id, status, body, note, ended, milliseconds that it is kept → whether it had no answer
FINISH = (
    _HEAD
    + """
local id = ARGV[2]
local job = P .. 'job:' .. id
local h = call('HMGET', job, 'ended', 'canceled', 'bytes')
if h[1] or not h[3] then return 0 end
call('HSET', job, 'ended', ARGV[6])
if not h[2] then
  call('HSET', job, 'status', ARGV[3], 'note', ARGV[5])
  call('SET', P .. 'answer:' .. id, ARGV[4], 'PX', ARGV[7])
end
call('PEXPIRE', job, ARGV[7])
call('ZREM', P .. 'waiting', id)
call('UNLINK', P .. 'request:' .. id)
unload(h[3])
return 1
"""
)
