//! Who is master: every Sentinel is asked at once, and the one that has seen the latest failover is believed.
//!
//! The crate's own Sentinel client asks for the first answer in the configured order, so that a stopped Sentinel
//! costs its whole timeout every time, and one that was cut off names a master of the past.

use redis::{AsyncConnectionConfig, Client};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

/// Where the master is: host and port.
pub(super) type MasterAddress = (String, u16);

struct Answer {
    address: MasterAddress,
    /// Grows with every failover.
    epoch: u64,
}

/// Asks until more than half have answered, or `patience` ends and at least one has.
///
/// # Errors
/// Why nobody could tell.
pub(super) async fn find_master(nodes: &[Client], name: &str, patience: Duration) -> Result<MasterAddress, String> {
    let deadline = Instant::now() + patience;
    let mut asked: JoinSet<Result<Answer, String>> = nodes
        .iter()
        .map(|node| {
            let (node, name) = (node.clone(), name.to_owned());
            async move { timeout_at(deadline, ask(&node, &name, patience)).await.unwrap_or(Err("no answer".to_owned())) }
        })
        .collect();
    let mut answers: Vec<Answer> = Vec::new();
    let mut problems = Vec::new();
    while answers.len() <= nodes.len() / 2 {
        match asked.join_next().await {
            Some(Ok(Ok(answer))) => answers.push(answer),
            Some(Ok(Err(problem))) => problems.push(problem),
            Some(Err(_)) => {}
            None => break,
        }
    }
    let latest = answers.into_iter().max_by_key(|answer| answer.epoch);
    latest.map(|answer| answer.address).ok_or_else(|| format!("no Sentinel knows {name:?}: {}", problems.join("; ")))
}

async fn ask(node: &Client, name: &str, patience: Duration) -> Result<Answer, String> {
    let config =
        AsyncConnectionConfig::new().set_connection_timeout(Some(patience)).set_response_timeout(Some(patience));
    let said = async {
        let mut connection = node.get_multiplexed_async_connection_with_config(&config).await?;
        redis::cmd("SENTINEL").arg("MASTER").arg(name).query_async(&mut connection).await
    };
    let said: BTreeMap<String, String> = said.await.map_err(|error: redis::RedisError| error.to_string())?;
    let field = |name: &str| said.get(name).ok_or_else(|| format!("a Sentinel's answer without {name}"));
    let number = |name: &str| field(name)?.parse::<u64>().map_err(|_| format!("a Sentinel's answer with a bad {name}"));
    let port = u16::try_from(number("port")?).map_err(|_| "a Sentinel's answer with a bad port".to_owned())?;
    Ok(Answer { address: (field("ip")?.clone(), port), epoch: number("config-epoch")? })
}
