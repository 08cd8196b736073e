-- KEYS cache answer of each; ARGV ttl_ms, then stored mark of each. A completion takes the place of the answer that it
-- was made of; without one the cache has it already. The answer becomes the mark, where there is one.
local ttl_ms = unpack(ARGV, 1, 1)
for i = 1, #KEYS / 2 do
  local cache, answer, stored, mark = KEYS[2*i-1], KEYS[2*i], ARGV[2*i], ARGV[2*i+1]
  if stored ~= '' then redis.call('SET', cache, stored, 'PX', ttl_ms) end
  if mark ~= '' then redis.call('SET', answer, mark, 'PX', ttl_ms) else redis.call('DEL', answer) end
end
return 1
