//! Tenants, their groups, their keys, and the rules that read a key's *name*.

use super::pools::{Model, slots};
use super::reader::Section;
use super::{MOST_PER_WINDOW, MOST_WEIGHT, read_outage};
use crate::account::Limits;
use crate::bucket::Rate;
use crate::budget::Budgets;
use crate::holder::Outage;
use crate::ledger::MeterName;
use crate::queue::GroupIndex;
use crate::schedule::Zone;
use crate::units::{GroupName, ModelName, Priority, TenantId, Tokens};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Of tokens, or of millionths of a currency unit. Lua's numbers are exact up to 2^53.
const MOST_PER_PERIOD: u64 = 1_000_000_000_000_000;
/// Model servers count in 32 bits.
const MOST_OUTPUT: u64 = i32::MAX as u64;

/// Who is limited and billed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// Shared, since every grant bears them.
    pub namespace: Arc<str>,
    pub tier: Arc<str>,
    /// Which group's share of a pool it draws from, in pools that have shares.
    pub group: GroupIndex,
    /// Its weight beside other tenants of its level, 1 to 1,000,000.
    pub weight: u64,
    /// For calls without `x-priority`.
    pub default_priority: Priority,
    /// The best level that `x-priority` may ask for.
    pub ceiling: Priority,
    pub limits: Limits,
    /// The most tokens that one sequence of its calls may yield; a call that asks for more is brought down to it.
    pub output_ceiling: Option<Tokens>,
    /// The models it may use; absent means all.
    pub models: Option<BTreeSet<ModelName>>,
    pub disabled: bool,
    pub keys: Vec<KeyRecord>,
}

/// What is kept of an API key: enough to recognise it, not enough to use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRecord {
    /// What operators call it; rules and logs use this name, never the key.
    pub name: String,
    /// The public id inside a key of our own format; absent for a key of another format.
    pub id: Option<String>,
    /// Which pepper made `mac`.
    pub pepper: u32,
    /// HMAC-SHA-256(pepper, SHA-256(key)).
    pub mac: [u8; 32],
    /// From the rule that matches the key's name; else the tenant's default.
    pub priority: Option<Priority>,
}

/// Gives a tenant, a priority or both to the keys whose name matches. Rules are tried in order, the first that names
/// a tenant decides it, the first that names a priority decides that. A rule authenticates nobody: it reads the name
/// of a key that has been recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRule {
    pub pattern: Pattern,
    pub tenant: Option<TenantId>,
    pub priority: Option<Priority>,
}

/// `name`, `prefix*` or `*suffix`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    Exact(String),
    Prefix(String),
    Suffix(String),
}

impl Pattern {
    /// # Errors
    /// What a pattern may look like.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let parsed = match (text.strip_prefix('*'), text.strip_suffix('*')) {
            (Some(suffix), None) => Self::Suffix(suffix.to_owned()),
            (None, Some(prefix)) => Self::Prefix(prefix.to_owned()),
            (None, None) => Self::Exact(text.to_owned()),
            (Some(_), Some(_)) => return Err("must be a name, or have one * at its beginning or its end"),
        };
        let (Self::Exact(rest) | Self::Prefix(rest) | Self::Suffix(rest)) = &parsed;
        if rest.contains('*') || rest.is_empty() {
            return Err("must be a name, or have one * at its beginning or its end");
        }
        Ok(parsed)
    }

    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(exact) => name == exact,
            Self::Prefix(prefix) => name.starts_with(prefix.as_str()),
            Self::Suffix(suffix) => name.ends_with(suffix.as_str()),
        }
    }
}

/// Groups, and who is in them by tier. A tenant may also name its group itself.
pub(crate) struct Groups {
    pub(crate) by_name: BTreeMap<GroupName, GroupIndex>,
    by_tier: BTreeMap<String, GroupIndex>,
}

impl Groups {
    pub(super) fn read(root: &Section<'_>) -> Self {
        let mut groups = Self { by_name: BTreeMap::new(), by_tier: BTreeMap::new() };
        root.each("groups", |section| {
            let name = section.required("name", section.name("name"));
            let tiers = section.texts("tiers");
            let index = GroupIndex(u16::try_from(groups.by_name.len() + 1).ok()?);
            let name = name?;
            if groups.by_name.insert(GroupName::from(name), index).is_some() {
                section.error("name", format!("the group {name} is defined twice"));
            }
            for tier in tiers {
                if groups.by_tier.insert(tier.to_owned(), index).is_some() {
                    section.error("tiers", format!("the tier {tier:?} is in another group already"));
                }
            }
            Some(())
        });
        groups
    }
}

/// Reads `tenants`, `keys` and `key_rules`.
pub(super) fn read(
    root: &Section<'_>,
    models: &BTreeMap<ModelName, Model>,
    groups: &mut Groups,
) -> BTreeMap<TenantId, Tenant> {
    let (mut tenants, mut taken) = (BTreeMap::new(), Taken::default());
    root.each("tenants", |section| read_tenant(section, &mut tenants, models, groups, &mut taken));
    let rules = root.each("key_rules", |section| read_rule(section, &tenants));
    root.each("keys", |section| read_loose_key(section, &rules, &mut tenants, &mut taken));
    for key in tenants.values_mut().flat_map(|tenant| &mut tenant.keys) {
        let mut priorities =
            rules.iter().filter(|rule| rule.pattern.matches(&key.name)).filter_map(|rule| rule.priority);
        key.priority = priorities.next();
    }
    tenants
}

/// What only one tenant may have. With two, calls or GPU load would silently be the last one's.
#[derive(Default)]
struct Taken {
    namespaces: BTreeSet<String>,
    key_ids: BTreeSet<String>,
    macs: BTreeSet<[u8; 32]>,
}

fn read_tenant(
    section: &Section<'_>,
    tenants: &mut BTreeMap<TenantId, Tenant>,
    models: &BTreeMap<ModelName, Model>,
    groups: &Groups,
    taken: &mut Taken,
) -> Option<()> {
    let id = section.required("id", section.name("id"));
    let namespace = section.name("namespace").or(id);
    if let Some(namespace) = namespace.filter(|namespace| !taken.namespaces.insert((*namespace).to_owned())) {
        section.error("namespace", format!("the namespace {namespace} is another tenant's already"));
    }
    let tier = section.name("tier").unwrap_or("default");
    let group = section.name("group").map(|name| groups.by_name.get(&GroupName::from(name)));
    if group == Some(None) {
        section.error("group", "there is no such group");
    }
    let weight = section.integer("weight", 1..=MOST_WEIGHT).unwrap_or(1);
    let (default_priority, ceiling) = read_priority(&section.section("priority"));
    let (limits, output_ceiling) = read_limits(&section.section("limits"));
    let limits = Limits { outage: read_outage(section), budgets: read_budgets(&section.section("budgets")), ..limits };
    let allowed: Option<BTreeSet<ModelName>> =
        section.has("models").then(|| section.model_names("models").into_iter().map(ModelName::from).collect());
    for model in allowed.iter().flatten().filter(|model| !models.contains_key(*model)) {
        section.error("models", format!("no pool serves the model {:?}", model.as_str()));
    }
    let disabled = section.boolean("disabled").unwrap_or(false);
    let keys = section.each("keys", |key| read_key(key, taken));

    let id = TenantId::from(id?);
    let tenant = Tenant {
        namespace: namespace?.into(),
        tier: tier.into(),
        group: group.flatten().or_else(|| groups.by_tier.get(tier)).copied().unwrap_or_default(),
        weight,
        default_priority,
        ceiling,
        limits,
        output_ceiling,
        models: allowed,
        disabled,
        keys,
    };
    if tenants.insert(id.clone(), tenant).is_some() {
        section.error("id", format!("the tenant {id} is defined twice"));
    }
    Some(())
}

fn read_rule(section: &Section<'_>, tenants: &BTreeMap<TenantId, Tenant>) -> Option<KeyRule> {
    let pattern = section.required("match", section.text("match"));
    let tenant = section.name("tenant").map(TenantId::from);
    let priority = level(section, "priority");
    if let Some(unknown) = tenant.as_ref().filter(|tenant| !tenants.contains_key(*tenant)) {
        section.error("tenant", format!("there is no tenant {unknown}"));
    }
    if !section.has("tenant") && !section.has("priority") {
        section.error("match", "needs a tenant, a priority or both beside it");
    }
    match Pattern::parse(pattern?) {
        Ok(pattern) => Some(KeyRule { pattern, tenant, priority }),
        Err(problem) => {
            section.error("match", problem);
            None
        }
    }
}

/// A key outside of any tenant belongs to the tenant that a rule gives it.
fn read_loose_key(
    section: &Section<'_>,
    rules: &[KeyRule],
    tenants: &mut BTreeMap<TenantId, Tenant>,
    taken: &mut Taken,
) -> Option<()> {
    let key = read_key(section, taken)?;
    let matching = rules.iter().filter(|rule| rule.pattern.matches(&key.name));
    let tenant = matching.filter_map(|rule| rule.tenant.as_ref()).next();
    let Some(tenant) = tenant.and_then(|tenant| tenants.get_mut(tenant)) else {
        section.error("name", format!("no rule of key_rules gives the key {:?} a tenant", key.name));
        return None;
    };
    tenant.keys.push(key);
    Some(())
}

fn read_key(section: &Section<'_>, taken: &mut Taken) -> Option<KeyRecord> {
    let name = section.required("name", section.name("name"));
    let id = section.name("id");
    let hmac = section.required("hmac", section.text("hmac"));
    let parsed = hmac.and_then(parse_hmac);
    if hmac.is_some() && parsed.is_none() {
        section.error("hmac", "must be v<pepper version>:<64 hex digits>, as `quota-service key new` prints it");
    }
    if id.is_some_and(|id| !taken.key_ids.insert(id.to_owned())) {
        section.error("id", "is another key's already");
    }
    let (pepper, mac) = parsed?;
    if !taken.macs.insert(mac) {
        section.error("hmac", "is another key's already");
    }
    Some(KeyRecord { name: name?.to_owned(), id: id.map(str::to_owned), pepper, mac, priority: None })
}

fn parse_hmac(text: &str) -> Option<(u32, [u8; 32])> {
    let (version, digits) = text.strip_prefix('v')?.split_once(':')?;
    Some((version.parse().ok()?, parse_digest(digits)?))
}

/// Reads a 256-bit digest from its 64 hex digits.
#[must_use]
pub fn parse_digest(digits: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (index, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(digits.get(index * 2..index * 2 + 2)?, 16).ok()?;
    }
    Some(digest)
}

/// Absent means the middle of the road: P5, and no better.
fn read_priority(section: &Section<'_>) -> (Priority, Priority) {
    let middle = Priority::parse("5").unwrap_or(Priority::LAST);
    let default = level(section, "default");
    let ceiling = level(section, "ceiling").or(default).unwrap_or(middle);
    let default = default.unwrap_or(ceiling);
    if default < ceiling {
        section.error("default", format!("must not be better than the ceiling, found {default} above {ceiling}"));
    }
    section.finish();
    (default, ceiling)
}

fn level(section: &Section<'_>, name: &'static str) -> Option<Priority> {
    let level = section.integer(name, 0..=9)?;
    u8::try_from(level).ok().and_then(|level| Priority::try_from(level).ok())
}

/// `budgets: {tokens_per_day, tokens_per_month, micros_per_day, micros_per_month, time_zone}`.
fn read_budgets(section: &Section<'_>) -> Budgets {
    let names = [
        ("tokens_per_day", MeterName::TokensPerDay),
        ("tokens_per_month", MeterName::TokensPerMonth),
        ("micros_per_day", MeterName::MoneyPerDay),
        ("micros_per_month", MeterName::MoneyPerMonth),
    ];
    let amount = |(name, meter)| Some((meter, section.integer(name, 1..=MOST_PER_PERIOD)?));
    let amounts = names.into_iter().filter_map(amount).collect();
    let zone = section.text("time_zone").and_then(|name| {
        let zone = Zone::named(name);
        if zone.is_none() {
            section.error("time_zone", format!("{name:?} is no time zone of the IANA database, like Europe/Berlin"));
        }
        zone
    });
    section.finish();
    Budgets { amounts, zone }
}

fn read_limits(section: &Section<'_>) -> (Limits, Option<Tokens>) {
    let rate = |name| section.integer(name, 1..=MOST_PER_WINDOW);
    let limits = Limits {
        concurrent: slots(section),
        requests_per_s: rate("requests_per_s").map(|amount| Rate::per_second(amount, amount)),
        requests_per_min: rate("requests_per_min").map(Rate::per_minute),
        tokens_per_min: rate("tokens_per_min").map(Rate::per_minute),
        budgets: Budgets::default(),
        outage: Outage::default(),
    };
    let output_ceiling = section.integer("max_tokens", 1..=MOST_OUTPUT).map(Tokens);
    section.finish();
    (limits, output_ceiling)
}
