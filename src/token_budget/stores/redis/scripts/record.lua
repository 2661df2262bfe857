-- record: add an amount to what is used.
--
-- KEYS   see _chain.lua
-- ARGV   1 generation, 2 and 3 the step's number, 4 the lowest number of a step still under way, 5 tokens,
--        6 nanodollars, 7 flags: f in any case, r rows, l leaves the dead, 8 the eras of the scopes: "12,3",
--        9 and on: see _chain.lua
-- Answer done, rows        it is counted, by this run or an earlier one; rows where asked for, or where a scope is over
--        refused, i, rows  as reserve's, without a ticket
--        excess, i         more would be claimed there than is counted
--        cancelled, stale, owner, expired, lost, changed, old, ended   as reserve's
-- Atomic: all of it. Everything but done has changed nothing.
-- include _chain _scopes _rows _line _take _room
local own, n, tokens, nanos, flags = KEYS[1], ARGV[2], ARGV[5], ARGV[6], ARGV[7]
local known = call('HMGET', own, 'o', 'l', n)
local entry = known[3] or not known[1] and call('HGET', KEYS[2], n)
if entry then
  if match(entry, '^=[xX]') then return {'cancelled'} end
  return {'done', rows()}
end
if not known[1] then return {'owner'} end
if tonumber(ARGV[3]) < tonumber(known[2]) then return {'stale'} end
local waits, problem = scopes(true)
if not waits then return problem end

local over = match(flags, 'r')
if match(flags, 'f') then
  local at = excess('0', tokens, '0', nanos)
  if at then return {'excess', at} end
  for i = 1, count do
    if tokens ~= '0' and call('HINCRBY', KEYS[3 + 3 * i], 't', '-' .. tokens) < 0 then over = true end
    if nanos ~= '0' and call('HINCRBY', KEYS[3 + 3 * i], 'n', '-' .. nanos) < 0 then over = true end
  end
else
  local at, cap = take(waits, tokens, nanos)
  if at then
    if cap and call('HEXISTS', KEYS[3 + 3 * at], cap) == 0 then return {'excess', at} end
    local first = dead(flags)
    if first then return first end
    return {'refused', at, rows()}
  end
end
for i = 1, count do
  if tokens ~= '0' then call('HINCRBY', KEYS[3 + 3 * i], 'p', tokens) end
  if nanos ~= '0' then call('HINCRBY', KEYS[3 + 3 * i], 'm', nanos) end
end
call('HSET', own, n, '=n ' .. tokens .. ' ' .. nanos .. ' ' .. ARGV[8])
if over then return {'done', rows()} end
return {'done'}
