//! How calls to the script, its replies and its notices look on the wire: texts that a person can read, and that the
//! next release may add words to.
//!
//! A reply is lines of `name=value name=value`. What a later release adds there, this one skips.

use serde::Serialize;
use sluice_policy::ledger::{
    Account, FlowName, Limit, Loss, MeterGrant, MeterName, Sighting, SyncReply, SyncRequest, Terms, Version,
};
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
    let servers = request.servers.iter().map(|seen| format!("{} {} {}", seen.run, seen.ago.0, number_of(seen.lost)));
    let heard_ago = request.last_heard.map(|(_, ago)| ago.0.to_string());
    let optional = |time: Option<Millis>| time.map(|time| time.0.to_string()).unwrap_or_default();
    arguments.extend([servers.collect::<Vec<_>>().join("\n"), heard_ago.unwrap_or_default()]);
    arguments.extend([optional(request.patience), optional(request.jump)]);
    arguments.extend([request.answered.map(|seq| seq.to_string()).unwrap_or_default(), optional(request.wall)]);
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
        late: words.get("late") == Some(&"1"),
        wait: optional("wait")?,
        alone: number("alone")? == 1,
        zombies: words.get("zombies")?.parse().ok()?,
        frozen_until: optional("frozen_until")?,
        server: words.get("server").and_then(|text| parse_sighting(text)),
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

/// What a server has lost, as a number.
fn number_of(lost: Loss) -> u8 {
    match lost {
        Loss::None => 0,
        Loss::Latest => 1,
        Loss::All => 2,
    }
}

fn parse_sighting(text: &str) -> Option<Sighting> {
    let mut parts = text.split('/');
    let (run, ago, lost) = (parts.next()?, parts.next()?.parse().ok()?, parts.next()?);
    let lost = [Loss::None, Loss::Latest, Loss::All].into_iter().find(|loss| number_of(*loss).to_string() == lost)?;
    Some(Sighting { run: run.to_owned(), ago: Millis(ago), lost })
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

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_policy::holder::{Demand, FlowNames, Holder, LeaseTerms, Replica};
    use sluice_policy::ledger::{MOST_ROWS, Row};
    use sluice_policy::queue::{Flow, GroupIndex, Shares, TenantIndex};
    use sluice_policy::units::{Priority, Tokens};

    /// Names of 256 bytes, the longest.
    struct Long;

    impl FlowNames for Long {
        fn name(&self, flow: Flow) -> Option<FlowName> {
            let long = |number: u32| format!("{number:0>256}");
            let (group, tenant) = (long(flow.group.0.into()), long(flow.tenant.0));
            Some(FlowName { group: group.as_str().into(), level: flow.level, tenant: tenant.as_str().into() })
        }

        fn flow(&self, _: &FlowName) -> Option<Flow> {
            None
        }
    }

    fn flow(tenant: u32) -> Flow {
        Flow { group: GroupIndex(0), tenant: TenantIndex(tenant), level: Priority::LAST }
    }

    /// Where `on_ledger_outage` is `open`, a thousand tenants start a thousand calls each while the ledger is away.
    #[test]
    fn no_call_after_an_outage_is_larger_than_64_kib_whatever_was_charged_meanwhile() {
        let lease = LeaseTerms { lease: Millis(2_000), longest_request: Millis(600_000), shared: true };
        let Shares { policy, levels, .. } = Shares::default();
        let (groups, meters) = (BTreeMap::new(), BTreeMap::new());
        let terms = Terms { version: Version::default(), capacity: 8, policy, levels, groups, meters };
        let mut holder = Holder::new(&Replica { id: "gate-0".into(), incarnation: 1, lease }, terms);
        let row = |number| {
            let flow = Long.name(flow(number)).unwrap();
            Row { flow, weight: 1, head: Tokens(1 << 40), money: 1 << 40, waiting: 9_999, waited: Millis(60_000) }
        };
        for second in 0..1_000 {
            (0..1_000).for_each(|tenant| holder.start(flow(tenant), 1, Tokens(1 << 30)));
            let rows = (0..u32::try_from(MOST_ROWS).unwrap()).map(row).collect();
            let request = holder.ask(Demand { running: 8, waiting: 99 }, rows, &Long, Millis(second * 1_000));
            let bytes: usize = encode(&request).iter().map(String::len).sum();
            assert!(bytes <= 64 << 10, "{bytes} bytes after {second} s");
            holder.failed();
        }
        let last = holder.give_back(8, &Long, Millis(1_000_000));
        let bytes: usize = encode(&last).iter().map(String::len).sum();
        assert!(bytes <= 64 << 10, "{bytes} bytes of the last call");
    }
}
