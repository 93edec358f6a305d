-- One account's ledger in Redis: the translation of AccountLedger::sync (policy/src/ledger.rs), replayed against it
-- by quota-service/tests/ledger_conformance.rs. Integers only; one key; all or nothing.
--
-- KEYS[1]  the account, a hash. Fields (H is a holder): granted:H incarnation:H seq:H renewed_ms:H lease_ms:H spent:H;
--          expired:H and expired_until_ms:H, slots that H held when its lease ended, and may take up again;
--          zombies:<free at, ms> = slots of incarnations that are gone;
--          spent_before, level:<bucket>, levels_at_ms, capacity, v (format version).
-- ARGV     holder incarnation seq keep want capacity lease_ms longest_request_ms spent (bucket level)*
-- returns  seq granted zombies now_ms restored_age_ms|-1 (bucket level)*
local key, holder = KEYS[1], ARGV[1]
local incarnation, seq, keep, want = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local capacity, lease, longest, spent = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- Lua prints numbers of 1e14 and above in exponents, and Redis truncates those it returns.
local function int(number) return string.format('%.0f', number) end
local function set(field, number) redis.call('HSET', key, field, int(number)) end

local fields, flat = {}, redis.call('HGETALL', key)
for i = 1, #flat, 2 do fields[flat[i]] = tonumber(flat[i + 1]) or 0 end

-- Zombies that have come free are forgotten; shares whose lease has ended become zombies.
local granted_sum, zombie_sum, own_granted, own_expired = 0, 0, 0, 0
local spent_before = fields['spent_before'] or 0
local levels, has_levels = {}, false
for field, value in pairs(fields) do
  local kind, name = string.match(field, '^(%a+):(.*)$')
  if kind == 'zombies' then
    if tonumber(name) > now then zombie_sum = zombie_sum + value else redis.call('HDEL', key, field) end
  elseif kind == 'granted' then
    local expired = fields['expired:' .. name] or 0
    if expired > 0 and fields['expired_until_ms:' .. name] <= now then
      expired = 0
      set('expired:' .. name, 0)
    end
    if value > 0 and fields['renewed_ms:' .. name] + fields['lease_ms:' .. name] <= now then
      expired, value = value, 0
      set(field, 0)
      set('expired:' .. name, expired)
      set('expired_until_ms:' .. name, now + longest)
    end
    -- Pods come and go under ever new names: who was silent for longer than a call runs is forgotten.
    if name ~= holder and fields[field] == 0 and (fields['expired_until_ms:' .. name] or 0) <= now
      and fields['renewed_ms:' .. name] + fields['lease_ms:' .. name] + longest <= now then
      spent_before = spent_before + (fields['spent:' .. name] or 0)
      for _, kind in ipairs({'granted', 'incarnation', 'seq', 'renewed_ms', 'lease_ms', 'spent', 'expired', 'expired_until_ms'}) do
        redis.call('HDEL', key, kind .. ':' .. name)
      end
    end
    if name == holder then own_granted, own_expired = value, expired end
    granted_sum, zombie_sum = granted_sum + value, zombie_sum + expired
  elseif kind == 'level' then
    levels[name], has_levels = value, true
  end
end

local old_incarnation, old_seq = fields['incarnation:' .. holder], fields['seq:' .. holder]
if old_incarnation and (incarnation < old_incarnation or (incarnation == old_incarnation and seq <= old_seq)) then
  return {int(old_seq), int(own_granted), int(zombie_sum), int(now), '-1'}
end

-- From here on this holder's share is written anew: out of the sums with what it was.
local held = math.max(own_granted, own_expired)
granted_sum, zombie_sum = granted_sum - own_granted, zombie_sum - own_expired
local is_new = not old_incarnation or old_incarnation < incarnation
if is_new and old_incarnation then
  spent_before = spent_before + (fields['spent:' .. holder] or 0)
  if held > 0 then
    redis.call('HINCRBY', key, 'zombies:' .. int(now + longest), int(held))
    zombie_sum = zombie_sum + held
  end
  held = 0
end

-- Of an expired lease only what became a zombie: a `keep` that was sent before must not create slots.
local kept = math.min(held, keep)
local free = math.max(0, capacity - granted_sum - kept - zombie_sum)
local granted = kept + math.min(math.max(0, want - kept), free)

set('v', 1)
set('capacity', capacity)
set('granted:' .. holder, granted)
set('expired:' .. holder, 0)
set('expired_until_ms:' .. holder, 0)
set('incarnation:' .. holder, incarnation)
set('seq:' .. holder, seq)
set('renewed_ms:' .. holder, now)
set('lease_ms:' .. holder, lease)
set('spent:' .. holder, spent)
set('spent_before', spent_before)

local reply = {int(seq), int(granted), int(zombie_sum), int(now), '-1'}
if is_new and has_levels then
  reply[5] = int(math.max(0, now - fields['levels_at_ms']))
  for name, level in pairs(levels) do
    reply[#reply + 1] = name
    reply[#reply + 1] = int(level)
  end
else
  for name in pairs(levels) do redis.call('HDEL', key, 'level:' .. name) end
  for i = 10, #ARGV, 2 do redis.call('HSET', key, 'level:' .. ARGV[i], ARGV[i + 1]) end
  set('levels_at_ms', now)
end
return reply
