//! How long the server is busy with a call, by its own account of it (`INFO commandstats`).
//!
//! Two holders in turn give a slot back, tell what it cost, and report the same number of rows; a third one holds the
//! other slots. So every call reads both holders' rows, charges, picks and draws.

use super::homes::Redis;
use super::rig::Rig;
use quota_service::ledger::wire;
use redis::cmd;
use sluice_policy::bucket::Rate;
use sluice_policy::ledger::{Account, Limit, MeterName, MeterReport, Row, Spent, SyncRequest, Terms, Version};
use sluice_policy::queue::SharePolicy;
use sluice_policy::units::{Millis, Tokens};

/// The smallest mean of several short runs, since this machine may be busy with other things as well.
const RUNS: u64 = 25;
const CALLS_OF_A_RUN: u64 = 40;
const CHARGE: u64 = 100;

/// Microseconds of a call with so many rows and charges.
pub(crate) fn microseconds(rig: &Rig, rows: u64, charges: u64) -> f64 {
    let (mut home, account) = (Redis::on(&rig.servers), Account::Pool(format!("measured-{rows}-{charges}").into()));
    let hash: String = home.ask(&account, cmd("SCRIPT").arg("LOAD").arg(wire::SCRIPT)).unwrap();
    let mut sync = |request: &SyncRequest| {
        let mut call = cmd("EVALSHA");
        call.arg(&hash).arg(1).arg(account.to_string()).arg(wire::encode(request));
        let answer: String = home.ask(&account, &call).unwrap();
        wire::parse(&answer).unwrap()
    };
    sync(&SyncRequest { want: 98, ..request("gate-0", 1, 0, 1) });
    let mut best = f64::INFINITY;
    for run in 0..RUNS {
        let before = busy(rig);
        for call in 0..CALLS_OF_A_RUN {
            let number = run * CALLS_OF_A_RUN + call;
            let (holder, seq) = (if number.is_multiple_of(2) { "gate-1" } else { "gate-2" }, 1 + number / 2);
            let reply = sync(&request(holder, seq, rows, charges));
            assert_eq!(reply.seq, seq, "an answer, not a refusal");
        }
        let after = busy(rig);
        assert_eq!(after.calls - before.calls, CALLS_OF_A_RUN);
        best = best.min((after.microseconds - before.microseconds) as f64 / CALLS_OF_A_RUN as f64);
    }
    best
}

fn request(holder: &str, seq: u64, rows: u64, charges: u64) -> SyncRequest {
    let row = |number: u64| Row {
        flow: format!("/{}/tenant-{number}", 1 + number % 3).parse().unwrap(),
        weight: 1,
        head: Tokens(CHARGE),
        money: 0,
        waiting: 3,
        waited: Millis(100),
    };
    let spent = |number: u64| {
        let flow = format!("/1/tenant-{number}").parse().unwrap();
        Spent { seq, flow, weight: 1, charge: CHARGE as i64 }
    };
    let tokens = Limit::Rate(Rate::per_minute(1 << 30));
    let drawn = MeterReport { drawn: (CHARGE * seq) as i64, ..MeterReport::default() };
    SyncRequest {
        holder: holder.into(),
        incarnation: 1,
        seq,
        keep: 0,
        want: 0,
        terms: Terms {
            version: Version::default(),
            capacity: 100,
            policy: SharePolicy::Hybrid,
            levels: [256, 128, 64, 32, 16, 8, 4, 2, 1, 1],
            groups: [].into(),
            meters: [(MeterName::TokensPerMinute, tokens)].into(),
        },
        lease: Millis(3_600_000),
        longest_request: Millis(600_000),
        last_heard: None,
        answered: None,
        wall: None,
        guarded: false,
        ahead: true,
        spent: (0..charges).map(spent).collect(),
        servers: Vec::new(),
        patience: None,
        jump: None,
        rows: (0..rows).map(row).collect(),
        meters: [(MeterName::TokensPerMinute, drawn)].into(),
    }
}

struct Busy {
    calls: u64,
    microseconds: u64,
}

/// What all nodes together have done for EVALSHA.
fn busy(rig: &Rig) -> Busy {
    let mut sum = Busy { calls: 0, microseconds: 0 };
    for server in &rig.servers {
        // calls=40,usec=4231,usec_per_call=105.78,...
        let info = server.info().unwrap();
        let Some(stats) = info.get("cmdstat_evalsha") else { continue };
        let field = |name: &str| {
            let value = stats.split(',').find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
            value.unwrap().parse::<u64>().unwrap()
        };
        sum.calls += field("calls");
        sum.microseconds += field("usec");
    }
    sum
}
