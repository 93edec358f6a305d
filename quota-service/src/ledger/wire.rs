//! How calls to the script, its replies and its notices look on the wire: texts that a person can read, and that the
//! next release may add words to.
//!
//! A reply is lines of `name=value name=value`. What a later release adds there, this one skips.

use serde::Serialize;
use sluice_policy::ledger::{Account, FlowName, Limit, MeterGrant, MeterName, SyncReply, SyncRequest, Terms, Version};
use sluice_policy::queue::SharePolicy;
use sluice_policy::units::{HolderId, Millis};
use std::collections::BTreeMap;

/// The script that answers a call. `KEYS[1]` is the account's key, `ARGV` what [`encode`] makes.
pub const SCRIPT: &str = include_str!("sync.lua");
/// Where the script publishes what holders other than the caller must hear.
pub const NOTICES: &str = "sluice:notices";

/// News for a holder that did not ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub account: Account,
    pub holder: HolderId,
    pub reply: SyncReply,
}

/// The script's arguments.
#[must_use]
pub fn encode(request: &SyncRequest) -> Vec<String> {
    let numbers = [
        request.incarnation,
        request.seq,
        u64::from(request.keep),
        u64::from(request.want),
        request.lease.0,
        request.longest_request.0,
        u64::from(request.guarded),
        u64::from(request.ahead),
    ];
    let expected = request.last_heard.map(|(heard, elapsed)| heard.plus(elapsed).0.to_string());
    let mut arguments = vec![request.holder.to_string()];
    arguments.extend(numbers.map(|number| number.to_string()));
    arguments.push(expected.unwrap_or_default());
    arguments.extend(encode_terms(&request.terms));
    let reports = request.meters.iter();
    let reports = reports.map(|(name, told)| (name.as_str(), told.drawn, told.counted, told.keep, told.period));
    let spent = request.spent.iter().map(|told| (told.seq, &told.flow, told.weight, told.charge));
    let rows = request.rows.iter().map(|row| {
        format!("{} {} {} {} {} {}", row.flow, row.weight, row.head.0, row.waiting, row.waited.0, row.money)
    });
    arguments.extend([json(reports), json(spent), rows.collect::<Vec<_>>().join("\n")]);
    arguments
}

/// Reads the script's answer.
#[must_use]
pub fn parse(answer: &str) -> Option<SyncReply> {
    let mut lines = answer.split('\n');
    let words = record(lines.next()?);
    let picks = record(lines.next()?).into_iter();
    let meters = record(lines.next()?).into_iter();
    let number = |name: &str| words.get(name)?.parse::<u64>().ok();
    let optional = |name: &str| match words.get(name) {
        Some(text) => text.parse().ok().map(|value| Some(Millis(value))),
        None => Some(None),
    };
    Some(SyncReply {
        incarnation: number("incarnation")?,
        seq: number("seq")?,
        granted: words.get("granted")?.parse().ok()?,
        picks: picks
            .map(|(flow, slots)| Some((flow.parse::<FlowName>().ok()?, slots.parse().ok()?)))
            .collect::<Option<_>>()?,
        contended: number("contended")? == 1,
        // A meter of a later release limits nobody here.
        meters: meters
            .filter_map(|(name, grant)| Some((MeterName::parse(name)?, grant)))
            .map(|(name, grant)| Some((name, parse_grant(grant)?)))
            .collect::<Option<_>>()?,
        now: Millis(number("now")?),
        wait: optional("wait")?,
        alone: number("alone")? == 1,
        zombies: words.get("zombies")?.parse().ok()?,
        frozen_until: optional("frozen_until")?,
    })
}

/// Reads what was published on [`NOTICES`].
#[must_use]
pub fn parse_notice(message: &str) -> Option<Notice> {
    let (address, reply) = message.split_once('\n')?;
    let (account, holder) = address.split_once(' ')?;
    Some(Notice { account: account.parse().ok()?, holder: holder.into(), reply: parse(reply)? })
}

/// Version, capacity, policy, weights of levels, shares of groups, and limits.
fn encode_terms(terms: &Terms) -> [String; 6] {
    let Version { file, overlay, since } = terms.version;
    let policy = match terms.policy {
        SharePolicy::Strict => "strict",
        SharePolicy::Wfq => "wfq",
        SharePolicy::Hybrid => "hybrid",
    };
    let limits = terms.meters.iter().map(|(name, limit)| {
        let (amount, window, burst, period) = match *limit {
            Limit::Rate(rate) => (rate.amount, rate.window.0, rate.burst, 0),
            Limit::Budget { amount, period } => (amount, 0, amount, period),
        };
        (name.as_str(), amount, window, burst, period)
    });
    let groups = if terms.groups.is_empty() { String::new() } else { to_text(&terms.groups) };
    let version = format!("{file} {overlay} {since}");
    [version, terms.capacity.to_string(), policy.to_owned(), to_text(&terms.levels), groups, json(limits)]
}

fn json<T: Serialize>(entries: impl Iterator<Item = T>) -> String {
    to_text(&entries.collect::<Vec<_>>())
}

/// What goes in here is made of texts and whole numbers, of which all have a JSON.
fn to_text(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn record(text: &str) -> BTreeMap<&str, &str> {
    text.split(' ').filter_map(|word| word.split_once('=')).collect()
}

fn parse_grant(text: &str) -> Option<MeterGrant> {
    let numbers: Vec<&str> = text.split('/').collect();
    let [held, level, fraction, period] = numbers[..] else { return None };
    Some(MeterGrant {
        held: held.parse().ok()?,
        level: level.parse().ok()?,
        fraction: fraction.parse().ok()?,
        period: period.parse().ok()?,
    })
}
