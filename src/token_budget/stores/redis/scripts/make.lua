-- make: make the scope of a key after its group, or let it follow its group's values.
--
-- KEYS   see _chain.lua, with one scope; 8 its group's hash
-- ARGV   1 generation, 2 the group's version that the caller has read, 5 start and 6 end of the present period by
--        the group's window, '' without one, 7 not '' where the window has a clock of its own, 8 k where the scope
--        expires after its period, else '', 9 the command that publishes
-- Answer made         it is new
--        kept, 1      it was there, and has the group's values now, but for its own; 1 where it got another window and
--                     its period was over, so that it began anew, else 0
--        group        the group has another version: read it again
--        now, time    it is not in that period by the server's clock
--        lost         there is no such root or group
-- Atomic: all of it. A copy changes nothing.
-- include _chain _line _terms
local key = KEYS[6]
local group = call('HMGET', KEYS[8], 'g', 'v', 'T', 'N', 'W', 'y', 'E', 'b', 'q', 'r')
if not ours(call('HGET', KEYS[5], 'g')) or group[1] ~= ARGV[1] then return {'lost'} end
if group[2] ~= ARGV[2] then return {'group'} end
if misses(ARGV[7], ARGV[5], ARGV[6]) then return {'now', format('%.17g', clock())} end
local s = call('HMGET', key, 'g', 'v', 'T', 'N', 'o', 'w', 'f', 'e', 'k')
if not ours(s[1]) then
  call('DEL', key)
  local new = number()
  call(
    'HSET', key, 'g', ARGV[1] .. '.' .. new, 'w', call('ZCARD', KEYS[7]), 't', group[3] or NONE, 'n', group[4] or NONE,
    'p', 0, 'm', 0, 'f', 0, 'a', new, 'v', group[2], 'c', new)
  if group[3] then call('HSET', key, 'T', group[3]) end
  if group[4] then call('HSET', key, 'N', group[4]) end
  if ARGV[6] ~= '' then
    set_period(key, ARGV[5], ARGV[6])
    if ARGV[8] ~= '' then
      call('HSET', key, 'x', ARGV[8])
      expire(key, ARGV[8], '0', ARGV[6])
    end
  end
  return {'made'}
end
if s[2] == group[2] then return {'kept', 0} end
local own = s[5] or ''
local new_window = not match(own, 'W') and tonumber(group[6] or 0) > tonumber(s[2])
local over = new_window
  and (tonumber(s[2]) < tonumber(group[8] or 0)
    or tonumber(s[2]) < tonumber(group[9] or 0) and ended(s[8], group[10])
    or group[7] and group[7] ~= '' and tonumber(ARGV[5]) >= tonumber(group[7]))
if over then begin(key) end
if not match(own, 'T') then shift(key, 'T', 't', s[3], group[3] or '') end
if not match(own, 'N') then shift(key, 'N', 'n', s[4], group[4] or '') end
if new_window then
  set_period(key, ARGV[5], ARGV[6])
  call('PERSIST', key)
  if ARGV[6] == '' or ARGV[8] == '' or own ~= '' or s[9] then
    call('HDEL', key, 'x')
  else
    call('HSET', key, 'x', ARGV[8])
    expire(key, ARGV[8], s[7], ARGV[6])
  end
end
call('HSET', key, 'v', group[2])
revise(key)
if s[6] ~= '0' then lines().tell(1) end
return {'kept', over and 1 or 0}
