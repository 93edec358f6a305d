//! A configuration as plain numbers: what the model reads, and the document that the core reads.

use crate::chance::Chance;
use serde_json::{Value, json};
use sluice_policy::config::Config;
use sluice_policy::config::reader::read_document;
use sluice_policy::queue::SharePolicy;
use sluice_policy::schedule::{PoolSettings, Settings};

pub(crate) const GROUPS: [&str; 2] = ["internal", "external"];
pub(crate) const DEFAULT_WEIGHTS: [u64; 10] = [256, 128, 64, 32, 16, 8, 4, 2, 1, 1];

#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) policy: SharePolicy,
    pub(crate) weights: [u64; 10],
    pub(crate) timeout: u64,
    pub(crate) deadline: Option<u64>,
    pub(crate) depth_per_level: usize,
    pub(crate) depth_per_tenant: usize,
    /// Of all pools together.
    pub(crate) bytes: u64,
    pub(crate) bytes_per_tenant: u64,
    /// How many of [`GROUPS`] there are.
    pub(crate) groups: usize,
    pub(crate) pools: Vec<PoolSetup>,
    pub(crate) tenants: Vec<TenantSetup>,
}

/// A pool `p0`, `p1`, … and its model `m0`, `m1`, …
#[derive(Clone, Debug)]
pub(crate) struct PoolSetup {
    pub(crate) concurrent: u32,
    pub(crate) tokens_per_s: Option<u64>,
    pub(crate) burst: Option<u64>,
    pub(crate) requests_per_s: Option<u64>,
    pub(crate) context: Option<u64>,
    /// Of group 1, 2, …; empty: none.
    pub(crate) shares: Vec<u64>,
    /// Percent of a plain token for input, output and cached input.
    pub(crate) percent: [u64; 3],
}

/// A tenant `t0`, `t1`, …
#[derive(Clone, Debug)]
pub(crate) struct TenantSetup {
    /// Not there: a reload has taken it away.
    pub(crate) absent: bool,
    pub(crate) disabled: bool,
    pub(crate) default: u8,
    pub(crate) ceiling: u8,
    /// 0: in none.
    pub(crate) group: usize,
    pub(crate) weight: u64,
    /// May use only the model of pool 0.
    pub(crate) only_first_model: bool,
    pub(crate) concurrent: Option<u32>,
    pub(crate) requests_per_s: Option<u64>,
    pub(crate) requests_per_min: Option<u64>,
    pub(crate) tokens_per_min: Option<u64>,
}

impl PoolSetup {
    pub(crate) fn plain(concurrent: u32) -> Self {
        Self {
            concurrent,
            tokens_per_s: None,
            burst: None,
            requests_per_s: None,
            context: None,
            shares: Vec::new(),
            percent: [100; 3],
        }
    }
}

impl TenantSetup {
    /// Without limits, calling at `level` and allowed every level.
    pub(crate) fn plain(level: u8) -> Self {
        Self {
            absent: false,
            disabled: false,
            default: level,
            ceiling: 0,
            group: 0,
            weight: 1,
            only_first_model: false,
            concurrent: None,
            requests_per_s: None,
            requests_per_min: None,
            tokens_per_min: None,
        }
    }
}

impl Setup {
    /// One pool, roomy queues, hybrid with the default weights.
    pub(crate) fn plain(concurrent: u32, tenants: Vec<TenantSetup>) -> Self {
        Self {
            policy: SharePolicy::Hybrid,
            weights: DEFAULT_WEIGHTS,
            timeout: 3_600_000,
            deadline: None,
            depth_per_level: 100_000,
            depth_per_tenant: 100_000,
            bytes: 1 << 40,
            bytes_per_tenant: 1 << 40,
            groups: 0,
            pools: vec![PoolSetup::plain(concurrent)],
            tenants,
        }
    }

    pub(crate) fn random(chance: &mut Chance) -> Self {
        let groups = chance.index(GROUPS.len() + 1);
        let pools = if chance.percent(25) { 2 } else { 1 };
        let tenants = chance.between(2, 8);
        let mut setup = Self { groups, ..Self::plain(1, Vec::new()) };
        setup.pools = (0..pools).map(|_| random_pool(chance, groups)).collect();
        setup.tenants = (0..tenants).map(|_| random_tenant(chance, groups)).collect();
        setup.change_queue(chance);
        setup
    }

    /// What a reload of the queue's section may bring.
    pub(crate) fn change_queue(&mut self, chance: &mut Chance) {
        let policies =
            [SharePolicy::Hybrid, SharePolicy::Hybrid, SharePolicy::Hybrid, SharePolicy::Wfq, SharePolicy::Strict];
        self.policy = chance.pick(&policies);
        self.weights = random_weights(chance);
        self.timeout = if chance.percent(30) { chance.size(200, 20_000) } else { 300_000 };
        self.deadline = chance.percent(20).then(|| chance.size(100, 20_000));
        self.depth_per_level = chance.size(3, 40) as usize;
        self.depth_per_tenant = chance.size(2, 20) as usize;
        self.bytes = if chance.percent(30) { chance.size(1_000, 20_000) } else { 1 << 30 };
        self.bytes_per_tenant = self.bytes / chance.between(1, 4);
    }

    /// What a reload of a tenant may bring.
    pub(crate) fn change_tenant(&mut self, chance: &mut Chance) {
        let (at, groups) = (chance.index(self.tenants.len()), self.groups);
        self.tenants[at] = random_tenant(chance, groups);
    }

    /// What a rule or an operator may set without a reload.
    pub(crate) fn change_effective(&mut self, chance: &mut Chance) {
        self.weights = random_weights(chance);
        let at = chance.index(self.pools.len());
        let other = random_pool(chance, self.groups);
        let pool = &mut self.pools[at];
        (pool.concurrent, pool.tokens_per_s, pool.burst, pool.shares) =
            (other.concurrent, other.tokens_per_s, other.burst, other.shares);
    }

    pub(crate) fn settings(&self) -> Settings {
        let pools = self.pools.iter().enumerate().map(|(index, pool)| {
            let shares = pool.shares.iter().zip(GROUPS).map(|(share, group)| (group.to_owned(), *share));
            let settings = PoolSettings {
                concurrent: pool.concurrent,
                tokens_per_s: pool.tokens_per_s,
                burst_tokens: pool.burst,
                shares: shares.collect(),
            };
            (format!("p{index}").into(), settings)
        });
        Settings { weights: self.weights, pools: pools.collect() }
    }

    pub(crate) fn config(&self) -> Config {
        read_document(&self.document(), Config::read).unwrap()
    }

    fn document(&self) -> Value {
        let policy = match self.policy {
            SharePolicy::Strict => "strict",
            SharePolicy::Wfq => "wfq",
            SharePolicy::Hybrid => "hybrid",
        };
        let percent = |index: usize, pool: &PoolSetup| {
            json!({"models": [format!("m{index}")], "input_percent": pool.percent[0],
                   "output_percent": pool.percent[1], "cached_percent": pool.percent[2]})
        };
        let present = self.tenants.iter().enumerate().filter(|(_, tenant)| !tenant.absent);
        json!({
            "queue": {
                "policy": policy,
                "weights": self.weights,
                "timeout_ms": self.timeout,
                "deadline_ms": self.deadline,
                "depth_per_level": self.depth_per_level,
                "depth_per_tenant": self.depth_per_tenant,
                "bytes": self.bytes,
                "bytes_per_tenant": self.bytes_per_tenant,
                // Who waits for its tenant's next slot is tested beside the core, against a list of its own.
                "concurrent_wait_ms": 0,
            },
            "groups": GROUPS.iter().take(self.groups).map(|name| json!({"name": name})).collect::<Vec<_>>(),
            "pools": self.pools.iter().enumerate().map(|(index, pool)| pool_document(index, pool)).collect::<Vec<_>>(),
            "charges": self.pools.iter().enumerate().map(|(index, pool)| percent(index, pool)).collect::<Vec<_>>(),
            "tenants": present.map(|(index, tenant)| tenant_document(index, tenant)).collect::<Vec<_>>(),
        })
    }
}

fn pool_document(index: usize, pool: &PoolSetup) -> Value {
    let shares: Option<serde_json::Map<String, Value>> = (!pool.shares.is_empty())
        .then(|| pool.shares.iter().zip(GROUPS).map(|(share, group)| (group.to_owned(), json!(share))).collect());
    json!({
        "name": format!("p{index}"),
        "models": [format!("m{index}")],
        "capacity": {
            "concurrent": pool.concurrent,
            "tokens_per_s": pool.tokens_per_s,
            "burst_tokens": pool.burst,
            "requests_per_s": pool.requests_per_s,
        },
        "context_length": pool.context,
        "shares": shares,
    })
}

fn tenant_document(index: usize, tenant: &TenantSetup) -> Value {
    json!({
        "id": format!("t{index}"),
        "disabled": tenant.disabled,
        "priority": {"default": tenant.default, "ceiling": tenant.ceiling},
        "group": tenant.group.checked_sub(1).map(|group| GROUPS[group]),
        "weight": tenant.weight,
        "models": tenant.only_first_model.then_some(["m0"]),
        "limits": {
            "concurrent": tenant.concurrent,
            "requests_per_s": tenant.requests_per_s,
            "requests_per_min": tenant.requests_per_min,
            "tokens_per_min": tenant.tokens_per_min,
        },
    })
}

fn random_weights(chance: &mut Chance) -> [u64; 10] {
    if chance.percent(60) { DEFAULT_WEIGHTS } else { std::array::from_fn(|_| chance.between(1, 300)) }
}

fn random_pool(chance: &mut Chance, groups: usize) -> PoolSetup {
    let tokens_per_s = chance.percent(50).then(|| chance.size(500, 20_000));
    let shares = if chance.percent(70) { groups } else { 0 };
    PoolSetup {
        concurrent: chance.between(1, 8) as u32,
        tokens_per_s,
        burst: tokens_per_s.filter(|_| chance.percent(70)).map(|rate| rate * chance.between(2, 30) / 10),
        requests_per_s: chance.percent(20).then(|| chance.size(2, 50)),
        context: chance.percent(50).then_some(4_000),
        shares: (0..shares).map(|_| chance.between(1, 100)).collect(),
        percent: if chance.percent(70) {
            [100; 3]
        } else {
            [chance.between(1, 100), chance.between(50, 400), chance.between(0, 100)]
        },
    }
}

fn random_tenant(chance: &mut Chance, groups: usize) -> TenantSetup {
    let default = chance.between(0, 9) as u8;
    TenantSetup {
        absent: chance.percent(4),
        disabled: chance.percent(4),
        default,
        ceiling: chance.between(0, u64::from(default)) as u8,
        group: chance.index(groups + 1),
        weight: if chance.percent(30) { chance.between(2, 9) } else { 1 },
        only_first_model: chance.percent(10),
        concurrent: chance.percent(25).then(|| chance.between(1, 20) as u32),
        requests_per_s: chance.percent(15).then(|| chance.between(1, 20)),
        requests_per_min: chance.percent(20).then(|| chance.between(5, 60)),
        tokens_per_min: chance.percent(25).then(|| chance.size(1_000, 200_000)),
    }
}
