//! What is in force: the configuration, then the time rules, then the operators' overlay; adaptive weights beside them.
//!
//! Each is applied to the running core at once and together, and nobody who waits loses a place. The overlay beats the
//! file until it is deleted; it is versioned, and lives in the ledger, so that all replicas have the same.

mod clock;
mod status;

pub use clock::{Rehearsal, WallClock};
pub use status::{OverlayStatus, TimeRulesStatus};

use crate::api_error::ApiError;
use crate::audit::Audit;
use crate::engine::Engine;
use crate::home::contract::Documents;
use crate::home::overlay::Overlay;
use crate::identity::{Identity, SharedIdentity};
use crate::secrets::Secrets;
use crate::settings::Settings;
use sluice_policy::adaptive::{Adapting, served};
use sluice_policy::admission::Admission;
use sluice_policy::config::Config;
use sluice_policy::config::reader::{ConfigError, ConfigErrors, Section, read_document};
use sluice_policy::ledger::Version;
use sluice_policy::schedule::{Change, Settings as Effective, UnixMillis};
use sluice_policy::units::Millis;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, watch};
use tokio::time::Duration;

/// How often a change of the overlay is tried anew when somebody else was faster.
const MOST_ATTEMPTS: usize = 5;

pub struct Control {
    engine: Arc<Engine>,
    identity: SharedIdentity,
    config_file: PathBuf,
    clock: WallClock,
    audit: Audit,
    documents: Arc<dyn Documents>,
    state: Mutex<State>,
    /// The rules or the adaptive window have changed.
    changed: Notify,
}

#[derive(Default)]
struct State {
    overlay: Overlay,
    /// The ledger did not answer when it was last asked for it.
    overlay_is_missing: bool,
    adapting: Adapting,
    /// What was in force when it was last looked at, to say what changed.
    active: Vec<String>,
    /// When a rule or a reload last changed what is in force.
    since: UnixMillis,
    reloads: Reloads,
}

impl State {
    fn put_in_force(&self, core: &mut Admission, now: UnixMillis, core_now: Millis) {
        let since = u64::try_from(self.since.0).unwrap_or(0);
        let version = Version { file: core.config().revision, overlay: self.overlay.version, since };
        core.apply(&effective(core.config(), &self.overlay, now), version, core_now);
        core.turn_budgets(now, core_now);
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Reloads {
    pub taken: u64,
    pub refused: u64,
}

impl Control {
    pub fn new(
        engine: Arc<Engine>,
        identity: SharedIdentity,
        config_file: PathBuf,
        clock: WallClock,
        audit: Audit,
        documents: Arc<dyn Documents>,
    ) -> Self {
        let state = State { since: clock.now(), ..State::default() };
        Self {
            engine,
            identity,
            config_file,
            clock,
            audit,
            documents,
            state: Mutex::new(state),
            changed: Notify::new(),
        }
    }

    /// Follows the time rules and the adaptive window. Runs until shutdown.
    pub async fn run(&self, mut shutdown: watch::Receiver<bool>) {
        let mut overlays = self.documents.overlay_changes();
        loop {
            self.look_for_overlay().await;
            self.apply();
            self.adapt();
            tokio::select! {
                () = self.until_next_change() => {}
                () = self.changed.notified() => {}
                Some(()) = overlays.recv() => {}
                _ = shutdown.wait_for(|stop| *stop) => return,
            }
        }
    }

    /// Puts in force what holds at this moment.
    pub fn apply(&self) {
        let mut state = self.lock();
        let now = self.clock.now();
        let active: Vec<String> =
            self.engine.read(|core| core.config().time_rules.active(now).map(|rule| rule.name.clone()).collect());
        if active != state.active {
            self.audit.log(
                "time rules",
                format!("active now: [{}], before: [{}]", active.join(", "), state.active.join(", ")),
            );
            state.active = active;
            state.since = now;
        }
        self.engine.change(|core, core_now| state.put_in_force(core, now, core_now));
    }

    /// Takes over what operators have set at another replica.
    async fn look_for_overlay(&self) {
        let own = self.lock().overlay.clone();
        let overlay = match self.documents.overlay().await {
            // Redis has lost it.
            Ok(overlay) if overlay.version < own.version => {
                self.documents.replace_overlay(own.version - 1, own.change.as_ref()).await
            }
            overlay => overlay,
        };
        let was_missing = std::mem::replace(&mut self.lock().overlay_is_missing, overlay.is_err());
        match overlay {
            Ok(overlay) => {
                if was_missing {
                    tracing::info!("the operators' overlay is found again");
                }
                self.take_overlay(overlay);
            }
            Err(error) if !was_missing => {
                tracing::warn!(%error, "the operators' overlay cannot be looked up; the one before goes on");
            }
            Err(_) => {}
        }
    }

    /// The later of two overlays counts.
    fn take_overlay(&self, overlay: Overlay) {
        let mut state = self.lock();
        if overlay.version > state.overlay.version {
            let change = serde_json::json!(overlay.change);
            self.audit.log("overlay", format!("version {}: {change}", overlay.version));
            state.overlay = overlay;
        }
    }

    /// Reads an overlay from a request's body and puts it in force at all replicas, in place of the one before.
    ///
    /// # Errors
    /// All that is wrong with it, or the ledger does not answer; nothing has changed then, as far as is known. One that sets
    /// nothing is wrong: who sends it has forgotten something, or wants the overlay deleted.
    pub async fn set_overlay(&self, body: &serde_json::Value) -> Result<OverlayStatus, ApiError> {
        if body.as_object().is_some_and(|fields| fields.values().all(serde_json::Value::is_null)) {
            let problem = "sets nothing: name weights or pools, or DELETE the overlay to be without one".to_owned();
            return Err(ConfigErrors(vec![ConfigError { path: ".".to_owned(), problem }]).into());
        }
        let change = self.read_change(body, Change::read)?;
        self.replace_overlay(|_| Some(change.clone())).await
    }

    /// Sets only the levels' weights in the overlay.
    ///
    /// # Errors
    /// As [`Control::set_overlay`].
    pub async fn set_weights(&self, body: &serde_json::Value) -> Result<OverlayStatus, ApiError> {
        let change = self.read_change(body, |section, base, groups| {
            section.required("weights", section.raw("weights"));
            if section.has("pools") {
                section.error("pools", "is not set here; PUT /admin/scheduler/overlay sets both");
            }
            Change { pools: BTreeMap::new(), ..Change::read(section, base, groups) }
        })?;
        self.replace_overlay(|before| Some(Change { weights: change.weights, ..before.unwrap_or_default() })).await
    }

    /// Deletes the overlay: the file and its time rules hold again.
    ///
    /// # Errors
    /// The ledger does not answer.
    pub async fn clear_overlay(&self) -> Result<OverlayStatus, ApiError> {
        self.replace_overlay(|_| None).await
    }

    /// Reads the configuration file again and takes over what can change while running: pools, tenants, keys, groups,
    /// rules, the queue. Listeners, the ledger and exporters are taken over by the next start.
    ///
    /// # Errors
    /// All that is wrong with the file; the old configuration goes on then.
    pub fn reload(&self) -> Result<Reloads, ConfigErrors> {
        let in_force = self.engine.read(|core| core.replica().lease);
        let read = Settings::load(&self.config_file).and_then(|settings| {
            settings.check_against(&in_force)?;
            Ok((Secrets::open(&settings)?, settings))
        });
        let (secrets, settings) = match read {
            Ok(read) => read,
            Err(errors) => {
                self.lock().reloads.refused += 1;
                tracing::warn!(%errors, "the configuration was not taken over; the one before goes on");
                return Err(errors);
            }
        };
        {
            let mut state = self.lock();
            let now = self.clock.now();
            state.since = now;
            let mut config = settings.policy.clone();
            config.keep_group_indices(&self.engine.config().groups);
            let weights = state.adapting.weights(&config);
            self.engine.configure(config, now, |core, core_now| {
                state.put_in_force(core, now, core_now);
                core.weigh_tenants(Arc::new(weights))
            });
        }
        self.identity.replace(Identity::new(&settings.policy, secrets.peppers));
        self.apply();
        self.changed.notify_one();
        self.audit.log("reload", format!("took over {}", self.config_file.display()));
        let mut state = self.lock();
        state.reloads.taken += 1;
        Ok(state.reloads)
    }

    fn read_change(
        &self,
        body: &serde_json::Value,
        read: impl Fn(&Section<'_>, &Effective, &std::collections::BTreeSet<String>) -> Change,
    ) -> Result<Change, ConfigErrors> {
        self.engine.read(|core| {
            let (base, groups) = (core.config().settings(), core.config().group_names());
            read_document(body, |section| Some(read(section, &base, &groups)))
        })
    }

    async fn replace_overlay(
        &self,
        replace: impl Fn(Option<Change>) -> Option<Change>,
    ) -> Result<OverlayStatus, ApiError> {
        let (stored, own) = (self.documents.overlay().await?, self.lock().overlay.clone());
        let mut before = if own.version > stored.version { own } else { stored };
        for _ in 0..MOST_ATTEMPTS {
            let change = replace(before.change.clone());
            let now = self.documents.replace_overlay(before.version, change.as_ref()).await?;
            if now.version == before.version + 1 && now.change == change {
                self.take_overlay(now);
                self.apply();
                return Ok(self.overlay_status());
            }
            before = now;
        }
        Err(ApiError::Contested)
    }

    /// Moves adaptive weights when a window has passed.
    fn adapt(&self) {
        let mut state = self.lock();
        let now = self.engine.now();
        let config = self.engine.config();
        let served = || served(&config, &self.engine.costs());
        if let Some(weights) = state.adapting.pass(&config.adaptive, served, now) {
            drop(self.engine.change(|core, _| core.weigh_tenants(Arc::new(weights))));
        }
    }

    async fn until_next_change(&self) {
        let (rules, window) = {
            let state = self.lock();
            let (config, now) = (self.engine.config(), self.clock.now());
            let rules = config.next_turn(now).into_iter().chain(config.time_rules.next_change(now)).min();
            (rules, state.adapting.next(&config.adaptive))
        };
        let window = window.map(|end| Duration::from_millis(end.since(self.engine.now()).0));
        // Never long: a wall clock may be set, which a timer would not notice, and news of an overlay may be lost.
        let longest = Duration::from_secs(10);
        let wait = rules.map(|at| self.clock.until(at)).into_iter().chain(window).fold(longest, Duration::min);
        tokio::time::sleep(wait).await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn effective(config: &Config, overlay: &Overlay, now: UnixMillis) -> Effective {
    let mut effective = config.time_rules.effective(&config.settings(), now);
    if let Some(change) = &overlay.change {
        effective.apply(change);
    }
    effective
}
