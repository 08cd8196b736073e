-- KEYS leases; ARGV lease_ms token...
local lease_ms = unpack(ARGV, 1, 1)
for i = 1, #KEYS do
  if redis.call('GET', KEYS[i]) == ARGV[i + 1] then redis.call('PEXPIRE', KEYS[i], lease_ms) end
end
return 1
