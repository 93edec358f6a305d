//! Who waits, for those who look.

use super::Admission;
use super::live::LiveKey;
use crate::units::{AdmissionId, Millis, PoolName, Priority, TenantId, Tokens};

/// A call that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub id: AdmissionId,
    pub tenant: TenantId,
    pub arrived: Millis,
    /// What its start will cost: weighted tokens.
    pub charge: Tokens,
}

impl Admission {
    /// At most `most` of those who wait at a level of a pool, in the order in which they will start if nobody else comes.
    #[must_use]
    pub fn first_waiting(&self, pool: &PoolName, level: Priority, most: usize) -> Vec<Waiting> {
        let waiters = self.pool(pool).map(|pool| pool.queue.first(level, most)).unwrap_or_default();
        let told = waiters.into_iter().filter_map(|waiter| {
            let live = self.live.get(LiveKey::from_bits(waiter.key))?;
            let tenant = self.tenants.get(waiter.flow.tenant)?.id.clone();
            Some(Waiting { id: live.id.clone(), tenant, arrived: live.arrived, charge: waiter.charge })
        });
        told.collect()
    }
}
