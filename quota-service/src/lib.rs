//! The quota sidecar: decides about calls beside Envoy, and shows operators what it decided.
//!
//! `main` reads the configuration and hands [`run`] what it named; everything else happens here. Reading order
//! follows the modules below.

pub mod role;
pub mod secret;
pub mod ledger;
pub mod home;
pub mod api_error;
pub mod settings;
pub mod identity;
pub mod secrets;
pub mod server;
pub mod metrics;
pub mod usage;
pub mod audit;
pub mod engine;
pub mod control;
pub mod admission_api;
pub mod admin_api;
pub mod gpu;
pub mod simulate;
pub mod inspect;

use admin_api::UsageReports;
use audit::Audit;
use control::{Control, WallClock};
use engine::{Engine, keeping};
use gpu::GpuView;
use home::Home;
use home::embedded::{EmbeddedHome, StoreError};
use home::link::{FirstContact, Link, RedisSecrets, RedisSettings};
use home::redis::RedisHome;
use identity::{Identity, SharedIdentity};
use metrics::Metrics;
use role::Role;
use secrets::Secrets;
use server::Listener;
use settings::{LedgerHome, Settings};
use sluice_policy::admission::Admission;
use sluice_policy::config::reader::{ConfigError, ConfigErrors};
use sluice_policy::holder::Replica;
use sluice_policy::units::{HolderId, Millis};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Duration, timeout};
use usage::Usage;

/// How long the last settlements may take to be safe: the ledger hears of them at its next tick.
const LAST_SETTLEMENTS: Duration = Duration::from_secs(2);

/// Both listeners, bound.
pub struct Listeners {
    /// `None` where nothing is decided.
    pub filter: Option<Listener>,
    pub operators: TcpListener,
}

impl Listeners {
    /// # Errors
    /// One of them cannot be bound; the message says which.
    pub async fn bind(settings: &Settings, role: Role) -> anyhow::Result<Self> {
        use anyhow::Context;
        let cannot = || format!("listeners.filter: cannot bind {:?}", settings.filter_listener);
        let filter = if role.decides() {
            Some(Listener::for_filter(&settings.filter_listener).await.with_context(cannot)?)
        } else {
            None
        };
        let operators = TcpListener::bind(settings.operators).await;
        let operators =
            operators.with_context(|| format!("listeners.operators: cannot bind {}", settings.operators))?;
        Ok(Self { filter, operators })
    }
}

/// Serves until `shutdown` turns true, reading its configuration again whenever `hang_ups` grows; then answers everyone
/// who waits, takes settlements for a while, and ends.
///
/// # Errors
/// [`ConfigErrors`] where Redis or the ledger's file must not be used as it is; or two metrics bear one name.
pub async fn run(
    role: Role,
    settings: Settings,
    secrets: Secrets,
    listeners: Listeners,
    hang_ups: watch::Receiver<u64>,
    shutdown: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let (home, incarnation) = open_home(&settings, &secrets.redis).await?;
    let metrics = Arc::new(Metrics::new(settings.tenant_by_model)?);
    let gpu_view = GpuView::new(&settings.gpu);
    metrics.also(Box::new(gpu_view.collector()?))?;

    let tenants = settings.policy.tenants.iter().filter(|_| role.watches_gpus() && !settings.gpu.exporters.is_empty());
    let namespaces: BTreeMap<String, String> =
        tenants.map(|(id, tenant)| (tenant.namespace.to_string(), id.to_string())).collect();
    let identity = SharedIdentity::new(Identity::new(&settings.policy, secrets.peppers));
    let id = HolderId::from(settings.holder.as_str());
    let usage = Arc::new(Usage::new(&id, incarnation, Arc::clone(&metrics)));
    let replica = Replica { id, incarnation, lease: settings.terms };
    let core = Admission::new(settings.policy, &replica, Millis::ZERO);

    // Listeners stop after the engine has answered everyone, the tasks with them.
    let (stop, stopped) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let deciding = role.decides().then(|| Arc::clone(&home.accounts));
    let engine = Engine::start(core, deciding, Arc::clone(&metrics), Arc::clone(&usage), &stopped, &mut tasks);
    if role.watches_gpus() {
        tasks.spawn(gpu::run(settings.gpu, namespaces, gpu_view, stopped.clone()));
    }
    let gate = admission_api::router(Arc::clone(&engine), identity.clone(), secrets.filter_secret);
    tasks.spawn(keeping::run(Arc::clone(&engine), Arc::clone(&usage), Arc::clone(&home.usage), stopped.clone()));
    let (audit, entries) = Audit::new();
    tasks.spawn(audit::run(entries, Arc::clone(&home.audit), stopped.clone()));
    let clock = WallClock::new(settings.rehearsal);
    let control =
        Arc::new(Control::new(Arc::clone(&engine), identity, settings.file, clock, audit, Arc::clone(&home.documents)));
    let (following, stop_following) = (Arc::clone(&control), stopped.clone());
    tasks.spawn(async move { following.run(stop_following).await });
    reload_on(hang_ups, Arc::clone(&control), stopped.clone(), &mut tasks);
    let reports = UsageReports { usage: Arc::clone(&usage), home: Arc::clone(&home.usage) };
    let (token, names) = (secrets.operators_token, settings.operators_names);
    let desk = admin_api::router(Arc::clone(&engine), control, reports, token, names);
    if let Some(filter) = listeners.filter {
        tasks.spawn(server::serve(filter, gate, stopped.clone()));
    }
    tasks.spawn(server::serve(Listener::Tcp(listeners.operators), desk, stopped));
    tracing::info!(?role, operators = %settings.operators, embedded = settings.ledger.redis().is_none(), "serving");

    wait_for_stop(shutdown).await;
    tracing::info!("shutting down: answering everyone who waits");
    engine.drain();
    if timeout(settings.drain, engine.all_settled()).await.is_err() {
        tracing::warn!("some calls still run; their settlements wait in Envoy for the next start");
    }
    // Their acknowledgements still go out.
    if timeout(LAST_SETTLEMENTS, engine.all_safe()).await.is_err() {
        tracing::warn!("some settlements are not safe; Envoy keeps them for the next start");
    }
    let _ = stop.send(true);
    while tasks.join_next().await.is_some() {}
    // In this order: the last settlements are counted, then kept.
    for last_word in [usage.flush(&*home.usage).await, home.lifecycle.close().await] {
        if let Err(error) = last_word {
            tracing::error!(%error, "what happened last is not kept");
        }
    }
    Ok(())
}

/// The home, and what it calls this start of ours.
async fn open_home(settings: &Settings, secrets: &RedisSecrets) -> Result<(Home, u64), ConfigErrors> {
    let incarnation = incarnation();
    let retention = settings.usage_retention;
    match &settings.ledger {
        LedgerHome::Redis(redis) => {
            Ok((Home::new(RedisHome::new(connect(redis, secrets).await?, retention)), incarnation))
        }
        LedgerHome::Memory => Ok((Home::new(EmbeddedHome::default()), incarnation)),
        LedgerHome::File(file) => {
            let refuse = |error: StoreError| {
                ConfigErrors(vec![ConfigError { path: "ledger.file".to_owned(), problem: error.to_string() }])
            };
            let home = EmbeddedHome::open(file, incarnation, retention).map_err(refuse)?;
            let incarnation = home.incarnation().unwrap_or(incarnation);
            Ok((Home::new(home), incarnation))
        }
    }
}

/// A Redis that may throw accounts away is refused while nobody depends on it; one that is still away is waited for.
async fn connect(settings: &RedisSettings, secrets: &RedisSecrets) -> Result<Link, ConfigErrors> {
    let refuse = |problem| ConfigErrors(vec![ConfigError { path: "ledger.redis".to_owned(), problem }]);
    let link = Link::new(settings, secrets).map_err(refuse)?;
    if link.first_contact().await.map_err(refuse)? == FirstContact::NotYet {
        tracing::warn!("Redis does not answer yet; starting without it");
    }
    Ok(link)
}

/// Reads the configuration again at every SIGHUP, which `hang_ups` counts.
fn reload_on(
    mut hang_ups: watch::Receiver<u64>,
    control: Arc<Control>,
    mut shutdown: watch::Receiver<bool>,
    tasks: &mut JoinSet<()>,
) {
    tasks.spawn(async move {
        loop {
            tokio::select! {
                Ok(()) = hang_ups.changed() => drop(control.reload()),
                _ = shutdown.wait_for(|stop| *stop) => return,
            }
        }
    });
}

async fn wait_for_stop(mut shutdown: watch::Receiver<bool>) {
    // A sender that is gone cannot stop us any more, which is also a reason to stop.
    let _ = shutdown.wait_for(|stop| *stop).await;
}

/// Grows with every start on a machine whose clock is not set back by more than the time between two starts.
fn incarnation() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}
