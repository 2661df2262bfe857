-- The scopes of a chain, as the steps that spend have them.
--
-- KEYS   1 the owner's hash, 2 what was settled or charged of it, 3 the leases, 4 the beats, 5 the root's hash; then
--        three for each scope, the pool's own first and the root last: its hash, its line, its group's hash (the
--        root's where it is no key)
-- ARGV   1 the generation, 9 the command that publishes; 10 and on four for each scope, as the caller has read it: its
--        revision; its period's end if the server's clock tells it, else ''; when it expires, as _flight.lua takes
--        it, '' if it does not; its group's version, '' where it is no key. Then the numbers of answers that their
--        callers have heard
--
-- A scope's hash:
--   g     revision: "generation.number", another one with any change of what stands below the numbers
--   w     how many wait for room in it
--   t, n  room of tokens and of nanodollars: cap - used - held, where 8 * 10^18 stands for no cap
--   p, m  what is used of them; what is held is cap - room - used
--   f     claims in flight
--   s, e  start and end of the period           a     era                      d  thresholds that were told in it
--   T, N  caps                                  W     window                   k  c closed, r as revive.lua says
--   v     version of its group                  o     which of TNW are its own, of a key
--   x     how it expires: _flight.lua           c     number, in the order of making
-- A group's hash: g generation, v version, T, N, W and c as above; y, E, b, q, r of its windows: _terms.lua.
-- The root also has V, the layout; q, the last ticket; u, the last number given to a revision, an era or a scope.
-- What is claimed, used + held, is at most 8 * 10^18, so that no counter leaves 64 bits: what would pass it is refused
-- before anything changes.
local call, format, match = redis.call, string.format, string.match
local count = (#KEYS - 5) / 3
local NONE = '8000000000000000000'
local now

local function clock()
  if not now then
    local time = call('TIME')
    now = time[1] + time[2] / 1000000
  end
  return now
end
