-- Exact arithmetic on decimal texts and counters: HINCRBY is exact at 64 bits, Lua's numbers up to 15 digits.

-- Add one amount to a counter, and take another from it. Return what it is then, nil if nothing changed. The sign of
-- what HINCRBY answers is right at any size, the digits are not.
local function add(key, field, plus, minus)
  if plus == minus then return nil end
  if #plus < 16 and #minus < 16 then return call('HINCRBY', key, field, plus - minus) end
  local left
  if plus ~= '0' then left = call('HINCRBY', key, field, plus) end
  if minus ~= '0' then left = call('HINCRBY', key, field, '-' .. minus) end
  return left
end

-- Return whether one amount is above another.
local function above(one, other)
  if #one ~= #other then return #one > #other end
  return one > other
end

-- Return the first scope in which more would be claimed than is counted; `back` is given back before.
local function excess(back, cost, nanos_back, nanos_cost)
  if not above(cost, back) and not above(nanos_cost, nanos_back) then return nil end
  for i = 1, count do
    local s = call('HMGET', KEYS[3 + 3 * i], 'T', 'N', 't', 'n')
    local claimed, nanos_claimed = (s[1] or NONE) - s[3], (s[2] or NONE) - s[4]
    if claimed + (cost - back) > 8e18 or nanos_claimed + (nanos_cost - nanos_back) > 8e18 then return i end
  end
end
