//! Shows the tenants' accounts in the ledger, from where a restarted replica takes them over.

use super::Engine;
use super::leases::Outage;
use crate::ledger::{Account, Ledger};
use sluice_policy::ledger::SyncRequest;
use sluice_policy::units::{Millis, TenantId};
use std::collections::{BTreeMap, HashMap};
use tokio::sync::watch;
use tokio::time::Duration;

/// How often changed tenant accounts are written to the ledger.
const MIRROR_EVERY: Duration = Duration::from_secs(1);

/// What the ledger has been told of the tenants.
#[derive(Default)]
struct Mirror {
    seq: u64,
    told: HashMap<TenantId, (u32, BTreeMap<String, i64>)>,
    outage: Outage,
}

impl Engine {
    /// Takes over what the ledger knows of the tenants, then keeps it up to date there. Runs until shutdown.
    pub(super) async fn run_mirror(&self, ledger: &dyn Ledger, mut shutdown: watch::Receiver<bool>) {
        let mut mirror = Mirror::default();
        let mut is_last = false;
        loop {
            let tenants: Vec<TenantId> = self.lock().core.config().tenants.keys().cloned().collect();
            for tenant in &tenants {
                if self.mirror(tenant, ledger, &mut mirror).await.is_none() {
                    break;
                }
            }
            if is_last {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(MIRROR_EVERY) => {}
                // Once more: a restart in good order forgets nothing.
                _ = shutdown.wait_for(|stop| *stop) => is_last = true,
            }
        }
    }

    /// Tells the ledger about one tenant, if anything has changed; `None` when it does not answer.
    async fn mirror(&self, tenant: &TenantId, ledger: &dyn Ledger, mirror: &mut Mirror) -> Option<()> {
        let state = self.lock().core.account_state(tenant, self.now())?;
        if mirror.told.get(tenant) == Some(&state) {
            return Some(());
        }
        mirror.seq += 1;
        let request = self.mirror_request(mirror.seq, &state);
        let account = Account::Tenant(tenant.clone());
        let reply = self.ask(ledger, &account, &request, &mut mirror.outage).await?;
        if let Some(restored) = &reply.restored {
            self.lock().core.restore_account(tenant, restored, self.now());
        } else {
            mirror.told.insert(tenant.clone(), state);
        }
        Some(())
    }

    fn mirror_request(&self, seq: u64, (in_flight, levels): &(u32, BTreeMap<String, i64>)) -> SyncRequest {
        SyncRequest {
            holder: self.holder.clone(),
            incarnation: self.incarnation,
            seq,
            keep: *in_flight,
            want: *in_flight,
            // A tenant's limit is enforced here, by the one replica there is; the ledger only shows it.
            capacity: u32::MAX,
            lease: Millis(60_000),
            longest_request: Millis::ZERO,
            spent: 0,
            levels: levels.clone(),
        }
    }
}
