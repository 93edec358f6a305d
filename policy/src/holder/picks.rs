//! Whose turn it is while somebody waits elsewhere.

use super::FlowNames;
use crate::ledger::FlowName;
use crate::queue::Flow;
use std::collections::BTreeMap;

/// Slots by flow, since the latest call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Picks {
    pub(super) given: BTreeMap<Flow, u32>,
    pub(super) started: BTreeMap<Flow, u32>,
}

impl Picks {
    pub(super) fn left(&self, flow: Flow) -> u32 {
        let given = self.given.get(&flow).copied().unwrap_or(0);
        given.saturating_sub(self.started.get(&flow).copied().unwrap_or(0))
    }

    pub(super) fn take(&mut self, given: &BTreeMap<FlowName, u32>, names: &impl FlowNames) {
        for (name, slots) in given {
            // A flow that is not known here has nobody who waits: its slot goes back with the next call.
            let Some(flow) = names.flow(name) else { continue };
            let known = self.given.entry(flow).or_default();
            *known = (*known).max(*slots);
        }
    }
}
