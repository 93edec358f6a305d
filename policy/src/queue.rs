//! The fair queue of one pool: who is next.
//!
//! Behind P0 the choice is a walk down a tree of virtual counters (`queue/tree.rs`): *group* (where shares are
//! configured), *level*, *tenant inside the level*, the smallest counter first at each step. A counter grows by
//! charge / weight when a call starts and is corrected when it settles; a branch that returns from idle is lifted to
//! the virtual time of its storey, so that nobody claims the past and nobody is punished for it. (Start-time fair queueing, Goyal et al.
//! 1996, with charges known only afterwards.)
//!
//! Everything is found by index: joining, leaving and starting cost O(log flows), whatever the number of waiters.
//!
//! Invariants: the depths, `of_tenant` and `bytes` are the sums over all waiters; a waiter stands in exactly one flow and in
//! exactly one deadline bucket; a flow is active in the tree exactly when it has waiters.

mod deadlines;
mod order;
mod places;
mod settings;
mod tree;

pub use settings::{GroupIndex, QueueSettings, SharePolicy, Shares, TenantIndex};
pub(crate) use tree::MOST_BEHIND;
pub use tree::{Ahead, Branch, ChargedBy, Standing};

use crate::units::{Millis, Priority, Tokens};
use deadlines::Deadlines;
use places::{Line, Places};
use tree::Tree;

/// Names a waiter while it waits. Never reused: a place that was left is told from the one that took its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket {
    index: u32,
    generation: u32,
}

/// Why a queue took nobody in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    Level,
    Tenant,
    Bytes,
}

/// Whose turn a call is charged to: a tenant at a level, in the group that the pool counts the tenant to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    pub group: GroupIndex,
    pub tenant: TenantIndex,
    pub level: Priority,
}

/// Who joins the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiter {
    /// The caller's own name for it.
    pub key: u64,
    pub flow: Flow,
    /// What its start will cost its branch of the tree.
    pub charge: Tokens,
    pub bytes: u64,
    /// When it gives up; rounded up to a multiple of 16 ms.
    pub deadline: Millis,
}

#[derive(Clone, Debug)]
pub struct FairQueue {
    settings: QueueSettings,
    tree: Tree,
    places: Places,
    deadlines: Deadlines,
    /// Waiting calls of each tenant, at all levels, by its index.
    of_tenant: Vec<u32>,
    bytes: u64,
}

impl FairQueue {
    #[must_use]
    pub fn new(settings: QueueSettings) -> Self {
        let tree = Tree::new(settings.shares.clone());
        Self {
            settings,
            tree,
            places: Places::default(),
            deadlines: Deadlines::default(),
            of_tenant: Vec::new(),
            bytes: 0,
        }
    }

    /// Takes a waiter in, behind the others of its flow.
    ///
    /// # Errors
    /// The bound that it would exceed; nothing has changed then.
    pub fn join(&mut self, waiter: Waiter) -> Result<Ticket, Full> {
        self.has_room(&waiter)?;
        self.join_anyway(waiter)
    }

    /// As [`FairQueue::join`], past the bounds: for a call that waits for nothing but an answer.
    ///
    /// # Errors
    /// Four billion wait already.
    pub(crate) fn join_anyway(&mut self, waiter: Waiter) -> Result<Ticket, Full> {
        let index = self.tree.index(waiter.flow);
        let waiter = Waiter { deadline: deadlines::rounded(waiter.deadline), ..waiter };
        let places = &mut self.places;
        let ticket = self.tree.change_line(index, |line: &mut Line| places.join(waiter, line)).flatten();
        let ticket = ticket.ok_or(Full::Level)?;
        self.deadlines.add(ticket, waiter.deadline, places);
        self.bytes += waiter.bytes;
        self.count(waiter.flow.tenant, 1, 0);
        Ok(ticket)
    }

    fn has_room(&self, waiter: &Waiter) -> Result<(), Full> {
        if self.bytes.saturating_add(waiter.bytes) > self.settings.bytes {
            return Err(Full::Bytes);
        }
        if self.tree.depth(waiter.flow.level) >= self.settings.depth_per_level {
            return Err(Full::Level);
        }
        if self.tenant_depth(waiter.flow.tenant) >= self.settings.depth_per_tenant {
            return Err(Full::Tenant);
        }
        Ok(())
    }

    /// Who starts next, if it can.
    #[must_use]
    pub fn head(&self) -> Option<(Ticket, &Waiter)> {
        self.places.first(self.tree.line(self.tree.next()?)?)
    }

    /// The first waiter of one flow.
    #[must_use]
    pub fn head_of(&self, flow: Flow) -> Option<(Ticket, &Waiter)> {
        self.places.first(self.tree.line(self.tree.find(flow)?)?)
    }

    /// The flows that are served next, at most so many: each with its first waiter, its weight beside others of its
    /// level, and how many wait in it.
    #[must_use]
    pub fn first_flows(&self, most: usize) -> Vec<(&Waiter, u64, u32)> {
        let flow = |index| {
            let line = self.tree.line(index)?;
            Some((self.places.first(line)?.1, self.tree.flow(index)?.1, line.len))
        };
        self.tree.first_flows(most).into_iter().filter_map(flow).collect()
    }

    /// Takes a waiter out: it starts, gave up, or left.
    pub fn leave(&mut self, ticket: Ticket) -> Option<Waiter> {
        let waiter = *self.places.get(ticket)?;
        self.deadlines.remove(ticket, waiter.deadline, &mut self.places);
        let index = self.tree.index(waiter.flow);
        let places = &mut self.places;
        self.tree.change_line(index, |line: &mut Line| places.leave(ticket, line));
        self.bytes -= waiter.bytes;
        self.count(waiter.flow.tenant, 0, 1);
        Some(waiter)
    }

    /// A call of this flow starts, from the queue or past an empty one: it is charged to every branch above it.
    ///
    /// What it returns is for [`FairQueue::correct`].
    pub fn charge(&mut self, flow: Flow, charge: Tokens) -> ChargedBy {
        let index = self.tree.index(flow);
        self.tree.charge(index, charge)
    }

    /// A call settled for `actual` where `reserved` had been charged, by the weights that were in force then.
    pub fn correct(&mut self, flow: Flow, by: ChargedBy, reserved: Tokens, actual: Tokens) {
        let index = self.tree.index(flow);
        self.tree.correct(index, by, reserved, actual);
    }

    /// Changes how levels and groups share, from the next start on; nobody loses their place.
    pub fn set_shares(&mut self, shares: Shares) {
        self.tree.set_shares(shares.clone());
        self.settings.shares = shares;
    }

    /// Changes how much the queue holds; whoever waits already stays.
    pub fn set_bounds(&mut self, settings: &QueueSettings) {
        let shares = std::mem::take(&mut self.settings.shares);
        self.settings = QueueSettings { shares, ..settings.clone() };
    }

    /// Changes a tenant's weight beside the others of its level; 1 unless it was set.
    pub fn set_weight(&mut self, tenant: TenantIndex, weight: u64) {
        self.tree.set_weight(tenant, weight);
    }

    /// Whether calls of a tenant wait here, or have waited.
    #[must_use]
    pub fn knows(&self, tenant: TenantIndex) -> bool {
        self.tree.knows(tenant)
    }

    /// A tenant's weight beside the others of its level.
    #[must_use]
    pub fn weight(&self, tenant: TenantIndex) -> u64 {
        u64::from(self.tree.weight(tenant))
    }

    /// The branches of the tree that have waiters, for those who want to know why.
    pub fn branches(&self) -> Vec<Branch> {
        let mut list = Vec::new();
        self.list_branches(&mut list);
        list
    }

    /// As [`FairQueue::branches`], into memory that is there.
    pub(crate) fn list_branches(&self, list: &mut Vec<Branch>) {
        self.tree.list_branches(list);
    }

    /// What starts before a newcomer of this flow, if nobody else comes or leaves: an estimate.
    #[must_use]
    pub fn ahead(&self, standing: &Standing) -> Ahead {
        self.tree.ahead(standing)
    }

    /// How a flow stands, for [`FairQueue::ahead`].
    #[must_use]
    pub fn standing(&self, flow: Flow) -> Standing {
        self.tree.standing(flow)
    }

    /// Everyone who waits.
    #[must_use]
    pub fn everyone(&self) -> Ahead {
        Ahead { calls: u64::try_from(self.len()).unwrap_or(u64::MAX), charge: self.tree.waiting_charge() }
    }

    /// Waiting calls of one tenant, at all levels.
    #[must_use]
    pub fn tenant_depth(&self, tenant: TenantIndex) -> usize {
        let count = usize::try_from(tenant.0).ok().and_then(|index| self.of_tenant.get(index));
        count.map_or(0, |count| usize::try_from(*count).unwrap_or(usize::MAX))
    }

    /// Waiters whose deadline has come.
    #[must_use]
    pub fn overdue(&self, now: Millis) -> Vec<Ticket> {
        self.deadlines.overdue(now, &self.places)
    }

    #[must_use]
    pub fn next_deadline(&self) -> Option<Millis> {
        self.deadlines.next()
    }

    #[must_use]
    pub fn get(&self, ticket: Ticket) -> Option<&Waiter> {
        self.places.get(ticket)
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[must_use]
    pub fn depth(&self, level: Priority) -> usize {
        self.tree.depth(level)
    }

    #[must_use]
    pub fn settings(&self) -> &QueueSettings {
        &self.settings
    }

    #[must_use]
    pub fn shares(&self) -> &Shares {
        self.tree.shares()
    }

    /// At most `most` of those who wait at a level, in the order in which they start if nobody else comes.
    #[must_use]
    pub fn first(&self, level: Priority, most: usize) -> Vec<Waiter> {
        self.tree.first(level, most, &self.places)
    }

    /// Everyone who waits, in no particular order.
    pub fn waiters(&self) -> impl Iterator<Item = (Ticket, &Waiter)> {
        self.places.iter()
    }

    fn count(&mut self, tenant: TenantIndex, more: u32, less: u32) {
        let Ok(index) = usize::try_from(tenant.0) else { return };
        if self.of_tenant.len() <= index {
            self.of_tenant.resize(index.saturating_add(1), 0);
        }
        if let Some(count) = self.of_tenant.get_mut(index) {
            *count = count.saturating_add(more).saturating_sub(less);
        }
    }
}

#[cfg(test)]
mod tests;
