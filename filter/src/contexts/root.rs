//! The root context: reads the configuration, and sends the outbox on its tick.

use super::incoming::Incoming;
use super::stream::Stream;
use super::{Shared, reply_head};
use crate::config::Config;
use crate::exchange;
use crate::host::{self, Buffer};
use crate::outbox::{BatchNumber, Fate};
use crate::worker::{Counters, Worker};
use log::{error, info};
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::ContextType;
use sluice_policy::wire;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// A freed slot waits at most this long (and Envoy's timer slack) for its settlement.
const TICK: Duration = Duration::from_millis(10);
/// The service answers within three seconds, acknowledging or not; one that takes longer is away.
const SETTLEMENT_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) struct Root {
    context: u32,
    /// Present once the configuration was read.
    shared: Option<Shared>,
    metrics: Metrics,
    /// The batches under way, by the tokens of their callouts.
    batches: BTreeMap<u32, BatchNumber>,
}

/// Envoy's counters; absent ones are not counted.
#[derive(Default)]
struct Metrics {
    failed_open: Option<u32>,
    failed_closed: Option<u32>,
    settlements_dropped: Option<u32>,
    usage_estimated: Option<u32>,
}

impl Metrics {
    fn define() -> Self {
        Self {
            failed_open: host::counter("sluice_filter_failed_open"),
            failed_closed: host::counter("sluice_filter_failed_closed"),
            settlements_dropped: host::counter("sluice_filter_settlements_dropped"),
            usage_estimated: host::counter("sluice_filter_usage_estimated"),
        }
    }

    fn add(&self, counters: Counters) {
        let Counters { failed_open, failed_closed, settlements_dropped, usage_estimated } = counters;
        host::count(self.failed_open, failed_open);
        host::count(self.failed_closed, failed_closed);
        host::count(self.settlements_dropped, settlements_dropped);
        host::count(self.usage_estimated, usage_estimated);
    }
}

impl Context for Root {
    fn on_http_call_response(&mut self, token: u32, headers: usize, _: usize, _: usize) {
        let Some(shared) = &self.shared else { return };
        let Some(number) = self.batches.remove(&token) else { return };
        let (is_decided, status) = if headers == 0 { (false, 0) } else { reply_head() };
        let fate = match (is_decided, status) {
            (true, 200) => Fate::Acknowledged,
            (true, _) => Fate::Postponed,
            (false, _) => Fate::Lost,
        };
        let now = host::now();
        shared.worker.borrow_mut().batch_ended(number, fate, now);
    }
}

impl RootContext for Root {
    fn on_configure(&mut self, size: usize) -> bool {
        proxy_wasm::set_log_level(host::log_level());
        let text = host::bytes(Buffer::PluginConfiguration, 0, size);
        match Config::parse(&text) {
            Ok(config) => {
                self.start(config);
                true
            }
            Err(errors) => {
                for wrong in &errors.0 {
                    error!("sluice filter configuration: {wrong}");
                }
                false
            }
        }
    }

    fn on_tick(&mut self) {
        let Some(shared) = &self.shared else { return };
        let counters = std::mem::take(&mut shared.worker.borrow_mut().counters);
        self.metrics.add(counters);
        if shared.worker.borrow().has_mail(host::now()) {
            self.batches.extend(send_batch(shared));
        }
        if !shared.incoming.borrow().is_empty() {
            let now = host::now();
            let expired = shared.incoming.borrow_mut().expired(now);
            for (stream, refusal, style) in &expired {
                let (reply, tags) = exchange::refused_while_reading(refusal, *style, now);
                host::reply_for(*stream, &reply, &tags, self.context);
            }
        }
    }

    fn create_http_context(&self, context: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Stream::new(context, self.shared.clone())))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

impl Root {
    pub(crate) fn new(context: u32) -> Self {
        Self { context, shared: None, metrics: Metrics::default(), batches: BTreeMap::new() }
    }

    fn start(&mut self, config: Config) {
        info!("sluice filter: mode {:?}, {} routes", config.mode, config.routes.len());
        self.shared = Some(Shared {
            worker: Rc::new(RefCell::new(Worker::new())),
            incoming: Rc::new(RefCell::new(Incoming::new(config.body_timeout))),
            config: Rc::new(config),
        });
        self.metrics = Metrics::define();
        host::tick_every(TICK);
    }
}

fn send_batch(shared: &Shared) -> Option<(u32, BatchNumber)> {
    let now = host::now();
    let (number, batch) = shared.worker.borrow_mut().next_batch(now)?;
    let token = shared.post(wire::SETTLEMENTS_PATH, &batch, SETTLEMENT_TIMEOUT);
    if token.is_none() {
        shared.worker.borrow_mut().batch_ended(number, Fate::Lost, now);
    }
    Some((token?, number))
}
