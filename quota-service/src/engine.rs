//! Drives the admission core: gives it the clock and the ledger, and wakes the callers it has decided about.
//!
//! The core is locked for microseconds and never across an await. Whoever changes it calls [`Engine::pump`] before
//! unlocking, so that a freed slot is given away in the same breath.

mod totals;

pub use totals::{PoolStats, Totals};

use crate::ledger::{Account, Ledger};
use crate::metrics::Metrics;
use sluice_policy::admission::{Admission, Decision, Event};
use sluice_policy::ledger::{SyncReply, SyncRequest};
use sluice_policy::units::{AdmissionId, HolderId, Millis, PoolName, Priority, TenantId};
use sluice_policy::wire::{AdmissionReply, AdmissionRequest, Outcome, Reason, Refusal, Settlement, Usage};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Duration, Instant, sleep_until};

/// How often changed tenant accounts are written to the ledger.
const MIRROR_EVERY: Duration = Duration::from_secs(1);

pub struct Engine {
    started: Instant,
    state: Mutex<State>,
    /// The next timer has moved forward.
    timer: Notify,
    /// The same for the ledger call of each pool.
    ledger_timers: BTreeMap<PoolName, Notify>,
    /// A call has ended; [`Engine::all_settled`] waits for it.
    settled: Notify,
    metrics: Arc<Metrics>,
    holder: HolderId,
    incarnation: u64,
}

struct State {
    core: Admission,
    /// Who is held; the receiver sits in [`Engine::admit`], which takes the entry out if its caller leaves.
    waiters: HashMap<AdmissionId, oneshot::Sender<AdmissionReply>>,
    totals: Totals,
    /// When the timer will ring by itself; `None` for never. Only an earlier moment must wake its task, which also
    /// pumps: waking it for every change would make it wake itself for ever.
    timer_at: Option<Millis>,
    #[cfg(test)]
    pumped: u64,
}

impl Engine {
    pub fn new(core: Admission, holder: HolderId, incarnation: u64, metrics: Arc<Metrics>, started: Instant) -> Self {
        let pools = core.config().pools.keys();
        let ledger_timers = pools.map(|name| (name.clone(), Notify::new())).collect();
        for (name, pool) in &core.config().pools {
            metrics.capacity.with_label_values(&[name.as_str()]).set(i64::from(pool.concurrent));
        }
        let state = State {
            core,
            waiters: HashMap::new(),
            totals: Totals::default(),
            timer_at: None,
            #[cfg(test)]
            pumped: 0,
        };
        Self {
            started,
            state: Mutex::new(state),
            timer: Notify::new(),
            ledger_timers,
            settled: Notify::new(),
            metrics,
            holder,
            incarnation,
        }
    }

    /// Starts everything that must happen without a caller.
    pub fn spawn(
        self: &Arc<Self>,
        ledger: &Arc<dyn Ledger>,
        shutdown: &watch::Receiver<bool>,
        tasks: &mut JoinSet<()>,
    ) {
        let (engine, stop) = (Arc::clone(self), shutdown.clone());
        tasks.spawn(async move { engine.run_timer(stop).await });
        for pool in self.ledger_timers.keys() {
            let (engine, ledger, stop) = (Arc::clone(self), Arc::clone(ledger), shutdown.clone());
            let pool = pool.clone();
            tasks.spawn(async move { engine.run_lease(&pool, &*ledger, stop).await });
        }
        let (engine, ledger, stop) = (Arc::clone(self), Arc::clone(ledger), shutdown.clone());
        tasks.spawn(async move { engine.run_mirror(&*ledger, stop).await });
    }

    /// Decides about a call, and holds it while it is queued. Dropping the future takes the call back.
    pub async fn admit(&self, tenant: &TenantId, request: &AdmissionRequest) -> AdmissionReply {
        let mut held = Held { engine: self, id: Some(&request.id) };
        let reply = match self.decide(tenant, request) {
            Ok(reply) => reply,
            // The sender goes only when it has sent, or when the call was cancelled and nobody reads this any more.
            Err(receiver) => receiver.await.unwrap_or_else(|_| AdmissionReply::Rejected(shutting_down())),
        };
        held.id = None;
        self.count(tenant, request, &reply);
        reply
    }

    /// Counts a call whose key nobody knows; there is no tenant to decide for.
    pub fn count_unknown_key(&self) {
        self.lock().totals.rejected += 1;
        self.metrics.rejected(None, None, Reason::UnknownKey);
    }

    /// Ends calls. Each entry is idempotent.
    pub fn settle(&self, settlements: &[Settlement]) {
        let mut state = self.lock();
        for settlement in settlements {
            self.settle_one(&mut state, settlement);
        }
        self.pump(&mut state);
        self.settled.notify_one();
    }

    /// Refuses everything from now on and answers everyone who waits.
    pub fn drain(&self) {
        let mut state = self.lock();
        let events = state.core.drain(self.now());
        self.deliver(&mut state, events);
    }

    /// Returns when no call is live any more.
    pub async fn all_settled(&self) {
        while !self.lock().core.is_idle() {
            self.settled.notified().await;
        }
    }

    /// Whether traffic may be sent here; see [`Admission::is_ready`].
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.lock().core.is_ready()
    }

    #[must_use]
    pub fn totals(&self) -> Totals {
        let state = self.lock();
        state.totals.with_pools(&state.core, self.now())
    }

    /// Starts and times out calls when time alone allows it. Runs until shutdown.
    async fn run_timer(&self, mut shutdown: watch::Receiver<bool>) {
        loop {
            let next = {
                let mut state = self.lock();
                self.pump(&mut state);
                state.timer_at = state.core.next_wake(self.now());
                state.timer_at
            };
            tokio::select! {
                () = self.sleep_until(next) => {}
                () = self.timer.notified() => {}
                _ = shutdown.wait_for(|stop| *stop) => return,
            }
        }
    }

    /// Keeps a pool's lease. Runs until shutdown, and then gives back what it holds.
    async fn run_lease(&self, pool: &PoolName, ledger: &dyn Ledger, mut shutdown: watch::Receiver<bool>) {
        let account = Account::Pool(pool.clone());
        let Some(changed) = self.ledger_timers.get(pool) else { return };
        let mut outage = Outage::default();
        loop {
            let due = self.lock().core.ask_ledger(pool, self.now());
            if let Some(request) = due {
                let reply = self.ask(ledger, &account, &request, &mut outage).await;
                let mut state = self.lock();
                state.core.ledger_answered(pool, reply.as_ref(), self.now());
                self.pump(&mut state);
                continue;
            }
            let next = self.lock().core.next_ledger_call(pool, self.now());
            tokio::select! {
                () = self.sleep_until(next) => {}
                () = changed.notified() => {}
                _ = shutdown.wait_for(|stop| *stop) => break,
            }
        }
        let farewell = self.lock().core.give_back(pool, self.now());
        if let Some(request) = farewell {
            self.ask(ledger, &account, &request, &mut outage).await;
        }
    }

    /// Takes over what the ledger knows of the tenants, then keeps it up to date there. Runs until shutdown.
    async fn run_mirror(&self, ledger: &dyn Ledger, mut shutdown: watch::Receiver<bool>) {
        let tenants: Vec<TenantId> = self.lock().core.config().tenants.keys().cloned().collect();
        let mut mirror = Mirror::default();
        let mut is_last = false;
        loop {
            for tenant in &tenants {
                if self.mirror(tenant, ledger, &mut mirror).await.is_none() {
                    break;
                }
            }
            if is_last {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(MIRROR_EVERY) => {}
                // Once more: a restart in good order forgets nothing.
                _ = shutdown.wait_for(|stop| *stop) => is_last = true,
            }
        }
    }

    /// Tells the ledger about one tenant, if anything has changed; `None` when it does not answer.
    async fn mirror(&self, tenant: &TenantId, ledger: &dyn Ledger, mirror: &mut Mirror) -> Option<()> {
        let state = self.lock().core.account_state(tenant, self.now())?;
        if mirror.told.get(tenant) == Some(&state) {
            return Some(());
        }
        mirror.seq += 1;
        let request = self.mirror_request(mirror.seq, &state);
        let account = Account::Tenant(tenant.clone());
        let reply = self.ask(ledger, &account, &request, &mut mirror.outage).await?;
        if let Some(restored) = &reply.restored {
            self.lock().core.restore_account(tenant, restored, self.now());
        } else {
            mirror.told.insert(tenant.clone(), state);
        }
        Some(())
    }

    fn decide(
        &self,
        tenant: &TenantId,
        request: &AdmissionRequest,
    ) -> Result<AdmissionReply, oneshot::Receiver<AdmissionReply>> {
        let mut state = self.lock();
        let reply = match state.core.request(tenant, request, self.now()) {
            Decision::Admitted(grant) => AdmissionReply::Admitted(grant),
            Decision::Rejected(refusal) => AdmissionReply::Rejected(refusal),
            Decision::Queued => {
                let (sender, receiver) = oneshot::channel();
                state.waiters.insert(request.id.clone(), sender);
                self.pump(&mut state);
                return Err(receiver);
            }
        };
        self.pump(&mut state);
        Ok(reply)
    }

    fn settle_one(&self, state: &mut State, settlement: &Settlement) {
        let settled = state.core.settle(settlement, self.now());
        state.waiters.remove(&settlement.id);
        self.metrics.settled(settlement, settled.as_ref());
    }

    /// Lets the core give away what is free, tells the callers, and sets the timers anew.
    fn pump(&self, state: &mut State) {
        #[cfg(test)]
        {
            state.pumped += 1;
        }
        let now = self.now();
        let events = state.core.advance(now);
        self.deliver(state, events);
        if state.core.next_wake(now).is_some_and(|next| state.timer_at.is_none_or(|set| next < set)) {
            self.timer.notify_one();
        }
        for (pool, timer) in &self.ledger_timers {
            if state.core.next_ledger_call(pool, now).is_some_and(|at| at <= now) {
                timer.notify_one();
            }
        }
        self.gauge(state, now);
    }

    fn deliver(&self, state: &mut State, events: Vec<Event>) {
        for event in events {
            let (id, reply) = match event {
                Event::Started(id, grant) => (id, AdmissionReply::Admitted(grant)),
                Event::Refused(id, refusal) => (id, AdmissionReply::Rejected(refusal)),
            };
            let Some(waiter) = state.waiters.remove(&id) else { continue };
            // A caller who has just left gives back what it got: `Held` is dropped with the receiver.
            let _ = waiter.send(reply);
        }
    }

    fn count(&self, tenant: &TenantId, request: &AdmissionRequest, reply: &AdmissionReply) {
        let mut state = self.lock();
        match reply {
            AdmissionReply::Admitted(grant) => {
                state.totals.scheduled += 1;
                let waited = Duration::from_millis(grant.waited_ms.0).as_secs_f64();
                self.metrics.admitted(tenant, &grant.pool, grant.priority, waited);
            }
            AdmissionReply::Rejected(refusal) => {
                state.totals.rejected += 1;
                let models = &state.core.config().models;
                let pool = request.model.as_ref().and_then(|model| models.get(model));
                self.metrics.rejected(Some(tenant), pool, refusal.reason);
            }
        }
    }

    fn gauge(&self, state: &State, now: Millis) {
        for name in state.core.config().pools.keys() {
            let label = [name.as_str()];
            self.metrics.running.with_label_values(&label).set(i64::from(state.core.running(name)));
            self.metrics.held.with_label_values(&label).set(i64::from(state.core.held(name, now)));
            for level in Priority::all() {
                let depth = i64::try_from(state.core.queue_depth(name, level)).unwrap_or(i64::MAX);
                let priority = u8::from(level).to_string();
                self.metrics.queue_depth.with_label_values(&[name.as_str(), &priority]).set(depth);
            }
        }
    }

    async fn ask(
        &self,
        ledger: &dyn Ledger,
        account: &Account,
        request: &SyncRequest,
        outage: &mut Outage,
    ) -> Option<SyncReply> {
        let answer = ledger.sync(account, request).await;
        self.metrics.ledger_call(answer.is_ok());
        match answer {
            Ok(reply) => {
                outage.over(account);
                Some(reply)
            }
            Err(error) => {
                outage.met(account, &error);
                None
            }
        }
    }

    fn mirror_request(&self, seq: u64, (in_flight, levels): &(u32, BTreeMap<String, i64>)) -> SyncRequest {
        SyncRequest {
            holder: self.holder.clone(),
            incarnation: self.incarnation,
            seq,
            keep: *in_flight,
            want: *in_flight,
            // A tenant's limit is enforced here, by the one replica there is; the ledger only shows it.
            capacity: u32::MAX,
            lease: Millis(60_000),
            longest_request: Millis::ZERO,
            spent: 0,
            levels: levels.clone(),
        }
    }

    async fn sleep_until(&self, at: Option<Millis>) {
        match at {
            Some(at) => sleep_until(self.started + Duration::from_millis(at.0)).await,
            None => std::future::pending().await,
        }
    }

    fn now(&self) -> Millis {
        Millis(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock was held is a defect; to go on deciding is better than to refuse everyone.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that is held. If its caller leaves before it is answered, everything it was charged is given back.
struct Held<'a> {
    engine: &'a Engine,
    id: Option<&'a AdmissionId>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            let usage = Usage::default();
            let left = Settlement { id: id.clone(), outcome: Outcome::Cancelled, usage, unadmitted: None };
            self.engine.settle(std::slice::from_ref(&left));
        }
    }
}

/// What the ledger has been told of the tenants.
#[derive(Default)]
struct Mirror {
    seq: u64,
    told: HashMap<TenantId, (u32, BTreeMap<String, i64>)>,
    outage: Outage,
}

/// Logs the beginning and the end of a ledger's silence, not every failed call.
#[derive(Default)]
struct Outage(bool);

impl Outage {
    fn met(&mut self, account: &Account, error: &crate::ledger::LedgerError) {
        if !std::mem::replace(&mut self.0, true) {
            tracing::warn!(%account, %error, "the ledger does not answer; what is leased goes on until it ends");
        }
    }

    fn over(&mut self, account: &Account) {
        if std::mem::replace(&mut self.0, false) {
            tracing::info!(%account, "the ledger answers again");
        }
    }
}

fn shutting_down() -> Refusal {
    Refusal {
        status: 503,
        reason: Reason::ShuttingDown,
        message: "the quota service is shutting down".to_owned(),
        param: None,
        retry_after_ms: Some(Millis(1_000)),
        waited_ms: Millis::ZERO,
        rates: Vec::new(),
    }
}

#[cfg(test)]
mod tests;
