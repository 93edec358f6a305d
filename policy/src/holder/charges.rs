//! What calls were charged, on its way to the ledger: each charge is told until a call that told it is answered, always
//! under the number of the first, so that it is counted once.

use super::FlowNames;
use crate::ledger::Spent;
use crate::queue::Flow;
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Charges {
    /// Since the latest call.
    new: BTreeMap<Flow, Charged>,
    /// Told and not yet acknowledged.
    told: Vec<Spent>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Charged {
    weight: u64,
    charge: i64,
}

impl Charges {
    pub(super) fn is_empty(&self) -> bool {
        self.new.is_empty() && self.told.is_empty()
    }

    pub(super) fn add(&mut self, flow: Flow, weight: u64, charge: i64) {
        let charged = self.new.entry(flow).or_insert(Charged { weight, charge: 0 });
        charged.weight = weight;
        charged.charge = charged.charge.saturating_add(charge);
    }

    /// What the call of this number tells.
    pub(super) fn tell(&mut self, seq: u64, names: &impl FlowNames) -> &[Spent] {
        for (flow, Charged { weight, charge }) in std::mem::take(&mut self.new) {
            if let Some(flow) = names.name(flow).filter(|_| charge != 0) {
                self.told.push(Spent { seq, flow, weight, charge });
            }
        }
        &self.told
    }

    /// The latest call was answered, and with it all before.
    pub(super) fn answered(&mut self) {
        self.told.clear();
    }

    /// As [`super::Holder::hash_view`].
    pub(super) fn hash_view(&self, rank: impl Fn(u64) -> usize, state: &mut impl Hasher) {
        self.new.hash(state);
        for spent in &self.told {
            (rank(spent.seq), &spent.flow, spent.weight, spent.charge).hash(state);
        }
    }
}
