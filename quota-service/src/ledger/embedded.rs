//! The ledger in this process: for one replica, with nothing to install.

use super::{Account, Answer, Ledger, Notice, Overlay};
use crate::audit::Entry;
use sluice_policy::ledger::{AccountLedger, Server, SyncReply, SyncRequest};
use sluice_policy::schedule::Change;
use sluice_policy::units::Millis;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use tokio::sync::mpsc;
use tokio::time::Instant;

pub struct EmbeddedLedger {
    started: Instant,
    accounts: Mutex<BTreeMap<Account, AccountLedger>>,
    overlay: Mutex<Overlay>,
}

impl Default for EmbeddedLedger {
    fn default() -> Self {
        Self { started: Instant::now(), accounts: Mutex::default(), overlay: Mutex::default() }
    }
}

impl EmbeddedLedger {
    fn answer(&self, account: &Account, request: &SyncRequest) -> SyncReply {
        let now = Millis(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX));
        // A panic elsewhere cannot leave an account half changed: `sync` itself does not panic.
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        // What this process forgets it forgets with all its holders, so it is always the same run of the server.
        let server = Server { run: "", now };
        // It is the only holder, so nobody else has to hear of anything.
        accounts.entry(account.clone()).or_default().sync(request, server).reply
    }
}

impl Ledger for EmbeddedLedger {
    fn sync<'a>(&'a self, account: &'a Account, request: &'a SyncRequest) -> Answer<'a, SyncReply> {
        let reply = self.answer(account, request);
        Box::pin(async move { Ok(reply) })
    }

    fn sync_at_once(&self, account: &Account, request: &SyncRequest) -> Option<SyncReply> {
        Some(self.answer(account, request))
    }

    fn notices(&self) -> mpsc::Receiver<Notice> {
        mpsc::channel(1).1
    }

    fn overlay(&self) -> Answer<'_, Overlay> {
        let overlay = self.overlay.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Box::pin(async { Ok(overlay) })
    }

    fn replace_overlay<'a>(&'a self, after: u64, change: Option<&'a Change>) -> Answer<'a, Overlay> {
        let mut overlay = self.overlay.lock().unwrap_or_else(PoisonError::into_inner);
        if overlay.version <= after {
            *overlay = Overlay { version: after + 1, change: change.cloned() };
        }
        let overlay = overlay.clone();
        Box::pin(async { Ok(overlay) })
    }

    fn overlay_changes(&self) -> mpsc::Receiver<()> {
        mpsc::channel(1).1
    }

    fn record<'a>(&'a self, _entry: &'a Entry) -> Answer<'a, ()> {
        // It would end with the process, whose log has it already.
        Box::pin(async { Ok(()) })
    }
}
