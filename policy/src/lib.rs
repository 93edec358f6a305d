//! The decisions of Sluice, and nothing else: no network, no clock, no files, no logs, no randomness.
//!
//! Time is an argument ([`units::Millis`]), decisions are return values, and the shells (`quota-service`, `filter`)
//! perform them. Every path that decides uses integers, so the answer is the same natively and in wasm32.
//!
//! Reading order follows the modules below.

// A number that is cut off without a word is a wrong decision without a word.
#![deny(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss
)]

pub mod units;
pub mod seal;
pub mod config;
pub mod schedule;
pub mod bucket;
pub mod budget;
pub mod account;
pub mod ledger;
pub mod holder;
pub mod queue;
pub mod estimate;
pub mod adaptive;
pub mod admission;
pub mod wire;
pub mod simulate;
