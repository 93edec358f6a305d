//! Calls whose tenant's account is asked for at the ledger, and when which account is to be asked.

use super::arrival::{Line, Patience};
use super::live::{Live, LiveKey, State};
use super::names::Names;
use super::refusals::{Refused, over_limit, queue_full, shutting_down};
use super::successors::{Successor, Turn};
use super::{Admission, Decision, Event};
use crate::account::{Charge, Limited};
use crate::ledger::{Account, SyncReply, SyncRequest};
use crate::queue::{Full, TenantIndex, Waiter};
use crate::units::Millis;
use crate::wire::Reason;

/// A call that applies for a part of its tenant's account.
#[derive(Clone, Copy, Debug)]
pub(super) struct Applicant {
    key: LiveKey,
    turn: Turn,
    since: Millis,
    patience: Patience,
}

impl Admission {
    /// The next call to the ledger that is due, and for which account.
    pub fn ask_ledger(&mut self, now: Millis) -> Option<(Account, SyncRequest)> {
        let (account, mut request) = self.ask_for_pools(now).or_else(|| self.ask_for_tenants(now))?;
        request.servers = self.servers.known(now);
        Some((account, request))
    }

    /// The ledger's answer, or `None` when it did not answer. Tells whether it was an answer to the latest call. Call
    /// [`Admission::advance`] after it.
    pub fn ledger_answered(&mut self, account: &Account, reply: Option<&SyncReply>, now: Millis) -> bool {
        if let Some(seen) = reply.and_then(|reply| reply.server.as_ref()) {
            self.servers.hear(seen, now);
        }
        match account {
            Account::Pool(name) => {
                let names = Names { tenants: &self.tenants, groups: &self.config.groups };
                self.pools.named_mut(name).is_some_and(|pool| pool.ledger_answered(reply, &names, now))
            }
            Account::Tenant(id) => {
                let Some(index) = self.tenants.index(id) else { return false };
                let state = self.tenants.get_mut(index);
                let taken = state.is_some_and(|state| state.account.ledger_answered(id, reply, now));
                self.hear_applicants(index, now);
                taken
            }
        }
    }

    /// Spreads what is asked again after a call that was not answered; `chance` is drawn for each.
    pub fn back_off(&mut self, account: &Account, chance: u16, now: Millis) {
        match account {
            Account::Pool(name) => {
                let pool = self.pools.named_mut(name);
                pool.into_iter().for_each(|pool| pool.holder.back_off(chance, now));
            }
            Account::Tenant(id) => {
                let index = self.tenants.index(id);
                let tenant = index.and_then(|index| self.tenants.get_mut(index));
                tenant.into_iter().for_each(|tenant| tenant.account.back_off(chance, now));
            }
        }
    }

    /// What another replica's call has changed for this one. Tells whether it was about the latest call. Call
    /// [`Admission::advance`] after it.
    pub fn ledger_noticed(&mut self, account: &Account, notice: &SyncReply, now: Millis) -> bool {
        match account {
            Account::Pool(name) => {
                let names = Names { tenants: &self.tenants, groups: &self.config.groups };
                self.pools.named_mut(name).is_some_and(|pool| pool.holder.noticed(notice, &names))
            }
            Account::Tenant(id) => {
                let Some(index) = self.tenants.index(id) else { return false };
                let taken = self.tenants.get_mut(index).is_some_and(|state| state.account.ledger_noticed(id, notice));
                self.hear_applicants(index, now);
                taken
            }
        }
    }

    /// When [`Admission::ask_ledger`] will have something, if nothing else happens; `None` while all is asked.
    #[must_use]
    pub fn next_ledger_call(&self, now: Millis) -> Option<Millis> {
        let tenants = self.tenant_calls.first().map(|(at, _)| *at);
        self.pools.next_call(now).into_iter().chain(tenants).min()
    }

    /// The last calls of this incarnation: they keep only what still runs.
    pub fn give_back(&mut self, now: Millis) -> Vec<(Account, SyncRequest)> {
        let names = Names { tenants: &self.tenants, groups: &self.config.groups };
        let pools = self.pools.iter_mut();
        let mut calls: Vec<_> =
            pools.map(|pool| (Account::Pool(pool.name.clone()), pool.give_back(&names, now))).collect();
        calls.extend(self.tenants.iter_mut().filter_map(|state| {
            let request = state.account.give_back(&state.id, now)?;
            Some((Account::Tenant(state.id.clone()), request))
        }));
        calls
    }

    /// A call stands in line for its tenant's account.
    pub(super) fn apply_for(
        &mut self,
        live: Live,
        turn: Turn,
        patience: Patience,
        now: Millis,
    ) -> Result<Decision, Refused> {
        let (flow, pool) = (live.flow, live.pool);
        let most = self.config.queue.depth_per_tenant;
        let tenant = self.tenants.get_mut(flow.tenant).filter(|tenant| tenant.applicants.len() < most);
        let Some(tenant) = tenant else {
            let name = self.pools.get(pool).map_or_else(|| "".into(), |pool| pool.name.clone());
            return Err(queue_full(Full::Tenant, &name, flow.level, &self.config.queue));
        };
        let key = self.live.insert(live);
        tenant.applicants.push_back(Applicant { key, turn, since: now, patience });
        self.schedule(flow.tenant, now);
        Ok(Decision::Queued)
    }

    /// Applicants that are not heard yet.
    pub(super) fn applicants(&self) -> impl Iterator<Item = LiveKey> {
        self.tenants.iter().flat_map(|(_, tenant)| tenant.applicants.iter().map(|applicant| applicant.key))
    }

    /// Sets a tenant's next call to the ledger anew; to be called whenever its account has changed.
    pub(super) fn schedule(&mut self, index: TenantIndex, now: Millis) {
        self.successors.stir(index);
        let Some(tenant) = self.tenants.get_mut(index) else { return };
        let Some(next) = tenant.next_ledger_call(now) else { return };
        // A later moment is found out when the earlier one has come.
        if tenant.next_call.is_none_or(|set| next < set) {
            if let Some(set) = tenant.next_call.replace(next) {
                self.tenant_calls.remove(&(set, index));
            }
            self.tenant_calls.insert((next, index));
        }
    }

    /// A call that has begun to run is watched until it must have ended.
    pub(super) fn note_running(&mut self, key: LiveKey, state: State, now: Millis) {
        if let State::Running { .. } = state {
            self.live.start(key, now.plus(self.replica.lease.longest_request));
        }
    }

    fn ask_for_pools(&mut self, now: Millis) -> Option<(Account, SyncRequest)> {
        let live = &self.live;
        let arrived = |waiter: &Waiter| live.get(LiveKey::from_bits(waiter.key)).map_or(now, |live| live.arrived);
        let names = Names { tenants: &self.tenants, groups: &self.config.groups };
        let index = self.pools.take_due_call(now)?;
        let pool = self.pools.get_mut(index)?;
        let request = pool.ask_ledger(&names, arrived, now)?;
        Some((Account::Pool(pool.name.clone()), request))
    }

    fn ask_for_tenants(&mut self, now: Millis) -> Option<(Account, SyncRequest)> {
        while let Some((_, index)) = self.tenant_calls.first().copied().filter(|(at, _)| *at <= now) {
            self.tenant_calls.pop_first();
            let Some(tenant) = self.tenants.get_mut(index) else { continue };
            tenant.next_call = None;
            let first = tenant.applicants.front();
            let first = first.and_then(|first| {
                let live = self.live.get(first.key)?;
                Some((live.draw(self.routes.price(live.model)), first.since))
            });
            let count = tenant.applicants();
            let request = tenant.account.ask_ledger(&tenant.id, count, first, now);
            let account = Account::Tenant(tenant.id.clone());
            match request {
                Some(request) => return Some((account, request)),
                None => self.schedule(index, now),
            }
        }
        None
    }

    /// The ledger has said something about a tenant: charges its applicants in order, until one must wait on.
    fn hear_applicants(&mut self, index: TenantIndex, now: Millis) {
        self.bring_up_to_date(index, now);
        while let Some(tenant) = self.tenants.get_mut(index) {
            let Some(applicant) = tenant.applicants.front().copied() else { break };
            let Some(live) = self.live.get(applicant.key).cloned() else {
                // Its caller has left.
                tenant.heard();
                continue;
            };
            match tenant.account.charge_applicant(live.draw(self.routes.price(live.model)), applicant.since, now) {
                Charge::Ask => break,
                Charge::Charged => {
                    tenant.heard();
                    self.let_in(applicant, live, now);
                }
                Charge::Refused(limited) => {
                    tenant.heard();
                    match self.may_succeed(&live, applicant.patience, limited, now) {
                        Some(until) => {
                            let Applicant { key, turn, patience, .. } = applicant;
                            self.live.update(key, Live { state: State::Succeeding(turn), ..live });
                            self.successors.add(index, turn, Successor { key, patience, until });
                        }
                        None => {
                            let refusal = self.over_limit(&live, limited, now);
                            let refused = self.turn_away(applicant.key, refusal, now);
                            self.news.extend(refused);
                        }
                    }
                }
            }
        }
        self.schedule(index, now);
    }

    /// Until when a call that was refused so may wait for its tenant's next slot; `None` where it may not.
    pub(super) fn may_succeed(&self, live: &Live, patience: Patience, limited: Limited, now: Millis) -> Option<Millis> {
        let most = self.config.queue.concurrent_wait;
        let until = live.arrived.plus(patience.deadline.map_or(most, |deadline| deadline.min(most)));
        let has_room = u64::try_from(self.successors.count(live.flow.tenant)).is_ok_and(|count| count < limited.most);
        let draw = live.draw(self.routes.price(live.model));
        let lacks_only_a_slot = || {
            let tenant = self.tenants.get(live.flow.tenant);
            tenant.is_some_and(|tenant| tenant.account.has_drawn_out_nothing(draw, now))
        };
        let is_worth_it = limited.reason == Reason::TenantConcurrency && until > now && has_room;
        (is_worth_it && lacks_only_a_slot()).then_some(until)
    }

    /// The refusal of a call of a tenant that has reached a limit.
    pub(super) fn over_limit(&self, live: &Live, limited: Limited, now: Millis) -> Refused {
        let (Some(tenant), Some(pool)) = (self.tenants.get(live.flow.tenant), self.pools.get(live.pool)) else {
            return shutting_down().into();
        };
        let next_end = tenant.next_end(pool.pace.typical_service(), pool.drain_time(now), now);
        over_limit(&tenant.id, limited, next_end)
    }

    /// Charges calls that wait for their tenant's next slot, in order, where one may have come.
    pub(super) fn hear_successors(&mut self, now: Millis) {
        while let Some(index) = self.successors.take_stirred() {
            self.bring_up_to_date(index, now);
            while self.hear_successor(index, now) {}
        }
    }

    /// Charges the first of a tenant's line; `false` where it must wait on, or nobody waits.
    fn hear_successor(&mut self, index: TenantIndex, now: Millis) -> bool {
        let Some((turn, Successor { key, patience, .. })) = self.successors.first(index) else { return false };
        let Some(live) = self.live.get(key).cloned() else { return false };
        let Some(tenant) = self.tenants.get_mut(index) else { return false };
        match tenant.charge(live.draw(self.routes.price(live.model)), now) {
            Charge::Charged => {
                self.successors.remove(index, turn);
                self.let_in(Applicant { key, turn, since: live.arrived, patience }, live, now);
            }
            Charge::Ask => {
                self.successors.remove(index, turn);
                // It has waited since it arrived, and waits for the ledger no longer than any other.
                tenant.applicants.push_back(Applicant { key, turn, since: live.arrived, patience });
                self.live.update(key, Live { state: State::Applying, ..live });
                self.schedule(index, now);
            }
            Charge::Refused(limited) if limited.reason == Reason::TenantConcurrency => return false,
            Charge::Refused(limited) => {
                let refusal = self.over_limit(&live, limited, now);
                let refused = self.turn_away(key, refusal, now);
                self.news.extend(refused);
            }
        }
        true
    }

    /// Refuses calls for whose tenant no slot has come in time.
    pub(super) fn time_out_successors(&mut self, now: Millis, events: &mut Vec<Event>) {
        while let Some(Successor { key, .. }) = self.successors.take_due(now) {
            let Some(live) = self.live.get(key) else { continue };
            let Some(tenant) = self.tenants.get(live.flow.tenant) else { continue };
            let refusal = self.over_limit(live, tenant.account.too_many(), now);
            events.extend(self.turn_away(key, refusal, now));
        }
    }

    fn let_in(&mut self, applicant: Applicant, mut live: Live, now: Millis) {
        self.weigh_in(live.pool, live.flow.tenant);
        let Some(pool) = self.pools.get(live.pool) else { return };
        let standing = pool.queue.standing(live.flow);
        let held = self.tenants.get(live.flow.tenant).map_or(0, |tenant| tenant.waiting_bytes);
        let line = Line { patience: applicant.patience, standing, held };
        match self.enter(&mut live, applicant.key, line, now) {
            Ok(granted) => {
                let (id, state) = (live.id.clone(), live.state);
                self.live.update(applicant.key, live);
                self.note_running(applicant.key, state, now);
                self.news.extend(granted.map(|grant| Event::Started(id, grant)));
            }
            Err(refusal) => {
                if let Some(tenant) = self.tenants.get_mut(live.flow.tenant) {
                    tenant.account.release(live.draw(self.routes.price(live.model)), live.arrived);
                }
                let refused = self.turn_away(applicant.key, refusal, now);
                self.news.extend(refused);
            }
        }
    }
}
