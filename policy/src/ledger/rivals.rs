//! Which flows compete, over all holders: as in a queue (`queue/tree/rivals.rs`), a tenant's best level in each group, on
//! whatever holder it waits there.

use super::AccountLedger;
use super::message::FlowName;
use crate::queue::SharePolicy;
use crate::units::{GroupName, Millis, Priority, TenantId};
use std::collections::{BTreeMap, BTreeSet};

impl FlowName {
    /// Of two flows with the same one only that of the better level competes.
    fn owner(&self) -> (&GroupName, &TenantId) {
        (&self.group, &self.tenant)
    }
}

/// The flows of these that compete.
fn best_of<'a>(flows: impl Iterator<Item = &'a FlowName>, policy: SharePolicy) -> BTreeSet<FlowName> {
    let mut rivals = BTreeSet::new();
    let mut best: BTreeMap<(&GroupName, &TenantId), Priority> = BTreeMap::new();
    for flow in flows {
        if !policy.shares_level(flow.level) {
            rivals.insert(flow.clone());
        } else {
            let level = best.entry(flow.owner()).or_insert(flow.level);
            *level = flow.level.min(*level);
        }
    }
    let flow = |((group, tenant), level): ((&GroupName, &TenantId), Priority)| FlowName {
        group: group.clone(),
        level,
        tenant: tenant.clone(),
    };
    rivals.extend(best.into_iter().map(flow));
    rivals
}

impl AccountLedger {
    /// The flows that compete, of all that wait anywhere.
    pub(super) fn rivals(&self, now: Millis) -> BTreeSet<FlowName> {
        let fresh = self.shares.values().filter(|share| share.has_fresh_rows(now));
        best_of(fresh.flat_map(|share| share.rows.keys()), self.policy())
    }

    /// The same, of those that have calls without a slot.
    pub(super) fn open_rivals(&self, now: Millis) -> BTreeSet<FlowName> {
        let fresh = self.shares.values().filter(|share| share.has_fresh_rows(now));
        best_of(fresh.flat_map(|share| share.open_rows().map(|(flow, _)| flow)), self.policy())
    }

    /// Whether a flow has calls without a slot.
    pub(super) fn is_open(&self, flow: &FlowName, now: Millis) -> bool {
        let mut fresh = self.shares.values().filter(|share| share.has_fresh_rows(now));
        fresh.any(|share| share.open_rows().any(|(open, _)| open == flow))
    }

    /// Lifts the branches of flows that did not compete `before`, and do now or are told anew.
    pub(super) fn wake_all<'a>(&mut self, flows: impl Iterator<Item = &'a FlowName>, before: &BTreeSet<FlowName>) {
        for flow in flows.filter(|flow| !before.contains(flow)) {
            self.order.wake(flow, before.iter());
        }
    }

    fn policy(&self) -> SharePolicy {
        self.terms.as_ref().map_or(SharePolicy::Strict, |terms| terms.policy)
    }
}
