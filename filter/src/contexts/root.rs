//! The root context: reads the configuration, and sends the outbox when a call has ended, and on its tick.

use super::idle::Idle;
use super::incoming::Incoming;
use super::stream::Stream;
use super::{Shared, answer_at_hand, post, reply_head, vm};
use crate::caller::{CallerKey, Digest};
use crate::config::{Config, Service};
use crate::exchange;
use crate::holdings::Holdings;
use crate::host::{self, Bell, Buffer};
use crate::mail::Mail;
use crate::outbox::{BatchNumber, Fate};
use crate::refusal::Style;
use crate::worker::{Counters, Worker};
use log::{error, info};
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::ContextType;
use sluice_policy::units::Millis;
use sluice_policy::wire::{self, CallerRequest};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// What was not sent when it happened waits at most this long, and Envoy's timer slack.
const TICK: Duration = Duration::from_millis(10);
/// The service answers within three seconds, acknowledging or not; one that takes longer is away.
const SETTLEMENT_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) struct Root {
    context: u32,
    /// Present once the configuration was read.
    shared: Option<Shared>,
    metrics: Metrics,
    /// The batches under way, whose they are, by the tokens of their callouts.
    batches: BTreeMap<u32, (Rc<RefCell<Mail>>, BatchNumber)>,
    /// Its last stream has ended, and it waits for answers.
    is_leaving: bool,
    /// The keys that the service is asked about, by the tokens of their callouts.
    questions: BTreeMap<u32, Digest>,
}

/// Envoy's counters; absent ones are not counted.
#[derive(Default)]
struct Metrics {
    failed_open: Option<u32>,
    failed_closed: Option<u32>,
    settlements_dropped: Option<u32>,
    usage_estimated: Option<u32>,
    strangers_refused: Option<u32>,
    stranger_streams: Gauge,
    stranger_bytes: Gauge,
    paused_bytes: Gauge,
}

/// One of Envoy's gauges: the sum over all workers, each of which brings its changes.
#[derive(Default)]
struct Gauge {
    metric: Option<u32>,
    told: u64,
}

impl Gauge {
    fn define(name: &str) -> Self {
        Self { metric: host::gauge(name), told: 0 }
    }

    fn set(&mut self, value: u64) {
        host::change(self.metric, value.cast_signed().wrapping_sub(self.told.cast_signed()));
        self.told = value;
    }
}

impl Metrics {
    fn define() -> Self {
        Self {
            failed_open: host::counter("sluice_filter_failed_open"),
            failed_closed: host::counter("sluice_filter_failed_closed"),
            settlements_dropped: host::counter("sluice_filter_settlements_dropped"),
            usage_estimated: host::counter("sluice_filter_usage_estimated"),
            strangers_refused: host::counter("sluice_filter_strangers_refused"),
            stranger_streams: Gauge::define("sluice_filter_stranger_streams"),
            stranger_bytes: Gauge::define("sluice_filter_stranger_bytes"),
            paused_bytes: Gauge::define("sluice_filter_paused_bytes"),
        }
    }

    fn set(&mut self, holdings: &Holdings) {
        let strangers = holdings.strangers();
        self.stranger_streams.set(strangers.calls);
        self.stranger_bytes.set(strangers.header_bytes.saturating_add(strangers.body_bytes));
        self.paused_bytes.set(holdings.paused_bytes());
    }

    fn add(&self, counters: Counters) {
        let Counters { failed_open, failed_closed, settlements_dropped, usage_estimated, strangers_refused } = counters;
        host::count(self.failed_open, failed_open);
        host::count(self.failed_closed, failed_closed);
        host::count(self.settlements_dropped, settlements_dropped);
        host::count(self.usage_estimated, usage_estimated);
        host::count(self.strangers_refused, strangers_refused);
    }
}

impl Context for Root {
    fn on_http_call_response(&mut self, token: u32, headers: usize, size: usize, _: usize) {
        let Some(shared) = &self.shared else { return };
        if let Some(key) = self.questions.remove(&token) {
            return shared.learn_whose(key, &answer_at_hand(headers, size), self.context);
        }
        let Some((mail, number)) = self.batches.remove(&token) else { return };
        let (is_decided, status) = if headers == 0 { (false, 0) } else { reply_head() };
        let fate = match (is_decided, status) {
            (true, 200) => Fate::Acknowledged,
            (true, _) => Fate::Postponed,
            (false, _) => Fate::Lost,
        };
        let now = host::now();
        mail.borrow_mut().batch_ended(number, fate, now);
        if self.is_leaving && self.batches.is_empty() {
            host::done();
        }
    }

    /// Envoy ends a root context with its last stream. As long as answers are to come it stays to hear them, where the VM
    /// does; what is still to be sent others send.
    fn on_done(&mut self) -> bool {
        let Some(shared) = &self.shared else { return true };
        self.metrics.add(std::mem::take(&mut shared.worker.borrow_mut().counters));
        self.metrics.set(&shared.worker.borrow().holdings);
        // Envoy would go on ticking for a context that is gone.
        host::tick_every(Duration::ZERO);
        self.is_leaving = vm::close(&shared.config.service) && !self.batches.is_empty();
        !self.is_leaving
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
        self.metrics.set(&shared.worker.borrow().holdings);
        if shared.bell.get().is_none() {
            // Only what ticks serves traffic: Envoy tries a configuration out in a VM that it throws away.
            let name = format!("sluice.{}.{}", shared.worker.borrow().mail.borrow().incarnation(), self.context);
            shared.bell.set(Bell::new(&name));
        }
        let now = host::now();
        let lost = vm::beat(now);
        let mut worker = shared.worker.borrow_mut();
        worker.counters.settlements_dropped += lost;
        worker.is_awake();
        let mail = worker.mail.clone();
        drop(worker);
        let service = &shared.config.service;
        self.batches.extend(send_if_any(service, &mail, now));
        for (service, mail) in vm::orphans() {
            self.batches.extend(send_if_any(&service, &mail, now));
        }
        self.questions.extend(ask_whose(shared, now));
        shared.refuse_rejected(now, self.context);
        if !shared.incoming.borrow().is_empty() {
            let expired = shared.incoming.borrow_mut().expired(now, &shared.worker.borrow().holdings);
            Shared::refuse_all(&expired, now, self.context);
        }
        self.end_idle_streams(shared);
    }

    /// A call has ended just now.
    fn on_queue_ready(&mut self, _: u32) {
        let Some(shared) = &self.shared else { return };
        if let Some(bell) = shared.bell.get() {
            bell.heard();
        }
        shared.worker.borrow_mut().is_awake();
        let mail = shared.worker.borrow().mail.clone();
        if mail.borrow().is_to_send_at_once() {
            self.batches.extend(send_batch(&shared.config.service, &mail, host::now()));
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
        Self {
            context,
            shared: None,
            metrics: Metrics::default(),
            batches: BTreeMap::new(),
            is_leaving: false,
            questions: BTreeMap::new(),
        }
    }

    fn end_idle_streams(&self, shared: &Shared) {
        if shared.idle.borrow().is_empty() {
            return;
        }
        let now = host::now();
        let expired = shared.idle.borrow_mut().expired(now);
        for (stream, refusal) in &expired {
            let (reply, tags) = exchange::refused_while_reading(refusal, Style::Grpc, now);
            host::reply_for(*stream, &reply, &tags, self.context);
        }
    }

    fn start(&mut self, config: Config) {
        info!("sluice filter: mode {:?}, {} routes", config.mode, config.routes.len());
        self.shared = Some(Shared {
            worker: Rc::new(RefCell::new(Worker::new(config.holdings, vm::open(&config.service), host::source))),
            incoming: Rc::new(RefCell::new(Incoming::new(config.body_timeout, config.stranger_idle))),
            idle: Rc::new(RefCell::new(Idle::new(config.grpc_idle, config.body_timeout))),
            config: Rc::new(config),
            bell: Rc::default(),
        });
        self.metrics = Metrics::define();
        host::tick_every(TICK);
    }
}

/// Asks about the keys of calls that wait for longer than an admission takes.
fn ask_whose(shared: &Shared, now: Millis) -> Vec<(u32, Digest)> {
    let keys = shared.worker.borrow_mut().holdings.questions(now);
    let ask = |key: &CallerKey| {
        let question = CallerRequest { version: wire::WIRE_VERSION, key: key.proof() };
        Some((shared.ask_whose(&question)?, key.digest()))
    };
    keys.iter().filter_map(ask).collect()
}

type Sent = (u32, (Rc<RefCell<Mail>>, BatchNumber));

fn send_if_any(service: &Service, mail: &Rc<RefCell<Mail>>, now: Millis) -> Option<Sent> {
    if mail.borrow().has_mail(now) { send_batch(service, mail, now) } else { None }
}

fn send_batch(service: &Service, mail: &Rc<RefCell<Mail>>, now: Millis) -> Option<Sent> {
    let (number, batch) = mail.borrow_mut().next_batch(now)?;
    let token = post(service, wire::SETTLEMENTS_PATH, &batch, SETTLEMENT_TIMEOUT);
    if token.is_none() {
        mail.borrow_mut().batch_ended(number, Fate::Lost, now);
    }
    Some((token?, (mail.clone(), number)))
}
