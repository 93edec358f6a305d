//! The ledger in Redis: one hash an account, one script, by EVALSHA.

use super::link::{Link, Lua};
use super::overlay::{self, Overlay};
use super::wire;
use super::{Account, Answer, Ledger, LedgerError, Notice};
use crate::audit::Entry;
use sluice_policy::ledger::{SyncReply, SyncRequest};
use sluice_policy::schedule::Change;
use tokio::sync::mpsc;

/// About so many audit entries are kept.
const AUDIT_KEPT: u64 = 10_000;
/// Notices that may wait to be taken in.
const NOTICES_KEPT: usize = 1_024;

pub struct RedisLedger {
    link: Link,
    script: Lua,
    replace_overlay: Lua,
}

impl RedisLedger {
    #[must_use]
    pub fn new(link: Link) -> Self {
        Self { link, script: Lua::new(wire::SCRIPT), replace_overlay: Lua::new(include_str!("overlay.lua")) }
    }

    async fn call(&self, account: &Account, request: &SyncRequest) -> Result<SyncReply, LedgerError> {
        let mut call = self.script.on(account.to_string());
        call.arg(wire::encode(request));
        let answer: String = self.link.run(&call).await?;
        wire::parse(&answer).ok_or(LedgerError::Malformed(answer))
    }
}

type StoredOverlay = (Option<String>, Option<String>);

fn read_overlay((version, change): StoredOverlay) -> Result<Overlay, LedgerError> {
    Overlay::parse(version.as_deref(), change.as_deref())
}

impl Ledger for RedisLedger {
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

    fn record<'a>(&'a self, entry: &'a Entry) -> Answer<'a, ()> {
        let mut command = redis::cmd("XADD");
        command.arg("sluice:audit").arg("MAXLEN").arg("~").arg(AUDIT_KEPT).arg("*");
        command.arg("what").arg(entry.what).arg("how").arg(&entry.how);
        Box::pin(async move { self.link.command(&command).await })
    }

    fn close(&self) -> Answer<'_, ()> {
        Box::pin(async { Ok(()) })
    }
}
