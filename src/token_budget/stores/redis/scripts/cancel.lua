-- cancel: make sure that a step takes nothing, whatever became of it: a claim holds nothing and waits for nothing, a
-- record is undone, and a copy that arrives later is refused.
--
-- KEYS   see _chain.lua; 1 and 2 are of the owner under which the step was sent
-- ARGV   1 generation, 2 the number of the claim or the step, 3 the step's own number, 4 the lowest number of a step
--        still under way, 5 to 8 unused, 9 and on: see _chain.lua
-- Answer 1 where the claim held something, or had been charged for it, or the record was counted; else 0. A repeat has
--        the same answer. Or moved, owner; stale; changed
-- Atomic: all of it. Needs no clock: what is given back counts the same in any period.
-- include _chain _scopes _line _flight
local own, past, n = KEYS[1], KEYS[2], ARGV[2]
local known = call('HMGET', own, 'o', 'l', n)
if known[1] and tonumber(ARGV[3]) < tonumber(known[2]) then return {'stale'} end
local entry = known[3] or call('HGET', past, n)
local held = 0
if entry then
  local kind = string.sub(entry, 1, 1)
  if kind == '=' then
    kind = string.sub(entry, 1, 2)
    if kind == '=X' then return {1} end
    if kind == '=h' then return {'moved', match(entry, '(%S+)$')} end
    if kind ~= '=n' then return {0} end
  end
  local waits, problem = scopes(false)
  if not waits then return problem end
  if kind == '?' then
    local place = tonumber(match(entry, '^%?%d+ (%d+)'))
    lines().leave(place, string.sub(own, #KEYS[5] + 4) .. '-' .. n)
    lines().tell(place)
  else
    held = 1
    local tokens, nanos = match(entry, '^=?n? ?!?(%d+) (%d+)')
    local eras = kind == '!' and match(entry, '^%S+ %S+ %S+ (%S+)') or kind == '=n' and match(entry, '(%S+)$')
    local era = eras and string.gmatch(eras, '%d+')
    for i = 1, count do
      local key = KEYS[3 + 3 * i]
      local gives = true
      if era then
        gives = era() == call('HGET', key, 'a')
        if gives and tokens ~= '0' then call('HINCRBY', key, 'p', '-' .. tokens) end
        if gives and nanos ~= '0' then call('HINCRBY', key, 'm', '-' .. nanos) end
      else
        gives = flying(key)
      end
      if gives and tokens ~= '0' then call('HINCRBY', key, 't', tokens) end
      if gives and nanos ~= '0' then call('HINCRBY', key, 'n', nanos) end
      if not era then land(key, ARGV[8 + 4 * i]) end
      if waits[i] then lines().tell(i) end
    end
  end
end
local mark = held == 1 and '=X' or '=x'
if known[1] then
  call('HSET', own, n, mark)
elseif entry then
  call('HSET', past, n, mark)
end
return {held}
