//! What Envoy holds for the calls of this worker until they go on, and at whose expense.
//!
//! A call is its tenant's once the service has said whose key it bears. Until then it is a *stranger's*, and is charged to
//! the address that it comes from. Strangers have a budget apart from the tenants', so they take nothing from them; a tenant
//! has a share of the tenants' budget, so it leaves room for others.
//!
//! **Invariant**: every sum here is that of the calls in `calls`, and so is zero when there are none.

mod questions;

use crate::caller::{CallerKey, Digest};
use crate::source::Source;
use questions::Questions;
use sluice_policy::units::{Millis, TenantId};
use std::collections::{BTreeMap, HashMap};

/// What one worker holds at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Bytes of bodies, over all tenants.
    pub(crate) paused_bytes: u64,
    /// Bytes of bodies of one tenant.
    pub(crate) tenant_bytes: u64,
    /// Streams of one tenant that are open and have sent no message yet.
    pub(crate) tenant_idle_streams: u64,
    /// Over all strangers.
    pub(crate) strangers: Amount,
    /// Of the strangers of one address.
    pub(crate) source: Amount,
}

/// What some calls hold together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    pub(crate) calls: u64,
    pub(crate) header_bytes: u64,
    pub(crate) body_bytes: u64,
}

/// Which budget has no room for a call, or for more of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    Strangers,
    TenantBytes,
    TenantIdleStreams,
    Worker,
}

/// The number of a call that holds something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HoldingId(u64);

#[derive(Debug)]
struct Holding {
    owner: Owner,
    body_bytes: u64,
    /// A stream that may idle, and from which nothing has come.
    is_idle: bool,
}

#[derive(Debug)]
enum Owner {
    Tenant(TenantId),
    Stranger { key: Digest, source: Source, header_bytes: u64 },
}

/// Of one tenant.
#[derive(Debug, Default)]
struct Share {
    calls: u64,
    body_bytes: u64,
    idle_streams: u64,
}

#[derive(Debug)]
pub(crate) struct Holdings {
    limits: Limits,
    latest: u64,
    calls: BTreeMap<HoldingId, Holding>,
    tenants: HashMap<TenantId, Share>,
    /// Bytes of bodies, over all tenants.
    paused_bytes: u64,
    strangers: Amount,
    sources: HashMap<Source, Amount>,
    questions: Questions,
}

impl Amount {
    fn plus(self, other: Amount) -> Amount {
        Amount {
            calls: self.calls.saturating_add(other.calls),
            header_bytes: self.header_bytes.saturating_add(other.header_bytes),
            body_bytes: self.body_bytes.saturating_add(other.body_bytes),
        }
    }

    fn minus(self, other: Amount) -> Amount {
        Amount {
            calls: self.calls.saturating_sub(other.calls),
            header_bytes: self.header_bytes.saturating_sub(other.header_bytes),
            body_bytes: self.body_bytes.saturating_sub(other.body_bytes),
        }
    }

    fn is_within(self, limit: Amount) -> bool {
        self.calls <= limit.calls && self.header_bytes <= limit.header_bytes && self.body_bytes <= limit.body_bytes
    }
}

impl Holdings {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            latest: 0,
            calls: BTreeMap::new(),
            tenants: HashMap::new(),
            paused_bytes: 0,
            strangers: Amount::default(),
            sources: HashMap::new(),
            questions: Questions::default(),
        }
    }

    /// A call of a known tenant, whose body is to come.
    pub(crate) fn of_tenant(&mut self, tenant: &TenantId, is_idle: bool) -> Result<HoldingId, Full> {
        let idle_streams = self.tenants.get(tenant).map_or(0, |share| share.idle_streams);
        if is_idle && idle_streams >= self.limits.tenant_idle_streams {
            return Err(Full::TenantIdleStreams);
        }
        let share = self.tenants.entry(tenant.clone()).or_default();
        share.calls += 1;
        share.idle_streams += u64::from(is_idle);
        Ok(self.add(Holding { owner: Owner::Tenant(tenant.clone()), body_bytes: 0, is_idle }))
    }

    /// A call whose key this worker does not know.
    pub(crate) fn of_stranger(
        &mut self,
        key: &CallerKey,
        source: Source,
        header_bytes: u64,
        is_idle: bool,
        now: Millis,
    ) -> Result<HoldingId, Full> {
        self.take(source, Amount { calls: 1, header_bytes, body_bytes: 0 })?;
        let owner = Owner::Stranger { key: key.digest(), source, header_bytes };
        let id = self.add(Holding { owner, body_bytes: 0, is_idle });
        self.questions.concerns(key, id, now);
        Ok(id)
    }

    /// Envoy holds so many bytes of the call's body by now.
    pub(crate) fn hold(&mut self, id: HoldingId, total_bytes: u64) -> Result<(), Full> {
        let Some(holding) = self.calls.get(&id) else { return Ok(()) };
        let more = total_bytes.saturating_sub(holding.body_bytes);
        if more == 0 {
            return Ok(());
        }
        match &holding.owner {
            Owner::Stranger { source, .. } => {
                self.take(*source, Amount { body_bytes: more, ..Amount::default() })?;
            }
            Owner::Tenant(tenant) => {
                let paused = self.paused_bytes.saturating_add(more);
                let share = self.tenants.entry(tenant.clone()).or_default();
                let own = share.body_bytes.saturating_add(more);
                if own > self.limits.tenant_bytes {
                    return Err(Full::TenantBytes);
                }
                if paused > self.limits.paused_bytes {
                    return Err(Full::Worker);
                }
                share.body_bytes = own;
                share.idle_streams = share.idle_streams.saturating_sub(u64::from(holding.is_idle));
                self.paused_bytes = paused;
            }
        }
        if let Some(holding) = self.calls.get_mut(&id) {
            holding.body_bytes = total_bytes;
            holding.is_idle = false;
        }
        Ok(())
    }

    /// Of what was held of the call's body, no more than this is.
    pub(crate) fn keep(&mut self, id: HoldingId, bytes: u64) {
        let Some(holding) = self.calls.get_mut(&id) else { return };
        let less = holding.body_bytes.saturating_sub(bytes);
        holding.body_bytes -= less;
        match &holding.owner {
            Owner::Stranger { source, .. } => {
                let less = Amount { body_bytes: less, ..Amount::default() };
                self.strangers = self.strangers.minus(less);
                if let Some(own) = self.sources.get_mut(source) {
                    *own = own.minus(less);
                }
            }
            Owner::Tenant(tenant) => {
                self.paused_bytes = self.paused_bytes.saturating_sub(less);
                if let Some(share) = self.tenants.get_mut(tenant) {
                    share.body_bytes = share.body_bytes.saturating_sub(less);
                }
            }
        }
    }

    /// Nothing is held for this call any more.
    pub(crate) fn end(&mut self, id: HoldingId) {
        let Some(holding) = self.calls.remove(&id) else { return };
        match &holding.owner {
            Owner::Stranger { key, source, header_bytes } => {
                self.questions.ends(*key, id);
                self.give_back(*source, *header_bytes, holding.body_bytes);
            }
            Owner::Tenant(tenant) => {
                self.paused_bytes = self.paused_bytes.saturating_sub(holding.body_bytes);
                let Some(share) = self.tenants.get_mut(tenant) else { return };
                share.calls = share.calls.saturating_sub(1);
                share.body_bytes = share.body_bytes.saturating_sub(holding.body_bytes);
                share.idle_streams = share.idle_streams.saturating_sub(u64::from(holding.is_idle));
                if share.calls == 0 {
                    self.tenants.remove(tenant);
                }
            }
        }
    }

    /// The service has said whose key this is: its calls are its tenant's from now on. They may exceed what the tenant may
    /// hold, by no more than what strangers may hold: the next ones do not.
    pub(crate) fn verified(&mut self, key: Digest, tenant: &TenantId) {
        for id in self.questions.answered(key) {
            let Some(holding) = self.calls.get_mut(&id) else { continue };
            let (body_bytes, is_idle) = (holding.body_bytes, holding.is_idle);
            let before = std::mem::replace(&mut holding.owner, Owner::Tenant(tenant.clone()));
            if let Owner::Stranger { source, header_bytes, .. } = before {
                self.give_back(source, header_bytes, body_bytes);
            }
            let share = self.tenants.entry(tenant.clone()).or_default();
            share.calls += 1;
            share.body_bytes = share.body_bytes.saturating_add(body_bytes);
            share.idle_streams += u64::from(is_idle);
            self.paused_bytes = self.paused_bytes.saturating_add(body_bytes);
        }
    }

    /// What is held of a call's body.
    pub(crate) fn body_bytes(&self, id: HoldingId) -> u64 {
        self.calls.get(&id).map_or(0, |holding| holding.body_bytes)
    }

    /// The key of a call that is still a stranger's.
    pub(crate) fn stranger(&self, id: HoldingId) -> Option<Digest> {
        match self.calls.get(&id)?.owner {
            Owner::Stranger { key, .. } => Some(key),
            Owner::Tenant(_) => None,
        }
    }

    /// The key to ask the service about now, because of this call.
    pub(crate) fn question(&mut self, id: HoldingId, now: Millis) -> Option<CallerKey> {
        self.questions.of(self.stranger(id)?, now)
    }

    /// The keys to ask the service about now: their calls wait for longer than an admission takes.
    pub(crate) fn questions(&mut self, now: Millis) -> Vec<CallerKey> {
        self.questions.due(now)
    }

    /// Bytes of the tenants' bodies.
    pub(crate) fn paused_bytes(&self) -> u64 {
        self.paused_bytes
    }

    /// What all strangers hold.
    pub(crate) fn strangers(&self) -> Amount {
        self.strangers
    }

    fn add(&mut self, holding: Holding) -> HoldingId {
        self.latest += 1;
        let id = HoldingId(self.latest);
        self.calls.insert(id, holding);
        id
    }

    /// Charges more to a stranger, if both it and all strangers together may hold it.
    fn take(&mut self, source: Source, more: Amount) -> Result<(), Full> {
        let all = self.strangers.plus(more);
        let own = self.sources.get(&source).copied().unwrap_or_default().plus(more);
        if !all.is_within(self.limits.strangers) || !own.is_within(self.limits.source) {
            return Err(Full::Strangers);
        }
        self.strangers = all;
        self.sources.insert(source, own);
        Ok(())
    }

    /// A whole call is no longer charged to its source.
    fn give_back(&mut self, source: Source, header_bytes: u64, body_bytes: u64) {
        let less = Amount { calls: 1, header_bytes, body_bytes };
        self.strangers = self.strangers.minus(less);
        let Some(own) = self.sources.get_mut(&source) else { return };
        *own = own.minus(less);
        if own.calls == 0 {
            self.sources.remove(&source);
        }
    }
}

#[cfg(test)]
mod tests;
