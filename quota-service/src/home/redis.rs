//! The home in Redis: one hash an account, one script, by EVALSHA; records, the audit stream and the overlay beside them.

use super::contract::{Accounts, Answer, AuditTrail, Documents, Lifecycle, UsageRecords};
use super::error::HomeError;
use super::link::{Link, Lua};
use super::overlay::{self, Overlay};
use super::records::{Counts, Entry, Field, Hour, Record};
use crate::ledger::wire;
use crate::ledger::{Account, Notice};
use futures_util::{StreamExt, TryStreamExt, stream};
use sluice_policy::ledger::{SyncReply, SyncRequest};
use sluice_policy::schedule::Change;
use sluice_policy::units::TenantId;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;
use tokio::sync::mpsc;

/// About so many audit entries are kept.
const AUDIT_KEPT: u64 = 10_000;
/// Notices that may wait to be taken in.
const NOTICES_KEPT: usize = 1_024;

/// What busy tenants used costs Redis a call so often for 64 of them, or, in a cluster, for each of them.
const FLUSH_EVERY: Duration = Duration::from_millis(500);
/// Calls for usage records that are under way at the same time.
const AT_ONCE: usize = 32;
/// Records' fields, and how long they are kept, in one step: no record outlives its time because an answer was lost. ARGV
/// are the seconds, and for each key the number of its words and the words. One that cannot be written keeps back no other.
const KEEP_USAGE: &str = "local at, failed = 2, nil
for _, key in ipairs(KEYS) do
  local last = at + ARGV[at]
  local kept = redis.pcall('HSET', key, unpack(ARGV, at + 1, last))
  if type(kept) == 'table' then failed = kept else redis.call('EXPIRE', key, ARGV[1]) end
  at = last + 1
end
return failed";

/// What records' fields hold. ARGV are for each key the number of its fields and the fields. A key that cannot be read has
/// nothing: writing to it fails.
const KEPT_USAGE: &str = "local at, kept = 1, {}
for i, key in ipairs(KEYS) do
  local last = at + ARGV[at]
  local found = redis.pcall('HMGET', key, unpack(ARGV, at + 1, last))
  kept[i], at = found.err and {} or found, last + 1
end
return kept";

pub struct RedisHome {
    link: Link,
    script: Lua,
    replace_overlay: Lua,
    keep_usage: Lua,
    kept_usage: Lua,
    retention: Duration,
}

impl RedisHome {
    /// `retention` is how long usage records are kept.
    #[must_use]
    pub fn new(link: Link, retention: Duration) -> Self {
        let (replace_overlay, keep_usage) = (Lua::new(include_str!("overlay.lua")), Lua::new(KEEP_USAGE));
        let (script, kept_usage) = (Lua::new(wire::SCRIPT), Lua::new(KEPT_USAGE));
        Self { link, script, replace_overlay, keep_usage, kept_usage, retention }
    }

    async fn call(&self, account: &Account, request: &SyncRequest) -> Result<SyncReply, HomeError> {
        let mut call = self.script.on(account.to_string());
        call.arg(wire::encode(request));
        let answer: String = self.link.run(&call).await?;
        wire::parse(&answer).ok_or(HomeError::Malformed(answer))
    }

    async fn keep_records(&self, records: &[Record]) -> Result<(), HomeError> {
        let keys = records.iter().map(|record| usage_key(&record.tenant, record.hour)).collect();
        let mut call = self.keep_usage.on_all(keys);
        call.arg(self.retention.as_secs());
        for record in records {
            call.arg(2 * record.fields.len());
            for (field, counts) in &record.fields {
                let counts = serde_json::to_string(counts).map_err(|error| HomeError::Malformed(error.to_string()))?;
                call.arg(field.to_string()).arg(counts);
            }
        }
        self.link.run(&call).await
    }

    async fn kept_records(&self, records: &[Record]) -> Result<Vec<Record>, HomeError> {
        let keys = records.iter().map(|record| usage_key(&record.tenant, record.hour)).collect();
        let mut call = self.kept_usage.on_all(keys);
        for record in records {
            call.arg(record.fields.len());
            for field in record.fields.keys() {
                call.arg(field.to_string());
            }
        }
        let found: Vec<Vec<Option<String>>> = self.link.run(&call).await?;
        let kept = |(record, found): (&Record, Vec<Option<String>>)| {
            let known = record.fields.keys().zip(found).filter_map(|(field, counts)| Some((field, counts?)));
            let read = known.map(|(field, counts)| match serde_json::from_str::<Counts>(&counts) {
                Ok(counts) => Ok((field.clone(), counts)),
                Err(_) => Err(HomeError::Malformed(format!("{field} {counts}"))),
            });
            Ok(Record { fields: read.collect::<Result<_, _>>()?, ..record.clone() })
        };
        records.iter().zip(found).map(kept).collect()
    }

    async fn record_of(&self, tenant: &TenantId, hour: Hour) -> Result<Option<Record>, HomeError> {
        let mut command = redis::cmd("HGETALL");
        command.arg(usage_key(tenant, hour));
        let found: BTreeMap<String, String> = self.link.command(&command).await?;
        let mut fields = BTreeMap::new();
        for (field, counts) in found {
            let read = || Some((field.parse::<Field>().ok()?, serde_json::from_str::<Counts>(&counts).ok()?));
            let (name, counts) = read().ok_or_else(|| HomeError::Malformed(format!("{field} {counts}")))?;
            fields.insert(name, counts);
        }
        Ok((!fields.is_empty()).then(|| Record { tenant: tenant.clone(), hour, fields }))
    }
}

type StoredOverlay = (Option<String>, Option<String>);

fn read_overlay((version, change): StoredOverlay) -> Result<Overlay, HomeError> {
    Overlay::parse(version.as_deref(), change.as_deref())
}

impl Accounts for RedisHome {
    fn sync<'a>(&'a self, account: &'a Account, request: &'a SyncRequest) -> Answer<'a, SyncReply> {
        Box::pin(self.call(account, request))
    }

    fn sync_at_once(&self, _: &Account, _: &SyncRequest) -> Option<SyncReply> {
        None
    }

    fn notices(&self) -> mpsc::Receiver<Notice> {
        let mut published = self.link.subscribe(vec![wire::NOTICES.to_owned()]);
        let (read, notices) = mpsc::channel(NOTICES_KEPT);
        tokio::spawn(async move {
            while let Some(message) = published.recv().await {
                match wire::parse_notice(&message.payload) {
                    // Who does not listen fast enough hears at the tick.
                    Some(notice) => drop(read.try_send(notice)),
                    None => tracing::debug!("not a notice: {:?}", message.payload),
                }
                if read.is_closed() {
                    return;
                }
            }
        });
        notices
    }

    fn outlives_us(&self) -> bool {
        true
    }
}

impl Documents for RedisHome {
    fn overlay(&self) -> Answer<'_, Overlay> {
        let mut command = redis::cmd("HMGET");
        command.arg(overlay::KEY).arg("version").arg("change");
        Box::pin(async move { self.link.command(&command).await.and_then(read_overlay) })
    }

    fn replace_overlay<'a>(&'a self, after: u64, change: Option<&'a Change>) -> Answer<'a, Overlay> {
        let mut call = self.replace_overlay.on(overlay::KEY.to_owned());
        call.arg(after).arg(Overlay::text(change));
        Box::pin(async move { self.link.run(&call).await.and_then(read_overlay) })
    }

    fn overlay_changes(&self) -> mpsc::Receiver<()> {
        let mut published = self.link.subscribe(vec![overlay::KEY.to_owned()]);
        let (ring, changes) = mpsc::channel(1);
        tokio::spawn(async move {
            while published.recv().await.is_some() && !ring.is_closed() {
                // One that is not heard yet says as much as two.
                let _ = ring.try_send(());
            }
        });
        changes
    }
}

impl UsageRecords for RedisHome {
    fn flush_every(&self) -> Duration {
        FLUSH_EVERY
    }

    fn keep_usage<'a>(&'a self, records: &'a [Record]) -> Answer<'a, ()> {
        let writes: Vec<_> =
            records.chunks(self.link.keys_at_once()).map(|records| self.keep_records(records)).collect();
        Box::pin(async move {
            let kept: Vec<Result<(), HomeError>> = stream::iter(writes).buffer_unordered(AT_ONCE).collect().await;
            kept.into_iter().collect()
        })
    }

    fn kept_usage<'a>(&'a self, records: &'a [Record]) -> Answer<'a, Vec<Record>> {
        let reads: Vec<_> =
            records.chunks(self.link.keys_at_once()).map(|records| self.kept_records(records)).collect();
        Box::pin(async move {
            let found: Vec<Vec<Record>> = stream::iter(reads).buffer_unordered(AT_ONCE).try_collect().await?;
            Ok(found.into_iter().flatten().collect())
        })
    }

    fn usage<'a>(&'a self, tenant: &'a TenantId, hours: RangeInclusive<Hour>) -> Answer<'a, Vec<Record>> {
        let hours = hours.start().number()..=hours.end().number();
        let reads = stream::iter(hours).map(|hour| self.record_of(tenant, Hour::numbered(hour)));
        Box::pin(reads.buffered(AT_ONCE).try_filter_map(async |record| Ok(record)).try_collect())
    }
}

impl AuditTrail for RedisHome {
    fn record<'a>(&'a self, entry: &'a Entry) -> Answer<'a, ()> {
        let mut command = redis::cmd("XADD");
        command.arg("sluice:audit").arg("MAXLEN").arg("~").arg(AUDIT_KEPT).arg("*");
        command.arg("what").arg(entry.what).arg("how").arg(&entry.how);
        Box::pin(async move { self.link.command(&command).await })
    }
}

impl Lifecycle for RedisHome {
    fn close(&self) -> Answer<'_, ()> {
        Box::pin(async { Ok(()) })
    }
}

/// A tenant's id holds no colon.
fn usage_key(tenant: &TenantId, hour: Hour) -> String {
    format!("sluice:usage:{tenant}:{hour}")
}
