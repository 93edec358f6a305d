//! `quota-service inspect` tells what the ledger in Redis knows, whatever kind of Redis it is.

// Helpers of a test are tests too, but the lint knows only functions marked as such.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
// The rig is shared with other tests, which use more of it.
#![allow(dead_code)]

#[path = "conformance/homes.rs"]
mod homes;
#[path = "conformance/rig.rs"]
mod rig;

use quota_service::home::contract::Accounts;
use quota_service::inspect::{Inspected, find};
use quota_service::ledger::Account;
use redis::cmd;
use rig::{Rig, Where};
use sluice_policy::bucket::Rate;
use sluice_policy::ledger::{Limit, MeterName, Row, SyncReply, SyncRequest, Terms, Version};
use sluice_policy::queue::SharePolicy;
use sluice_policy::units::{Millis, Tokens};

#[tokio::test(flavor = "multi_thread")]
async fn everything_in_redis_is_found() {
    tells_what_the_ledger_knows(Where::Redis).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_in_valkey_is_found() {
    tells_what_the_ledger_knows(Where::Valkey).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_on_every_node_of_a_cluster_is_found() {
    tells_what_the_ledger_knows(Where::Cluster).await;
}

async fn tells_what_the_ledger_knows(place: Where) {
    let Some(rig) = Rig::start(place).await else { return };
    let (ledger, link) = (rig.ledger(), rig.link());
    assert_eq!(find(&link, Some("smol")).await.unwrap(), [], "nobody has asked yet");
    // More keys than one step of SCAN looks at, on every node.
    let mut accounts: Vec<Account> = (0..1_000).map(|id| Account::Tenant(format!("tenant-{id}").into())).collect();
    accounts.extend([Account::Pool("smol".into()), Account::Tenant("smol".into()), Account::Pool("grand".into())]);
    for account in &accounts {
        ledger.sync(account, &request("gate-0", 5)).await.unwrap();
    }
    let smol = Account::Pool("smol".into());
    let reply = ledger.sync(&smol, &SyncRequest { rows: rows(), ..request("gate-1", 0) }).await.unwrap();
    assert_eq!(reply.granted, 1);
    let _: String = rig.home().ask(&smol, cmd("SET").arg("sluice:{pool:smol}:else").arg("x")).unwrap();

    let refused = find(&link, None).await.unwrap_err();
    assert!(refused.to_string().contains("'scan'"), "{refused}");
    for server in &rig.servers {
        server.cli(&["ACL", "SETUSER", "sluice", "+scan"]).unwrap();
    }
    let found = find(&link, None).await.unwrap();
    let mut keys: Vec<String> = accounts.iter().map(Account::to_string).collect();
    keys.sort();
    assert_eq!(found.iter().map(|found| found.account.clone()).collect::<Vec<_>>(), keys);

    let named = find(&link, Some("smol")).await.unwrap();
    assert_eq!(
        named.iter().map(|found| found.account.as_str()).collect::<Vec<_>>(),
        ["sluice:{pool:smol}", "sluice:{tenant:smol}"]
    );
    is_as_it_was_told(&named[0], &reply);
}

fn is_as_it_was_told(pool: &Inspected, reply: &SyncReply) {
    assert_eq!((pool.capacity, pool.granted, pool.zombies, pool.frozen_for_ms), (8, 6, 0, None));
    let [first, second] = &pool.holders[..] else { panic!("{pool:?}") };
    assert_eq!((first.holder.as_str(), first.seq, first.granted, first.contended), ("gate-0", 1, 5, true));
    assert_eq!((second.rows, second.waiting, second.picked), (2, 5, 1));
    assert!((0..=60_000).contains(&second.lease_ends_in_ms), "{second:?}");
    let flows: Vec<(&str, u32, u32)> =
        pool.rows.iter().map(|row| (row.flow.as_str(), row.waiting, row.picked)).collect();
    assert_eq!(flows.iter().map(|flow| flow.1 - flow.2).sum::<u32>(), 4);
    assert_eq!((flows[0].0, flows[1].0), ("/1/chat", "red/4/batch"));
    let [meter] = &pool.meters[..] else { panic!("{pool:?}") };
    assert_eq!((meter.meter.as_str(), meter.burst, meter.window_ms), ("tokens_per_minute", 60_000, 60_000));
    let told = reply.meters[&MeterName::TokensPerMinute];
    assert_eq!((meter.level, meter.fraction, meter.lent), (told.level, told.fraction, 15_000 + 10));
    assert!(pool.counters.iter().any(|counter| counter.branch == "counter:/1/chat"), "{pool:?}");
}

fn rows() -> Vec<Row> {
    let row = |flow: &str, waiting| Row {
        money: 0,
        flow: flow.parse().unwrap(),
        weight: 1,
        head: Tokens(10),
        waiting,
        waited: Millis(5),
    };
    vec![row("/1/chat", 4), row("red/4/batch", 1)]
}

fn request(holder: &str, want: u32) -> SyncRequest {
    let tokens = Limit::Rate(Rate::per_minute(60_000));
    SyncRequest {
        holder: holder.into(),
        incarnation: 1,
        seq: 1,
        keep: 0,
        want,
        terms: Terms {
            version: Version::default(),
            capacity: 8,
            policy: SharePolicy::Hybrid,
            levels: [256, 128, 64, 32, 16, 8, 4, 2, 1, 1],
            groups: [("red".into(), 2)].into(),
            meters: [(MeterName::TokensPerMinute, tokens)].into(),
        },
        lease: Millis(60_000),
        longest_request: Millis(600_000),
        last_heard: None,
        answered: None,
        wall: None,
        guarded: false,
        ahead: want > 0,
        spent: Vec::new(),
        servers: Vec::new(),
        patience: None,
        jump: None,
        rows: Vec::new(),
        meters: [].into(),
    }
}
