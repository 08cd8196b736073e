-- KEYS cooldown limit; ARGV channel digest. Ends a cool-down. Slots that were reserved behind it are void.
local cooldown, limit = unpack(KEYS, 1, 2)
local channel, digest = unpack(ARGV, 1, 2)
redis.call('DEL', cooldown)
redis.call('HDEL', limit, 'r', 't')
redis.call('PUBLISH', channel, digest .. ' 0 ')
return 1
