//! Drives the admission core: gives it the clock and the ledger, and wakes the callers it has decided about.
//!
//! The core is locked for microseconds and never across an await. A method that changes it calls [`Engine::pump`] before
//! unlocking, so that a freed slot is given away and the ledger learns of it at once. What that costs depends on what has
//! changed, not on how many pools and tenants there are: metrics are read when their page is made.

mod calls;
pub mod keeping;
mod totals;

pub use totals::Totals;

use crate::home::contract::Accounts;
use crate::ledger::Account;
use crate::metrics::Metrics;
use crate::usage::Usage as UsageRecords;
use calls::Call;
use keeping::Keeping;
use sluice_policy::admission::{Admission, Decision, Event};
use sluice_policy::config::Config;
use sluice_policy::schedule::UnixMillis;
use sluice_policy::units::{AdmissionId, HolderId, Millis, ModelName, Priority, TenantId, Tokens};
use sluice_policy::wire::{
    AdmissionReply, AdmissionRequest, EndedWorker, LiveIds, Outcome, Reason, Refusal, Settlement, Usage, UsageSource,
};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Duration, Instant, sleep_until};

/// Tenants whose costs are read under one lock, in about a tenth of a millisecond.
const COSTS_AT_ONCE: usize = 512;

pub struct Engine {
    started: Instant,
    state: Mutex<State>,
    /// The next timer has moved forward.
    timer: Notify,
    /// `None`: this process decides nothing, and must hold nothing.
    ledger: Option<Arc<dyn Accounts>>,
    /// Where calls to a ledger go that is not in this process.
    calls: mpsc::UnboundedSender<Call>,
    /// A call has ended, or an orphan's time; [`Engine::all_settled`] waits for it.
    settled: Notify,
    metrics: Arc<Metrics>,
    usage: Arc<UsageRecords>,
    /// The last batch of settlements that is safe.
    safe_up_to: watch::Sender<u64>,
    /// When more of them last became safe, or all were.
    safe_since: Mutex<Instant>,
    holder: HolderId,
}

struct State {
    core: Admission,
    /// Who is held; the receiver sits in [`Engine::admit`], which takes the entry out if its caller leaves.
    waiters: HashMap<AdmissionId, oneshot::Sender<AdmissionReply>>,
    totals: Totals,
    keeping: Keeping,
    /// When the timer will ring by itself; `None` for never. Only an earlier moment must wake its task, which also
    /// pumps: waking it for every change would make it wake itself for ever.
    timer_at: Option<Millis>,
    #[cfg(test)]
    pumped: u64,
}

impl Engine {
    /// Starts everything that must happen without a caller, too: `tasks` run until shutdown.
    pub fn start(
        core: Admission,
        ledger: Option<Arc<dyn Accounts>>,
        metrics: Arc<Metrics>,
        usage: Arc<UsageRecords>,
        shutdown: &watch::Receiver<bool>,
        tasks: &mut JoinSet<()>,
    ) -> Arc<Self> {
        let (calls, sent) = mpsc::unbounded_channel();
        let holder = core.replica().id.clone();
        metrics.set_tenants(core.config().tenants.len());
        let state = State {
            core,
            waiters: HashMap::new(),
            totals: Totals::default(),
            keeping: Keeping::default(),
            timer_at: None,
            #[cfg(test)]
            pumped: 0,
        };
        let engine = Arc::new(Self {
            started: Instant::now(),
            state: Mutex::new(state),
            timer: Notify::new(),
            ledger,
            calls,
            settled: Notify::new(),
            metrics,
            usage,
            safe_up_to: watch::Sender::new(0),
            safe_since: Mutex::new(Instant::now()),
            holder,
        });
        let (timed, stop) = (Arc::clone(&engine), shutdown.clone());
        tasks.spawn(async move { timed.run_timer(stop).await });
        if let Some(ledger) = engine.ledger.clone() {
            let (calling, stop) = (Arc::clone(&engine), shutdown.clone());
            tasks.spawn(async move { calling.run_calls(&ledger, sent, stop).await });
        }
        engine
    }

    /// Decides about a call, and holds it while it is queued. Dropping the future takes the call back.
    ///
    /// `granted` is the level that the key's own rule gives. `None` is for a call that was cancelled meanwhile: nobody
    /// reads the answer any more, and it was neither admitted nor refused.
    pub async fn admit(
        &self,
        tenant: &TenantId,
        granted: Option<Priority>,
        request: &AdmissionRequest,
    ) -> Option<AdmissionReply> {
        let mut held = Held { engine: self, id: Some(&request.id) };
        let reply = match self.decide(tenant, granted, request) {
            Ok(reply) => Some(reply),
            // A sender that is gone without a word was taken out by the call's own cancellation.
            Err(receiver) => receiver.await.ok(),
        };
        held.id = None;
        if let Some(reply) = &reply {
            self.count(tenant, request, reply);
        }
        reply
    }

    /// Takes over a configuration; see [`Admission::configure`]. Nobody who waits or runs is lost. `then` puts in force
    /// what lies over it, before anybody starts.
    pub fn configure<R>(&self, config: Config, since: UnixMillis, then: impl FnOnce(&mut Admission, Millis) -> R) {
        self.metrics.set_tenants(config.tenants.len());
        let replaced = self.change(|core, now| (core.configure(config, since, now), then(core, now)));
        // Without the lock: with many tenants it takes long.
        drop(replaced);
    }

    /// Changes the core, and starts whoever may start by it.
    pub fn change<R>(&self, change: impl FnOnce(&mut Admission, Millis) -> R) -> R {
        let mut state = self.lock();
        let result = change(&mut state.core, self.now());
        self.pump(&mut state);
        result
    }

    /// The configuration that is in force; whoever looks at many tenants does it here and not in the core.
    pub fn config(&self) -> Arc<Config> {
        self.read(|core| Arc::clone(core.config()))
    }

    /// What the calls of each tenant have cost since the start.
    pub fn costs(&self) -> BTreeMap<TenantId, Tokens> {
        let mut costs = Vec::new();
        loop {
            // In slices, so that no call waits for all of them.
            let slice = self.read(|core| core.costs(costs.len(), COSTS_AT_ONCE));
            if slice.is_empty() {
                return costs.into_iter().collect();
            }
            costs.extend(slice);
        }
    }

    /// Looks into the core.
    pub fn read<R>(&self, read: impl FnOnce(&Admission) -> R) -> R {
        read(&self.lock().core)
    }

    /// Time since the engine's start, as the core counts it.
    pub fn now(&self) -> Millis {
        Millis(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// Counts a call whose key nobody knows, and keeps why it was refused; there is no tenant to decide for.
    pub fn refused_stranger(&self, request: &AdmissionRequest, refusal: &Refusal) {
        self.metrics.rejected(None, None, refusal.reason);
        let mut state = self.lock();
        state.totals.rejected += 1;
        state.core.refused_stranger(request, refusal, self.now());
    }

    /// A key was refused before its call was complete.
    pub fn refused_caller(&self, reason: Reason) {
        self.lock().totals.rejected += 1;
        self.metrics.rejected(None, None, reason);
    }

    /// Ends calls. Each entry is idempotent. Gives the batch's number, to wait for by [`Engine::safe`].
    pub fn settle(&self, settlements: &[Settlement]) -> u64 {
        let mut state = self.lock();
        let batch = state.keeping.begin();
        for settlement in settlements {
            self.settle_one(&mut state, settlement);
        }
        self.pump(&mut state);
        state.keeping.forget_unlimited();
        self.settled.notify_one();
        batch
    }

    /// A worker has told which of its calls live; the others have ended.
    pub fn hear_of_live(&self, worker: &str, live: &LiveIds) {
        let report = live.of(worker);
        let lost = self.read(|core| core.settlements_of(|id| report.is_over(id)));
        self.metrics.reported(lost.len());
        if !lost.is_empty() {
            tracing::warn!(worker, count = lost.len(), "calls ended and their settlements were lost");
            self.settle(&lost);
        }
        self.lock().core.reported(worker, live, self.now());
    }

    /// An instance of the filter has ended, and what it had sent is settled.
    pub fn hear_of_ended(&self, ended: &EndedWorker) {
        let lost = self.read(|core| core.settlements_of_ended(ended, self.now()));
        self.metrics.reported(lost.len());
        if !lost.is_empty() {
            let EndedWorker { worker, silent_ms, .. } = ended;
            tracing::warn!(worker, ?silent_ms, count = lost.len(), "an instance of the filter ended before its calls");
            self.settle(&lost);
        }
    }

    /// Refuses everything from now on and answers everyone who waits.
    pub fn drain(&self) {
        let mut state = self.lock();
        let events = state.core.drain(self.now());
        self.deliver(&mut state, events);
    }

    /// Returns when no call is live any more and none keeps a slot.
    pub async fn all_settled(&self) {
        while !self.lock().core.is_idle() {
            self.settled.notified().await;
        }
    }

    /// Whether traffic may be sent here; see [`Admission::is_ready`].
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ledger.is_none() || self.lock().core.is_ready()
    }

    #[must_use]
    pub fn totals(&self) -> Totals {
        let state = self.lock();
        state.totals.with_pools(&state.core, self.now())
    }

    /// The page that Prometheus reads. It counts each call whose slot it shows as free, and the other way round.
    ///
    /// # Errors
    /// As [`Metrics::render`].
    pub fn metrics_page(&self) -> Result<String, prometheus::Error> {
        let moment = {
            let state = self.lock();
            self.metrics.moment(state.core.pool_views(self.now()).collect())
        };
        self.metrics.render(moment)
    }

    /// Starts and times out calls when time alone allows it. Runs until shutdown.
    async fn run_timer(&self, mut shutdown: watch::Receiver<bool>) {
        loop {
            let next = {
                let mut state = self.lock();
                self.pump(&mut state);
                state.timer_at = self.next_moment(&state.core, self.now());
                state.timer_at
            };
            tokio::select! {
                () = self.sleep_until(next) => {}
                () = self.timer.notified() => {}
                _ = shutdown.wait_for(|stop| *stop) => return,
            }
        }
    }

    fn decide(
        &self,
        tenant: &TenantId,
        granted: Option<Priority>,
        request: &AdmissionRequest,
    ) -> Result<AdmissionReply, oneshot::Receiver<AdmissionReply>> {
        let mut state = self.lock();
        self.catch_up(&mut state);
        let reply = match state.core.request(tenant, granted, request, self.now()) {
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

    /// After this process stood still, a call may be here before the timer: what time has brought about comes first, or a
    /// lease that has ended meanwhile would refuse who need only ask the ledger in this process.
    fn catch_up(&self, state: &mut State) {
        if state.timer_at.is_some_and(|due| due < self.now()) {
            self.pump(state);
        }
    }

    fn settle_one(&self, state: &mut State, settlement: &Settlement) {
        let settlement = resolved(settlement, state.core.config());
        let settled = state.core.settle(&settlement, self.now());
        state.waiters.remove(&settlement.id);
        let model = settled.as_ref().and_then(|settled| state.core.config().models.get(&settled.model));
        let price = model.map(|model| model.price).unwrap_or_default();
        self.metrics.settled(&settlement, settled.as_ref(), price);
        if let Some(settled) = settled.filter(|settled| settled.usage.source != UsageSource::None) {
            self.usage.count(&settled, price);
            state.keeping.charged(Account::Tenant(settled.tenant));
        }
    }

    /// Lets the core give away what is free, tells the callers, and sets the timers anew.
    fn pump(&self, state: &mut State) {
        #[cfg(test)]
        {
            state.pumped += 1;
        }
        let now = self.now();
        loop {
            let events = state.core.advance(now);
            self.deliver(state, events);
            if !self.call_ledger(state, now) {
                break;
            }
        }
        if self.next_moment(&state.core, now).is_some_and(|next| state.timer_at.is_none_or(|set| next < set)) {
            self.timer.notify_one();
        }
        if state.core.is_idle() {
            self.settled.notify_one();
        }
    }

    /// When time alone changes something: a waiter's deadline, an orphan's end, or a call to the ledger.
    fn next_moment(&self, core: &Admission, now: Millis) -> Option<Millis> {
        let next_call = self.ledger.as_ref().and_then(|_| core.next_ledger_call(now));
        core.next_wake().into_iter().chain(next_call).min()
    }

    /// Makes the calls to the ledger that are due. Tells whether one of them has been answered on the spot.
    fn call_ledger(&self, state: &mut State, now: Millis) -> bool {
        let Some(ledger) = &self.ledger else { return false };
        let State { core, keeping, .. } = state;
        let mut is_answered = false;
        while let Some((account, request)) = core.ask_ledger(now) {
            keeping.asked(&account);
            match ledger.sync_at_once(&account, &request) {
                Some(reply) => {
                    self.metrics.ledger_call("answered");
                    keeping.answered(&account, true);
                    is_answered |= core.ledger_answered(&account, Some(&reply), now);
                }
                // Without a receiver everything ends, and nobody waits for the answer.
                None => drop(self.calls.send(Call { account, request })),
            }
        }
        is_answered
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
        match reply {
            AdmissionReply::Admitted(grant) => {
                self.lock().totals.scheduled += 1;
                let waited = Duration::from_millis(grant.waited_ms.0).as_secs_f64();
                self.metrics.admitted(tenant, &grant.pool, grant.priority, waited);
            }
            AdmissionReply::Rejected(refusal) => {
                let pool = {
                    let mut state = self.lock();
                    state.totals.rejected += 1;
                    let config = state.core.config();
                    let model = request.model.as_deref().map(ModelName::from);
                    let of_model = model.and_then(|model| config.models.get(&model)).map(|model| &model.pool);
                    let of_route = || request.pool.as_ref().filter(|pool| config.pools.contains_key(pool));
                    of_model.or_else(of_route).cloned()
                };
                self.metrics.rejected(Some(tenant), pool.as_ref(), refusal.reason);
            }
        }
    }

    async fn sleep_until(&self, at: Option<Millis>) {
        match at {
            Some(at) => sleep_until(self.started + Duration::from_millis(at.0)).await,
            None => std::future::pending().await,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock was held is a defect; to go on deciding is better than to refuse everyone.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The settlement with the model's own name in it: a call that passed while the service was away tells the client's.
fn resolved<'a>(settlement: &'a Settlement, config: &Config) -> Cow<'a, Settlement> {
    if config.aliases.is_empty() || settlement.charge_to.is_none() {
        return Cow::Borrowed(settlement);
    }
    let mut own = settlement.clone();
    if let Some(charge) = &mut own.charge_to {
        config.resolve_charge(charge);
    }
    Cow::Owned(own)
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
            let left = Settlement {
                id: id.clone(),
                outcome: Outcome::Cancelled,
                usage,
                charge_to: None,
                timing: None,
                abandoned: false,
            };
            // Nobody waits for it to be safe: nothing was charged.
            let _ = self.engine.settle(std::slice::from_ref(&left));
        }
    }
}

#[cfg(test)]
mod tests;
