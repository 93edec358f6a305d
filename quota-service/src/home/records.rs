//! What a home keeps of the past: usage records and entries of the audit log.

mod counts;
mod hour;

pub use counts::{Counts, Field};
pub use hour::Hour;

use sluice_policy::units::TenantId;
use std::collections::BTreeMap;

/// One hour of one tenant, as one process writes it: counts by field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub tenant: TenantId,
    pub hour: Hour,
    pub fields: BTreeMap<Field, Counts>,
}

/// One change, for the audit log: `what` is the kind of it, `how` says what it is now.
#[derive(Clone, Debug)]
pub struct Entry {
    pub what: &'static str,
    pub how: String,
}
