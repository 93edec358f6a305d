//! Tenants: what was decided about their calls, and what they used, of a thousand by name and of the others together.
//!
//! A tenant's series carry neither pool nor model, unless the configuration asks for it: what the page holds would grow
//! with the product of them.

mod roll;

use super::by_model::kinds;
use super::page::{Family, Kind};
use super::{UNKNOWN, decision};
use roll::Roll;
use sluice_policy::admission::Settled;
use sluice_policy::config::Price;
use sluice_policy::units::{ModelName, PoolName, TenantId};
use sluice_policy::wire::{Reason, UsageSource};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Tenants that have series of their own.
const MOST_NAMED: usize = 1_000;
/// The label of all others.
const OTHER: &str = "_other";

const ADMISSIONS: Family = Family {
    name: "sluice_admissions_total",
    help: "Calls decided, by tenant, by decision and by the reason of a refusal.",
    kind: Kind::Counter,
};
const TOKENS: Family = Family {
    name: "sluice_tokens_total",
    help: "Tokens used, by tenant; cached ones are part of the input, reasoning ones of the output.",
    kind: Kind::Counter,
};
const COST: Family = Family {
    name: "sluice_cost_micros_total",
    help: "What a tenant's calls cost by their models' prices, in millionths of a currency unit.",
    kind: Kind::Counter,
};
const FIXED: Family = Family {
    name: "sluice_fixed_charges_total",
    help: "Charges of a tenant's requests that are not counted in tokens.",
    kind: Kind::Counter,
};

pub(super) struct ByTenant {
    roll: Mutex<Roll<Counted>>,
    /// Whether series with a tenant carry the pool or the model too.
    by_model: bool,
    /// Calls of keys that belong to no tenant.
    strangers: Counted,
}

/// Of one tenant, or of all that are not named. Locked for a call's counts only, so a page that reads it delays no call by
/// more than that.
#[derive(Default)]
struct Counted(Mutex<Counts>);

#[derive(Clone, Default)]
struct Counts {
    /// By pool, if it is told apart, and reason; admitted where there is none.
    decided: BTreeMap<(Option<PoolName>, Option<Reason>), u64>,
    /// By model, if it is told apart.
    used: BTreeMap<Option<ModelName>, Used>,
}

#[derive(Clone, Copy, Default)]
struct Used {
    /// As [`kinds`] orders them.
    tokens: [u64; 4],
    has_tokens: bool,
    cost: u64,
    fixed: u64,
}

impl ByTenant {
    pub(super) fn new(by_model: bool, now: Instant) -> Self {
        Self { roll: Mutex::new(Roll::new(MOST_NAMED, now)), by_model, strangers: Counted::default() }
    }

    /// So many tenants are configured. While all of them have room, each is named at once.
    pub(super) fn set_tenants(&self, count: usize) {
        self.roll().set_tenants(count);
    }

    /// `reason` is absent for a call that was admitted, `tenant` for one of a stranger.
    pub(super) fn decided(
        &self,
        tenant: Option<&TenantId>,
        pool: Option<&PoolName>,
        reason: Option<Reason>,
        now: Instant,
    ) {
        let pool = if self.by_model { pool.cloned() } else { None };
        let count = |counted: &Counted| *counted.lock().decided.entry((pool, reason)).or_default() += 1;
        match tenant {
            Some(tenant) => count(&self.of(tenant, now)),
            None => count(&self.strangers),
        }
    }

    pub(super) fn settled(&self, settled: &Settled, price: Price, now: Instant) {
        let Settled { tenant, model, usage, .. } = settled;
        let model = if self.by_model { Some(model.clone()) } else { None };
        let counted = self.of(tenant, now);
        let mut counts = counted.lock();
        let used = counts.used.entry(model).or_default();
        used.cost += price.of(usage);
        if usage.source == UsageSource::Fixed {
            used.fixed += usage.input.0;
            return;
        }
        used.has_tokens = true;
        for (sum, (_, tokens)) in used.tokens.iter_mut().zip(kinds(usage)) {
            *sum += tokens;
        }
    }

    /// Adds the series of all who are named, and of the others, to a page.
    pub(super) fn write(&self, page: &mut String) {
        let (named, other) = self.roll().named();
        let mut rows: Vec<(String, Counts)> =
            named.iter().map(|(id, counted)| (id.as_str().to_owned(), counted.lock().clone())).collect();
        rows.sort_by(|(one, _), (other, _)| one.cmp(other));
        rows.push((OTHER.to_owned(), other.lock().clone()));
        rows.push((UNKNOWN.to_owned(), self.strangers.lock().clone()));
        write_decided(page, &rows);
        write_used(page, &rows);
    }

    fn of(&self, tenant: &TenantId, now: Instant) -> Arc<Counted> {
        self.roll().of(tenant, now)
    }

    fn roll(&self) -> MutexGuard<'_, Roll<Counted>> {
        self.roll.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counted {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        // Counts that a panic left half added are off by one call.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write_decided(page: &mut String, rows: &[(String, Counts)]) {
    let series = rows.iter().flat_map(|(tenant, counts)| {
        counts.decided.iter().map(move |((pool, reason), count)| {
            let pool = pool.as_ref().map(|pool| ("pool", pool.as_str()));
            let (decision, reason) = decision(*reason);
            let labels = [("tenant", tenant.as_str()), ("decision", decision), ("reason", reason)];
            (pool.into_iter().chain(labels), *count)
        })
    });
    ADMISSIONS.write(page, series);
}

fn write_used(page: &mut String, rows: &[(String, Counts)]) {
    type Number = fn(&Used) -> u64;
    let of_models = || {
        rows.iter().flat_map(|(tenant, counts)| {
            counts.used.iter().map(move |(model, used)| {
                let model = model.as_ref().map(|model| ("model", model.as_str()));
                ([("tenant", tenant.as_str())].into_iter().chain(model), used)
            })
        })
    };
    let tokens = of_models().filter(|(_, used)| used.has_tokens).flat_map(|(labels, used)| {
        let of_kind = move |((kind, _), tokens)| (labels.clone().chain([("kind", kind)]), tokens);
        kinds(&Default::default()).into_iter().zip(used.tokens).map(of_kind)
    });
    TOKENS.write(page, tokens);
    let money: [(Family, Number); 2] = [(COST, |used| used.cost), (FIXED, |used| used.fixed)];
    for (family, number) in money {
        let series = of_models().map(|(labels, used)| (labels, number(used))).filter(|(_, number)| *number > 0);
        family.write(page, series);
    }
}

#[cfg(test)]
mod tests;
