//! The proxy-wasm filter: recognises who is calling, asks the quota service whether the call may go on, holds it
//! until there is an answer, and meters the reply.
//!
//! It decides nothing about quotas and queues (the service does), and nothing here but [`contexts`] and [`host`]
//! knows the proxy: [`exchange`] is a state machine that is fed and asked. It must not panic on any input: a VM
//! that traps takes every paused call of its worker with it.
//!
//! Filter state for access logs, as `%FILTER_STATE(wasm.NAME:PLAIN)%`:
//!
//! | name | set | value |
//! |---|---|---|
//! | `sluice.tenant` | when the call goes upstream | the tenant's id |
//! | `sluice.pool` | when the call goes upstream | the pool's name |
//! | `sluice.priority` | when the call goes upstream | `0` to `9` |
//! | `sluice.admission_id` | once the service was asked | the admission id |
//! | `sluice.wait_ms` | when the call goes upstream, or was refused after a wait | milliseconds in the queue |
//! | `sluice.reason` | when the call is refused, or fails open | as in `x-sluice-reason` |
//!
//! Envoy's counters: `sluice_filter_failed_open`, `sluice_filter_failed_closed`,
//! `sluice_filter_settlements_dropped`, `sluice_filter_usage_estimated`, `sluice_filter_strangers_refused`. Its gauges, over
//! all workers: `sluice_filter_stranger_streams`, `sluice_filter_stranger_bytes`, `sluice_filter_paused_bytes`.

// An index out of bounds is a panic too. Stated here and not for the workspace: only this crate must not panic.
#![deny(clippy::indexing_slicing, clippy::string_slice)]

// In reading order. The state machine, and what it keeps from call to call:
mod exchange;
mod worker;

// From the head of a request to its question for the service.
mod caller;
mod config;
mod dialect;
mod headers;
mod holdings;
mod ids;
mod path;
mod route;
mod secret;
mod source;

// From the service's answer to the end of the reply.
mod rates;
mod refusal;
mod usage;
mod verified;

// From the end of the reply to its settlement.
mod instances;
mod mail;
mod outbox;

// The proxy.
mod contexts;
mod host;

#[cfg(feature = "fuzzing")]
#[allow(clippy::expect_used, clippy::panic, reason = "a broken promise must stop the fuzzer")]
pub mod fuzzing;

#[cfg(any(test, feature = "fuzzing"))]
#[allow(
    clippy::expect_used,
    clippy::panic,
    unreachable_pub,
    reason = "a call that does not go through must stop the count"
)]
pub mod bench;

proxy_wasm::main! {{
    proxy_wasm::set_log_level(proxy_wasm::types::LogLevel::Info);
    proxy_wasm::set_root_context(|context| Box::new(contexts::Root::new(context)));
}}
