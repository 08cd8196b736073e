-- KEYS keeper; ARGV token lease_ms mark. Returns whether the caller keeps the batches now. With a lease of 0 it does no more;
-- with the mark '-' it has stepped aside: until the lease ends every other process may take its place, and it may not.
local keeper = unpack(KEYS, 1, 1)
local token, lease_ms, mark = unpack(ARGV, 1, 3)
local now = redis.call('GET', keeper)
if now and now ~= token and (string.sub(now, 1, 1) ~= '-' or now == '-' .. token) then return 0 end
if lease_ms == '0' then redis.call('DEL', keeper) else redis.call('SET', keeper, mark .. token, 'PX', lease_ms) end
return 1
