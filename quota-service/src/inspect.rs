//! `quota-service inspect`: what Redis holds of pools and tenants, as a table or as JSON. It only reads.
//!
//! Reading order: [`run`] is the command, [`find`] asks Redis, [`Inspected`] says what an account means at that moment,
//! [`table`] shows it.

mod table;
#[cfg(test)]
mod tests;

pub use table::table;

use crate::home::error::HomeError;
use crate::home::link::{Link, Lua, RedisSecrets};
use crate::ledger::Account;
use crate::ledger::stored::{StoredAccount, StoredBranch, StoredHolder, StoredMeter, Unreadable};
use crate::settings::Settings;
use clap::Args;
use serde::Serialize;
use sluice_policy::config::reader::{ConfigError, ConfigErrors};
use sluice_policy::ledger::Terms;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The keys of accounts, and no others of ours.
const ACCOUNTS: &str = "sluice:{*}";
/// A hash and its server's clock at one moment. Both are strings, since a number is cut off in a reply.
const LOOK: &str = "local time = redis.call('TIME')
return {time[1], time[2], redis.call('HGETALL', KEYS[1])}";
/// Rows that are older do not compete, as the ledger has it.
const FRESH_MS: i64 = 250;

/// An account, and what it means at the moment when it was read. Times are milliseconds from then, by the ledger's clock;
/// what is over is negative.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Inspected {
    /// Its key.
    pub account: String,
    pub capacity: u32,
    /// Σg: slots that holders may use.
    pub granted: u64,
    /// Σz: slots of the vanished that nobody may use yet.
    pub zombies: u64,
    /// Slots only move, until then.
    pub frozen_for_ms: Option<i64>,
    /// While it is frozen: slots that may.
    pub movable: u32,
    pub policy: String,
    /// The configuration file's revision, the overlay's, and since when.
    pub version: [u64; 3],
    /// Weighted tokens charged, ever.
    pub spent: i64,
    pub clock_offset_ms: i64,
    /// The server's run that answered last.
    pub run: String,
    pub holders: Vec<Holder>,
    /// Zombies that no known holder may take up again.
    pub gone: Vec<Gone>,
    pub rows: Vec<Row>,
    pub meters: Vec<Meter>,
    pub counters: Vec<Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Holder {
    pub holder: String,
    pub incarnation: u64,
    pub seq: u64,
    pub granted: u32,
    pub zombies: u32,
    pub zombies_for_ms: Option<i64>,
    pub lease_ends_in_ms: i64,
    /// It was told that somebody waits elsewhere.
    pub contended: bool,
    /// Rows, and the calls that wait in them.
    pub rows: usize,
    pub waiting: u64,
    /// Whether its rows compete: they do for a quarter of a second after they were told.
    pub competes: bool,
    /// Slots whose turn it was since its last call.
    pub picked: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gone {
    pub slots: u32,
    pub free_in_ms: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    pub holder: String,
    pub flow: String,
    pub weight: u64,
    /// What its first call draws.
    pub head: u64,
    pub waiting: u32,
    pub waited_ms: i64,
    pub picked: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Meter {
    pub meter: String,
    /// What was left beside what is lent; negative is debt.
    pub level: i64,
    /// A rate has gained since.
    pub refilled_ms_ago: i64,
    pub lent: i64,
    pub burst: u64,
    /// Units per window, or in a budget's period.
    pub amount: u64,
    /// 0 for a budget.
    pub window_ms: u64,
    /// Of the next unit, in parts of 1/window.
    pub fraction: u64,
    /// A budget's, as 20260131.
    pub period: Option<u64>,
}

/// A branch of the order, by its field in the hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Counter {
    pub branch: String,
    pub counter: u64,
    /// Of the branches below it.
    pub time: Option<u64>,
}

/// Arguments of `quota-service inspect`.
#[derive(Args)]
pub struct InspectArgs {
    /// The service's configuration, which says where Redis is; relative paths in it are relative to its folder.
    #[arg(long)]
    config: PathBuf,
    /// Print JSON instead of a table: a list of accounts.
    #[arg(long)]
    json: bool,
    /// A pool or a tenant; without it, all of them.
    name: Option<String>,
}

/// Prints what Redis holds.
///
/// # Errors
/// [`ConfigErrors`] where the configuration is not sound or Redis must not be used; there is no Redis in it; or Redis
/// does not answer, or refuses.
pub fn run(args: &InspectArgs) -> anyhow::Result<()> {
    let settings = Settings::load(&args.config)?;
    let embedded = "this configuration names no Redis: its ledger is in the sidecar itself";
    let redis = settings.ledger.redis().ok_or_else(|| anyhow::anyhow!(embedded))?;
    let mut errors = Vec::new();
    let secrets = RedisSecrets::open(redis, &mut errors);
    if !errors.is_empty() {
        return Err(ConfigErrors(errors).into());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let found = runtime.block_on(async {
        let refuse = |problem| ConfigErrors(vec![ConfigError { path: "ledger.redis".to_owned(), problem }]);
        let link = Link::new(redis, &secrets).map_err(refuse)?;
        // One that does not answer yet is waited for by the calls themselves.
        link.first_contact().await.map_err(refuse)?;
        anyhow::Ok(find(&link, args.name.as_deref()).await?)
    })?;
    let shown = if args.json { serde_json::to_string_pretty(&found)? + "\n" } else { table(&found) };
    print!("{shown}");
    Ok(())
}

/// Reads all accounts, or the pool and the tenant of one name, by their keys.
///
/// # Errors
/// Redis does not answer or refuses, or holds an account that this release cannot read.
pub async fn find(link: &Link, name: Option<&str>) -> Result<Vec<Inspected>, HomeError> {
    let keys: Vec<String> = match name {
        Some(name) => {
            [Account::Pool(name.into()), Account::Tenant(name.into())].iter().map(Account::to_string).collect()
        }
        None => link.keys(ACCOUNTS).await?.into_iter().collect(),
    };
    let look = Lua::new(LOOK);
    let mut found = Vec::new();
    for key in keys {
        let answer = link.run(&look.on(key.clone())).await?;
        let (seconds, microseconds, hash): (i64, i64, BTreeMap<String, String>) = answer;
        // Nobody has heard of it, or it was deleted since its key was found.
        if hash.is_empty() {
            continue;
        }
        let malformed = |unreadable: Unreadable| HomeError::Malformed(format!("{key} {unreadable}"));
        let stored = StoredAccount::read(&hash).map_err(malformed)?;
        found.push(Inspected::new(key.clone(), &stored, seconds * 1_000 + microseconds / 1_000));
    }
    Ok(found)
}

impl Inspected {
    /// What `stored` means when its server's clock says `server` (Unix milliseconds).
    #[must_use]
    pub fn new(account: String, stored: &StoredAccount, server: i64) -> Self {
        let now = server.saturating_add(stored.clock_offset);
        let until = |moment: u64| signed(moment).saturating_sub(now);
        let holders: Vec<Holder> =
            stored.holders.iter().map(|(name, known)| Holder::new(name, known, &until)).collect();
        let gone: Vec<Gone> =
            stored.zombies.iter().map(|(at, slots)| Gone { slots: *slots, free_in_ms: until(*at) }).collect();
        // What is over is free; the next call to the ledger will find that out.
        let known = holders.iter().filter(|holder| holder.zombies_for_ms.is_some_and(|left| left > 0));
        let vanished = gone.iter().filter(|gone| gone.free_in_ms > 0);
        let zombies = known.map(|holder| holder.zombies).chain(vanished.map(|gone| gone.slots));
        let zombies = zombies.map(u64::from).sum();
        let rows = stored.holders.iter().flat_map(|(name, known)| rows(name, known, &until)).collect();
        Self {
            account,
            capacity: stored.capacity,
            granted: holders.iter().map(|holder| u64::from(holder.granted)).sum(),
            zombies,
            frozen_for_ms: Some(until(stored.frozen_until))
                .filter(|left| *left > 0 && stored.capacity < Terms::UNCOUNTED),
            movable: stored.movable,
            policy: stored.policy.clone(),
            version: stored.version,
            spent: stored.spent,
            clock_offset_ms: stored.clock_offset,
            run: stored.run.clone(),
            gone,
            rows,
            meters: stored.meters.iter().map(|(name, meter)| Meter::new(name, meter, stored, &until)).collect(),
            counters: counters(stored),
            holders,
        }
    }
}

impl Holder {
    fn new(name: &str, known: &StoredHolder, until: &impl Fn(u64) -> i64) -> Self {
        let share = &known.share;
        let lease_ends_in_ms = until(share.renewed_at.saturating_add(share.lease));
        Self {
            holder: name.to_owned(),
            incarnation: share.incarnation,
            seq: share.seq,
            granted: share.granted,
            zombies: share.zombies,
            zombies_for_ms: (share.zombies > 0).then(|| until(share.zombies_until)),
            lease_ends_in_ms,
            contended: share.contended > 0,
            rows: known.rows.len(),
            waiting: known.rows.iter().map(|row| u64::from(row.waiting)).sum(),
            competes: !known.rows.is_empty() && lease_ends_in_ms > 0 && until(share.renewed_at) >= -FRESH_MS,
            picked: known.picks.values().map(|pick| u64::from(pick.slots)).sum(),
        }
    }
}

impl Meter {
    fn new(name: &str, meter: &StoredMeter, account: &StoredAccount, until: &impl Fn(u64) -> i64) -> Self {
        let is_budget = meter.window == 0;
        Self {
            meter: name.to_owned(),
            level: meter.level,
            refilled_ms_ago: until(meter.refilled_at).saturating_neg(),
            lent: account.holders.values().filter_map(|holder| holder.lent.get(name)).sum(),
            burst: meter.burst,
            amount: meter.amount,
            window_ms: meter.window,
            fraction: meter.fraction,
            period: is_budget.then_some(meter.period),
        }
    }
}

fn rows<'a>(name: &'a str, known: &'a StoredHolder, until: &'a impl Fn(u64) -> i64) -> impl Iterator<Item = Row> + 'a {
    known.rows.iter().map(move |row| {
        let flow = row.flow.to_string();
        Row {
            holder: name.to_owned(),
            weight: row.weight,
            head: row.head,
            waiting: row.waiting,
            waited_ms: signed(row.waited).saturating_sub(until(known.told_at)),
            picked: known.picks.get(&flow).map_or(0, |pick| pick.slots),
            flow,
        }
    })
}

/// From the groups down to the flows.
fn counters(stored: &StoredAccount) -> Vec<Counter> {
    let branches = |kind: &'static str, branches: &BTreeMap<String, StoredBranch>| {
        let counter = |(name, branch): (&String, &StoredBranch)| Counter {
            branch: format!("{kind}:{name}"),
            counter: branch.counter,
            time: Some(branch.time),
        };
        branches.iter().map(counter).collect::<Vec<_>>()
    };
    let flows = stored.counters.iter();
    let flows =
        flows.map(|(name, counter)| Counter { branch: format!("counter:{name}"), counter: *counter, time: None });
    branches("group", &stored.groups).into_iter().chain(branches("level", &stored.levels)).chain(flows).collect()
}

fn signed(moment: u64) -> i64 {
    i64::try_from(moment).unwrap_or(i64::MAX)
}
