//! A TCP link that fails on demand: in front of one server, on a loopback port of its own, with faults that are switched
//! while it runs.

use crate::ports;
use anyhow::{Context, Result};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

mod pump;

use pump::{Direction, Ended, pump};

/// What the link does to connections, old and new, unless it says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Whatever enters comes out later, in order and not slower.
    Delay { to_server: Duration, to_client: Duration },
    /// Each direction of each connection carries no more than this. Not 0.
    Throttle { bytes_per_s: u32 },
    /// The other end has vanished without a word: connections are accepted, and all that is sent is swallowed, both
    /// ways. A connection that was there meanwhile stays dead when the link is whole again.
    HalfOpen,
    /// What the client sends arrives, but instead of the answer it gets a reset: applied, then lost.
    LoseReplies,
    /// New connections are refused, as by a host on which nobody listens. Old ones go on.
    RefuseNew,
}

/// What has gone through the link so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub connections: u64,
    pub bytes_to_server: u64,
    pub bytes_to_client: u64,
    /// By [`Fault::HalfOpen`].
    pub swallowed_bytes: u64,
    /// By [`Fault::LoseReplies`]; each has cost a connection.
    pub lost_replies: u64,
}

/// Ends with everything that goes through it when it is dropped.
pub struct FaultProxy {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    link: Arc<Link>,
    is_listening: watch::Receiver<bool>,
    _tasks: JoinSet<()>,
}

#[derive(Clone, Copy)]
struct Weather {
    fault: Fault,
    /// How often the link was cut by [`Fault::HalfOpen`]. A connection that has lived through a cut is dead.
    cuts: u64,
}

/// What the connections share.
struct Link {
    server: SocketAddr,
    weather: watch::Receiver<Weather>,
    /// How often all connections were reset.
    resets: watch::Sender<u64>,
    connections: AtomicU64,
    bytes_to_server: AtomicU64,
    bytes_to_client: AtomicU64,
    swallowed_bytes: AtomicU64,
    lost_replies: AtomicU64,
}

impl FaultProxy {
    /// A whole link to `server`, which may start later.
    ///
    /// # Errors
    /// When there is no free port.
    pub async fn start(server: SocketAddr) -> Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ports::free()?));
        let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
        let (weather, weathers) = watch::channel(Weather { fault: Fault::None, cuts: 0 });
        let (listening, is_listening) = watch::channel(true);
        let link = Arc::new(Link::new(server, weathers.clone()));
        let mut tasks = JoinSet::new();
        tasks.spawn(keep_listening(listener, address, weathers, listening, Arc::clone(&link)));
        Ok(Self { address, weather, link, is_listening, _tasks: tasks })
    }

    /// Where clients connect instead of to the server.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on, until the next call.
    ///
    /// # Errors
    /// When the proxy has ended.
    pub async fn set(&self, fault: Fault) -> Result<()> {
        self.weather.send_modify(|weather| {
            weather.cuts += u64::from(fault == Fault::HalfOpen);
            weather.fault = fault;
        });
        let obeyed = |listening: &bool| *listening == (fault != Fault::RefuseNew);
        self.is_listening.clone().wait_for(obeyed).await.context("the fault proxy has ended").map(drop)
    }

    /// Resets every connection there is; new ones fare as they did.
    pub fn reset_all(&self) {
        self.link.resets.send_modify(|count| *count += 1);
    }

    #[must_use]
    pub fn counts(&self) -> Counts {
        let read = |count: &AtomicU64| count.load(Ordering::SeqCst);
        Counts {
            connections: read(&self.link.connections),
            bytes_to_server: read(&self.link.bytes_to_server),
            bytes_to_client: read(&self.link.bytes_to_client),
            swallowed_bytes: read(&self.link.swallowed_bytes),
            lost_replies: read(&self.link.lost_replies),
        }
    }
}

impl Link {
    fn new(server: SocketAddr, weather: watch::Receiver<Weather>) -> Self {
        Self {
            server,
            weather,
            resets: watch::channel(0).0,
            connections: AtomicU64::new(0),
            bytes_to_server: AtomicU64::new(0),
            bytes_to_client: AtomicU64::new(0),
            swallowed_bytes: AtomicU64::new(0),
            lost_replies: AtomicU64::new(0),
        }
    }

    fn fault(&self) -> Fault {
        self.weather.borrow().fault
    }

    /// Marks a connection that begins now. One that comes while the link is cut belongs to the cut, and ends with it.
    fn mark(&self) -> u64 {
        let weather = *self.weather.borrow();
        if weather.fault == Fault::HalfOpen { weather.cuts - 1 } else { weather.cuts }
    }

    fn is_cut(&self, mark: u64) -> bool {
        self.weather.borrow().cuts != mark
    }
}

/// Accepts, except while connections shall be refused: only without a listener does the kernel refuse them.
async fn keep_listening(
    listener: TcpListener,
    address: SocketAddr,
    mut weather: watch::Receiver<Weather>,
    listening: watch::Sender<bool>,
    link: Arc<Link>,
) {
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    loop {
        if weather.borrow_and_update().fault == Fault::RefuseNew {
            listener = None;
        } else if listener.is_none() {
            listener = TcpListener::bind(address).await.ok();
        }
        listening.send_replace(listener.is_some());
        let accept = async {
            match &listener {
                Some(listener) => listener.accept().await.ok(),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = weather.changed() => if changed.is_err() { return },
            Some((client, _)) = accept => {
                link.connections.fetch_add(1, Ordering::SeqCst);
                connections.spawn(carry(client, Arc::clone(&link)));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One connection, from one end to the other.
async fn carry(mut client: TcpStream, link: Arc<Link>) {
    let mut resets = link.resets.subscribe();
    let mark = link.mark();
    let Ok(mut server) = TcpStream::connect(link.server).await else {
        let _ = client.set_zero_linger();
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let is_reset = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        tokio::select! {
            ended = async {
                tokio::try_join!(
                    pump(Direction::ToServer, from_client, to_server, &link, mark),
                    pump(Direction::ToClient, from_server, to_client, &link, mark),
                )
            } => matches!(ended, Err(Ended::Reset)),
            _ = resets.changed() => true,
        }
    };
    if is_reset {
        // Without lingering a close is a reset.
        let _ = (client.set_zero_linger(), server.set_zero_linger());
    }
}

#[cfg(test)]
mod tests;
