//! What may break, each under load: three gateways with sixty callers before a pool of twenty slots, and an upstream that
//! counts what runs. `./justw faults` tries all of it, `tests/faults.rs` the quicker part.
//!
//! What must hold, with the ledger's policy `closed`: never more than the pool has, whole again within [`Home::bound`] after
//! the fault is over, no slot lost, and, net, no token that a caller was given missing from its tenant's budget, unless the
//! fault makes the ledger forget; exactly as many where nothing was killed and no call cut. What a fault may cost meanwhile
//! is callers who are refused.

mod books;
mod kinds;
mod outcome;
mod world;

pub use kinds::{KINDS, Kind};
pub use outcome::{LATE, Outcome, Patience};
pub use world::{Home, World};
