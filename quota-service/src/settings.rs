//! The service's configuration file: what `sluice_policy::config` decides by, and everything around it.

use crate::admin_api::OwnNames;
use crate::control::Rehearsal;
use crate::gpu::GpuSettings;
use crate::home::link::RedisSettings;
use sluice_policy::config::Config;
use sluice_policy::config::reader::{ConfigError, ConfigErrors, Section, is_name, read_document};
use sluice_policy::holder::LeaseTerms;
use sluice_policy::schedule::UnixMillis;
use sluice_policy::units::Millis;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A configuration that has been read and is sound; the files it names have not been opened yet.
#[derive(Debug)]
pub struct Settings {
    pub policy: Config,
    pub filter_listener: FilterListener,
    pub operators: SocketAddr,
    pub operators_token: PathBuf,
    /// What it is called, beside its addresses.
    pub operators_names: OwnNames,
    /// By version; the highest one signs new keys.
    pub peppers: BTreeMap<u32, PathBuf>,
    pub ledger: LedgerHome,
    /// This replica's name in the ledger.
    pub holder: String,
    pub terms: LeaseTerms,
    /// The longest that Envoy lets a stream take.
    longest_stream: Millis,
    pub gpu: GpuSettings,
    /// How long usage records are kept.
    pub usage_retention: Duration,
    /// Whether metrics of a tenant are told apart by pool and model.
    pub tenant_by_model: bool,
    /// The file all this was read from, for reloads.
    pub file: PathBuf,
    /// A faster clock for the time rules, to rehearse them.
    pub rehearsal: Option<Rehearsal>,
    /// After SIGTERM, how long to go on taking settlements of calls that still run.
    pub drain: Duration,
}

/// Where the ledger is.
#[derive(Debug)]
pub enum LedgerHome {
    /// In this process, and ends with it.
    Memory,
    /// In this process, and in a file.
    File(PathBuf),
    Redis(Box<RedisSettings>),
}

impl LedgerHome {
    #[must_use]
    pub fn redis(&self) -> Option<&RedisSettings> {
        match self {
            LedgerHome::Redis(redis) => Some(redis),
            LedgerHome::Memory | LedgerHome::File(_) => None,
        }
    }
}

/// Where the filter talks to us.
#[derive(Debug)]
pub enum FilterListener {
    /// Mode 0600: only the user that runs Envoy, which must be ours.
    Unix(PathBuf),
    /// A key's digest is a credential, so whoever talks TCP must know a secret.
    Tcp { address: SocketAddr, secret: PathBuf },
}

/// Shorter secrets are guessed.
pub const LEAST_SECRET_BYTES: usize = 32;

/// Values in a configuration file: a hundred thousand tenants with all that can be said of them. The file is the
/// operators' own, so this bounds mistakes only.
const MOST_NODES: usize = 10_000_000;

impl Settings {
    /// Reads a configuration file. Paths in it are relative to its own folder.
    ///
    /// # Errors
    /// All that is wrong with it at once, each with its path in the document.
    pub fn load(file: &Path) -> Result<Self, ConfigErrors> {
        let text = std::fs::read_to_string(file).map_err(|error| single(format!("cannot be read: {error}")))?;
        let folder = file.parent().unwrap_or(Path::new("."));
        let settings = Self::parse(&text, folder)?;
        Ok(Self { file: file.to_owned(), ..settings })
    }

    /// As [`Settings::load`], from text.
    ///
    /// # Errors
    /// As [`Settings::load`].
    pub fn parse(yaml: &str, folder: &Path) -> Result<Self, ConfigErrors> {
        let options = serde_saphyr::options! {
            // `.nan` becomes a text, which the reader refuses where it stands, beside everything else that is wrong.
            non_finite_float_policy: serde_saphyr::NonFiniteFloatPolicy::AsString,
            budget: serde_saphyr::budget! { max_nodes: MOST_NODES, max_events: 2 * MOST_NODES },
        };
        let document: serde_json::Value = serde_saphyr::from_str_with_options(yaml, options)
            .map_err(|error| single(format!("is not sound YAML: {error}")))?;
        read_document(&document, |root| read(root, folder))
    }

    /// Whether a process that has started with these terms may take this over: it goes on with its own.
    ///
    /// # Errors
    /// A pool keeps slots for longer than the ledger counts on.
    pub fn check_against(&self, in_force: &LeaseTerms) -> Result<(), ConfigErrors> {
        let longest = in_force.longest_request;
        let problem = |problem| ConfigError {
            path: LONGEST_REQUEST.to_owned(),
            problem: format!("{problem}; {longest} is in force until the next start"),
        };
        let problems: Vec<_> = too_short(&self.policy, longest, self.longest_stream).map(problem).collect();
        if problems.is_empty() { Ok(()) } else { Err(ConfigErrors(problems)) }
    }
}

fn single(problem: String) -> ConfigErrors {
    ConfigErrors(vec![ConfigError { path: ".".to_owned(), problem }])
}

fn read(root: &Section<'_>, folder: &Path) -> Option<Settings> {
    let version = root.required("version", root.integer("version", 1..=1));
    let listeners = root.section("listeners");
    let filter = read_filter_listener(&listeners.section("filter"), folder);
    let operators = read_operators(&listeners.section("operators"), folder);
    listeners.finish();
    let identity = root.section("identity");
    let peppers = read_peppers(&identity, folder);
    identity.finish();
    let (ledger, holder, terms, longest_stream) = read_ledger(&root.section("ledger"), folder);
    let usage_retention = read_usage(&root.section("usage"));
    let tenant_by_model = read_metrics(&root.section("metrics"));
    let gpu = GpuSettings::read(&root.section("gpu"));
    let policy = Config::read(root);
    if let Some(policy) = &policy {
        check_peppers(root, policy, &peppers);
        for problem in too_short(policy, terms.longest_request, longest_stream) {
            root.error(LONGEST_REQUEST, problem);
        }
    }
    let drain = root.integer("drain_ms", 0..=3_600_000).unwrap_or(5_000);
    let rehearsal = read_rehearsal(&root.section("rehearsal"));
    version?;
    let (operators, operators_token, operators_names) = operators?;
    Some(Settings {
        policy: policy?,
        filter_listener: filter?,
        operators,
        operators_token,
        operators_names,
        peppers,
        ledger,
        holder,
        terms,
        longest_stream,
        gpu: gpu?,
        usage_retention,
        tenant_by_model,
        file: PathBuf::new(),
        rehearsal,
        drain: Duration::from_millis(drain),
    })
}

fn read_filter_listener(section: &Section<'_>, folder: &Path) -> Option<FilterListener> {
    let unix = section.text("unix").map(|path| folder.join(path));
    let tcp = address(section, "tcp");
    let secret = section.text("secret_file").map(|path| folder.join(path));
    section.finish();
    match (section.has("unix"), section.has("tcp")) {
        (true, true) => {
            section.error("unix", "and tcp exclude each other: keep one");
            None
        }
        (false, false) => {
            section.error("unix", "is required (a path, the safer choice), or tcp (an address) with secret_file");
            None
        }
        (true, false) => Some(FilterListener::Unix(unix?)),
        (false, true) => {
            let secret = section.required("secret_file", secret);
            Some(FilterListener::Tcp { address: tcp?, secret: secret? })
        }
    }
}

fn read_operators(section: &Section<'_>, folder: &Path) -> Option<(SocketAddr, PathBuf, OwnNames)> {
    let listen = if section.has("address") {
        address(section, "address")
    } else {
        Some(SocketAddr::from(([127, 0, 0, 1], 8081)))
    };
    let token = section.required("token_file", section.text("token_file"));
    let names = read_hosts(section);
    section.finish();
    Some((listen?, folder.join(token?), names))
}

/// `hosts`: the names by which operators call the listener, without a port.
fn read_hosts(section: &Section<'_>) -> OwnNames {
    let hosts = section.texts("hosts");
    let is_host = |host: &str| host.len() <= 253 && host.split('.').all(is_name);
    for host in hosts.iter().filter(|host| !is_host(host)) {
        section.error("hosts", format!("must be host names without a port, found {host:?}"));
    }
    OwnNames(hosts.into_iter().map(str::to_ascii_lowercase).collect())
}

fn read_peppers(section: &Section<'_>, folder: &Path) -> BTreeMap<u32, PathBuf> {
    let mut peppers = BTreeMap::new();
    section.each("peppers", |pepper| {
        let version = pepper.required("version", pepper.integer("version", 1..=1_000_000));
        let file = pepper.required("file", pepper.text("file"));
        let version = u32::try_from(version?).ok()?;
        if peppers.insert(version, folder.join(file?)).is_some() {
            pepper.error("version", format!("{version} is given twice"));
        }
        Some(())
    });
    peppers
}

fn check_peppers(root: &Section<'_>, policy: &Config, peppers: &BTreeMap<u32, PathBuf>) {
    for (id, tenant) in &policy.tenants {
        for key in tenant.keys.iter().filter(|key| !peppers.contains_key(&key.pepper)) {
            let problem = format!("the key {:?} of {id} needs pepper version {}", key.name, key.pepper);
            root.error("identity.peppers", problem);
        }
    }
}

const LONGEST_REQUEST: &str = "ledger.longest_request_ms";

/// After a crash nobody may use a slot before its call can run no more, at its stream's end or at its orphan's. Says of
/// which pools that is not so.
fn too_short(policy: &Config, longest_request: Millis, longest_stream: Millis) -> impl Iterator<Item = String> {
    policy.pools.iter().filter_map(move |(name, pool)| {
        let needed = pool.on_abort.longest(longest_stream);
        (needed > longest_request).then(|| {
            format!(
                "must be at least {needed}: the pool {name} keeps the slot of an abandoned call so long (on_abort), and a \
                 stream may take {longest_stream} (ledger.longest_stream_ms, Envoy's max_stream_duration)"
            )
        })
    })
}

/// The last is the longest that a stream may take.
fn read_ledger(section: &Section<'_>, folder: &Path) -> (LedgerHome, String, LeaseTerms, Millis) {
    let redis = RedisSettings::read(section, folder);
    let file = section.text("file").map(|path| folder.join(path));
    if section.has("file") && (section.has("redis") || section.has("redis_url")) {
        section.error("file", "and redis exclude each other: keep the one where the ledger is to be");
    }
    let holder = section.name("holder").map_or_else(host_name, str::to_owned);
    let terms = LeaseTerms {
        shared: redis.is_some(),
        lease: section.integer("lease_ms", 100..=60_000).map_or(Millis(2_000), Millis),
        longest_request: section.integer("longest_request_ms", 1_000..=86_400_000).map_or(Millis(600_000), Millis),
    };
    let longest_stream = section.integer("longest_stream_ms", 1_000..=86_400_000);
    let longest_stream = longest_stream.map_or(terms.longest_request, Millis);
    if longest_stream > terms.longest_request {
        section.error("longest_stream_ms", "must not be over longest_request_ms");
    }
    section.finish();
    let home = match (redis, file) {
        (Some(redis), _) => LedgerHome::Redis(Box::new(redis)),
        (None, Some(file)) => LedgerHome::File(file),
        (None, None) => LedgerHome::Memory,
    };
    (home, holder, terms, longest_stream)
}

/// `usage: {retention_days}`.
fn read_usage(section: &Section<'_>) -> Duration {
    let days = section.integer("retention_days", 1..=400).unwrap_or(92);
    section.finish();
    Duration::from_secs(days * 86_400)
}

/// `metrics: {tenant_by_model}`.
fn read_metrics(section: &Section<'_>) -> bool {
    let tenant_by_model = section.boolean("tenant_by_model").unwrap_or(false);
    section.finish();
    tenant_by_model
}

/// A pod's host name is its own, so two replicas never share a share.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if is_name(name) { name.to_owned() } else { "gate-0".to_owned() }
}

/// `rehearsal: {start_unix_ms, speed}`: time rules go by this clock.
fn read_rehearsal(section: &Section<'_>) -> Option<Rehearsal> {
    let start = section.integer("start_unix_ms", 0..=7_258_118_400_000);
    let speed = section.integer("speed", 1..=100_000);
    let is_given = section.has("start_unix_ms") || section.has("speed");
    section.finish();
    if !is_given {
        return None;
    }
    let start = section.required("start_unix_ms", start);
    let speed = section.required("speed", speed);
    Some(Rehearsal { start: UnixMillis(i64::try_from(start?).ok()?), speed: u32::try_from(speed?).ok()? })
}

fn address(section: &Section<'_>, name: &'static str) -> Option<SocketAddr> {
    let text = section.text(name)?;
    let address = text.parse().ok();
    if address.is_none() {
        section.error(name, format!("must be an address and port such as 127.0.0.1:8081, found {text:?}"));
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(yaml: &str) -> Vec<String> {
        match Settings::parse(yaml, Path::new("")) {
            Ok(_) => Vec::new(),
            Err(errors) => errors.0.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn everything_wrong_anywhere_is_told_at_once() {
        let found = problems(
            "
version: 2
listeners:
  filter: {unix: a.sock, tcp: 127.0.0.1:1}
  operators: {address: localhost, hosts: [sluice.example, 'sluice.example:8081']}
ledger: {lease_ms: 5, lease: 3, file: l.redb, redis_url: 'redis://h'}
pools: [{name: a, models: [m], capacity: {concurrent: 1}}]
tenants: [{id: t, keys: [{name: k, hmac: 'v9:00'}]}]
",
        );
        let paths: Vec<&str> = found.iter().filter_map(|line| line.split_once(": ")).map(|(path, _)| path).collect();
        let expected = [
            "version",
            "listeners.filter.unix",
            "listeners.operators.address",
            "listeners.operators.token_file",
            "listeners.operators.hosts",
            "ledger.file",
            "ledger.lease_ms",
            "ledger.lease",
            "tenants[0].keys[0].hmac",
        ];
        assert_eq!(paths, expected, "{found:#?}");
    }

    #[test]
    fn series_of_a_tenant_are_told_apart_by_model_where_the_file_says_so() {
        let read = |metrics: &str| {
            let listeners = "listeners: {filter: {unix: s}, operators: {token_file: t}}";
            let pools = "pools: [{name: a, models: [m], capacity: {concurrent: 1}}]";
            let yaml = format!("version: 1\n{listeners}\n{pools}\ntenants: []\n{metrics}");
            Settings::parse(&yaml, Path::new("")).map(|settings| settings.tenant_by_model)
        };
        assert!(!read("").unwrap());
        assert!(read("metrics: {tenant_by_model: true}").unwrap());
        let wrong = read("metrics: {tenant_by_model: 3}").unwrap_err().to_string();
        assert!(wrong.contains("metrics.tenant_by_model"), "{wrong}");
    }

    #[test]
    fn a_file_may_name_a_hundred_thousand_tenants() {
        let tenants: String = (0..100_000).map(|number| format!("  - {{id: t-{number}, tier: x}}\n")).collect();
        let listeners = "listeners: {filter: {unix: s}, operators: {token_file: t}}";
        let pools = "pools: [{name: a, models: [m], capacity: {concurrent: 1}}]";
        let yaml = format!("version: 1\n{listeners}\n{pools}\ntenants:\n{tenants}");
        assert_eq!(Settings::parse(&yaml, Path::new("")).unwrap().policy.tenants.len(), 100_000);
    }

    #[test]
    fn every_shipped_configuration_is_sound() {
        for file in ["envoy/quota-service.yaml", "envoy/day-night.yaml", "k8s/config/quota-service.yaml"] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
            if let Err(errors) = Settings::load(&path) {
                panic!("{file}:\n{errors}");
            }
        }
    }

    #[test]
    fn a_key_needs_its_pepper() {
        let yaml = format!(
            "
version: 1
listeners: {{filter: {{unix: a.sock}}, operators: {{token_file: t}}}}
pools: [{{name: a, models: [m], capacity: {{concurrent: 1}}}}]
tenants: [{{id: t, keys: [{{name: k, hmac: 'v9:{}'}}]}}]
",
            "0".repeat(64)
        );
        assert_eq!(problems(&yaml), ["identity.peppers: the key \"k\" of t needs pepper version 9"]);
    }

    #[test]
    fn the_longest_request_covers_what_abandoned_calls_keep() {
        let with = |ledger: &str, on_abort: &str| {
            problems(&format!(
                "
version: 1
listeners: {{filter: {{unix: a.sock}}, operators: {{token_file: t}}}}
ledger: {{{ledger}}}
pools: [{{name: a, models: [m], capacity: {{concurrent: 1}}, on_abort: {on_abort}}}]
"
            ))
        };
        let plain = "longest_request_ms: 60000";
        let shorter = "longest_request_ms: 60000, longest_stream_ms: 50000";
        for (ledger, on_abort, needed) in [
            (plain, "cancels", None),
            (plain, "{runs_on_ms: 60000}", None),
            (shorter, "{grace_ms: 10000}", None),
            (shorter, "{streams: cancels, documents: {runs_on_ms: 60000}}", None),
            (plain, "{grace_ms: 10000}", Some(70_000)),
            (shorter, "{grace_ms: 10001}", Some(60_001)),
            (plain, "{streams: cancels, documents: {runs_on_ms: 60001}}", Some(60_001)),
        ] {
            let found = with(ledger, on_abort);
            let expected = needed.map(|ms| format!("ledger.longest_request_ms: must be at least {ms} ms"));
            assert_eq!(found.len(), usize::from(needed.is_some()), "{ledger} {on_abort}: {found:?}");
            let says = |line: &String| expected.as_ref().is_some_and(|start| line.starts_with(start.as_str()));
            assert!(found.iter().all(says), "{found:?}");
        }
        let longer = with("longest_request_ms: 60000, longest_stream_ms: 60001", "cancels");
        assert!(longer.iter().any(|line| line.starts_with("ledger.longest_stream_ms")), "{longer:?}");
    }

    #[test]
    fn a_reload_may_not_keep_slots_for_longer_than_the_ledger_has_counted_on_since_the_start() {
        let file = |longest: u64| {
            let yaml = format!(
                "
version: 1
listeners: {{filter: {{unix: a.sock}}, operators: {{token_file: t}}}}
ledger: {{longest_request_ms: {longest}, longest_stream_ms: 50000}}
pools: [{{name: a, models: [m], capacity: {{concurrent: 1}}, on_abort: {{runs_on_ms: {longest}}}}}]
"
            );
            Settings::parse(&yaml, Path::new("/etc/sluice")).unwrap()
        };
        let (started, longer) = (file(60_000), file(90_000));
        assert_eq!(started.check_against(&started.terms), Ok(()));
        assert_eq!(started.check_against(&longer.terms), Ok(()));
        let problems = longer.check_against(&started.terms).unwrap_err().0;
        let problem = problems.first().unwrap().to_string();
        assert!(problem.starts_with("ledger.longest_request_ms: must be at least 90000 ms: the pool a"), "{problem}");
        assert!(problem.ends_with("60000 ms is in force until the next start"), "{problem}");
    }

    #[test]
    fn a_duplicate_field_is_an_error_and_not_a_surprise() {
        let found = problems("version: 1\nversion: 1\n");
        assert!(found.first().is_some_and(|line| line.contains("duplicate")), "{found:?}");
    }
}
