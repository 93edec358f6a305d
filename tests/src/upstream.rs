//! The upstream that counts: what runs in the model is measured here, outside Sluice.
//!
//! It is either *scripted* – a server whose every call says in its own body how it shall go, see [`Behaviour`] – or a
//! proxy *in front of* a real model. Both keep a [`CallLog`], and both count a call as ended *before* they write its
//! last byte: whoever lets the next call in at the sight of that byte is never seen as too early.

mod calls;
mod dialects;
mod forward;
mod grpc;
mod record;
mod scripted;
mod server;
mod usage;

pub use calls::{Call, CallLog, Ticket};
pub use record::{Record, Span};
pub use scripted::{Behaviour, Ending};
pub use usage::Usage;

use anyhow::Result;
use server::Server;
use std::net::SocketAddr;

pub struct Upstream {
    calls: CallLog,
    server: Server,
}

impl Upstream {
    /// Starts a server that does what the calls' own bodies say.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn scripted() -> Result<Self> {
        let calls = CallLog::default();
        let log = calls.clone();
        let server = Server::start(move |request| scripted::answer(log.clone(), request)).await?;
        Ok(Self { calls, server })
    }

    /// Starts a proxy to the model server at `base`, such as `http://127.0.0.1:9000`.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn in_front_of(base: &str) -> Result<Self> {
        let calls = CallLog::default();
        let log = calls.clone();
        let forwarder = forward::Forwarder::new(base)?;
        let server = Server::start(move |request| forward::answer(forwarder.clone(), log.clone(), request)).await?;
        Ok(Self { calls, server })
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    #[must_use]
    pub fn calls(&self) -> &CallLog {
        &self.calls
    }
}

#[cfg(test)]
mod tests;
