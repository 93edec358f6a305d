//! How accounts are written: what replicas and Redis say to each other of them, and what lies in Redis.
//!
//! Both homes answer a call alike (`home/redis.rs` by the script `ledger/sync.lua`, `home/embedded.rs` by the function in
//! `policy`); `tests/ledger_conformance.rs` replays the same calls on both.

pub mod stored;
pub mod wire;

pub use sluice_policy::ledger::Account;
pub use wire::Notice;
