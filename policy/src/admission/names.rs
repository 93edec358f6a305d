//! What replicas call flows among each other.

use super::tenants::Tenants;
use crate::holder::FlowNames;
use crate::ledger::FlowName;
use crate::queue::{Flow, GroupIndex};
use crate::units::GroupName;
use std::collections::BTreeMap;

/// Names by this core's tables.
pub(super) struct Names<'a> {
    pub(super) tenants: &'a Tenants,
    pub(super) groups: &'a BTreeMap<GroupName, GroupIndex>,
}

impl Names<'_> {
    pub(super) fn of(&self, flow: Flow) -> Option<FlowName> {
        // Index 0 is everyone who is in no group, and everyone where groups have no shares.
        let group = self.groups.iter().find(|(_, index)| **index == flow.group).map(|(name, _)| name.clone());
        let tenant = self.tenants.get(flow.tenant)?.id.clone();
        Some(FlowName { group: group.unwrap_or_else(|| "".into()), level: flow.level, tenant })
    }
}

impl FlowNames for Names<'_> {
    fn name(&self, flow: Flow) -> Option<FlowName> {
        self.of(flow)
    }

    fn flow(&self, name: &FlowName) -> Option<Flow> {
        let group = match name.group.as_str() {
            "" => GroupIndex::default(),
            _ => *self.groups.get(&name.group)?,
        };
        Some(Flow { group, tenant: self.tenants.index(&name.tenant)?, level: name.level })
    }
}
