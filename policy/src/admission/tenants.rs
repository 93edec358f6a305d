//! Tenants and models by index, so that a decision looks names up once.

use super::adoption::Adoption;
use super::applicants::Applicant;
use super::hashed::{hash, spread};
use super::starts::Starts;
use super::yields::Yields;
use crate::account::{Charge, Clocks, TenantAccount};
use crate::config::{Config, Model, Tenant};
use crate::estimate::Yield;
use crate::holder::Replica;
use crate::ledger::{Draw, Version};
use crate::queue::{GroupIndex, TenantIndex};
use crate::units::{Millis, ModelName, Priority, TenantId, Tokens};
use hashbrown::HashTable;
use rustc_hash::FxHashMap;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

/// A model, by its place in [`Tenants`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ModelIndex(u32);

/// What a decision needs to know of a tenant's configuration. Without its keys and limits, so that ten thousand tenants
/// stay near the processor.
#[derive(Debug)]
pub(super) struct Terms {
    pub(super) namespace: Arc<str>,
    pub(super) tier: Arc<str>,
    /// A pointer and no more in the state of a tenant: few have such a list.
    #[allow(clippy::box_collection)]
    models: Option<Box<BTreeSet<ModelName>>>,
    pub(super) group: GroupIndex,
    pub(super) default_priority: Priority,
    pub(super) ceiling: Priority,
    pub(super) disabled: bool,
}

impl Terms {
    fn of(id: &TenantId, tenant: &Tenant, tiers: &mut BTreeSet<Arc<str>>) -> Self {
        // Every grant counts its copies of these texts, so what is the same text had better be the same memory.
        let is_own = *tenant.namespace == *id.as_str();
        let namespace = if is_own { id.to_shared() } else { tenant.namespace.clone() };
        tiers.insert(tenant.tier.clone());
        Self {
            namespace,
            tier: tiers.get(&tenant.tier).unwrap_or(&tenant.tier).clone(),
            models: tenant.models.clone().map(Box::new),
            group: tenant.group,
            default_priority: tenant.default_priority,
            ceiling: tenant.ceiling,
            disabled: tenant.disabled,
        }
    }

    /// Whether it may use a model, or, when the call names none, every model of the pool it would reach.
    pub(super) fn allow<'a>(
        &self,
        model: Option<&ModelName>,
        mut of_pool: impl Iterator<Item = (&'a ModelName, &'a Model)>,
    ) -> bool {
        let Some(allowed) = &self.models else { return true };
        match model {
            Some(model) => allowed.contains(model),
            None => of_pool.all(|(name, _)| allowed.contains(name)),
        }
    }
}

/// One tenant: what the configuration says of it, and what it has.
///
/// Aligned so that it lies in three cache lines; of ten thousand tenants none is near the processor.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct TenantState {
    pub(super) id: TenantId,
    /// As configured; `None` when a reload has taken the tenant away while its last calls run.
    pub(super) terms: Option<Terms>,
    pub(super) account: TenantAccount,
    /// Calls that wait for the ledger's word on the account, the first to come first. Some may have left.
    pub(super) applicants: VecDeque<Applicant>,
    /// When the ledger is asked next, as [`super::Admission::schedule`] has set it.
    pub(super) next_call: Option<Millis>,
    /// When each of its running calls began.
    running: Starts,
    /// Request bytes that Envoy holds for its waiting calls.
    pub(super) waiting_bytes: u64,
    /// What its calls have cost so far, in weighted tokens.
    pub(super) served: Tokens,
    /// What its calls usually yield, by model.
    pub(super) yields: Yields,
    /// Beside other tenants of its level.
    pub(super) weight: u32,
    /// The latest change that it has taken over, by [`Adoption::latest`].
    adopted: u32,
}

const _: () = assert!(size_of::<TenantState>() <= 256);

/// A tenant is here from its first call on. Indices are given once and stay: a reload takes no tenant and no model out of
/// the tables.
#[derive(Debug, Default)]
pub(super) struct Tenants {
    states: Vec<TenantState>,
    /// Every state's index, with the hash of its id.
    by_id: HashTable<(u32, TenantIndex)>,
    /// The texts of all tiers.
    tiers: BTreeSet<Arc<str>>,
    models: Vec<ModelName>,
    /// By model, the most that a sequence of any tenant has yielded.
    most_yielded: Vec<Option<Tokens>>,
    model_indices: FxHashMap<ModelName, ModelIndex>,
}

impl Tenants {
    /// A tenant that has no state yet; its limits begin full.
    pub(super) fn add(
        &mut self,
        id: &TenantId,
        settings: &Tenant,
        replica: &Replica,
        (version, clocks): (Version, Clocks),
        adoption: &Adoption,
    ) -> TenantIndex {
        let index = TenantIndex(self.len());
        let entry = (hash(id), index);
        self.by_id.insert_unique(spread(entry.0), entry, |(hash, _)| spread(*hash));
        self.states.push(TenantState {
            id: id.clone(),
            terms: Some(Terms::of(id, settings, &mut self.tiers)),
            account: TenantAccount::new(&settings.limits, version, replica, clocks),
            applicants: VecDeque::new(),
            next_call: None,
            running: Starts::default(),
            waiting_bytes: 0,
            served: Tokens::ZERO,
            yields: Yields::default(),
            weight: adoption.weight(id, settings.weight),
            adopted: adoption.latest(),
        });
        index
    }

    /// Brings a tenant up to date: under new limits it keeps what it has. Gives its weight where anything was new.
    pub(super) fn adopt(
        &mut self,
        index: TenantIndex,
        config: &Config,
        replica: &Replica,
        (version, clocks): (Version, Clocks),
        adoption: &Adoption,
    ) -> Option<u32> {
        let state = self.states.get_mut(usize::try_from(index.0).ok()?)?;
        if state.adopted == adoption.latest() {
            return None;
        }
        let settings = config.tenants.get(&state.id);
        if adoption.has_config(state.adopted) {
            state.account.turn(clocks);
        } else {
            state.terms = settings.map(|settings| Terms::of(&state.id, settings, &mut self.tiers));
            if let Some(settings) = settings {
                state.account.set_limits(&settings.limits, version, replica, clocks);
            }
        }
        state.weight = adoption.weight(&state.id, settings.map_or(1, |settings| settings.weight));
        state.adopted = adoption.latest();
        Some(state.weight)
    }

    /// How many have ever called.
    pub(super) fn len(&self) -> u32 {
        u32::try_from(self.states.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn index(&self, id: &TenantId) -> Option<TenantIndex> {
        let wanted = hash(id);
        let is_it = |(hash, index): &(u32, TenantIndex)| {
            *hash == wanted && self.get(*index).is_some_and(|state| state.id == *id)
        };
        self.by_id.find(spread(wanted), is_it).map(|(_, index)| *index)
    }

    pub(super) fn get(&self, index: TenantIndex) -> Option<&TenantState> {
        self.states.get(usize::try_from(index.0).ok()?)
    }

    pub(super) fn get_mut(&mut self, index: TenantIndex) -> Option<&mut TenantState> {
        self.states.get_mut(usize::try_from(index.0).ok()?)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut TenantState> {
        self.states.iter_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (TenantIndex, &TenantState)> {
        (0..).map(TenantIndex).zip(&self.states)
    }

    pub(super) fn model_index(&mut self, name: &ModelName) -> ModelIndex {
        if let Some(index) = self.model_indices.get(name) {
            return *index;
        }
        let index = ModelIndex(u32::try_from(self.models.len()).unwrap_or(u32::MAX));
        self.models.push(name.clone());
        self.most_yielded.push(None);
        self.model_indices.insert(name.clone(), index);
        index
    }

    /// The most that a sequence of this model has yielded, and at least what is reserved where nothing is known; `None`
    /// before the first.
    pub(super) fn most_yielded(&self, model: ModelIndex) -> Option<Tokens> {
        let most = self.most_yielded.get(usize::try_from(model.0).ok()?).copied().flatten()?;
        Some(most.max(Yield::UNKNOWN))
    }

    pub(super) fn has_yielded(&mut self, model: ModelIndex, output: Tokens) {
        if let Some(most) = usize::try_from(model.0).ok().and_then(|place| self.most_yielded.get_mut(place)) {
            *most = (*most).max(Some(output));
        }
    }

    /// A model that is or was configured.
    pub(super) fn known_model(&self, name: &ModelName) -> Option<&ModelName> {
        self.model_indices.get_key_value(name).map(|(known, _)| known)
    }

    pub(super) fn model(&self, index: ModelIndex) -> Option<&ModelName> {
        self.models.get(usize::try_from(index.0).ok()?)
    }
}

impl TenantState {
    /// Charges a call, unless others wait for the ledger's word before it.
    pub(super) fn charge(&mut self, draw: Draw, now: Millis) -> Charge {
        let applicants = self.applicants();
        self.account.charge(draw, applicants, now)
    }

    /// How many wait for the ledger's word on the account.
    pub(super) fn applicants(&self) -> u32 {
        u32::try_from(self.applicants.len()).unwrap_or(u32::MAX)
    }

    /// The first applicant has its answer, or has left.
    pub(super) fn heard(&mut self) {
        self.applicants.pop_front();
        self.account.stopped_applying();
    }

    pub(super) fn next_ledger_call(&self, now: Millis) -> Option<Millis> {
        self.account.next_ledger_call(self.applicants(), now)
    }

    pub(super) fn has_started(&mut self, at: Millis) {
        self.running.add(at);
    }

    pub(super) fn has_ended(&mut self, since: Millis) {
        self.running.remove(since);
    }

    /// About when the next of its own calls ends: after what the oldest is still expected to run, or, once that has
    /// passed, after as long again as it has run. When all of them wait, after the `drain` of the queue as well.
    pub(super) fn next_end(&self, typical: Millis, drain: Millis, now: Millis) -> Millis {
        match self.running.oldest() {
            None => drain.plus(typical),
            Some(since) => {
                let elapsed = now.since(since);
                if elapsed < typical { typical.since(elapsed) } else { elapsed }
            }
        }
    }
}
