//! The store in Redis or Valkey.
//!
//! Each change is one script, so that what it rests on and what it writes are one step, by the server's own clock. A value
//! is a hash: `v` the bytes, `n` the version, `f` the fencing number. All keys share a hash tag, so that a script of a
//! cluster finds them in one place; there is little of it.

use std::fmt;
use std::time::Duration;

use ::redis::{Script, cmd};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{Expected, Lease, StoreError, Stored, Version, lease};
use crate::adapters::redis::{Ask, Redis, RedisFailure, Subscription};
use crate::config::RedisConfig;

/// The record of a lease stays so long after it was taken last, for its number. If it is lost, the clock takes its place.
const RECORD_TTL_MS: u64 = 30 * 24 * 3600 * 1000;

/// Between two attempts to listen for notices.
const LISTEN_AGAIN: Duration = Duration::from_secs(2);

/// What all scripts share: the server's time in ms, and a write that gives a value its next version.
const COMMON: &str = r"
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function write(key, counter, bytes, fence)
  local version = time[1] .. '.' .. time[2] .. '.' .. redis.call('INCR', counter)
  redis.call('HSET', key, 'v', bytes, 'n', version, 'f', fence)
  return version
end
";

/// KEYS: value, counter, index. ARGV: bytes, name, kind of expectation, version.
const PUT: &str = r"
local found = redis.call('HMGET', KEYS[1], 'n', 'f')
if ARGV[3] == 'absent' and found[1] then return false end
if ARGV[3] == 'version' and found[1] ~= ARGV[4] then return false end
local version = write(KEYS[1], KEYS[2], ARGV[1], found[2] or '0')
redis.call('PERSIST', KEYS[1])
redis.call('ZADD', KEYS[3], 0, ARGV[2])
return version
";

/// KEYS: value, counter, index. ARGV: bytes, name, time to live in ms.
const PUT_EXPIRING: &str = r"
local version = write(KEYS[1], KEYS[2], ARGV[1], '0')
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('ZREM', KEYS[3], ARGV[2])
return version
";

/// KEYS: value, counter, index, lease. ARGV: bytes, name, fencing number.
const PUT_FENCED: &str = r"
local held = redis.call('HMGET', KEYS[4], 'number', 'owner')
if held[1] ~= ARGV[3] or not held[2] then return false end
if tonumber(redis.call('HGET', KEYS[1], 'f') or '0') > tonumber(ARGV[3]) then return false end
local version = write(KEYS[1], KEYS[2], ARGV[1], ARGV[3])
redis.call('PERSIST', KEYS[1])
redis.call('ZADD', KEYS[3], 0, ARGV[2])
return version
";

/// KEYS: value, index. ARGV: name.
const DELETE: &str = r"
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return 1
";

/// KEYS: lease. ARGV: owner, time to live in ms, that of the record.
const ACQUIRE: &str = r"
local found = redis.call('HMGET', KEYS[1], 'owner', 'number', 'until')
if found[1] and found[1] ~= ARGV[1] and tonumber(found[3]) > now then return false end
local number = string.format('%.0f', math.max(tonumber(found[2] or '0') + 1, now))
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'number', number, 'until', string.format('%.0f', now + ARGV[2]))
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return number
";

/// KEYS: lease. ARGV: fencing number, time to live in ms, that of the record.
const RENEW: &str = r"
local found = redis.call('HMGET', KEYS[1], 'number', 'owner')
if found[1] ~= ARGV[1] or not found[2] then return 0 end
redis.call('HSET', KEYS[1], 'until', string.format('%.0f', now + ARGV[2]))
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
";

/// KEYS: lease. ARGV: fencing number.
const RELEASE: &str = r"
if redis.call('HGET', KEYS[1], 'number') == ARGV[1] then redis.call('HDEL', KEYS[1], 'owner') end
return 1
";

#[derive(Debug)]
pub struct RedisStore {
    redis: Redis,
    /// With the hash tag.
    prefix: String,
    scripts: Scripts,
    deadline: Duration,
    poll: Duration,
}

#[derive(Debug)]
struct Scripts {
    put: Script,
    put_expiring: Script,
    put_fenced: Script,
    delete: Script,
    acquire: Script,
    renew: Script,
    release: Script,
}

impl Scripts {
    fn new() -> Self {
        let script = |text: &str| Script::new(&format!("{COMMON}{text}"));
        Self {
            put: script(PUT),
            put_expiring: script(PUT_EXPIRING),
            put_fenced: script(PUT_FENCED),
            delete: script(DELETE),
            acquire: script(ACQUIRE),
            renew: script(RENEW),
            release: script(RELEASE),
        }
    }
}

impl RedisStore {
    pub fn new(config: &RedisConfig, deadline: Duration, poll: Duration) -> Result<Self, RedisFailure> {
        let redis = Redis::new(config, deadline)?;
        Ok(Self { redis, prefix: format!("{{{}}}:", config.prefix), scripts: Scripts::new(), deadline, poll })
    }

    pub(super) async fn get(&self, key: &str) -> Result<Option<Stored>, StoreError> {
        let mut get = cmd("HMGET");
        get.arg(self.value(key)).arg("v").arg("n");
        let called = self.redis.ask(Ask::Command(&get)).await;
        let (bytes, version): (Option<Vec<u8>>, Option<String>) =
            called.map_err(|f| failed("read a value", f))?;
        Ok(bytes.zip(version).map(|(bytes, version)| Stored { bytes, version: Version(version) }))
    }

    pub(super) async fn put(
        &self,
        key: &str,
        bytes: &[u8],
        expected: &Expected,
    ) -> Result<Version, StoreError> {
        let (kind, version) = match expected {
            Expected::Anything => ("anything", ""),
            Expected::Absent => ("absent", ""),
            Expected::Version(Version(version)) => ("version", version.as_str()),
        };
        let mut call = self.writing(&self.scripts.put, key, bytes);
        call.arg(kind).arg(version);
        let called = self.redis.ask(Ask::Script(&call)).await;
        let written: Option<String> = called.map_err(|f| failed("write a value", f))?;
        written.map(Version).ok_or_else(|| StoreError::Conflict { key: key.to_owned() })
    }

    pub(super) async fn put_expiring(
        &self,
        key: &str,
        bytes: &[u8],
        ttl: Duration,
    ) -> Result<(), StoreError> {
        let mut call = self.writing(&self.scripts.put_expiring, key, bytes);
        call.arg(millis(ttl));
        let called = self.redis.ask::<String>(Ask::Script(&call)).await;
        called.map(drop).map_err(|f| failed("write a value", f))
    }

    pub(super) async fn put_fenced(
        &self,
        lease: &Lease,
        key: &str,
        bytes: &[u8],
    ) -> Result<Version, StoreError> {
        let mut call = self.writing(&self.scripts.put_fenced, key, bytes);
        call.key(self.value(&lease::key(&lease.name))).arg(lease.number);
        let called = self.redis.ask(Ask::Script(&call)).await;
        let written: Option<String> = called.map_err(|f| failed("write a value", f))?;
        written.map(Version).ok_or_else(|| StoreError::Fenced { name: lease.name.clone() })
    }

    pub(super) async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let mut call = self.scripts.delete.prepare_invoke();
        call.key(self.value(key)).key(self.index()).arg(key);
        let called = self.redis.ask::<i64>(Ask::Script(&call)).await;
        called.map(drop).map_err(|f| failed("delete a value", f))
    }

    /// Those that expire are in no list.
    pub(super) async fn list(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let mut list = cmd("ZRANGEBYLEX");
        // Keys are ASCII.
        list.arg(self.index()).arg(format!("[{prefix}")).arg(format!("({prefix}\x7f"));
        let called = self.redis.ask(Ask::Command(&list)).await;
        called.map_err(|f| failed("list keys", f))
    }

    pub(super) async fn acquire(
        &self,
        name: &str,
        owner: &str,
        ttl: Duration,
    ) -> Result<Option<Lease>, StoreError> {
        let mut call = self.scripts.acquire.prepare_invoke();
        call.key(self.value(&lease::key(name))).arg(owner).arg(millis(ttl)).arg(RECORD_TTL_MS);
        let called = self.redis.ask(Ask::Script(&call)).await;
        let number: Option<u64> = called.map_err(|f| failed("take a lease", f))?;
        Ok(number.map(|number| Lease { name: name.to_owned(), owner: owner.to_owned(), number, ttl }))
    }

    pub(super) async fn holder(&self, name: &str) -> Result<Option<String>, StoreError> {
        let mut get = cmd("HGET");
        get.arg(self.value(&lease::key(name))).arg("owner");
        let called = self.redis.ask(Ask::Command(&get)).await;
        called.map_err(|f| failed("read a lease", f))
    }

    pub(super) async fn renew(&self, lease: &Lease) -> Result<bool, StoreError> {
        let mut call = self.scripts.renew.prepare_invoke();
        call.key(self.value(&lease::key(&lease.name)));
        call.arg(lease.number).arg(millis(lease.ttl)).arg(RECORD_TTL_MS);
        let called = self.redis.ask(Ask::Script(&call)).await;
        called.map_err(|f| failed("renew a lease", f))
    }

    pub(super) async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        let mut call = self.scripts.release.prepare_invoke();
        call.key(self.value(&lease::key(&lease.name))).arg(lease.number);
        let called = self.redis.ask::<i64>(Ask::Script(&call)).await;
        called.map(drop).map_err(|f| failed("release a lease", f))
    }

    pub(super) async fn notify(&self, topic: &str) -> Result<(), StoreError> {
        let mut publish = cmd("PUBLISH");
        publish.arg(self.channel()).arg(topic);
        let called = self.redis.ask::<i64>(Ask::Command(&publish)).await;
        called.map(drop).map_err(|f| failed("publish a notice", f))
    }

    pub(super) fn watch(&self) -> Watch<'_> {
        Watch { store: self, subscription: None }
    }

    /// What the scripts that write have in common.
    fn writing<'s>(&self, script: &'s Script, key: &str, bytes: &[u8]) -> ::redis::ScriptInvocation<'s> {
        let mut call = script.prepare_invoke();
        call.key(self.value(key)).key(format!("{}counter", self.prefix)).key(self.index());
        call.arg(bytes).arg(key);
        call
    }

    fn value(&self, key: &str) -> String {
        format!("{}store:{key}", self.prefix)
    }

    fn index(&self) -> String {
        format!("{}index", self.prefix)
    }

    fn channel(&self) -> String {
        format!("{}notices", self.prefix)
    }
}

fn millis(time: Duration) -> u64 {
    // Redis does not take 0.
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
}

fn failed(what: &'static str, failure: RedisFailure) -> StoreError {
    match failure {
        RedisFailure::Slow { redis, deadline } => StoreError::Slow { store: redis, what, deadline },
        RedisFailure::Unreachable { ref redis, .. }
        | RedisFailure::Refused { ref redis, .. }
        | RedisFailure::NotYet { ref redis } => {
            StoreError::Unavailable { store: redis.clone(), what, source: failure.into() }
        }
    }
}

impl fmt::Display for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.redis.fmt(f)
    }
}

/// Listens for notices, and for the end of an outage, during which some may have been missed.
pub struct Watch<'s> {
    store: &'s RedisStore,
    subscription: Option<Subscription>,
}

impl Watch<'_> {
    pub(super) async fn changed(&mut self) {
        let store = self.store;
        let until = Instant::now() + store.poll;
        loop {
            if let Some(subscription) = &mut self.subscription {
                match timeout_at(until, subscription.message()).await {
                    Ok(true) => return,
                    Ok(false) => {}
                    // A peer that is gone without a word says nothing either.
                    Err(_) if subscription.answers(store.deadline).await => return,
                    Err(_) => {
                        self.subscription = None;
                        return;
                    }
                }
            }
            self.subscription = store.redis.subscribe(&store.channel()).await.ok();
            if self.subscription.is_some() {
                return;
            }
            let next = (Instant::now() + LISTEN_AGAIN).min(until);
            sleep_until(next).await;
            if next == until {
                return;
            }
        }
    }
}

impl fmt::Debug for Watch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("store", &self.store).finish_non_exhaustive()
    }
}
