-- A step that is done once: KEYS 1 the owner's hash, 2 what was settled of it; ARGV 2 the step's number, 4 the lowest
-- number of a step still under way.

-- Return what the step answered before, or what keeps it from being done; nil if it is to be done.
local function before()
  local known = call('HMGET', KEYS[1], 'o', 'l', ARGV[2])
  local mark = known[3] or not known[1] and call('HGET', KEYS[2], ARGV[2])
  if mark then
    local said = match(mark, '^=a (.*)$')
    return said and cjson.decode(said) or {'cancelled'}
  end
  if not known[1] then return {'owner'} end
  if tonumber(ARGV[3]) < tonumber(known[2]) then return {'stale'} end
end

-- Note what the step answers, until its caller has heard it.
local function done(answer)
  call('HSET', KEYS[1], ARGV[2], '=a ' .. cjson.encode(answer))
  local low = call('HGET', KEYS[1], 'l')
  if tonumber(ARGV[4]) > tonumber(low) then call('HSET', KEYS[1], 'l', ARGV[4]) end
  return answer
end
