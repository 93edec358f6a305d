//! Pools, and the models they serve.

use super::aborts::{self, OnAbort};
use super::models::Price;
use super::reader::Section;
use super::tenants::Groups;
use super::weights::read_shares;
use super::{MOST_PER_WINDOW, MOST_SLOTS, read_outage};
use crate::bucket::Rate;
use crate::holder::Outage;
use crate::queue::GroupIndex;
use crate::units::{GroupName, ModelName, PoolName, Tokens};
use crate::wire::Usage;
use std::collections::BTreeMap;

/// As much as large models answer at most, unless they are told otherwise.
const RESERVE_AT_MOST: Tokens = Tokens(32_768);

/// Model pods that share capacity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Calls that run at once, 1 to 1,000,000.
    pub concurrent: u32,
    /// Starts a second; absent does not limit.
    pub requests_per_s: Option<Rate>,
    /// Charged tokens a second; absent does not limit.
    pub tokens_per_s: Option<Rate>,
    /// Input and output of one sequence together; absent does not limit.
    pub context_length: Option<Tokens>,
    /// Output of one sequence that is reserved at most, 1 to 2^30, where no `context_length` bounds it: what a call asks for
    /// may be more than its model ever yields.
    pub reserve_at_most: Tokens,
    /// What happens while the ledger does not answer.
    pub outage: Outage,
    /// What its servers do when a client leaves.
    pub on_abort: OnAbort,
    /// Shares of groups by their index, 1 to 1,000,000. Empty: groups do not matter in this pool.
    pub shares: BTreeMap<GroupIndex, u64>,
}

/// A model and the pool that serves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    pub pool: PoolName,
    pub charge: ChargeWeights,
    /// What the model server calls it; absent when it is the same name.
    pub upstream: Option<ModelName>,
    pub price: Price,
}

/// What a token costs a pool and the queue's counters, in percent of one plain token, 0 to 100,000.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChargeWeights {
    pub input: u64,
    pub output: u64,
    /// Input that the server took from its prefix cache.
    pub cached: u64,
}

impl Default for ChargeWeights {
    fn default() -> Self {
        Self { input: 100, output: 100, cached: 100 }
    }
}

impl ChargeWeights {
    /// The charge of real usage, rounded up.
    #[must_use]
    pub fn of(self, usage: &Usage) -> Tokens {
        let cached = usage.cached.0.min(usage.input.0);
        self.weigh(usage.input.0 - cached, cached, usage.output.0)
    }

    /// The charge of a reservation, before anything is known to be cached.
    #[must_use]
    pub fn of_reservation(self, input: Tokens, output: Tokens) -> Tokens {
        self.weigh(input.0, 0, output.0)
    }

    fn weigh(self, input: u64, cached: u64, output: u64) -> Tokens {
        let weighted = [(input, self.input), (cached, self.cached), (output, self.output)]
            .into_iter()
            .fold(0_u64, |sum, (tokens, percent)| sum.saturating_add(tokens.saturating_mul(percent)));
        Tokens(weighted.div_ceil(100))
    }
}

/// Reads `pools` and `charges`.
pub(super) fn read(root: &Section<'_>, groups: &Groups) -> (BTreeMap<PoolName, Pool>, BTreeMap<ModelName, Model>) {
    let (mut pools, mut models) = (BTreeMap::new(), BTreeMap::new());
    root.each("pools", |section| read_pool(section, groups, &mut pools, &mut models));
    if pools.is_empty() && !root.has("pools") {
        root.error("pools", "is required: name at least one pool and the models it serves");
    }
    root.each("charges", |section| read_charge(section, &mut models));
    (pools, models)
}

fn read_pool(
    section: &Section<'_>,
    groups: &Groups,
    pools: &mut BTreeMap<PoolName, Pool>,
    models: &mut BTreeMap<ModelName, Model>,
) -> Option<()> {
    let name = section.required("name", section.name("name"));
    let capacity = section.section("capacity");
    let concurrent = capacity.required("concurrent", slots(&capacity));
    let requests_per_s = capacity.integer("requests_per_s", 1..=MOST_PER_WINDOW);
    let tokens_per_s = capacity.integer("tokens_per_s", 1..=MOST_PER_WINDOW);
    let burst = capacity.integer("burst_tokens", 1..=MOST_PER_WINDOW);
    if burst.is_some() && !capacity.has("tokens_per_s") {
        capacity.error("burst_tokens", "needs tokens_per_s beside it");
    }
    capacity.finish();
    let served = section.model_names("models");
    if served.is_empty() {
        section.error("models", "must name at least one model");
    }
    let context_length = section.integer("context_length", 1..=1 << 30).map(Tokens);
    let reserve_at_most = section.integer("reserve_at_most", 1..=1 << 30).map_or(RESERVE_AT_MOST, Tokens);
    if context_length.is_some() && section.has("reserve_at_most") {
        section.error("reserve_at_most", "says nothing beside context_length, which bounds what is reserved");
    }
    let names = groups.by_name.keys().map(ToString::to_string).collect();
    let shares = read_shares(section, &names);

    let name = PoolName::from(name?);
    for model in served {
        let (charge, price) = (ChargeWeights::default(), Price::default());
        let served = Model { pool: name.clone(), charge, upstream: None, price };
        if let Some(other) = models.insert(ModelName::from(model), served) {
            section.error("models", format!("the model {model:?} is served by the pool {} already", other.pool));
        }
    }
    let pool = Pool {
        concurrent: concurrent?,
        requests_per_s: requests_per_s.map(|amount| Rate::per_second(amount, amount)),
        tokens_per_s: tokens_per_s.map(|amount| Rate::per_second(amount, burst.unwrap_or(amount))),
        context_length,
        reserve_at_most,
        outage: read_outage(section),
        on_abort: aborts::read(section),
        shares: shares
            .into_iter()
            .filter_map(|(group, share)| Some((*groups.by_name.get(&GroupName::from(group))?, share)))
            .collect(),
    };
    if pools.insert(name.clone(), pool).is_some() {
        section.error("name", format!("the pool {name} is defined twice"));
    }
    Some(())
}

fn read_charge(section: &Section<'_>, models: &mut BTreeMap<ModelName, Model>) -> Option<()> {
    let percent = |name| section.integer(name, 0..=100_000).unwrap_or(100);
    let charge = ChargeWeights {
        input: percent("input_percent"),
        output: percent("output_percent"),
        cached: percent("cached_percent"),
    };
    let named = section.model_names("models");
    if named.is_empty() {
        section.error("models", "must name at least one model");
    }
    for name in named {
        match models.get_mut(&ModelName::from(name)) {
            Some(model) => model.charge = charge,
            None => section.error("models", format!("no pool serves the model {name:?}")),
        }
    }
    Some(())
}

pub(crate) fn slots(section: &Section<'_>) -> Option<u32> {
    section.integer("concurrent", 1..=MOST_SLOTS).and_then(|slots| u32::try_from(slots).ok())
}
