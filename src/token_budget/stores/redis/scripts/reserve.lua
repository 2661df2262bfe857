-- reserve: hold an amount in every scope of a chain, or in none.
--
-- KEYS   see _chain.lua
-- ARGV   1 generation, 2 the claim's number, 3 the step's number, 4 the lowest number of a step still under way,
--        5 tokens, 6 nanodollars, 7 flags: w waits, r rows, l leaves the dead, 8 the paths of the
--        chain, 9 and on: see _chain.lua
-- Answer granted, rows             the claim holds the amount, by this step or a copy of it
--        refused, i, ticket, rows  the first scope that has no room or where somebody older waits; the ticket, or 0
--        excess, i                 more would be claimed there than is counted
--        cancelled                 the claim was cancelled before
--        stale                     a copy of a step that has ended: nobody hears this
--        owner, what               the process is no longer known; what became of the claim, or nil
--        expired, owner            refused, and that process's lease is over: charge it, and ask again
--        lost                      refused, and the leases are gone
--        changed, old, ended       see _scopes.lua
-- Atomic: all of it. Everything but granted, and the ticket of refused, has changed nothing (waiters whose process no
-- longer lives may have lost their place).
-- include _chain _scopes _rows _line _take
local own, n, tokens, nanos, flags = KEYS[1], ARGV[2], ARGV[5], ARGV[6], ARGV[7]
local known = call('HMGET', own, 'o', 'l', n)
if not known[1] then return {'owner', call('HGET', KEYS[2], n)} end
if tonumber(ARGV[3]) < tonumber(known[2]) then return {'stale'} end
local entry, ticket, place = known[3], nil, nil
if entry then
  ticket, place = match(entry, '^%?(%d+) (%d+)')
  if not ticket then
    if match(entry, '^=') then return {'cancelled'} end
    return {'granted', rows()}
  end
  ticket, place = tonumber(ticket), tonumber(place)
end
local waits, problem = scopes(true)
if not waits then return problem end

local waiting = match(flags, 'w')
local owner, id
if waiting or ticket then
  owner = string.sub(own, #KEYS[5] + 4)
  id = owner .. '-' .. n
end
local at, cap = take(waits, tokens, nanos, id, ticket)
if at then
  if cap and call('HEXISTS', KEYS[3 + 3 * at], cap) == 0 then return {'excess', at} end
  local first = dead(flags)
  if first then return first end
  if waiting then
    ticket = ticket or call('HINCRBY', KEYS[5], 'q', 1)
    call('ZADD', KEYS[4], format('%.17g', clock()), owner)
    if place and place ~= at then
      lines().leave(place, id)
      lines().tell(place)
    end
    if call('ZADD', KEYS[4 + 3 * at], ticket, id) == 1 then call('HINCRBY', KEYS[3 + 3 * at], 'w', 1) end
    call('HSET', own, n, format('?%.0f %d ', ticket, at) .. ARGV[8])
  end
  return {'refused', at, ticket or 0, rows()}
end

for i = 1, count do
  if call('HINCRBY', KEYS[3 + 3 * i], 'f', 1) == 1 and ARGV[8 + 4 * i] ~= '' then call('PERSIST', KEYS[3 + 3 * i]) end
end
if place then
  lines().leave(place, id)
  lines().tell(place)
end
call('HSET', own, n, tokens .. ' ' .. nanos .. ' ' .. ARGV[8])
if match(flags, 'r') then return {'granted', rows()} end
return {'granted'}
