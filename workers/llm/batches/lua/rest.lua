-- KEYS jobs shelves; ARGV job. A job without a batch under way is looked at no more, unless a question waits.
local jobs, shelves = unpack(KEYS, 1, 2)
if redis.call('EXISTS', shelves) == 0 then redis.call('SREM', jobs, ARGV[1]) end
return 1
