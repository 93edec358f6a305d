//! The ledger in this process: for one replica, with nothing to install.

use super::{Account, Answer, Ledger};
use crate::audit::Entry;
use sluice_policy::ledger::{AccountLedger, SyncReply, SyncRequest};
use sluice_policy::units::Millis;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use tokio::time::Instant;

pub struct EmbeddedLedger {
    started: Instant,
    accounts: Mutex<BTreeMap<Account, AccountLedger>>,
}

impl Default for EmbeddedLedger {
    fn default() -> Self {
        Self { started: Instant::now(), accounts: Mutex::default() }
    }
}

impl Ledger for EmbeddedLedger {
    fn sync<'a>(&'a self, account: &'a Account, request: &'a SyncRequest) -> Answer<'a, SyncReply> {
        let now = Millis(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX));
        // A panic elsewhere cannot leave an account half changed: `sync` itself does not panic.
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        let reply = accounts.entry(account.clone()).or_default().sync(request, now);
        Box::pin(async move { Ok(reply) })
    }

    fn record<'a>(&'a self, _entry: &'a Entry) -> Answer<'a, ()> {
        // It would end with the process, whose log has it already.
        Box::pin(async { Ok(()) })
    }
}
