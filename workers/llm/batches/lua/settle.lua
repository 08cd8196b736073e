-- KEYS lines batches shelves budget bills open wake partly; ARGV job tag ttl_ms late_ms, then key end answer cost bill
-- saved of each line. Gives lines their ends, once each; wakes chunks that wait for nothing more. Returns the batch.
local lines, batches, shelves, budget, bills, open, wake, partly = unpack(KEYS, 1, 8)
local job, tag, ttl_ms, late_ms = unpack(ARGV, 1, 4)
local wrong = unreadable_team(budget)
if wrong then return redis.error_reply('UNREADABLE ' .. wrong) end
local batch = cjson.decode(redis.call('HGET', batches, tag))
local answered, unanswered, reserved, spent, ends, billed = 0, 0, 0, 0, 0, {}
for i = 5, #ARGV, 6 do
  local key, ending, answer, cost, bill, saved = unpack(ARGV, i, i + 5)
  local line = redis.call('HGET', lines, key)
  if line then
    local worst, payer = string.match(line, '^(%d+) (.*)$')
    redis.call('HDEL', lines, key)
    reserved, spent = reserved + tonumber(worst), spent + tonumber(cost)
    local question = 'themes:batch:question:' .. key
    if bill ~= '' then billed[payer] = (billed[payer] or '') .. bill .. '\n' end
    if ending == 'answered' then
      answered = answered + 1
      if saved == '' or batch.saved_usd == cjson.null then batch.saved_usd = cjson.null
      else batch.saved_usd = (batch.saved_usd or 0) + tonumber(saved) end
    else
      unanswered = unanswered + 1
    end
    if ending == 'again' or ending == 'anew' then
      local shelf = redis.call('HGET', question, 'shelf')
      redis.call('HDEL', question, 'tag')
      redis.call('HINCRBY', question, 'tries', ending == 'again' and 1 or 0)
      redis.call('RPUSH', 'themes:job:' .. job .. ':batches:waiting:' .. shelf, key)
      redis.call('HINCRBY', shelves, shelf, 1)
      -- Other destinations of the chunk may go on when the batch has ended.
      local waiting = redis.call('SMEMBERS', 'themes:batch:waiters:' .. key)
      if #waiting > 0 then redis.call('SADD', partly, unpack(waiting)) end
    else
      if ending ~= 'gone' then
        redis.call('SET', 'themes:batch:answer:' .. key, answer, 'PX', answer == '' and late_ms or ttl_ms)
      end
      ended(key, wake)
      ends = ends + 1
    end
  end
end
for payer, more in pairs(billed) do redis.call('HSET', bills, payer, (redis.call('HGET', bills, payer) or '') .. more) end
if ends > 0 then redis.call('DECRBY', open, ends) end
batch.answered, batch.unanswered = (batch.answered or 0) + answered, (batch.unanswered or 0) + unanswered
local encoded = cjson.encode(batch)
redis.call('HSET', batches, tag, encoded)
if redis.call('HEXISTS', budget, 'limit') == 1 or team_of(budget) then
  spend(budget, spent, now_ms())
  -- Where the budget came after the batch was sent, nothing was reserved.
  local me = 'batch-' .. tag
  local own = redis.call('HGET', budget, me .. ':reserved')
  if own then reserve(budget, job, me, tonumber(own) - reserved, NEVER_DIES) end
end
return encoded
