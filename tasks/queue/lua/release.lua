-- KEYS leases owners; ARGV prefix of the owner's token. Returns how many chunks are free now. Their leases are over;
-- the sweeper finds them as it finds every dead one, and sends their messages.
local leases, owner_of = unpack(KEYS, 1, 2)
local prefix = unpack(ARGV, 1, 1)
local owners = redis.call('HGETALL', owner_of)
local freed = 0
for i = 1, #owners, 2 do
  if string.sub(owners[i + 1], 1, #prefix) == prefix then
    freed = freed + redis.call('ZADD', leases, 'XX', 'CH', 0, owners[i])
  end
end
return freed
