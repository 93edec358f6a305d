//! Envoy as the contexts see it: every call returns, none panics, and a refusal of the host is a debug line.
//!
//! Crossing into the host costs about a microsecond, so headers are fetched all at once.

#[expect(unsafe_code, reason = "the SDK's own host calls panic on a status they do not expect")]
pub(crate) mod abi;
mod pairs;

use crate::exchange::LogTags;
use crate::headers::{HeaderEdit, Headers};
use crate::refusal::LocalReply;
use crate::source::Source;
use abi::HostError;
use log::debug;
use sluice_policy::units::Millis;
use sluice_policy::wire;
use std::time::Duration;

/// Which headers are meant, by their number in the ABI.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Map {
    Request = 0,
    RequestTrailers = 1,
    Response = 2,
    ResponseTrailers = 3,
    CalloutReply = 6,
}

/// Which bytes are meant, by their number in the ABI.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Buffer {
    Request = 0,
    Response = 1,
    CalloutReply = 4,
    PluginConfiguration = 7,
}

/// Kinds of metrics, by their number in the ABI.
#[derive(Clone, Copy, Debug)]
enum Metric {
    Counter = 0,
    Gauge = 1,
}

/// Milliseconds of Envoy's clock; zero when it cannot be read, which only stretches a deadline.
pub(crate) fn now() -> Millis {
    const NS_PER_MS: u64 = 1_000_000;
    noted("the clock", abi::time_ns()).map_or(Millis::ZERO, |time| Millis(time / NS_PER_MS))
}

/// The level that Envoy logs wasm at, so that lines nobody reads are not even formatted.
pub(crate) fn log_level() -> proxy_wasm::types::LogLevel {
    use proxy_wasm::types::LogLevel;
    match abi::log_level() {
        Ok(0) => LogLevel::Trace,
        Ok(1) => LogLevel::Debug,
        _ => LogLevel::Info,
    }
}

pub(crate) fn tick_every(period: Duration) {
    let period_ms = u32::try_from(period.as_millis()).unwrap_or(u32::MAX);
    noted("the tick period", abi::set_tick_period(period_ms));
}

/// Ends the current root context, which has told Envoy before that it was not done.
pub(crate) fn done() {
    noted("an end", abi::done());
}

/// All headers; none when the host has no such map now.
pub(crate) fn headers(map: Map) -> Headers {
    let bytes = noted("a header map", abi::header_pairs(map as u32)).unwrap_or_default();
    Headers::new(pairs::decode(&bytes))
}

/// Applies edits in order. A header that the host refuses is noted and the others still apply.
pub(crate) fn edit_headers(map: Map, edits: &[HeaderEdit]) {
    for edit in edits {
        let done = match edit {
            HeaderEdit::Remove(name) => abi::remove_header(map as u32, name),
            HeaderEdit::Set(name, value) => abi::replace_header(map as u32, name, value),
            HeaderEdit::SetSecret(name, secret) => abi::replace_header(map as u32, name, secret.expose()),
        };
        noted(edit.name(), done);
    }
}

/// Up to `size` bytes of a buffer, from `start` on.
pub(crate) fn bytes(buffer: Buffer, start: usize, size: usize) -> Vec<u8> {
    noted("a buffer", abi::buffer(buffer as u32, start, size)).unwrap_or_default()
}

/// Replaces a whole buffer, and tells whether that worked.
pub(crate) fn replace_bytes(buffer: Buffer, bytes: &[u8]) -> bool {
    noted("replacing a buffer", abi::replace_buffer(buffer as u32, bytes)).is_some()
}

/// Lets a paused request go on to the next filter.
pub(crate) fn resume_request() {
    const REQUEST: u32 = 0;
    noted("resuming a request", abi::continue_stream(REQUEST));
}

/// Answers the client ourselves.
pub(crate) fn reply(reply: &LocalReply) {
    let headers = pairs::encode(reply.headers.iter().map(|(name, value)| (*name, value.as_str())));
    let status = u32::from(reply.status);
    let sent = abi::send_local_response(status, reply.details, &headers, &reply.body, reply.grpc_status);
    noted("answering", sent);
}

/// Tags and answers the client of another context than the current one, which is `own`.
pub(crate) fn reply_for(stream: u32, answer: &LocalReply, tags: &LogTags, own: u32) {
    if noted("another context", abi::set_effective_context(stream)).is_some() {
        tag_all(tags);
        reply(answer);
    }
    noted("the own context", abi::set_effective_context(own));
}

/// Puts each value into the filter state `wasm.<name>`, for access logs.
pub(crate) fn tag_all(tags: &LogTags) {
    for (name, value) in tags {
        noted(name, abi::set_property(name, value));
    }
}

/// Envoy's response flags: bits that tell how a stream ended.
pub(crate) fn response_flags() -> u64 {
    let bytes = noted("response.flags", abi::property("response\0flags")).unwrap_or_default();
    <[u8; 8]>::try_from(bytes.as_slice()).map_or(0, u64::from_le_bytes)
}

/// Envoy's details of a response: a word for what sent it, or for what ended the stream.
pub(crate) fn response_details() -> String {
    let bytes = noted("response.code_details", abi::property("response\0code_details")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Where the request at hand comes from, behind the proxies that Envoy trusts.
pub(crate) fn source() -> Source {
    noted("source.address", abi::property("source\0address")).map_or(Source::UNKNOWN, |text| Source::parse(&text))
}

/// Defines a counter; `None` when the host refuses, and then nothing is counted.
pub(crate) fn counter(name: &str) -> Option<u32> {
    noted(name, abi::define_metric(Metric::Counter as u32, name))
}

/// Defines a gauge, which all workers share.
pub(crate) fn gauge(name: &str) -> Option<u32> {
    noted(name, abi::define_metric(Metric::Gauge as u32, name))
}

pub(crate) fn count(counter: Option<u32>, by: u64) {
    if let Ok(by) = i64::try_from(by) {
        change(counter, by);
    }
}

/// Moves a gauge up or down.
pub(crate) fn change(gauge: Option<u32>, by: i64) {
    if let Some(gauge) = gauge.filter(|_| by != 0) {
        noted("a metric", abi::increment(gauge, by));
    }
}

/// What the VMs of one `vm_id` share in this Envoy; empty where nobody has set it.
pub(crate) fn shared(key: &str) -> Vec<u8> {
    abi::shared_data(key).map(|(data, _)| data).unwrap_or_default()
}

/// Changes what they share, and tells whether it did: `None` leaves it as it is. Others may change it at the same time, so
/// `change` may be asked more than once.
pub(crate) fn change_shared(key: &str, mut change: impl FnMut(Vec<u8>) -> Option<Vec<u8>>) -> bool {
    const TRIES: usize = 20;
    for _ in 0..TRIES {
        let (before, version) = abi::shared_data(key).unwrap_or_default();
        let Some(after) = change(before) else { return false };
        if abi::set_shared_data(key, &after, version).is_ok() {
            return true;
        }
    }
    debug!("Envoy refused {key}: others change it all the time");
    false
}

/// Calls [`proxy_wasm::traits::RootContext::on_queue_ready`] of the context that made it, when the call into the VM that
/// rings it has returned and not only at the next tick. A callout that must outlive its stream is sent from there: the SDK
/// gives the answer to the context that was called when the callout left.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bell(u32);

impl Bell {
    /// For the current root context. `name` is this context's alone: the host would call whoever took it last.
    pub(crate) fn new(name: &str) -> Option<Self> {
        noted("a queue", abi::register_queue(name)).map(Self)
    }

    pub(crate) fn ring(self) {
        noted("ringing", abi::enqueue(self.0, &[]));
    }

    /// Once for each time that it rang.
    pub(crate) fn heard(self) {
        noted("a bell that rang", abi::dequeue(self.0));
    }
}

/// One POST to the quota service, as it leaves.
pub(crate) struct Callout<'a> {
    pub(crate) cluster: &'a str,
    pub(crate) path: &'a str,
    pub(crate) secret: Option<&'a str>,
    pub(crate) body: &'a [u8],
    pub(crate) timeout: Duration,
}

/// Sends a callout and returns its token. `None`: it did not leave, so no answer will come.
pub(crate) fn dispatch(callout: &Callout<'_>) -> Option<u32> {
    let mut headers = vec![
        (":method", "POST"),
        (":path", callout.path),
        (":authority", "sluice"),
        ("content-type", "application/json"),
    ];
    headers.extend(callout.secret.map(|secret| (wire::SECRET_HEADER, secret)));
    // The SDK must see this call, as it remembers which context the answer is for. The two refusals that Envoy
    // gives here (no such cluster, nothing could be sent) are errors in the SDK as well, not panics.
    let sent = proxy_wasm::hostcalls::dispatch_http_call(
        callout.cluster,
        headers,
        Some(callout.body),
        Vec::new(),
        callout.timeout,
    );
    noted("a callout", sent.map_err(|status| HostError(status as u32)))
}

fn noted<T>(what: &str, result: Result<T, HostError>) -> Option<T> {
    result.inspect_err(|error| debug!("Envoy refused {what}: status {}", error.0)).ok()
}
