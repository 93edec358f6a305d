//! What the fair queue promises, through the crate's public door only.
//!
//! `runs` drives random worlds of a thousand events and more against a naive model that shares no code with the crate:
//! lists, linear scans, and its own walk down the tree. The other modules take one promise each: `shares` those about
//! weights and time, `arrivals` what is decided at the door, `explanations` what is told afterwards, `reloads` what
//! changes under way, `queue`, `meters` and `leases` the parts.
//!
//! `SLUICE_SOAK_RUNS` sets how many runs there are (1,000 unless it does); `SLUICE_SOAK_SEED` the first one's seed.

#[cfg(test)]
#[path = "support/arrivals.rs"]
mod arrivals;
#[cfg(test)]
#[path = "support/chance.rs"]
mod chance;
#[cfg(test)]
#[path = "support/estimates.rs"]
mod estimates;
#[cfg(test)]
#[path = "support/explanations.rs"]
mod explanations;
#[cfg(test)]
#[path = "support/fairness.rs"]
mod fairness;
#[cfg(test)]
#[path = "support/leases.rs"]
mod leases;
#[cfg(test)]
#[path = "support/meters.rs"]
mod meters;
#[cfg(test)]
#[path = "support/model.rs"]
mod model;
#[cfg(test)]
#[path = "support/naive_bucket.rs"]
mod naive_bucket;
#[cfg(test)]
#[path = "support/naive_tree.rs"]
mod naive_tree;
#[cfg(test)]
#[path = "support/queue.rs"]
mod queue;
#[cfg(test)]
#[path = "support/reloads.rs"]
mod reloads;
#[cfg(test)]
#[path = "support/runs.rs"]
mod runs;
#[cfg(test)]
#[path = "support/setup.rs"]
mod setup;
#[cfg(test)]
#[path = "support/shares.rs"]
mod shares;
#[cfg(test)]
#[path = "support/spread.rs"]
mod spread;
#[cfg(test)]
#[path = "support/steps.rs"]
mod steps;
#[cfg(test)]
#[path = "support/world.rs"]
mod world;
