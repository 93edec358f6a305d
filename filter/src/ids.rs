//! Admission ids: `<worker incarnation>-<counter>`, never reused; and which of them still live.

use sluice_policy::units::AdmissionId;
use sluice_policy::wire::LiveIds;
use std::hash::{BuildHasher, RandomState};

/// Mints the ids of one worker. A VM that is reloaded starts a new incarnation, as it has forgotten its counter.
#[derive(Debug)]
pub(crate) struct IdMint {
    incarnation: String,
    live: LiveIds,
}

impl IdMint {
    /// The standard library seeds `RandomState` from the host's entropy on `wasm32-wasip1`, per VM.
    pub(crate) fn new() -> Self {
        let entropy = RandomState::new().hash_one("sluice");
        Self { incarnation: format!("{entropy:016x}"), live: LiveIds::default() }
    }

    /// 16 hex digits.
    pub(crate) fn incarnation(&self) -> &str {
        &self.incarnation
    }

    pub(crate) fn mint(&mut self) -> AdmissionId {
        self.live.minted = self.live.minted.wrapping_add(1);
        self.live.numbers.insert(self.live.minted);
        AdmissionId::from(format!("{}-{}", self.incarnation, self.live.minted))
    }

    /// Nobody answers for this id any more: the service has refused it, or has its settlement.
    pub(crate) fn is_over(&mut self, id: &AdmissionId) {
        let number = id.as_str().rsplit('-').next().and_then(|number| number.parse().ok());
        if let Some(number) = number {
            self.live.numbers.remove(&number);
        }
    }

    pub(crate) fn live(&self) -> &LiveIds {
        &self.live
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_lives_from_its_minting_until_it_is_over() {
        let mut mint = IdMint::new();
        let ids: Vec<AdmissionId> = (0..3).map(|_| mint.mint()).collect();
        mint.is_over(&ids[1]);
        assert_eq!(*mint.live(), LiveIds { minted: 3, numbers: [1, 3].into() });
        assert!(mint.live().is_over(mint.incarnation(), &ids[1]) && !mint.live().is_over(mint.incarnation(), &ids[2]));
    }

    #[test]
    fn two_workers_never_mint_the_same_id() {
        let (mut one, mut two) = (IdMint::new(), IdMint::new());
        assert_ne!(one.mint(), two.mint());
        assert_ne!(one.mint(), one.mint());
        assert_eq!(one.incarnation().len(), 16);
    }
}
