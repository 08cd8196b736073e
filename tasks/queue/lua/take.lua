-- KEYS chunks leases owners deliveries finished results job; ARGV chunk token lease_ms max_unwritten.
local chunks, leases, owners, deliveries, finished, results, job = unpack(KEYS, 1, 7)
local chunk, token, lease_ms, max_unwritten = unpack(ARGV, 1, 4)
local t = redis.call('TIME') local now = t[1] * 1000 + math.floor(t[2] / 1000)

local payload = redis.call('HGET', chunks, chunk)
if not payload then return {'gone'} end
if redis.call('HGET', job, 'state') == 'cancelled' then return {'gone'} end
if redis.call('HEXISTS', job, 'paused') == 1 then return {'paused'} end
local ends = redis.call('ZSCORE', leases, chunk)
if ends and tonumber(ends) > now and redis.call('HGET', owners, chunk) ~= token then return {'held'} end
if redis.call('XLEN', results) > tonumber(max_unwritten) then return {'full'} end
local ours = ends and redis.call('HGET', owners, chunk) == token
redis.call('ZADD', leases, now + tonumber(lease_ms), chunk)
redis.call('HSET', owners, chunk, token)
local times = redis.call('HINCRBY', deliveries, chunk, ours and 0 or 1)
return {'taken', payload, times, redis.call('SMEMBERS', finished)}
