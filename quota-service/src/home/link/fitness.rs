//! Whether a Redis may keep a ledger, told from what `INFO` prints: `CONFIG` is not needed, and rarely permitted.

use redis::{ErrorKind, RedisError, ServerErrorKind};
use std::fmt;

/// Scripts may publish and see the server's run id since then, and it is the oldest that is tested.
const OLDEST_VERSION: (u32, u32) = (7, 0);

/// What the log tells of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Facts {
    /// Not every master of the cluster answers.
    Unknown,
    Known {
        version: String,
        policy: String,
    },
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Facts::Unknown => f.write_str("unknown version"),
            Facts::Known { version, policy } => write!(f, "version {version}, maxmemory-policy {policy}"),
        }
    }
}

/// Why a server is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    /// Somebody must change something; what, says the text.
    Setting(String),
    /// It may be another time.
    NotNow(String),
}

impl Unfit {
    /// Says which node of a cluster is meant; `node` is empty where there is only one.
    pub(super) fn at(self, node: &str) -> Self {
        let name = |problem: String| if node.is_empty() { problem } else { format!("{node} {problem}") };
        match self {
            Unfit::Setting(problem) => Unfit::Setting(name(problem)),
            Unfit::NotNow(problem) => Unfit::NotNow(name(problem)),
        }
    }
}

/// The ledger's script asks for it too, so no call would be answered.
pub(super) fn blind() -> Unfit {
    let mend = "does not let us see INFO, whose run_id tells a failover: add +info to the rights of ledger.redis' user";
    Unfit::Setting(mend.to_owned())
}

pub(super) fn is_denied(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoPerm)
}

/// Judges one server. A field that a server does not print is not held against it.
///
/// # Errors
/// It must not be used, or not now.
pub(super) fn check(info: &str, is_cluster: bool) -> Result<Facts, Unfit> {
    let field = |name: &str| {
        let mut lines = info.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(found, _)| *found == name).map(|(_, value)| value.trim())
    };
    // Valkey goes on printing the version of Redis that it is compatible with.
    let version = field("redis_version").unwrap_or("unknown");
    if parse_version(version).is_some_and(|found| found < OLDEST_VERSION) {
        return Err(Unfit::Setting(format!("is Redis {version}; 7.0 or later is needed")));
    }
    if field("loading") == Some("1") {
        return Err(Unfit::NotNow("is still loading its data".to_owned()));
    }
    match (field("cluster_enabled"), is_cluster) {
        (Some("1"), false) => {
            let mend = "belongs to a Redis Cluster: list nodes of it under ledger.redis.nodes instead of a url";
            return Err(Unfit::Setting(mend.to_owned()));
        }
        (Some("0"), true) => {
            let mend = "belongs to no Redis Cluster: give ledger.redis.url instead of nodes";
            return Err(Unfit::Setting(mend.to_owned()));
        }
        _ => {}
    }
    if field("role") == Some("slave") {
        return Err(Unfit::NotNow("is a replica, not the master".to_owned()));
    }
    let policy = field("maxmemory_policy").unwrap_or("unknown");
    let limit = field("maxmemory").and_then(|bytes| bytes.parse::<u64>().ok()).unwrap_or(0);
    if limit > 0 && !matches!(policy, "noeviction" | "unknown") {
        return Err(Unfit::Setting(format!(
            "may throw accounts away to make room (maxmemory is {limit}): change `maxmemory-policy {policy}` in its \
             redis.conf to `maxmemory-policy noeviction`, or run `redis-cli CONFIG SET maxmemory-policy noeviction`"
        )));
    }
    Ok(Facts::Known { version: version.to_owned(), policy: policy.to_owned() })
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.').map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(changes: &[(&str, &str)]) -> String {
        let usual = [
            ("redis_version", "7.0.15"),
            ("loading", "0"),
            ("cluster_enabled", "0"),
            ("role", "master"),
            ("maxmemory", "0"),
            ("maxmemory_policy", "noeviction"),
        ];
        let value = |name: &str, value| changes.iter().find(|(n, _)| *n == name).map_or(value, |(_, v)| *v);
        let lines = usual.iter().map(|(name, usual)| format!("{name}:{}\r\n", value(name, usual)));
        format!("# Server\r\n{}\r\n", lines.collect::<String>())
    }

    fn problem(changes: &[(&str, &str)]) -> Unfit {
        check(&info(changes), false).unwrap_err()
    }

    #[test]
    fn a_usual_server_is_fit() {
        let facts = check(&info(&[]), false).unwrap();
        assert_eq!(facts.to_string(), "version 7.0.15, maxmemory-policy noeviction");
    }

    #[test]
    fn a_server_that_evicts_is_refused_with_the_line_to_change() {
        let Unfit::Setting(problem) = problem(&[("maxmemory", "1000000"), ("maxmemory_policy", "allkeys-lru")]) else {
            panic!("it will not mend itself")
        };
        assert!(problem.contains("`maxmemory-policy allkeys-lru`"), "{problem}");
        assert!(problem.contains("`maxmemory-policy noeviction`"), "{problem}");
    }

    #[test]
    fn a_policy_that_has_no_limit_to_act_on_evicts_nothing() {
        assert!(check(&info(&[("maxmemory_policy", "allkeys-lru")]), false).is_ok());
    }

    #[test]
    fn an_old_server_is_refused_and_ten_is_more_than_seven() {
        assert_eq!(
            problem(&[("redis_version", "6.2.14")]),
            Unfit::Setting("is Redis 6.2.14; 7.0 or later is needed".to_owned())
        );
        assert!(check(&info(&[("redis_version", "10.0.0")]), false).is_ok());
    }

    #[test]
    fn a_replica_or_a_loading_server_may_be_fit_another_time() {
        assert!(matches!(problem(&[("role", "slave")]), Unfit::NotNow(_)));
        assert!(matches!(problem(&[("loading", "1")]), Unfit::NotNow(_)));
    }

    #[test]
    fn cluster_and_single_server_are_not_mistaken_for_each_other() {
        assert!(matches!(problem(&[("cluster_enabled", "1")]), Unfit::Setting(_)));
        assert!(matches!(check(&info(&[]), true), Err(Unfit::Setting(_))));
        assert!(check(&info(&[("cluster_enabled", "1")]), true).is_ok());
    }

    #[test]
    fn what_a_server_does_not_print_is_not_held_against_it() {
        assert!(check("", false).is_ok());
    }
}
