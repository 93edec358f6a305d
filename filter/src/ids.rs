//! Admission ids: `<worker incarnation>-<counter>`, never reused.

use sluice_policy::units::AdmissionId;
use std::hash::{BuildHasher, RandomState};

/// Mints the ids of one worker. A VM that is reloaded starts a new incarnation, as it has forgotten its counter.
#[derive(Debug)]
pub(crate) struct IdMint {
    incarnation: String,
    last: u64,
}

impl IdMint {
    /// The standard library seeds `RandomState` from the host's entropy on `wasm32-wasip1`, per VM.
    pub(crate) fn new() -> Self {
        let entropy = RandomState::new().hash_one("sluice");
        Self { incarnation: format!("{entropy:016x}"), last: 0 }
    }

    /// 16 hex digits.
    pub(crate) fn incarnation(&self) -> &str {
        &self.incarnation
    }

    pub(crate) fn mint(&mut self) -> AdmissionId {
        self.last = self.last.wrapping_add(1);
        AdmissionId::from(format!("{}-{}", self.incarnation, self.last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_workers_never_mint_the_same_id() {
        let (mut one, mut two) = (IdMint::new(), IdMint::new());
        assert_ne!(one.mint(), two.mint());
        assert_ne!(one.mint(), one.mint());
        assert_eq!(one.incarnation().len(), 16);
    }
}
