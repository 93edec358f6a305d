//! Usage records are counted once, whatever is written twice, and are there after a restart, in every ledger.

// Helpers of a test are tests too, but the lint knows only functions marked as such.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
// The rig is shared with other tests, which use more of it.
#![allow(dead_code)]

#[path = "conformance/homes.rs"]
mod homes;
#[path = "conformance/rig.rs"]
mod rig;

use e2e::folder::Folder;
use quota_service::home::contract::UsageRecords;
use quota_service::home::embedded::EmbeddedHome;
use quota_service::home::records::{Counts, Field, Hour, Record};
use rig::{Rig, Where};
use std::time::Duration;

const DAY: Duration = Duration::from_secs(86_400);

fn record(tenant: &str, hour: Hour, incarnation: u64, models: &[(&str, u64)]) -> Record {
    let field = |model: &str| Field { holder: "gate-0".into(), incarnation, model: model.into() };
    let counts = |requests| Counts { requests, output: 10 * requests, ..Counts::default() };
    let fields = models.iter().map(|(model, requests)| (field(model), counts(*requests))).collect();
    Record { tenant: tenant.into(), hour, fields }
}

/// Two starts of one sidecar and two tenants, one of which is the beginning of the other's name.
async fn are_kept_once(ledger: &dyn UsageRecords, now: Hour) {
    let early = record("a", now.before(1), 1, &[("m", 1)]);
    let first = record("a", now, 1, &[("m", 2), ("meta/llama", 3)]);
    let more = record("a", now, 1, &[("m", 5)]);
    let next = record("a", now, 2, &[("m", 7)]);
    let other = record("a-b", now, 1, &[("m", 100)]);
    ledger.keep_usage(&[early.clone(), first.clone(), other]).await.unwrap();
    ledger.keep_usage(std::slice::from_ref(&more)).await.unwrap();
    ledger.keep_usage(&[more.clone(), next.clone()]).await.unwrap();

    let mut latest = first;
    latest.fields.extend(more.fields);
    latest.fields.extend(next.fields);
    let unknown = record("new", now, 1, &[("m", 0)]);
    let asked = [record("a", now, 1, &[("m", 0), ("meta/llama", 0), ("other", 0)]), unknown];
    let known: Vec<Record> =
        ledger.kept_usage(&asked).await.unwrap().into_iter().filter(|record| !record.fields.is_empty()).collect();
    assert_eq!(known, [record("a", now, 1, &[("m", 5), ("meta/llama", 3)])], "of fields that exist, and no others");

    let tenant = "a".into();
    assert_eq!(ledger.usage(&tenant, now.before(9)..=now).await.unwrap(), [early, latest.clone()]);
    assert_eq!(ledger.usage(&tenant, now..=now).await.unwrap(), [latest]);
    assert_eq!(ledger.usage(&"nobody".into(), now..=now).await.unwrap(), []);
}

async fn one_that_cannot_be_written_keeps_back_no_other(rig: &Rig) {
    let (ledger, now) = (rig.ledger(), Hour::now());
    let set = |server: &e2e::stack::Redis| server.cli(&["-c", "SET", &format!("sluice:usage:not-a-hash:{now}"), "x"]);
    rig.servers.iter().find_map(|server| set(server).ok()).unwrap();
    let mut records = vec![record("not-a-hash", now, 1, &[("m", 1)])];
    records.extend((0..200).map(|number| record(&format!("good-{number}"), now, 1, &[("m", 1)])));
    let refused = ledger.keep_usage(&records).await.unwrap_err();
    assert!(refused.to_string().contains("WRONGTYPE"), "{refused}");
    let last = records.pop().unwrap();
    assert_eq!(ledger.usage(&last.tenant, now..=now).await.unwrap(), [last]);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_redis_they_expire_and_the_documented_rights_suffice() {
    for place in [Where::Redis, Where::Valkey, Where::Cluster] {
        let Some(rig) = Rig::start(place).await else { continue };
        let now = Hour::now();
        are_kept_once(&rig.ledger(), now).await;
        one_that_cannot_be_written_keeps_back_no_other(&rig).await;
        let key = format!("sluice:usage:a:{now}");
        let left = rig.servers.iter().filter_map(|server| server.cli(&["TTL", &key]).ok()?.trim().parse::<i64>().ok());
        let left = left.max().unwrap();
        assert!((86_000..=86_400).contains(&left), "{place:?}: {left} s");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_memory_they_are_kept_once() {
    are_kept_once(&EmbeddedHome::default(), Hour::now()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_file_they_survive_a_kill_until_they_are_too_old() {
    let folder = Folder::create("usage-file").unwrap();
    let file = folder.path().join("ledger.redb");
    let ledger = EmbeddedHome::open(&file, 1, DAY).unwrap();
    let now = Hour::now();
    are_kept_once(&ledger, now).await;
    let old = record("a", now.before(25), 1, &[("m", 9)]);
    ledger.keep_usage(std::slice::from_ref(&old)).await.unwrap();

    // As a kill leaves it: what is answered is on the disk.
    let copy = folder.path().join("copy.redb");
    std::fs::copy(&file, &copy).unwrap();
    let next = EmbeddedHome::open(&copy, 1, DAY).unwrap();
    are_kept_once(&next, now).await;
    assert_eq!(next.usage(&"a".into(), old.hour..=old.hour).await.unwrap(), [], "it is older than a day");
}
