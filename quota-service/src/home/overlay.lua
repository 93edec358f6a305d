-- Puts another overlay in the place of one: nobody overwrites what he has not seen.
--
-- KEYS[1]  the overlay, a hash    ARGV  1 the latest version that the caller has seen   2 the change as JSON, or nothing
-- returns  the version and the change that hold now
local seen, version = tonumber(ARGV[1]), tonumber(redis.call('HMGET', KEYS[1], 'version')[1] or '0')
-- An older one than the caller has seen is what a failover or a FLUSHALL left.
if version <= seen then
  version = seen + 1
  redis.call('HSET', KEYS[1], 'version', string.format('%d', version), 'change', ARGV[2])
  -- Who may not publish has changed it all the same: others look every ten seconds.
  redis.pcall('PUBLISH', 'sluice:overlay', string.format('%d', version))
end
return redis.call('HMGET', KEYS[1], 'version', 'change')
