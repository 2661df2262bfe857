-- All that the scopes' hashes have of their numbers and terms.
local function rows()
  local all = {}
  for i = 1, count do
    all[i] = call(
      'HMGET', KEYS[3 + 3 * i],
      'g', 'w', 't', 'n', 'p', 'm', 'f', 'e', 's', 'a', 'T', 'N', 'W', 'k', 'd', 'v', 'o', 'x', 'c')
  end
  return all
end
