//! Time rules as an operator writes them.

use super::overlap::contradiction;
use super::{Change, Days, PoolChange, Settings, TimeRule, TimeRules, WallTime, Window, Zone};
use crate::config::reader::Section;
use crate::config::weights::{read_shares, read_weights};
use crate::config::{MOST_PER_WINDOW, MOST_SLOTS};
use crate::units::PoolName;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Every pair of rules is compared; and nobody understands more.
const MOST_RULES: usize = 100;

impl TimeRules {
    /// Reads the list `time_rules` from the document's root. What is wrong is reported to `root`'s document, which
    /// then is refused as a whole; the result may lack it.
    ///
    /// `base` is what holds outside all windows and tells which pools exist; `groups` are those that tenants may be in.
    #[must_use]
    pub fn read(root: &Section<'_>, base: &Settings, groups: &BTreeSet<String>) -> Self {
        let mut names = BTreeSet::new();
        let mut rules: Vec<TimeRule> = Vec::new();
        let count = root.raw("time_rules").and_then(Value::as_array).map_or(0, Vec::len);
        if count > MOST_RULES {
            root.error("time_rules", format!("must be at most {MOST_RULES} rules, found {count}"));
        }
        root.each("time_rules", |section| {
            let rule = TimeRule::read(section, base, groups);
            // Also when the rest of the rule is wrong.
            if let Some(name) = section.raw("name").and_then(Value::as_str)
                && !names.insert(name)
            {
                section.error("name", format!("the rule {name} is defined twice"));
            }
            let rule = rule?;
            if count <= MOST_RULES {
                refuse_contradictions(section, &rules, &rule);
            }
            rules.push(rule);
            Some(())
        });
        Self(rules)
    }
}

fn refuse_contradictions(section: &Section<'_>, earlier: &[TimeRule], rule: &TimeRule) {
    if rule.overrides {
        return;
    }
    for other in earlier {
        if let Some(found) = contradiction(other, rule) {
            let (fields, since) = (found.fields.join(", "), found.since);
            let problem = format!(
                "{} and {} set {fields} differently and overlap (from {since}): change a window, or write true here \
                 and {} wins while both are active",
                other.name, rule.name, rule.name,
            );
            section.error("overrides", problem);
        }
    }
}

impl TimeRule {
    /// Reads one rule. The result stands for the rule only if nothing was reported.
    pub fn read(section: &Section<'_>, base: &Settings, groups: &BTreeSet<String>) -> Option<Self> {
        let name = section.required("name", section.name("name"));
        let window = read_window(section);
        let overrides = section.boolean("overrides").unwrap_or(false);
        let change = read_change(section, base, groups);
        Some(Self { name: name?.to_owned(), window: window?, overrides, change })
    }
}

fn read_window(section: &Section<'_>) -> Option<Window> {
    let zone = section.required("zone", section.text("zone"));
    let found = zone.and_then(Zone::named);
    if let (Some(name), None) = (zone, &found) {
        section.error("zone", format!("there is no time zone {name:?}; write an IANA name such as Europe/Berlin"));
    }
    let days = read_days(section);
    let from = section.required("from", read_time(section, "from"));
    let to = section.required("to", read_time(section, "to"));
    Some(Window { zone: found?, days: days?, from: from?, to: to? })
}

fn read_days(section: &Section<'_>) -> Option<Days> {
    let Some(given) = section.raw("days") else { return Some(Days::EVERY) };
    if given.as_array().is_some_and(Vec::is_empty) {
        section.error("days", "must name a day; leave it out for every day");
    }
    let names = section.texts("days");
    for unknown in names.iter().filter(|name| !Days::NAMES.contains(*name)) {
        section.error("days", format!("there is no day {unknown:?}; days are {}", Days::NAMES.join(", ")));
    }
    Days::named(names)
}

fn read_time(section: &Section<'_>, field: &'static str) -> Option<WallTime> {
    let time = section.raw(field)?.as_str().and_then(WallTime::parse);
    if time.is_none() {
        // An unquoted 18:00 is the number 1080 to some YAML readers.
        let problem = match section.raw(field).and_then(Value::as_str) {
            Some("24:00") => "24:00 is not on the clock: write 00:00".to_owned(),
            Some(text) => format!("must be a time from 00:00 to 23:59, found {text:?}"),
            None => "must be a time in quotes, from \"00:00\" to \"23:59\"".to_owned(),
        };
        section.error(field, problem);
    }
    time
}

fn read_change(rule: &Section<'_>, base: &Settings, groups: &BTreeSet<String>) -> Change {
    let section = rule.section("set");
    let change = Change::read(&section, base, groups);
    if !section.has("weights") && !section.has("pools") {
        rule.error("set", "sets nothing: name weights or pools");
    }
    section.finish();
    change
}

impl Change {
    /// Reads `weights` and `pools`, either of which may be absent.
    pub fn read(section: &Section<'_>, base: &Settings, groups: &BTreeSet<String>) -> Self {
        let weights = read_weights(section, "weights");
        let mut pools = BTreeMap::new();
        section.each("pools", |pool| read_pool(pool, base, groups, &mut pools));
        let is_empty = |list: &Value| list.as_array().is_some_and(Vec::is_empty);
        if section.raw("pools").is_some_and(is_empty) {
            section.error("pools", "must name a pool, or be left out");
        }
        Change { weights, pools }
    }
}

fn read_pool(
    section: &Section<'_>,
    base: &Settings,
    groups: &BTreeSet<String>,
    pools: &mut BTreeMap<PoolName, PoolChange>,
) -> Option<()> {
    let name = section.required("name", section.name("name"));
    let known = name.and_then(|name| base.pools.get_key_value(&PoolName::from(name)));
    if let (Some(name), None) = (name, known) {
        let known = base.pools.keys().map(PoolName::as_str).collect::<Vec<_>>().join(", ");
        section.error("name", format!("there is no pool {name}; pools are {known}"));
    }
    let concurrent = section.integer("concurrent", 1..=MOST_SLOTS).and_then(|slots| u32::try_from(slots).ok());
    let tokens_per_s = section.integer("tokens_per_s", 1..=MOST_PER_WINDOW);
    let burst_tokens = section.integer("burst_tokens", 1..=MOST_PER_WINDOW);
    let shares = read_shares(section, groups);
    if !["concurrent", "tokens_per_s", "burst_tokens", "shares"].into_iter().any(|field| section.has(field)) {
        section.error("name", "sets nothing: name concurrent, tokens_per_s, burst_tokens or shares");
    }

    let (name, pool) = known?;
    if section.has("burst_tokens") && !section.has("tokens_per_s") && pool.tokens_per_s.is_none() {
        section.error("burst_tokens", "needs tokens_per_s beside it: the pool has none");
    }
    let change = PoolChange { concurrent, tokens_per_s, burst_tokens, shares };
    if pools.insert(name.clone(), change).is_some() {
        section.error("name", format!("the pool {name} is listed twice"));
    }
    Some(())
}

#[cfg(test)]
mod tests;
