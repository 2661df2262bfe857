-- Return whether something is in flight. A key's scope that was deleted with something held, and made anew, has nothing
-- to give back.
local function flying(key)
  return tonumber(call('HGET', key, 'f') or 0) > 0
end

-- Count one claim less in flight, as the last change of a scope: its time of expiry may be over, and then it is deleted
-- at once. Where nothing is in flight any more, let the scope expire if it does: at the time `x` in milliseconds, or in
-- 7 days where it is c. While something is in flight it does not, so that what is held is always there to be given back.
local function land(key, x)
  local left = call('HINCRBY', key, 'f', -1)
  if left < 0 then call('HSET', key, 'f', 0) end
  if left < 1 and x == 'c' then
    call('PEXPIRE', key, 604800000)
  elseif left < 1 and x ~= '' then
    call('PEXPIREAT', key, x)
  end
end
