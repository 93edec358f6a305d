//! The ledger in Redis: one hash an account, one script, by EVALSHA.

use super::link::{Link, Lua, LuaCall};
use super::{Account, Answer, Ledger, LedgerError};
use crate::audit::Entry;
use sluice_policy::ledger::{Restored, SyncReply, SyncRequest};
use sluice_policy::units::Millis;
use std::collections::BTreeMap;

/// About so many audit entries are kept.
const AUDIT_KEPT: u64 = 10_000;

pub struct RedisLedger {
    link: Link,
    script: Lua,
}

impl RedisLedger {
    #[must_use]
    pub fn new(link: Link) -> Self {
        Self { link, script: Lua::new(include_str!("sync.lua")) }
    }

    async fn call(&self, account: &Account, request: &SyncRequest) -> Result<SyncReply, LedgerError> {
        let mut call = self.script.on(account.to_string());
        add_arguments(&mut call, request);
        let answer: Vec<String> = self.link.run(&call).await?;
        parse(&answer).ok_or_else(|| LedgerError::Malformed(format!("{answer:?}")))
    }
}

impl Ledger for RedisLedger {
    fn sync<'a>(&'a self, account: &'a Account, request: &'a SyncRequest) -> Answer<'a, SyncReply> {
        Box::pin(self.call(account, request))
    }

    fn record<'a>(&'a self, entry: &'a Entry) -> Answer<'a, ()> {
        let mut command = redis::cmd("XADD");
        command.arg("sluice:audit").arg("MAXLEN").arg("~").arg(AUDIT_KEPT).arg("*");
        command.arg("what").arg(entry.what).arg("how").arg(&entry.how);
        Box::pin(async move { self.link.command(&command).await })
    }
}

fn add_arguments(call: &mut LuaCall<'_>, request: &SyncRequest) {
    call.arg(request.holder.as_str());
    let numbers = [
        request.incarnation,
        request.seq,
        u64::from(request.keep),
        u64::from(request.want),
        u64::from(request.capacity),
        request.lease.0,
        request.longest_request.0,
        request.spent,
    ];
    for number in numbers {
        call.arg(number);
    }
    for (bucket, level) in &request.levels {
        call.arg(bucket).arg(*level);
    }
}

fn parse(answer: &[String]) -> Option<SyncReply> {
    let (head, levels) = answer.split_at_checked(5)?;
    let [seq, granted, zombies, now, age] = head else { return None };
    let restored = match age.as_str() {
        "-1" => None,
        age => Some(Restored { levels: pairs(levels)?, age: Millis(age.parse().ok()?) }),
    };
    Some(SyncReply {
        seq: seq.parse().ok()?,
        granted: granted.parse().ok()?,
        zombies: zombies.parse().ok()?,
        now: Millis(now.parse().ok()?),
        restored,
    })
}

fn pairs(flat: &[String]) -> Option<BTreeMap<String, i64>> {
    let pair = |pair: &[String]| match pair {
        [name, level] => Some((name.clone(), level.parse().ok()?)),
        _ => None,
    };
    flat.chunks(2).map(pair).collect()
}
