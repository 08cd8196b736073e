-- KEYS keeper; ARGV token lease_ms. Returns whether the caller keeps the batches now; with a lease of 0 it does no more.
local keeper = unpack(KEYS, 1, 1)
local token, lease_ms = unpack(ARGV, 1, 2)
local now = redis.call('GET', keeper)
if now and now ~= token then return 0 end
if lease_ms == '0' then redis.call('DEL', keeper) else redis.call('SET', keeper, token, 'PX', lease_ms) end
return 1
