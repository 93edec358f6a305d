//! Outages of the ledger with the script in the place of the function.

use super::homes::{Call, Home as _, Redis};
use super::outage::{Home, Kind, LEASE, Outage, recover};
use redis::cmd;
use sluice_policy::ledger::{Account, SyncRequest, Synced};
use sluice_policy::units::Millis;

/// The script on one account.
struct Scripted {
    home: Redis,
    account: Account,
    saved: Vec<String>,
}

impl Home for Scripted {
    fn sync(&mut self, request: &SyncRequest, run: &str, now: Millis) -> Synced {
        let call = Call { request: request.clone(), run: run.to_owned(), now };
        self.home.sync(&self.account, &[call]).remove(0)
    }

    fn save(&mut self) {
        self.saved = self.home.ask(&self.account, cmd("HGETALL").arg(self.account.to_string())).unwrap();
    }

    fn restore(&mut self) {
        self.lose();
        let _: i64 = self.home.ask(&self.account, cmd("HSET").arg(self.account.to_string()).arg(&self.saved)).unwrap();
    }

    fn lose(&mut self) {
        self.home.lose(&self.account);
    }
}

/// Names the outages after which not enough of the slots are in use in time.
pub(crate) fn late(home: Redis) -> Vec<String> {
    let mut scripted = Scripted { home, account: Account::Pool("outages".into()), saved: Vec::new() };
    let mut late = Vec::new();
    let lease = LEASE.lease.0;
    let kinds = [
        (Kind::Partition, 2_000, 95),
        (Kind::Stall, 2_000, 95),
        (Kind::Restart, lease + 2_000, 95),
        (Kind::Failover, lease + 2_000, 95),
        // What was under way is frozen for as long as a call may run.
        (Kind::Loss, 2_000, 70),
    ];
    for (kind, within_ms, percent) in kinds {
        for replicas in [1, 3] {
            let outage = Outage { kind, lasts_ms: 3_000, replicas, call_ms: 1_000 };
            scripted.lose();
            let recovery = recover(&mut scripted, outage, within_ms);
            if recovery.after * 100 < recovery.before * percent {
                late.push(format!("{outage:?}: {recovery:?}"));
            }
        }
    }
    late
}
