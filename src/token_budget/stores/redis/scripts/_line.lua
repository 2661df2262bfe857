-- The lines of those who wait. A scope's line has the ids of the claims that wait for room in it by ticket; the field w
-- of its hash is how many they are, always changed together. A process that waits beats; one that has not for 3.5 s is
-- passed over, and joins again with its old ticket if it comes back.
local line

-- Return the functions that work on lines: made when the first is needed, since most steps need none.
--   leave(i, id)   take a claim out of a scope's line
--   head(i)        return the first that waits in a scope, its ticket, and its process; nil if nobody does
--   tell(i)        wake the process of the first that waits in a scope
local function lines()
  if line then return line end
  line = {}
  function line.leave(i, id)
    if call('ZREM', KEYS[4 + 3 * i], id) == 1 then call('HINCRBY', KEYS[3 + 3 * i], 'w', -1) end
  end
  function line.head(i)
    while true do
      local first = call('ZRANGE', KEYS[4 + 3 * i], 0, 0, 'WITHSCORES')
      if not first[1] then
        call('HSET', KEYS[3 + 3 * i], 'w', 0)
        return nil
      end
      local owner = match(first[1], '^[^-]+')
      local beat = call('ZSCORE', KEYS[4], owner)
      local age = beat and clock() - beat
      if age and age < 3.5 and age > -3.5 then return first[1], tonumber(first[2]), owner end
      line.leave(i, first[1])
    end
  end
  function line.tell(i)
    local _, _, owner = line.head(i)
    -- A login that may not publish must not end the script half way: those who wait look now and then in any case.
    if owner then redis.pcall(ARGV[9], KEYS[5] .. ':c:' .. owner, '') end
  end
  return line
end
