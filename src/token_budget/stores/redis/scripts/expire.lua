-- expire: charge claims of a process whose lease is over, in full.
--
-- KEYS   see _chain.lua: 1 and 2 of that process, the scopes those of all its claims, in any order
-- ARGV   1 generation, 2 the process, 5 not '' where the process itself ends now, 6 how many scopes, 7 v where keys
--        that expire may be evicted before, 9 the command that publishes, then for each scope the reading of its
--        window's clock or '', then for each claim its number, its entry as the caller has read it, and the positions
--        of its scopes: "1,3"
-- Answer more or end, numbers   the claims that were charged by this run; end: nothing is left of the process
--        alive                  its lease is not over
--        ended, i, now          as reserve's
-- Atomic: all of it. First the process is no longer known, so that no step of it can be done any more. A charge counts
-- the amount as used, in the era that the scope is in; so it is held no more. Entries that have changed are left for
-- the next run; answers that were not acknowledged are kept for 7 days, as are the charges.
-- That the process has ended is kept for a day at least, so that a copy of its register is refused.
-- include _chain _line _terms _flight _past
local own, past, owner = KEYS[1], KEYS[2], ARGV[2]
count = tonumber(ARGV[6])
local lease = call('ZSCORE', KEYS[3], owner)
if ARGV[5] == '' and lease and tonumber(lease) > clock() then return {'alive'} end
local found = {}
for i = 1, count do
  local s = call('HMGET', KEYS[3 + 3 * i], 'g', 'e', 'a', 'w', 'x')
  if ours(s[1]) then
    local over = ended(s[2], ARGV[9 + i])
    if over then return {'ended', i, format('%.17g', over)} end
    s[5] = s[5] == 'k' and expiry(s[2]) or s[5] or ''
    found[i] = s
  end
end
local who = call('HGET', own, 'o')
if who then
  call('HSET', own, 'O', (string.gsub(who, '^%+', '')))
  call('HDEL', own, 'o', 'l')
  call('ZADD', KEYS[3], format('%.17g', clock()), owner) -- one that ends by itself before its lease does
end

local charged, kept = {}, false
for e = 10 + count, #ARGV, 3 do
  local n, entry = ARGV[e], ARGV[e + 1]
  if call('HGET', own, n) == entry then
    call('HDEL', own, n)
    local kind = string.sub(entry, 1, 1)
    if kind == '?' then
      lines().leave(tonumber(ARGV[e + 2]), owner .. '-' .. n)
    elseif kind == '=' then
      call('HSET', past, n, entry)
      kept = true
    else
      local tokens, nanos, paths = match(entry, '^(%d+) (%d+) (.*)$')
      local eras = {}
      for i in string.gmatch(ARGV[e + 2], '%d+') do
        i = tonumber(i)
        local s, key = found[i], KEYS[3 + 3 * i]
        eras[#eras + 1] = s and s[3] or '0'
        if s then
          if tokens ~= '0' then call('HINCRBY', key, 'p', tokens) end
          if nanos ~= '0' then call('HINCRBY', key, 'm', nanos) end
          land(key, s[5])
        end
      end
      local at = format('%.6f', clock())
      call('HSET', past, n, '!' .. table.concat({tokens, nanos, at, table.concat(eras, ','), paths}, ' '))
      charged[#charged + 1] = n
      kept = true
    end
  end
end
if kept then
  call('HSET', past, 'o', call('HGET', own, 'O') or '?')
  keep(past, ARGV[7] == 'v')
  call('ZADD', KEYS[5] .. ':x', format('%.6f', clock()), owner)
end
for i = 1, count do
  if found[i] and found[i][4] and found[i][4] ~= '0' then lines().tell(i) end
end
if call('HLEN', own) > 1 then return {'more', charged} end
call('HSET', past, 'e', 1)
if call('HLEN', past) == 1 then call('PEXPIRE', past, 86400000) end
call('DEL', own)
call('ZREM', KEYS[3], owner)
call('ZREM', KEYS[4], owner)
return {'end', charged}
