//! The ledger in Redis: one hash an account, one script, by EVALSHA.

use super::{Account, Answer, Ledger, LedgerError};
use crate::audit::Entry;
use crate::secret::Secret;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, IntoConnectionInfo, Script};
use sluice_policy::ledger::{Restored, SyncReply, SyncRequest};
use sluice_policy::units::Millis;
use std::collections::BTreeMap;
use std::time::Duration;

/// A ledger that takes longer has failed for this lease; the next call asks again.
const TIMEOUT: Duration = Duration::from_millis(500);

/// About so many audit entries are kept.
const AUDIT_KEPT: u64 = 10_000;

pub struct RedisLedger {
    connection: ConnectionManager,
    script: Script,
}

impl RedisLedger {
    /// Does not connect yet: Redis may come up later than we do. A `password` beats the URL's.
    ///
    /// # Errors
    /// The URL is not one of Redis.
    pub fn new(url: &Secret, password: Option<&Secret>) -> Result<Self, LedgerError> {
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(TIMEOUT))
            .set_response_timeout(Some(TIMEOUT))
            .set_max_delay(TIMEOUT);
        let mut info = url.expose().into_connection_info()?;
        if let Some(password) = password {
            let login = info.redis_settings().clone().set_password(password.expose());
            info = info.set_redis_settings(login);
        }
        let client = Client::open(info)?;
        let connection = ConnectionManager::new_lazy_with_config(client, config)?;
        Ok(Self { connection, script: Script::new(include_str!("sync.lua")) })
    }

    async fn call(&self, account: &Account, request: &SyncRequest) -> Result<SyncReply, LedgerError> {
        let mut invocation = self.script.key(account.to_string());
        invocation.arg(request.holder.as_str());
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
            invocation.arg(number);
        }
        for (bucket, level) in &request.levels {
            invocation.arg(bucket).arg(*level);
        }
        let mut connection = self.connection.clone();
        let call = invocation.invoke_async(&mut connection);
        // The connection's own timeout covers one command; this one also covers reconnecting and loading the script.
        let answer: Vec<String> =
            tokio::time::timeout(TIMEOUT, call).await.map_err(|_| LedgerError::Timeout(TIMEOUT.as_millis()))??;
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
        Box::pin(async move {
            let mut connection = self.connection.clone();
            let () = command.query_async(&mut connection).await?;
            Ok(())
        })
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
