//! The plugin's configuration: parsed once, into types that cannot hold nonsense.

use crate::dialect::Dialect;
use crate::headers;
use crate::path;
use sluice_policy::config::reader::{ConfigError, ConfigErrors, Section, read_document};
use sluice_policy::units::{Millis, PoolName};
use std::rc::Rc;
use std::time::Duration;

/// The only version of this document so far.
const CONFIG_VERSION: u64 = 1;
/// Longer than the service's default queue timeout (60 s), so that the service's own answer comes first.
const SERVICE_TIMEOUT_DEFAULT_MS: u64 = 65_000;
const SERVICE_TIMEOUT_MAX_MS: u64 = 3_600_000;
const BODY_DEFAULT_BYTES: u64 = 1 << 20;
/// From the head of a request to the end of its body. Whoever is slower holds memory that nobody has admitted yet.
const BODY_TIMEOUT_DEFAULT_MS: u64 = 30_000;
const BODY_TIMEOUT_MAX_MS: u64 = 600_000;
/// Envoy holds a body for as long as its call is queued; beyond this a queue of thousands is no longer sane.
const BODY_MAX_BYTES: u64 = 64 << 20;
const SEQUENCES_DEFAULT: u64 = 16;
const SEQUENCES_MAX: u64 = 1024;
const VERIFIED_TTL_DEFAULT_MS: u64 = 300_000;
const VERIFIED_TTL_MAX_MS: u64 = 86_400_000;
const KEY_HEADERS_DEFAULT: [&str; 3] = ["authorization", "x-api-key", "api-key"];

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) mode: Mode,
    pub(crate) service: Service,
    /// Larger bodies are refused. Envoy's own buffer limit must be larger than this.
    pub(crate) body_max_bytes: u64,
    /// How long a body may take to come in full, in mode body. Time in the queue comes after it and does not count.
    pub(crate) body_timeout: Millis,
    /// The most sequences that one call may generate.
    pub(crate) sequences_max: u32,
    /// Lower-case names, each at most once.
    pub(crate) key_headers: Vec<String>,
    /// How long a key that the service admitted may pass an open route while the service is away.
    pub(crate) verified_ttl: Millis,
    pub(crate) routes: Vec<Rc<Route>>,
}

/// How far a request is read before it is decided. Envoy must be configured to match, and cannot tell us whether
/// it is; so this has no default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The body is read first. Needs `allow_on_headers_stop_iteration: true` beside this configuration.
    Body,
    /// Only headers are read; the route names the pool, and the prompt is guessed from `content-length`.
    Headers,
}

#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Service {
    /// The name of Envoy's cluster for the quota service.
    pub(crate) cluster: String,
    /// How long one call may be held in the queue before the service counts as away.
    pub(crate) timeout: Duration,
    pub(crate) secret: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) path: String,
    pub(crate) dialect: Dialect,
    pub(crate) on_unavailable: OnUnavailable,
    /// Always present in [`Mode::Headers`].
    pub(crate) pool: Option<PoolName>,
}

/// What happens to a call while the quota service is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnUnavailable {
    /// It is refused.
    Closed,
    /// It passes if this worker lately saw its key admitted.
    Open,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service")
            .field("cluster", &self.cluster)
            .field("timeout", &self.timeout)
            .field("secret", &self.secret.as_ref().map(|_| "[redacted]"))
            .finish()
    }
}

impl Config {
    /// Parses the plugin's configuration (JSON).
    ///
    /// # Errors
    /// All that is wrong with it.
    pub(crate) fn parse(text: &[u8]) -> Result<Config, ConfigErrors> {
        let document = serde_json::from_slice(text).map_err(|error| {
            // Envoy hands a Struct on as protobuf, which looks like noise here.
            let problem = format!(
                "is not JSON ({error}); Envoy needs `configuration` as a google.protobuf.StringValue that holds JSON"
            );
            ConfigErrors(vec![ConfigError { path: ".".to_owned(), problem }])
        })?;
        read_document(&document, read)
    }

    pub(crate) fn route(&self, path: &str) -> Option<Rc<Route>> {
        self.routes.iter().find(|route| route.path == path).cloned()
    }
}

fn read(root: &Section<'_>) -> Option<Config> {
    root.required("version", root.integer("version", CONFIG_VERSION..=CONFIG_VERSION));
    let mode = root.choice("mode", &[("body", Mode::Body), ("headers", Mode::Headers)]);
    let mode = root.required("mode", mode);
    // With the mode unknown the routes are read all the same, for their own errors.
    let routes = read_routes(root, mode.unwrap_or(Mode::Body));
    let key_headers = read_key_headers(root);
    let service = read_service(&root.section("service"));
    let body = root.section("body");
    let body_max_bytes = body.integer("max_bytes", 1..=BODY_MAX_BYTES).unwrap_or(BODY_DEFAULT_BYTES);
    let body_timeout = body.integer("timeout_ms", 1..=BODY_TIMEOUT_MAX_MS).unwrap_or(BODY_TIMEOUT_DEFAULT_MS);
    let sequences = body.integer("max_sequences", 1..=SEQUENCES_MAX).unwrap_or(SEQUENCES_DEFAULT);
    body.finish();
    let verified_ttl = root.integer("verified_ttl_ms", 0..=VERIFIED_TTL_MAX_MS).unwrap_or(VERIFIED_TTL_DEFAULT_MS);
    Some(Config {
        mode: mode?,
        key_headers,
        routes,
        service: service?,
        body_max_bytes,
        body_timeout: Millis(body_timeout),
        sequences_max: u32::try_from(sequences).unwrap_or(1),
        verified_ttl: Millis(verified_ttl),
    })
}

fn read_service(section: &Section<'_>) -> Option<Service> {
    let cluster = section.required("cluster", section.text("cluster"));
    let timeout_ms = section.integer("timeout_ms", 1..=SERVICE_TIMEOUT_MAX_MS).unwrap_or(SERVICE_TIMEOUT_DEFAULT_MS);
    let secret = section.text("secret");
    if secret.is_some_and(|secret| !secret.bytes().all(|byte| byte.is_ascii_graphic())) {
        section.error("secret", "must be visible ASCII characters only, as it travels in a header");
    }
    section.finish();
    Some(Service {
        cluster: cluster?.to_owned(),
        timeout: Duration::from_millis(timeout_ms),
        secret: secret.map(str::to_owned),
    })
}

fn read_key_headers(root: &Section<'_>) -> Vec<String> {
    if !root.has("key_headers") {
        return KEY_HEADERS_DEFAULT.iter().map(ToString::to_string).collect();
    }
    let listed = root.texts("key_headers");
    if listed.is_empty() {
        root.error("key_headers", "must name at least one header");
    }
    let mut names: Vec<String> = Vec::new();
    for name in listed {
        let is_token = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        if !is_token || headers::is_forged_by_client(name) {
            let problem = format!(
                "{name:?} cannot carry a key: a lower-case header name that is not Sluice's or Envoy's own is needed"
            );
            root.error("key_headers", problem);
        } else if names.iter().any(|known| known == name) {
            root.error("key_headers", format!("{name:?} is listed twice"));
        } else {
            names.push(name.to_owned());
        }
    }
    names
}

fn read_routes(root: &Section<'_>, mode: Mode) -> Vec<Rc<Route>> {
    let routes = root.each("routes", |section| read_route(section, mode));
    let lists_some = root.raw("routes").and_then(|routes| routes.as_array()).is_some_and(|list| !list.is_empty());
    if !lists_some {
        root.error("routes", "must list at least one route, or every call would be refused");
    }
    for (index, route) in routes.iter().enumerate() {
        if routes.iter().take(index).any(|earlier| earlier.path == route.path) {
            root.error("routes", format!("{:?} is listed twice", route.path));
        }
    }
    routes.into_iter().map(Rc::new).collect()
}

fn read_route(section: &Section<'_>, mode: Mode) -> Option<Route> {
    let path = section.required("path", section.text("path"));
    if let Some(Err(problem)) = path.map(path::normal) {
        section.error("path", problem);
    } else if path.is_some_and(|path| path.contains('?')) {
        section.error("path", "must have no query");
    }
    let dialect = section.required("dialect", section.choice("dialect", &[("openai_chat", Dialect::OpenAiChat)]));
    let on_unavailable = section
        .choice("on_unavailable", &[("closed", OnUnavailable::Closed), ("open", OnUnavailable::Open)])
        .unwrap_or(OnUnavailable::Closed);
    let pool = section.name("pool");
    if mode == Mode::Headers && !section.has("pool") {
        section.error("pool", "is required in mode headers, where no body names a model");
    }
    Some(Route { path: path?.to_owned(), dialect: dialect?, on_unavailable, pool: pool.map(PoolName::from) })
}

#[cfg(test)]
mod tests;
