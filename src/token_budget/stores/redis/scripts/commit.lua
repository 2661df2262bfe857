-- commit: settle a claim with what it cost, give back what it holds, or settle it by its id from anywhere.
--
-- KEYS   see _chain.lua; 1 and 2 are of the claim's owner, whoever asks
-- ARGV   1 generation, 2 the claim's number, 3 the step's number, 4 the lowest number of a step still under way,
--        5 tokens, 6 nanodollars, 7 flags: c commits, r releases, s settles; then m if the owner is the process that
--        asks, w for rows, t where the clocks tell the time (c and s need it), v where keys
--        that expire may be evicted before, 8 the step's name among those of all
--        processes, 9 and on: see _chain.lua
-- Answer done, tokens, nanos, rows      it held this amount, and is settled; rows where asked for, or a scope is over
--        late, tokens, nanos, rows      it had been charged with this amount in full, and is corrected
--        unknown, 0, 0, rows            there is no such claim; c has counted the amount, the others nothing
--        repeat, tokens, nanos, rows    it was settled before, and this amount counted
--        settled, tokens, nanos         s was done before c or r, or c before r, and counted this; nothing was changed
--        waiting         it waits, and holds nothing
--        moved, owner    it was handed over, and is number 1 of that owner
--        excess, i       more would be claimed there than is counted
--        stale, changed, old, ended   as reserve's
-- Atomic: all of it. done, late and the counting unknown leave a mark with the step's name, so that a copy of the step
-- has the same answer and changes nothing: in the owner's hash until it is acknowledged, or for 7 days where it is s,
-- or where the owner is another process, or is no longer known. A late one counts in full where the scope is still in
-- the era of the charge; else only what is above the charge is new.
-- include _chain _scopes _rows _line _room _flight _past

-- Delete the marks that are older than 7 days, of an owner that goes on: each new one keeps the hash for 7 more.
local function drop_old(past)
  local all = call('HGETALL', past)
  for i = 1, #all, 2 do
    local at = match(all[i + 1], '^=[crs] .* (%d+)$')
    if at and tonumber(at) < clock() - 604800 then call('HDEL', past, all[i]) end
  end
end

local own, past, n, tokens, nanos = KEYS[1], KEYS[2], ARGV[2], ARGV[5], ARGV[6]
local mode, op = string.sub(ARGV[7], 1, 1), ARGV[8]
local known = call('HMGET', own, 'o', 'l', n)
local mine = known[1] and match(ARGV[7], 'm')
if mine and tonumber(ARGV[3]) < tonumber(known[2]) then return {'stale'} end

local entry = known[3] or call('HGET', past, n)
local did, back, nanos_back, eras = 'unknown', '0', '0', nil
if entry then
  back, nanos_back = match(entry, '^(%d+) (%d+)')
  if back then
    did = 'done'
  else
    local kind = string.sub(entry, 1, 1)
    if kind == '!' then
      did = 'late'
      back, nanos_back, eras = match(entry, '^!(%d+) (%d+) %S+ (%S+)')
    elseif kind == '?' then
      return {'waiting'}
    else
      local by, what, name, was, nanos_was, before, nanos_before =
        match(entry, '^=([crs]) (%l+) (%S+) (%d+) (%d+) (%d+) (%d+)')
      if by == 's' and mode ~= 's' or by == 'c' and mode == 'r' then return {'settled', was, nanos_was} end
      if name == op or by == 'r' and mode == 'r' then return {what, before, nanos_before, rows()} end
      if by and by ~= 'r' then return {'repeat', was, nanos_was, rows()} end
      if match(entry, '^=h') then return {'moved', match(entry, '(%S+)$')} end
      back, nanos_back = '0', '0'
    end
  end
end
if did == 'unknown' and mode ~= 'c' then return {'unknown', '0', '0'} end
if mode == 'r' then tokens, nanos = '0', '0' end
local waits, problem = scopes(match(ARGV[7], 't'))
if not waits then return problem end
local at = excess(back, tokens, nanos_back, nanos)
if at then return {'excess', at} end

local over = match(ARGV[7], 'w')
local era = eras and string.gmatch(eras, '%d+')
for i = 1, count do
  local key = KEYS[3 + 3 * i]
  local given, nanos_given, was, nanos_was = back, nanos_back, '0', '0'
  if did == 'done' then
    if not flying(key) then given, nanos_given = '0', '0' end
  elseif era then
    was, nanos_was = back, nanos_back
    if era() ~= call('HGET', key, 'a') then
      if not above(tokens, back) then given, was = tokens, tokens end
      if not above(nanos, nanos_back) then nanos_given, nanos_was = nanos, nanos end
    end
  end
  local left, nanos_left = add(key, 't', given, tokens), add(key, 'n', nanos_given, nanos)
  if left and left < 0 or nanos_left and nanos_left < 0 then over = true end
  add(key, 'p', tokens, was)
  add(key, 'm', nanos, nanos_was)
  if did == 'done' then land(key, ARGV[8 + 4 * i]) end
  if waits[i] then lines().tell(i) end
end

local mark = '=' .. mode .. ' ' .. did .. ' ' .. op .. ' ' .. tokens .. ' ' .. nanos .. ' ' .. back .. ' ' .. nanos_back
if mine and mode ~= 's' then
  call('HSET', own, n, mark)
else
  call('HDEL', own, n)
  call('HSET', past, n, mark .. format(' %.0f', clock()))
  local volatile = match(ARGV[7], 'v')
  if volatile then call('ZADD', KEYS[5] .. ':x', format('%.6f', clock()), string.sub(own, #KEYS[5] + 4)) end
  keep(past, volatile)
  if known[1] and call('HLEN', past) % 64 == 0 then drop_old(past) end
  if known[1] and string.sub(known[1], 1, 1) == '+' then
    call('DEL', own)
    call('ZREM', KEYS[3], string.sub(own, #KEYS[5] + 4))
  end
end
if over then return {did, back, nanos_back, rows()} end
return {did, back, nanos_back}
