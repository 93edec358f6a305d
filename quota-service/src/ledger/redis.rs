//! The ledger in Redis: one hash an account, one script, by EVALSHA.

use super::link::{Link, Lua};
use super::wire;
use super::{Account, Answer, Ledger, LedgerError, Notice};
use crate::audit::Entry;
use sluice_policy::ledger::{SyncReply, SyncRequest};
use tokio::sync::mpsc;

/// About so many audit entries are kept.
const AUDIT_KEPT: u64 = 10_000;
/// Notices that may wait to be taken in.
const NOTICES_KEPT: usize = 1_024;

pub struct RedisLedger {
    link: Link,
    script: Lua,
}

impl RedisLedger {
    #[must_use]
    pub fn new(link: Link) -> Self {
        Self { link, script: Lua::new(wire::SCRIPT) }
    }

    async fn call(&self, account: &Account, request: &SyncRequest) -> Result<SyncReply, LedgerError> {
        let mut call = self.script.on(account.to_string());
        call.arg(wire::encode(request));
        let answer: String = self.link.run(&call).await?;
        wire::parse(&answer).ok_or(LedgerError::Malformed(answer))
    }
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

    fn record<'a>(&'a self, entry: &'a Entry) -> Answer<'a, ()> {
        let mut command = redis::cmd("XADD");
        command.arg("sluice:audit").arg("MAXLEN").arg("~").arg(AUDIT_KEPT).arg("*");
        command.arg("what").arg(entry.what).arg("how").arg(&entry.how);
        Box::pin(async move { self.link.command(&command).await })
    }
}
