//! The plugin's configuration: parsed once, into types that cannot hold nonsense.

mod limits;

use crate::dialect::{Dialect, Levels, Reads, Rules};
use crate::headers;
use crate::holdings::Limits;
use crate::route::{OnUnavailable, Pattern, Query, Route};
use crate::secret::Secret;
use crate::usage::Shape;
use sluice_policy::config::reader::{ConfigError, ConfigErrors, Section, read_document};
use sluice_policy::units::{Millis, PoolName, Tokens};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// The only version of this document so far.
const CONFIG_VERSION: u64 = 1;
/// Longer than the service's default queue timeout (60 s), so that the service's own answer comes first.
const SERVICE_TIMEOUT_DEFAULT_MS: u64 = 65_000;
const SERVICE_TIMEOUT_MAX_MS: u64 = 3_600_000;
/// A few pictures as base64, or the longest prompts there are.
const BODY_DEFAULT_BYTES: u64 = 16 << 20;
/// Of one worker, over all bodies that wait for their end or for an answer.
const PAUSED_DEFAULT_BYTES: u64 = 256 << 20;
const PAUSED_MAX_BYTES: u64 = 1 << 40;
/// From the head of a request to the end of its body. Whoever is slower holds memory that nobody has admitted yet.
const BODY_TIMEOUT_DEFAULT_MS: u64 = 30_000;
const BODY_TIMEOUT_MAX_MS: u64 = 600_000;
/// Envoy holds a body for as long as its call is queued; beyond this a queue of thousands is no longer sane.
const BODY_MAX_BYTES: u64 = 64 << 20;
/// Between two messages of a gRPC stream, which holds no slot then but an HTTP/2 stream of client, gateway and server.
const GRPC_IDLE_DEFAULT_MS: u64 = 10_000;
const GRPC_IDLE_MAX_MS: u64 = 3_600_000;
const SEQUENCES_DEFAULT: u64 = 16;
const SEQUENCES_MAX: u64 = 1024;
const VERIFIED_TTL_DEFAULT_MS: u64 = 300_000;
const VERIFIED_TTL_MAX_MS: u64 = 86_400_000;
/// Tokens that one request may cost where tokens are not counted.
const CHARGE_MAX: u64 = 1_000_000;
/// 32 characters are 128 bits even in hexadecimal. What the shipped files have in its place is shorter, and so refused.
const ROUTE_SECRET_LENGTHS: std::ops::RangeInclusive<usize> = 32..=256;
const KEY_HEADERS_DEFAULT: [&str; 3] = ["authorization", "x-api-key", "api-key"];

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) mode: Mode,
    pub(crate) service: Service,
    /// Larger bodies are refused. Envoy's own buffer limit must be larger than this.
    pub(crate) body_max_bytes: u64,
    /// What this worker may hold for calls that have not gone on; a call over it is refused.
    pub(crate) holdings: Limits,
    /// How long a stranger may take to send the first byte of a body.
    pub(crate) stranger_idle: Millis,
    /// How long a body may take to come in full, in mode body. Time in the queue comes after it and does not count.
    pub(crate) body_timeout: Millis,
    /// How long a gRPC stream may have no message under way, from its first one on.
    pub(crate) grpc_idle: Millis,
    /// The most sequences that one call may generate.
    pub(crate) sequences_max: u32,
    /// Lower-case names, each at most once.
    pub(crate) key_headers: Vec<String>,
    /// How long a key that the service admitted may pass an open route while the service is away.
    pub(crate) verified_ttl: Millis,
    pub(crate) routes: Vec<Rc<Route>>,
    /// Shown to the mesh's routes with every call that goes on. Only this filter has it, so a gateway without the filter
    /// serves none of these routes.
    pub(crate) route_secret: Option<Secret>,
    /// How the servers of a pool write the levels in their own queues. Of other pools no call may ask for a turn.
    pub(crate) server_priority: BTreeMap<PoolName, Levels>,
}

/// The route of a path.
pub(crate) struct Found<'config, 'path> {
    pub(crate) route: &'config Rc<Route>,
    pub(crate) pattern: &'config Pattern,
    /// Where the path names one.
    pub(crate) model: Option<&'path str>,
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

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Service {
    /// The name of Envoy's cluster for the quota service.
    pub(crate) cluster: String,
    /// How long one call may be held in the queue before the service counts as away.
    pub(crate) timeout: Duration,
    pub(crate) secret: Option<Secret>,
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

    pub(crate) fn levels_of(&self, pool: &PoolName) -> Option<Levels> {
        self.server_priority.get(pool).copied()
    }

    /// What a body must be on a route, whose path may name the model.
    pub(crate) fn rules(&self, route: &Route, path_names_model: bool) -> Rules {
        Rules { sequences_max: self.sequences_max, strict_fields: route.strict_fields, path_names_model }
    }

    /// The route of a path, and the model in it. A route that names the very path comes before all patterns, and those whose
    /// model may have slashes come last.
    pub(crate) fn route<'a>(&self, path: &'a str) -> Option<Found<'_, 'a>> {
        let each = || self.routes.iter().flat_map(|route| route.patterns.iter().map(move |pattern| (route, pattern)));
        let of_kind = |is_literal: bool, takes_rest: bool| {
            each()
                .filter(move |(_, pattern)| (pattern.is_literal(), pattern.takes_rest()) == (is_literal, takes_rest))
                .find_map(|(route, pattern)| Some(Found { route, pattern, model: pattern.matches(path)? }))
        };
        of_kind(true, false).or_else(|| of_kind(false, false)).or_else(|| of_kind(false, true))
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
    let paused = body.integer("paused_max_bytes", 1..=PAUSED_MAX_BYTES);
    let paused_max_bytes = paused.unwrap_or(PAUSED_DEFAULT_BYTES.max(body_max_bytes));
    if paused_max_bytes < body_max_bytes {
        body.error("paused_max_bytes", "must not be less than max_bytes, or no body of that length could pass");
    }
    body.finish();
    let (holdings, stranger_idle) = limits::read(root, body_max_bytes, paused_max_bytes);
    let verified_ttl = root.integer("verified_ttl_ms", 0..=VERIFIED_TTL_MAX_MS).unwrap_or(VERIFIED_TTL_DEFAULT_MS);
    let route_secret = read_route_secret(root);
    let server_priority = read_server_priority(root);
    let grpc_idle = root.integer("grpc_idle_ms", 1..=GRPC_IDLE_MAX_MS).unwrap_or(GRPC_IDLE_DEFAULT_MS);
    Some(Config {
        mode: mode?,
        key_headers,
        routes,
        service: service?,
        body_max_bytes,
        holdings,
        stranger_idle,
        body_timeout: Millis(body_timeout),
        grpc_idle: Millis(grpc_idle),
        sequences_max: u32::try_from(sequences).unwrap_or(1),
        verified_ttl: Millis(verified_ttl),
        route_secret,
        server_priority,
    })
}

fn read_service(section: &Section<'_>) -> Option<Service> {
    let cluster = section.required("cluster", section.text("cluster"));
    let timeout_ms = section.integer("timeout_ms", 1..=SERVICE_TIMEOUT_MAX_MS).unwrap_or(SERVICE_TIMEOUT_DEFAULT_MS);
    let text = section.text("secret");
    let secret = text.and_then(Secret::parse);
    if text.is_some() && secret.is_none() {
        section.error("secret", "must be visible ASCII characters only, as it travels in a header");
    }
    section.finish();
    Some(Service { cluster: cluster?.to_owned(), timeout: Duration::from_millis(timeout_ms), secret })
}

fn read_route_secret(root: &Section<'_>) -> Option<Secret> {
    let text = root.text("route_secret")?;
    let secret = Secret::parse(text).filter(|_| ROUTE_SECRET_LENGTHS.contains(&text.len()));
    if secret.is_none() {
        let problem = "must be 32 to 256 visible ASCII characters, and the routes must ask for the same; make one with \
            `openssl rand -hex 32`";
        root.error("route_secret", problem);
    }
    secret
}

fn read_server_priority(root: &Section<'_>) -> BTreeMap<PoolName, Levels> {
    const NAME: &str = "server_priority";
    let Some(listed) = root.raw(NAME) else { return BTreeMap::new() };
    let levels = |value: &serde_json::Value| serde_json::from_value(value.clone()).ok().and_then(Levels::new);
    let pools = listed.as_object().and_then(|pools| {
        pools.iter().map(|(pool, value)| Some((PoolName::from(pool.as_str()), levels(value)?))).collect()
    });
    if pools.is_none() {
        root.error(
            NAME,
            "must have for each pool a list of ten whole numbers that rise or fall: what its servers call the levels 0 to 9",
        );
    }
    pools.unwrap_or_default()
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
    let mut patterns: Vec<&Pattern> = routes.iter().flat_map(|route| &route.patterns).collect();
    patterns.sort_by_key(|pattern| pattern.text());
    for (one, next) in patterns.iter().zip(patterns.iter().skip(1)) {
        if one == next {
            root.error("routes", format!("{:?} is listed twice", one.text()));
        }
    }
    routes.into_iter().map(Rc::new).collect()
}

fn read_route(section: &Section<'_>, mode: Mode) -> Option<Route> {
    let dialect = section.required("dialect", section.choice("dialect", &Dialect::all()));
    let patterns = read_patterns(section, dialect);
    let on_unavailable = section
        .choice("on_unavailable", &[("closed", OnUnavailable::Closed), ("open", OnUnavailable::Open)])
        .unwrap_or(OnUnavailable::Closed);
    let pool = section.name("pool");
    let charge = section.integer("charge", 0..=CHARGE_MAX);
    let method = section.text("method");
    if method.is_some_and(|method| !method.bytes().all(|letter| letter.is_ascii_uppercase())) {
        section.error("method", "must be upper-case letters, as GET");
    }
    let strict_fields = section.boolean("strict_fields").unwrap_or(false);
    let splice_usage = section.boolean("splice_usage");
    let query = read_query(section);
    let (dialect, patterns) = (dialect?, patterns?);
    if method.is_some() && dialect.method().is_some() {
        section.error("method", "is the dialect's own here; only `request` leaves it to the route");
    }
    if charge.is_some() && dialect.reply() != Shape::Fixed {
        section.error("charge", "is for dialects that are charged by the request; here tokens are counted");
    }
    let reads_json = matches!(dialect.reads(), Reads::Json(_)) && mode == Mode::Body;
    if strict_fields && !reads_json {
        section.error("strict_fields", "is for dialects whose bodies are read as JSON, in mode body");
    }
    if splice_usage.is_some() && !(reads_json && dialect.reply() == Shape::OpenAi) {
        section
            .error("splice_usage", "is for openai_chat and openai_completions, in mode body: no other stream is asked");
    }
    let knows_model = patterns.iter().all(Pattern::names_model);
    if let Some(problem) = undecidable(dialect, mode).filter(|_| patterns.iter().any(Pattern::names_model)) {
        section.error("path", problem);
    }
    match dialect.reads() {
        Reads::Models if pool.is_some() => section.error("pool", "has no meaning here: the list is of all pools"),
        Reads::Models => {}
        Reads::Length if pool.is_none() && !knows_model => {
            section.error("pool", "is required: neither the path nor a body that is read names a model");
        }
        _ if mode == Mode::Headers && pool.is_none() && !knows_model => {
            section.error("pool", "is required in mode headers, where no body names a model");
        }
        Reads::Length | Reads::Json(_) | Reads::Messages { .. } => {}
    }
    Some(Route {
        patterns,
        dialect,
        method: dialect.method().or(method).map(str::to_owned),
        on_unavailable,
        pool: pool.map(PoolName::from),
        charge: Tokens(charge.unwrap_or(1)),
        query,
        strict_fields,
        splice_usage: splice_usage.unwrap_or(true),
    })
}

/// Why a path of this dialect must not name a model: the request names one as well, where this mode does not read it, and
/// which of the two a server obeys nobody knows.
fn undecidable(dialect: Dialect, mode: Mode) -> Option<&'static str> {
    match dialect.reads() {
        Reads::Messages { .. } => Some("may not have {model}: each message names its own model"),
        Reads::Length if dialect.names_model_unread() => {
            Some("may not have {model}: a form names its own model, which is not read; name the pool instead")
        }
        Reads::Json(_) if mode == Mode::Headers && dialect.names_model() => {
            Some("may not have {model} in mode headers: the body names a model as well, which is not read there")
        }
        Reads::Json(_) | Reads::Length | Reads::Models => None,
    }
}

/// Names of parameters that pass; `*` by itself is all of them.
fn read_query(section: &Section<'_>) -> Query {
    let names = section.texts("query");
    if names == ["*"] {
        return Query::Any;
    }
    for name in &names {
        let is_plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.[]".contains(&byte));
        if name.is_empty() || !is_plain {
            let problem =
                format!("{name:?} is no name of a parameter: letters, digits and any of -_.[] or \"*\" alone");
            section.error("query", problem);
        }
    }
    Query::Of(names.into_iter().map(str::to_owned).collect())
}

/// The route's own path, or all that servers of its dialect listen on.
fn read_patterns(section: &Section<'_>, dialect: Option<Dialect>) -> Option<Vec<Pattern>> {
    let own = section.text("path");
    let paths = match (own, dialect) {
        (Some(path), _) => vec![path],
        (None, Some(dialect)) if !section.has("path") => dialect.paths().to_vec(),
        (None, _) => return None,
    };
    if paths.is_empty() {
        section.error("path", "is required: this dialect has no path of its own");
        return None;
    }
    let is_list = dialect.is_some_and(|dialect| matches!(dialect.reads(), Reads::Models));
    let pattern = |path: &&str| {
        let pattern = Pattern::parse(path).map_err(|problem| section.error("path", problem)).ok()?;
        Some(if is_list { pattern.with_slashes() } else { pattern })
    };
    let patterns: Vec<Pattern> = paths.iter().filter_map(pattern).collect();
    (patterns.len() == paths.len()).then_some(patterns)
}

#[cfg(test)]
mod tests;
