//! The script as production runs it: on the server's own clock, reached as the service reaches it.

use super::homes::Redis;
use super::replay::Trace;
use super::rig::Rig;
use e2e::wait::wait_until;
use quota_service::home::contract::Accounts;
use quota_service::ledger::wire::{self, Notice};
use redis::cmd;
use sluice_policy::ledger::{Account, AccountLedger, Server, SyncRequest};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(30);
const CALLS: usize = 300;

pub(crate) async fn check(rig: &Rig) {
    let fields = it_tells_the_servers_own_time_and_run(rig).await;
    a_flushed_script_is_loaded_again(rig).await;
    a_notice_reaches_who_listens_anywhere(rig).await;
    assert_eq!(rig.refusals(), [""; 0], "the documented rights suffice");
    every_field_of_an_account_is_documented(&fields);
    who_may_not_publish_has_a_ledger_all_the_same(rig);
    a_key_of_another_format_is_left_alone(rig);
    only_the_sweep_looks_at_all_counters(rig);
    // The last one: others take the account's master to be where it was.
    a_replica_that_takes_over_freezes_its_accounts(rig).await;
}

fn account(name: &str) -> Account {
    Account::Pool(name.into())
}

/// What every field held last of those that random calls bring about.
async fn it_tells_the_servers_own_time_and_run(rig: &Rig) -> BTreeMap<String, String> {
    let ledger = rig.ledger();
    let mut fields = BTreeMap::new();
    for (seed, begins_frozen) in [(1, true), (2, false)] {
        let (account, mut pure) = (account(&format!("real-time-{seed}")), AccountLedger::default());
        let info: String = rig.home().ask(&account, cmd("INFO").arg("server")).unwrap();
        let run = info.lines().find_map(|line| line.strip_prefix("run_id:")).unwrap();
        for (number, request) in Trace::random(seed, CALLS).requests().into_iter().enumerate() {
            // Its times are the trace's own.
            let mut request = SyncRequest { last_heard: None, answered: None, ..request };
            if number == 0 && !begins_frozen {
                (request.keep, request.guarded) = (0, false);
                request.servers.clear();
            }
            let answer = ledger.sync(&account, &request).await.unwrap();
            assert_eq!(answer, pure.sync(&request, Server { run, now: answer.now }).reply, "asked {request:?}");
            let known: BTreeMap<String, String> =
                rig.home().ask(&account, cmd("HGETALL").arg(account.to_string())).unwrap();
            fields.extend(known);
        }
    }
    fields
}

fn every_field_of_an_account_is_documented(known: &BTreeMap<String, String>) {
    let document = std::fs::read_to_string(e2e::paths::root().join("docs/LEDGER.md")).unwrap();
    assert!(known.keys().any(|field| field.starts_with("picks:")), "{known:?}");
    for (field, value) in known {
        let (kind, of) = field.split_once(':').map_or((field.as_str(), ""), |(kind, _)| (kind, ":"));
        assert!(document.contains(&format!("`{kind}{of}")), "{field} is not documented");
        // Groups and holders have names of their own, and so have flows, which are not such words.
        let names = value.split('"').skip(1).step_by(2).filter(|_| field != "groups" && field != "awaited");
        for name in names.filter(|name| name.chars().all(|c| c == '_' || c.is_ascii_lowercase())) {
            assert!(document.contains(&format!("`{name}`")), "{name} of {field} is not documented");
        }
    }
}

async fn a_flushed_script_is_loaded_again(rig: &Rig) {
    let ledger = rig.ledger();
    let [first, second] = two_holders();
    ledger.sync(&account("flushed"), &first).await.unwrap();
    for server in &rig.servers {
        server.cli(&["SCRIPT", "FLUSH"]).unwrap();
    }
    assert_eq!(ledger.sync(&account("flushed"), &second).await.unwrap().seq, second.seq);
}

async fn a_notice_reaches_who_listens_anywhere(rig: &Rig) {
    let (ledger, account) = (rig.ledger(), account("notices"));
    let [mut first, mut second] = two_holders();
    let mut notices = ledger.notices();
    // What is published before the subscription stands is lost, so they go on quarrelling until one is heard.
    let notice = timeout(SOON, async {
        loop {
            ledger.sync(&account, &first).await.unwrap();
            let said = ledger.sync(&account, &second).await.unwrap();
            assert_eq!(said.granted, 0);
            if let Ok(notice) = timeout(Duration::from_millis(20), notices.recv()).await {
                return notice.unwrap();
            }
            second.rows.clear();
            second.seq += 1;
            ledger.sync(&account, &second).await.unwrap();
            let rows = two_holders()[1].rows.clone();
            second = SyncRequest { seq: second.seq + 1, rows, ..second };
            first.seq += 1;
        }
    });
    let Notice { account: heard, holder, reply } = notice.await.unwrap();
    assert_eq!((heard, holder), (account.clone(), first.holder.clone()));
    assert!(reply.contended && reply.granted == first.want, "{reply:?}");
}

fn who_may_not_publish_has_a_ledger_all_the_same(rig: &Rig) {
    let (mut home, account) = (Redis::on(&rig.servers), account("unpublished"));
    for server in &rig.servers {
        server.cli(&["ACL", "SETUSER", "quiet", "on", "nopass", "~sluice:*", "resetchannels", "+@all"]).unwrap();
    }
    let _: String = home.ask(&account, cmd("AUTH").arg("quiet").arg("")).unwrap();
    let [first, second] = two_holders();
    for request in [&first, &second] {
        let mut eval = cmd("EVAL");
        eval.arg(wire::SCRIPT).arg(1).arg(account.to_string()).arg(wire::encode(request));
        let answer: String = home.ask(&account, &eval).unwrap();
        assert_eq!(wire::parse(&answer).unwrap().seq, request.seq);
    }
}

fn a_key_of_another_format_is_left_alone(rig: &Rig) {
    let (mut home, account) = (Redis::on(&rig.servers), account("another-format"));
    let _: i64 = home.ask(&account, cmd("HSET").arg(account.to_string()).arg(&["v", "4", "a", "b"])).unwrap();
    let mut eval = cmd("EVAL");
    eval.arg(wire::SCRIPT).arg(1).arg(account.to_string()).arg(wire::encode(&two_holders()[0]));
    let refused = home.ask::<String>(&account, &eval).unwrap_err();
    assert!(refused.to_string().contains("is of format 4"), "{refused}");
    assert_eq!(home.ask::<u32>(&account, cmd("HLEN").arg(account.to_string())).unwrap(), 2);
}

fn only_the_sweep_looks_at_all_counters(rig: &Rig) {
    use super::homes::{Call, Home};
    use sluice_policy::units::Millis;
    let (mut home, account) = (Redis::on(&rig.servers), account("counters"));
    let call = |seq: u64, now: u64| Call {
        request: SyncRequest { seq, last_heard: Some((Millis(now), Millis::ZERO)), ..two_holders()[0].clone() },
        run: "run".to_owned(),
        now: Millis(now),
    };
    let began = 1_790_000_000_000;
    home.sync(&account, &[call(1, began)]);
    let idle = (0..1_000).flat_map(|tenant| [format!("counter:/4/tenant-{tenant}"), "1000".to_owned()]);
    let ahead = ["counter:/5/ahead", "1000", "level:/4", r#"{"counter":1000,"time":1000}"#].map(str::to_owned);
    let fields: Vec<String> = idle.chain(ahead).collect();
    let _: i64 = home.ask(&account, cmd("HSET").arg(account.to_string()).arg(fields)).unwrap();
    let looks = |home: &mut Redis, seq, now| {
        let _: () = home.ask(&account, cmd("CONFIG").arg("RESETSTAT")).unwrap();
        home.sync(&account, &[call(seq, now)]);
        let stats: String = home.ask(&account, cmd("INFO").arg("commandstats")).unwrap();
        stats.contains("cmdstat_hgetall")
    };
    assert!(!looks(&mut home, 2, began + 59_999));
    assert_eq!(home.field(&account, "counter:/4/tenant-7").as_deref(), Some("1000"));
    assert!(looks(&mut home, 3, began + 60_000));
    assert_eq!(home.field(&account, "counter:/4/tenant-7"), None);
    assert_eq!(home.field(&account, "counter:/5/ahead").as_deref(), Some("1000"));
}

async fn a_replica_that_takes_over_freezes_its_accounts(rig: &Rig) {
    let (ledger, account) = (rig.ledger(), account("failover"));
    let first = two_holders()[0].clone();
    let granted = ledger.sync(&account, &first).await.unwrap().granted;
    let master: String = rig.home().ask(&account, cmd("CLUSTER").arg("MYID")).unwrap_or_default();
    // A server alone has no replica.
    let Some(replica) = rig.servers.iter().find(|server| is_replica_of(server, &master)) else { return };
    // Without a vote: young masters do not know each other well enough for one.
    replica.cli(&["CLUSTER", "FAILOVER", "TAKEOVER"]).unwrap();
    let is_master = || async { replica.info().is_ok_and(|info| info["role"] == "master") };
    wait_until("the replica has taken over", SOON, is_master).await.unwrap();
    let second = SyncRequest { seq: first.seq + 1, keep: granted, ..first };
    let answered = async {
        loop {
            // The client learns of the new master by being sent there.
            if let Ok(reply) = ledger.sync(&account, &second).await {
                return reply;
            }
        }
    };
    let reply = timeout(SOON, answered).await.unwrap();
    let ends = reply.now.plus(second.lease).plus(second.longest_request);
    assert_eq!((reply.granted, reply.frozen_until), (granted, Some(ends)));
    let run = replica.cli(&["HGET", &account.to_string(), "run"]).unwrap();
    assert_eq!(run.trim(), replica.info().unwrap()["run_id"]);
}

fn is_replica_of(server: &e2e::stack::Redis, master: &str) -> bool {
    let nodes = server.cli(&["CLUSTER", "NODES"]).unwrap_or_default();
    // ID ADDRESS FLAGS MASTER ...
    nodes.lines().any(|node| node.contains("myself") && node.split(' ').nth(3) == Some(master))
}

/// One that takes everything, and one that waits.
fn two_holders() -> [SyncRequest; 2] {
    let requests = Trace::random(0, 20).requests();
    let row = requests.iter().find_map(|request| request.rows.first()).unwrap().clone();
    let request = SyncRequest {
        holder: "gate-0".into(),
        seq: 1,
        keep: 0,
        want: requests[0].terms.capacity,
        last_heard: None,
        // Nothing was lost, so the account is not frozen.
        servers: Vec::new(),
        answered: None,
        wall: None,
        guarded: false,
        spent: Vec::new(),
        rows: Vec::new(),
        ..requests[0].clone()
    };
    let waits = SyncRequest { holder: "gate-1".into(), want: 0, rows: vec![row], ..request.clone() };
    [request, waits]
}
