//! What calls were charged, on its way to the ledger: each charge is told until a call that told it is answered, always
//! under the number of the first, so that it is counted once.
//!
//! What is charged while a call is unanswered waits and adds up, so however long the ledger is away, no more waits than a
//! sum for each flow; and a call tells a part of that, so no call keeps the ledger from its other callers for long.

use super::FlowNames;
use crate::ledger::{FlowName, MOST_SPENT, Spent};
use crate::queue::Flow;
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::ops::Bound;

/// Of a part, beside [`MOST_SPENT`] flows; with 64 rows, all with the longest names, a call has less than 64 KiB.
const MOST_BYTES: usize = 24 << 10;
/// A flow's number, weight and charge, at their longest, and what is written around them.
const NUMBERS_BYTES: usize = 80;

/// Invariant: before the last call `told` has each flow once, and at most a part of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Charges {
    /// Not told yet.
    new: BTreeMap<Flow, Charged>,
    /// Told and not yet acknowledged.
    told: Vec<Spent>,
    /// The latest call left something out.
    is_more: bool,
    /// Where the latest part ended, if it was not the last one: the next begins behind it.
    after: Option<Flow>,
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

    /// Whether the next call is to follow soon, because the latest one could not tell all.
    pub(super) fn has_more(&self) -> bool {
        self.is_more && !self.is_empty()
    }

    pub(super) fn add(&mut self, flow: Flow, weight: u64, charge: i64) {
        let charged = self.new.entry(flow).or_insert(Charged { weight, charge: 0 });
        charged.weight = weight;
        charged.charge = charged.charge.saturating_add(charge);
    }

    /// What the call of this number tells: what the one before did, if that has no answer, else a part of what is new.
    /// `first` are flows whose picks' charges the ledger takes back with this call.
    pub(super) fn tell(&mut self, seq: u64, first: impl Iterator<Item = Flow>, names: &impl FlowNames) -> &[Spent] {
        if self.told.is_empty() {
            self.tell_part(seq, first, names);
        }
        self.is_more = !self.new.is_empty();
        &self.told
    }

    /// What a call tells that no other one follows.
    pub(super) fn tell_last(&mut self, seq: u64, names: &impl FlowNames) -> &[Spent] {
        self.tell_part(seq, std::iter::empty(), names);
        &self.told
    }

    /// The latest call was answered, and with it all before.
    pub(super) fn answered(&mut self) {
        self.told.clear();
    }

    fn tell_part(&mut self, seq: u64, first: impl Iterator<Item = Flow>, names: &impl FlowNames) {
        let mut room = Room { flows: MOST_SPENT, bytes: MOST_BYTES };
        let behind = (self.after.take().map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let in_turn: Vec<Flow> = self.new.range(behind).map(|(flow, _)| *flow).take(MOST_SPENT).collect();
        let from_the_start: Vec<Flow> = self.new.keys().copied().take(MOST_SPENT).collect();
        for flow in first.chain(in_turn).chain(from_the_start) {
            let Some(Charged { weight, charge }) = self.new.get(&flow).copied() else { continue };
            // A flow that this replica does not know any more has nobody whose turn depends on it.
            let name = names.name(flow).filter(|_| charge != 0);
            if name.as_ref().is_some_and(|name| !room.takes(name)) {
                break;
            }
            self.new.remove(&flow);
            self.told.extend(name.map(|flow| Spent { seq, flow, weight, charge }));
            self.after = Some(flow);
        }
        if self.new.is_empty() {
            self.after = None;
        }
    }

    /// As [`super::Holder::hash_view`].
    pub(super) fn hash_view(&self, rank: impl Fn(u64) -> usize, state: &mut impl Hasher) {
        (&self.new, self.is_more, self.after).hash(state);
        for spent in &self.told {
            (rank(spent.seq), &spent.flow, spent.weight, spent.charge).hash(state);
        }
    }
}

/// What of a part is left.
struct Room {
    flows: usize,
    bytes: usize,
}

impl Room {
    fn takes(&mut self, flow: &FlowName) -> bool {
        let bytes = flow.group.as_str().len() + flow.tenant.as_str().len() + NUMBERS_BYTES;
        let left = (self.flows.checked_sub(1), self.bytes.checked_sub(bytes));
        let (Some(flows), Some(bytes)) = left else { return false };
        *self = Self { flows, bytes };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::{GroupIndex, TenantIndex};
    use crate::units::Priority;

    /// So many bytes in each tenant's name.
    struct Names(usize);

    impl FlowNames for Names {
        fn name(&self, flow: Flow) -> Option<FlowName> {
            let tenant = format!("{:0>width$}", flow.tenant.0, width = self.0);
            Some(FlowName { group: "".into(), level: flow.level, tenant: tenant.as_str().into() })
        }

        fn flow(&self, _: &FlowName) -> Option<Flow> {
            None
        }
    }

    fn flow(tenant: u32) -> Flow {
        Flow { group: GroupIndex(0), tenant: TenantIndex(tenant), level: Priority::LAST }
    }

    fn tell(charges: &mut Charges, seq: u64) -> Vec<Spent> {
        charges.tell(seq, std::iter::empty(), &Names(8)).to_vec()
    }

    fn total(told: &[Spent]) -> i64 {
        told.iter().map(|spent| spent.charge).sum()
    }

    #[test]
    fn an_outage_of_three_thousand_calls_and_a_thousand_tenants_waits_as_a_sum_for_each_and_is_told_in_parts() {
        let mut charges = Charges::default();
        let (mut charged, mut counted) = (0, 0);
        for seq in 1..3_000 {
            for tenant in 0..1_000 {
                charges.add(flow(tenant), 1, 7);
                charged += 7;
            }
            assert!(tell(&mut charges, seq).len() <= MOST_SPENT);
        }
        for seq in 3_000.. {
            let told = tell(&mut charges, seq);
            assert!(told.len() <= MOST_SPENT);
            counted += total(&told);
            charges.answered();
            if !charges.has_more() {
                assert_eq!(seq, 3_016, "a thousand sums take sixteen calls, after those of the first call");
                break;
            }
        }
        assert_eq!(counted, charged);
        assert!(charges.is_empty());
    }

    #[test]
    fn no_part_is_larger_than_its_bytes_however_long_the_names() {
        let mut charges = Charges::default();
        (0..1_000).for_each(|tenant| charges.add(flow(tenant), u64::MAX, i64::MIN));
        let told = charges.tell(u64::MAX, std::iter::empty(), &Names(256)).to_vec();
        let written: usize = told.iter().map(|spent| format!("{spent:?}").len()).sum();
        assert!((60..=MOST_SPENT).contains(&told.len()), "{}", told.len());
        assert!(told.len() * (256 + NUMBERS_BYTES) <= MOST_BYTES, "{written}");
    }

    #[test]
    fn what_is_charged_while_a_call_is_unanswered_is_told_by_the_next_one_that_follows_an_answer() {
        let mut charges = Charges::default();
        charges.add(flow(0), 1, 5);
        assert_eq!(total(&tell(&mut charges, 1)), 5);
        charges.add(flow(0), 1, 3);
        let again = tell(&mut charges, 2);
        assert_eq!(again.iter().map(|spent| (spent.seq, spent.charge)).collect::<Vec<_>>(), [(1, 5)]);
        assert!(charges.has_more());
        charges.answered();
        let rest = tell(&mut charges, 3);
        assert_eq!(rest.iter().map(|spent| (spent.seq, spent.charge)).collect::<Vec<_>>(), [(3, 3)]);
        charges.answered();
        assert!(!charges.has_more() && charges.is_empty());
    }

    #[test]
    fn no_flow_is_left_out_for_long_by_others_that_are_charged_all_the_time() {
        let mut charges = Charges::default();
        charges.add(flow(999), 1, 1);
        let mut is_told = false;
        for seq in 1..=17 {
            (0..999).for_each(|tenant| charges.add(flow(tenant), 1, 1));
            is_told |= tell(&mut charges, seq).iter().any(|spent| spent.flow == Names(8).name(flow(999)).unwrap());
            charges.answered();
        }
        assert!(is_told);
    }

    #[test]
    fn flows_whose_picks_have_started_come_first_and_the_last_call_tells_what_is_new_too() {
        let mut charges = Charges::default();
        (0..1_000).for_each(|tenant| charges.add(flow(tenant), 1, 1));
        let first = charges.tell(1, [flow(777)].into_iter(), &Names(8)).first().cloned();
        assert_eq!(first.map(|spent| spent.flow), Names(8).name(flow(777)));
        assert_eq!(charges.tell_last(2, &Names(8)).len(), 2 * MOST_SPENT);
    }
}
