-- KEYS leases owners; ARGV token lease_ms chunk...; returns the chunks that are no longer ours.
local leases, owners = unpack(KEYS, 1, 2)
local token, lease_ms = unpack(ARGV, 1, 2)
local t = redis.call('TIME') local now = t[1] * 1000 + math.floor(t[2] / 1000)

local lost = {}
for i = 3, #ARGV do
  if redis.call('HGET', owners, ARGV[i]) == token then
    redis.call('ZADD', leases, 'XX', now + tonumber(lease_ms), ARGV[i])
  else
    lost[#lost + 1] = ARGV[i]
  end
end
return lost
