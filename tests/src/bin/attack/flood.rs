//! The attacks. Each runs in a process of its own, from addresses of its own, for a bounded time.
//!
//! The issue that asked for them named 12 connections of 1,000 streams, 40 bodies, and one tenant's loop; here it is ten times
//! each. More streams than a connection may have open (`max_concurrent_streams`) wait in the attacker, not in the gateway.

use super::neighbour::at_lowest_priority;
use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use e2e::client::{CHAT_PATH, Client};
use e2e::keys::unknown_key;
use e2e::stack::{MODEL, Stack};
use futures_util::{StreamExt, stream};
use reqwest::{Body, Method, RequestBuilder};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

const STREAM_PATH: &str = "/inference.GRPCInferenceService/ModelStreamInfer";
/// HPACK sends a header that came before in one byte; what it cannot remember (over 4 KiB) comes in full.
const LONG_BYTES: usize = 3_500;
/// 28 KB, which the gateway lets in, and 56 KB, which it does not.
const LONG_HEADERS: [usize; 2] = [8, 16];
const BODY_BYTES: usize = 16 << 20;
const PIECE_BYTES: usize = 64 << 10;
/// As in the issue, and the longest that the gateway lets in.
const NAME_BYTES: [usize; 2] = [58_000, 30_000];

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Kind {
    /// Streams of strangers, with long headers and no message.
    Silent,
    /// Bodies of strangers that never end.
    Bodies,
    /// A tenant's bodies that never end.
    TenantBodies,
    /// A tenant's calls for models with very long names.
    Names,
}

#[derive(Args)]
pub(super) struct Flood {
    #[arg(long)]
    kind: Kind,
    #[arg(long)]
    base: String,
    #[arg(long)]
    key: String,
    #[arg(long)]
    millis: u64,
}

impl Kind {
    pub(super) const ALL: [Kind; 4] = [Kind::Silent, Kind::Bodies, Kind::TenantBodies, Kind::Names];

    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Silent => "strangers' streams",
            Kind::Bodies => "strangers' bodies",
            Kind::TenantBodies => "a tenant's bodies",
            Kind::Names => "a tenant's names",
        }
    }

    /// Connections, and calls at once on each.
    fn strength(self) -> (usize, usize) {
        match self {
            Kind::Silent => (120, 200),
            Kind::Bodies | Kind::TenantBodies => (400, 1),
            Kind::Names => (10, 10),
        }
    }

    /// Starts the attack at the lowest priority.
    pub(super) fn start(self, stack: &Stack, span: Duration) -> Result<Child> {
        let key = match self {
            Kind::Silent | Kind::Bodies => unknown_key(),
            Kind::TenantBodies | Kind::Names => stack.key("greedy")?,
        };
        let kind = self.to_possible_value().context("a kind without a name")?;
        let mut command = at_lowest_priority()?;
        command.arg("flood").args(["--kind", kind.get_name(), "--base", &stack.envoy.base(), "--key", key]);
        command.args(["--millis", &span.as_millis().to_string()]).stdout(Stdio::piped());
        Ok(command.spawn()?)
    }

    fn request(self, client: &Client, number: usize) -> RequestBuilder {
        let alternate = |pair: [usize; 2]| pair[usize::from(number.is_multiple_of(10))];
        match self {
            Kind::Silent => {
                let long = "x".repeat(LONG_BYTES);
                let [fits, exceeds] = LONG_HEADERS;
                let request = client.request(Method::POST, STREAM_PATH).header("content-type", "application/grpc");
                let request =
                    (0..alternate([fits, exceeds])).fold(request, |request, _| request.header("x-long", &long));
                request.body(Body::wrap_stream(stream::pending::<io::Result<String>>()))
            }
            Kind::Bodies | Kind::TenantBodies => {
                let pieces =
                    stream::iter(0..BODY_BYTES / PIECE_BYTES - 1).map(|_| Ok::<_, io::Error>(vec![b' '; PIECE_BYTES]));
                client.request(Method::POST, CHAT_PATH).body(Body::wrap_stream(pieces.chain(stream::pending())))
            }
            Kind::Names => {
                let name = format!("{MODEL}{number}{}", "x".repeat(alternate([NAME_BYTES[1], NAME_BYTES[0]])));
                client.request(Method::POST, &format!("/v2/models/{name}/infer")).body("{\"inputs\":[]}")
            }
        }
    }
}

/// Waits for the attack to end; gives the number of calls that it has made.
pub(super) async fn wait(attacker: &mut Child) -> Result<u64> {
    use std::io::Read as _;
    let mut said = String::new();
    let mut stdout = attacker.stdout.take().context("no output")?;
    stdout.read_to_string(&mut said)?;
    attacker.wait()?;
    said.trim().parse().with_context(|| format!("an attack ended with {said:?}"))
}

impl Flood {
    pub(super) async fn run(&self) -> Result<()> {
        let until = Instant::now() + Duration::from_millis(self.millis);
        let (connections, at_once) = self.kind.strength();
        let made = Arc::new(AtomicU64::new(0));
        let mut callers = JoinSet::new();
        for connection in 0..connections {
            let client = Client::new(&self.base)?.from(address(connection))?.with_key(&self.key);
            for number in 0..at_once {
                let (kind, client, made) = (self.kind, client.clone(), made.clone());
                callers.spawn(async move {
                    let mut number = number;
                    while Instant::now() < until {
                        // Whatever comes back, if anything does, the next follows.
                        let _ = kind.request(&client, number).send().await;
                        made.fetch_add(1, Ordering::Relaxed);
                        number += at_once;
                    }
                });
            }
        }
        tokio::time::sleep_until(until.into()).await;
        callers.abort_all();
        println!("{}", made.load(Ordering::Relaxed));
        Ok(())
    }
}

/// Not the known caller's, which is 127.0.0.1.
fn address(connection: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 0, 1, u8::try_from(1 + connection % 250).unwrap_or(1)))
}
