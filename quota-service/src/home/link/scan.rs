//! Finding keys by a pattern: SCAN, on the one server or on every master of a cluster.

use super::dial::Connection;
use redis::cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo, SingleNodeRoutingInfo};
use redis::{Cmd, ErrorKind, RedisError, RedisResult, Value, from_redis_value};

/// Keys looked at in one step; a server is busy with that for less than a millisecond.
const KEYS_OF_A_STEP: u32 = 250;

/// How far the keys of one server have been looked at.
pub(super) struct Step {
    /// Its address, in a cluster.
    node: Option<(String, u16)>,
    cursor: u64,
    /// What the step has found.
    pub(super) keys: Vec<String>,
}

impl Step {
    fn read(node: Option<(String, u16)>, answer: Value) -> RedisResult<Self> {
        let (cursor, keys) = from_redis_value(answer.extract_error()?)?;
        Ok(Self { node, cursor, keys })
    }

    pub(super) fn is_last(&self) -> bool {
        self.cursor == 0
    }
}

impl Connection {
    /// Takes the first step on every master.
    pub(super) async fn scan(&mut self, pattern: &str) -> RedisResult<Vec<Step>> {
        let command = scan_from(0, pattern);
        match self {
            Connection::Single(connection) => Ok(vec![Step::read(None, command.query_async(connection).await?)?]),
            Connection::Cluster(connection) => {
                let masters = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
                let answers: Vec<(String, Value)> =
                    from_redis_value(connection.route_command(command, masters).await?)?;
                answers.into_iter().map(|(node, answer)| Step::read(Some(address(&node)?), answer)).collect()
            }
        }
    }

    /// Takes the step after another one.
    pub(super) async fn scan_on(&mut self, last: Step, pattern: &str) -> RedisResult<Step> {
        let command = scan_from(last.cursor, pattern);
        let answer = match (self, last.node.clone()) {
            (Connection::Cluster(connection), Some((host, port))) => {
                let node = RoutingInfo::SingleNode(SingleNodeRoutingInfo::ByAddress { host, port });
                connection.route_command(command, node).await?
            }
            (Connection::Single(connection), _) => command.query_async(connection).await?,
            (Connection::Cluster(_), None) => return Err(lost("the server has become a cluster")),
        };
        Step::read(last.node, answer)
    }
}

fn scan_from(cursor: u64, pattern: &str) -> Cmd {
    let mut command = redis::cmd("SCAN");
    command.arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(KEYS_OF_A_STEP);
    command
}

fn address(node: &str) -> RedisResult<(String, u16)> {
    let parts = node.rsplit_once(':').and_then(|(host, port)| Some((host.to_owned(), port.parse().ok()?)));
    parts.ok_or_else(|| lost("a node of the cluster has no port"))
}

fn lost(what: &'static str) -> RedisError {
    RedisError::from((ErrorKind::Client, what))
}
