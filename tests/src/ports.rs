//! Free loopback ports for components that must be told theirs beforehand.

use anyhow::{Context, Result};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the range from which the kernel takes ports for outgoing connections (32768 on), so that no connection of
/// a test can sit on a port between its choice and its use.
const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

/// Ports that this process has tried, so that two tests in it never choose the same.
static TRIED: AtomicU16 = AtomicU16::new(0);

/// A port that nobody listens on, and that this process has not handed out before.
///
/// # Errors
/// When none of a whole range is free.
pub fn free() -> Result<u16> {
    // Processes start at different places, so that test binaries that run at once seldom meet.
    let start = u16::try_from(std::process::id() % u32::from(COUNT))?;
    (0..COUNT)
        .map(|_| {
            let step = TRIED.fetch_add(1, Ordering::Relaxed) % COUNT;
            FIRST + (u32::from(start) * 37 + u32::from(step)).rem_euclid(u32::from(COUNT)) as u16
        })
        .find(|port| is_free(*port))
        .context("no free port from 20000 to 31999")
}

/// Whether a listener could bind `port` on loopback now.
#[must_use]
pub fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}
