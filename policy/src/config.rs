//! Tenants, pools and the queue as an operator writes them, turned into types that cannot hold nonsense.
//!
//! The sections that concern the service's surroundings (listeners, files, Redis, exporters) are read by
//! `quota-service` with the same [`reader`].

pub mod reader;

use crate::account::Limits;
use crate::bucket::Rate;
use crate::queue::{QueueSettings, SharePolicy};
use crate::units::{Millis, PoolName, Priority, TenantId, Tokens};
use reader::Section;
use std::collections::{BTreeMap, BTreeSet};

/// Everything that the admission core decides by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub pools: BTreeMap<PoolName, Pool>,
    pub tenants: BTreeMap<TenantId, Tenant>,
    /// Which pool serves a model. Every pool and model named here exists once.
    pub models: BTreeMap<String, PoolName>,
    pub queue: QueueSettings,
}

/// Model pods that share capacity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Calls that run at once, 1 to 1,000,000.
    pub concurrent: u32,
    /// Reserved tokens a second; absent does not limit.
    pub tokens_per_s: Option<Rate>,
    /// Input and output of one sequence together; absent does not limit.
    pub context_length: Option<Tokens>,
}

/// Who is limited and billed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    pub namespace: String,
    pub tier: String,
    /// For calls without `x-priority`.
    pub default_priority: Priority,
    /// The best level that `x-priority` may ask for.
    pub ceiling: Priority,
    pub limits: Limits,
    /// The models it may use; absent means all.
    pub models: Option<BTreeSet<String>>,
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
}

const MOST_SLOTS: u64 = 1_000_000;
/// Keeps a bucket's arithmetic far from the edge of 64 bits.
const MOST_PER_WINDOW: u64 = 1_000_000_000_000;

impl Config {
    /// Reads `queue`, `pools` and `tenants` from the document's root.
    pub fn read(root: &Section<'_>) -> Option<Self> {
        let queue = read_queue(&root.section("queue"));
        let mut models = BTreeMap::new();
        let mut pools = BTreeMap::new();
        root.each("pools", |section| read_pool(section, &mut pools, &mut models));
        if pools.is_empty() && !root.has("pools") {
            root.error("pools", "is required: name at least one pool and the models it serves");
        }
        let mut tenants = BTreeMap::new();
        root.each("tenants", |section| read_tenant(section, &mut tenants, &models));
        Some(Self { pools, tenants, models, queue: queue? })
    }
}

fn read_queue(section: &Section<'_>) -> Option<QueueSettings> {
    let default = QueueSettings::default();
    let policies = [("strict", SharePolicy::Strict), ("wfq", SharePolicy::Wfq), ("hybrid", SharePolicy::Hybrid)];
    let count = |name, range| section.integer(name, range).and_then(|count| usize::try_from(count).ok());
    let settings = QueueSettings {
        policy: section.choice("policy", &policies).unwrap_or(default.policy),
        weights: read_weights(section).unwrap_or(default.weights),
        timeout: section.integer("timeout_ms", 1..=3_600_000).map_or(default.timeout, Millis),
        depth_per_level: count("depth_per_level", 1..=1_000_000).unwrap_or(default.depth_per_level),
        depth_per_tenant: count("depth_per_tenant", 1..=1_000_000).unwrap_or(default.depth_per_tenant),
        bytes: section.integer("bytes", 1..=1 << 40).unwrap_or(default.bytes),
    };
    section.finish();
    Some(settings)
}

fn read_weights(section: &Section<'_>) -> Option<[u64; Priority::COUNT]> {
    let given = section.raw("weights")?;
    let weights = given.as_array().and_then(|list| {
        let weights: Vec<u64> = list
            .iter()
            .filter_map(serde_json::Value::as_u64)
            .filter(|weight| (1..=1_000_000).contains(weight))
            .collect();
        (weights.len() == list.len()).then_some(weights)
    });
    let weights = weights.and_then(|weights| weights.try_into().ok());
    if weights.is_none() {
        section.error("weights", "must be a list of 10 integers from 1 to 1000000, for P0 to P9");
    }
    weights
}

fn read_pool(
    section: &Section<'_>,
    pools: &mut BTreeMap<PoolName, Pool>,
    models: &mut BTreeMap<String, PoolName>,
) -> Option<()> {
    let name = section.required("name", section.name("name"));
    let capacity = section.section("capacity");
    let concurrent = capacity.required("concurrent", slots(&capacity));
    let tokens_per_s = capacity.integer("tokens_per_s", 1..=MOST_PER_WINDOW);
    let burst = capacity.integer("burst_tokens", 1..=MOST_PER_WINDOW);
    if burst.is_some() && tokens_per_s.is_none() {
        capacity.error("burst_tokens", "needs tokens_per_s beside it");
    }
    capacity.finish();
    let served = section.texts("models");
    if served.is_empty() {
        section.error("models", "must name at least one model");
    }
    let context_length = section.integer("context_length", 1..=1 << 30).map(Tokens);

    let name = PoolName::from(name?);
    for model in served {
        if let Some(other) = models.insert(model.to_owned(), name.clone()) {
            section.error("models", format!("the model {model:?} is served by the pool {other} already"));
        }
    }
    let pool = Pool {
        concurrent: concurrent?,
        tokens_per_s: tokens_per_s.map(|amount| Rate::per_second(amount, burst.unwrap_or(amount))),
        context_length,
    };
    if pools.insert(name.clone(), pool).is_some() {
        section.error("name", format!("the pool {name} is defined twice"));
    }
    Some(())
}

fn read_tenant(
    section: &Section<'_>,
    tenants: &mut BTreeMap<TenantId, Tenant>,
    models: &BTreeMap<String, PoolName>,
) -> Option<()> {
    let id = section.required("id", section.name("id"));
    let namespace = section.name("namespace").or(id);
    let tier = section.name("tier").unwrap_or("default");
    let (default_priority, ceiling) = read_priority(&section.section("priority"));
    let limits = read_limits(&section.section("limits"));
    let allowed = section.has("models").then(|| section.texts("models"));
    for model in allowed.iter().flatten().filter(|model| !models.contains_key(**model)) {
        section.error("models", format!("no pool serves the model {model:?}"));
    }
    let disabled = section.boolean("disabled").unwrap_or(false);
    let keys = section.each("keys", read_key);

    let id = TenantId::from(id?);
    let tenant = Tenant {
        namespace: namespace?.to_owned(),
        tier: tier.to_owned(),
        default_priority,
        ceiling,
        limits,
        models: allowed.map(|models| models.into_iter().map(str::to_owned).collect()),
        disabled,
        keys,
    };
    if tenants.insert(id.clone(), tenant).is_some() {
        section.error("id", format!("the tenant {id} is defined twice"));
    }
    Some(())
}

fn read_key(section: &Section<'_>) -> Option<KeyRecord> {
    let name = section.required("name", section.name("name"));
    let id = section.name("id");
    let hmac = section.required("hmac", section.text("hmac"));
    let parsed = hmac.and_then(parse_hmac);
    if hmac.is_some() && parsed.is_none() {
        section.error("hmac", "must be v<pepper version>:<64 hex digits>, as `quota-service key new` prints it");
    }
    let (pepper, mac) = parsed?;
    Some(KeyRecord { name: name?.to_owned(), id: id.map(str::to_owned), pepper, mac })
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
    let level = |name| {
        let level = section.integer(name, 0..=9)?;
        u8::try_from(level).ok().and_then(|level| Priority::try_from(level).ok())
    };
    let middle = Priority::parse("5").unwrap_or(Priority::LAST);
    let default = level("default");
    let ceiling = level("ceiling").or(default).unwrap_or(middle);
    let default = default.unwrap_or(ceiling);
    if default < ceiling {
        section.error("default", format!("must not be better than the ceiling, found {default} above {ceiling}"));
    }
    section.finish();
    (default, ceiling)
}

fn read_limits(section: &Section<'_>) -> Limits {
    let rate = |name| section.integer(name, 1..=MOST_PER_WINDOW);
    let limits = Limits {
        concurrent: slots(section),
        requests_per_s: rate("requests_per_s").map(|amount| Rate::per_second(amount, amount)),
        requests_per_min: rate("requests_per_min").map(Rate::per_minute),
        tokens_per_min: rate("tokens_per_min").map(Rate::per_minute),
    };
    section.finish();
    limits
}

fn slots(section: &Section<'_>) -> Option<u32> {
    section.integer("concurrent", 1..=MOST_SLOTS).and_then(|slots| u32::try_from(slots).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(document: &serde_json::Value) -> Result<Config, Vec<String>> {
        reader::read_document(document, Config::read)
            .map_err(|errors| errors.0.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_small_configuration_needs_little() {
        let config = read(&json!({
            "pools": [{"name": "smol", "models": ["m"], "capacity": {"concurrent": 2}}],
            "tenants": [{"id": "dept-a"}],
        }))
        .unwrap();
        let tenant = &config.tenants[&"dept-a".into()];
        assert_eq!(tenant.namespace, "dept-a");
        assert_eq!(u8::from(tenant.default_priority), 5);
        assert_eq!(config.queue, QueueSettings::default());
    }

    #[test]
    fn all_that_is_wrong_is_said_at_once() {
        let errors = read(&json!({
            "queue": {"weights": [1, 2, 0], "timeout_ms": 0},
            "pools": [
                {"name": "a", "models": ["m"], "capacity": {"concurrent": 0}},
                {"name": "b", "models": ["m"], "capacity": {"concurrent": 1, "burst_tokens": 5}},
            ],
            "tenants": [
                {"id": "x y", "priority": {"default": 3, "ceiling": 5}},
                {"id": "t", "models": ["nobody"], "limits": {"tokens_per_min": -1, "rpm": 3}},
            ],
        }))
        .unwrap_err();
        let paths: Vec<&str> = errors.iter().filter_map(|error| error.split_once(": ")).map(|(path, _)| path).collect();
        assert_eq!(
            paths,
            [
                "queue.weights",
                "queue.timeout_ms",
                "pools[0].capacity.concurrent",
                "pools[1].capacity.burst_tokens",
                "pools[1].models",
                "tenants[0].id",
                "tenants[0].priority.default",
                "tenants[1].limits.tokens_per_min",
                "tenants[1].limits.rpm",
                "tenants[1].models",
            ],
            "{errors:#?}"
        );
    }

    #[test]
    fn weights_are_ten_positive_integers() {
        for weights in [json!([0, 1, 1, 1, 1, 1, 1, 1, 1, 1]), json!(vec![1; 11]), json!(vec![1.5; 10]), json!("1")] {
            let errors = read(&json!({
                "queue": {"weights": weights},
                "pools": [{"name": "a", "models": ["m"], "capacity": {"concurrent": 1}}],
            }))
            .unwrap_err();
            assert!(errors[0].starts_with("queue.weights: must be a list of 10"), "{errors:?}");
        }
    }
}
