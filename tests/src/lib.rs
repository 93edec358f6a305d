//! End to end: starts the real components – Envoy with the filter, quota-service, Redis, a model server – on
//! loopback, and drives them only from outside, over HTTP, signals and files.
//!
//! The tests know nothing of Sluice's insides (only the benchmark of the queue drives the core itself, in `crowd`). What
//! the crate measures about the product (how many calls run in the model, in which order they came, how many tokens they
//! used) it measures itself, in the [`upstream`].
//!
//! In reading order: [`wait`] for conditions, [`paths`] to files and tools, [`process`] and [`folder`] that leave
//! nothing behind, the [`stack`] of components, the [`fault_proxy`] that breaks links, the [`upstream`] that counts, and
//! the [`client`], [`admin`] and [`metrics`] that look at it all. [`demo`] is the story that `./justw demo` tells.

pub mod wait;

pub mod paths;
pub mod ports;

pub mod folder;
pub mod previous_release;
pub mod process;
pub mod raw_http2;

pub mod document;
pub mod gzip;
pub mod keys;
pub mod tenant;

pub mod fault_proxy;
pub mod upstream;

pub mod stack;
pub mod fleet;

pub mod admin;
pub mod client;
pub mod grpc;
pub mod metrics;

pub mod crowd;
pub mod scene;

pub mod faults;

pub mod demo;
