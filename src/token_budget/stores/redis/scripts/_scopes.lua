-- Return for each scope whether somebody waits there; or nil and what the caller has to mend first:
--   changed, i     it has another revision: it is to be read again. Or it is not there
--   old, i         its group has another version
--   ended, i, now  its period is over
-- The last two only where the step is timed: what gives back counts the same in any period, so that it can do without.
local function scopes(timed)
  local waits = {}
  for i = 1, count do
    local s = call('HMGET', KEYS[3 + 3 * i], 'g', 'w')
    if s[1] ~= ARGV[6 + 4 * i] then return nil, {'changed', i} end
    if timed then
      local ends, version = ARGV[7 + 4 * i], ARGV[9 + 4 * i]
      if version ~= '' and call('HGET', KEYS[5 + 3 * i], 'v') ~= version then return nil, {'old', i} end
      if ends ~= '' and clock() >= tonumber(ends) then return nil, {'ended', i, format('%.17g', clock())} end
    end
    waits[i] = s[2] ~= '0' and s[2]
  end
  return waits
end

-- Delete the answers that their callers have heard, and note that no copies of earlier steps are to be done any more.
if #ARGV > 9 + 4 * count then
  call('HDEL', KEYS[1], unpack(ARGV, 10 + 4 * count))
  local low = call('HGET', KEYS[1], 'l')
  if low and tonumber(low) < tonumber(ARGV[4]) then call('HSET', KEYS[1], 'l', ARGV[4]) end
end
