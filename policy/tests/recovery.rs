//! Full service within seconds after every outage of the ledger, at the constants that are shipped.

#[cfg(test)]
#[path = "support/outage.rs"]
mod outage;

#[cfg(test)]
mod recovery {
    use crate::outage::{Home, Kind, LEASE, Outage, recover};
    use sluice_policy::ledger::{AccountLedger, Server, SyncRequest, Synced};
    use sluice_policy::units::Millis;

    /// The function itself.
    #[derive(Default)]
    struct Pure {
        account: AccountLedger,
        saved: AccountLedger,
    }

    impl Home for Pure {
        fn sync(&mut self, request: &SyncRequest, run: &str, now: Millis) -> Synced {
            self.account.sync(request, Server { run, now })
        }

        fn save(&mut self) {
            self.saved = self.account.clone();
        }

        fn restore(&mut self) {
            self.account = self.saved.clone();
        }

        fn lose(&mut self) {
            self.account = AccountLedger::default();
        }
    }

    /// Of what ran in the second before the outage, so many percent run in the second that begins so long after it.
    fn recovers(kind: Kind, within_ms: u64, percent: u64) {
        let mut late = Vec::new();
        for replicas in [1, 3, 10] {
            for call_ms in [100, 1_000, 10_000] {
                for lasts_ms in [300, 3_000, 30_000] {
                    let outage = Outage { kind, lasts_ms, replicas, call_ms };
                    let recovery = recover(&mut Pure::default(), outage, within_ms);
                    if recovery.after * 100 < recovery.before * percent {
                        late.push(format!("{outage:?}: {recovery:?}"));
                    }
                }
            }
        }
        assert!(late.is_empty(), "{} of 27 are late:\n{}", late.len(), late.join("\n"));
    }

    #[test]
    fn all_slots_run_within_two_seconds_of_a_partition() {
        recovers(Kind::Partition, 2_000, 95);
    }

    #[test]
    fn all_slots_run_within_two_seconds_of_a_stall() {
        recovers(Kind::Stall, 2_000, 95);
    }

    #[test]
    fn all_slots_run_within_a_lease_and_two_seconds_of_a_restart_or_a_failover() {
        for kind in [Kind::Restart, Kind::Failover] {
            recovers(kind, LEASE.lease.0 + 2_000, 95);
        }
    }

    /// What was under way between the replicas and the ledger is not asserted by anybody: the more of them there are, and
    /// the shorter their calls, the more of the slots it is.
    #[test]
    fn what_replicas_held_before_another_run_of_the_ledger_they_use_within_two_seconds() {
        for kind in [Kind::Restart, Kind::Failover, Kind::Loss] {
            recovers(kind, 2_000, 70);
        }
    }
}
