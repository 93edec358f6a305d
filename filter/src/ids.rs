//! Admission ids: numbers that are never reused, sealed; and which of them still live.

use sluice_policy::seal::{Seal, SealKey};
use sluice_policy::units::AdmissionId;
use sluice_policy::wire::LiveIds;
use std::hash::{BuildHasher, RandomState};

/// Mints the ids of one worker. A VM that is reloaded starts a new incarnation under a new key, as it has forgotten its
/// counter.
#[derive(Debug)]
pub(crate) struct IdMint {
    incarnation: String,
    seal: Seal,
    live: LiveIds,
}

impl IdMint {
    /// The standard library seeds `RandomState` from the host's entropy on `wasm32-wasip1`, per VM, with 128 bits. Of what
    /// it makes of them only the incarnation is ever seen, and by the service alone.
    pub(crate) fn new() -> Self {
        let entropy = RandomState::new();
        let half = |name: &str| u128::from(entropy.hash_one(name));
        let key = SealKey::new(half("upper half of the seal") << 64 | half("lower half of the seal"));
        let incarnation = format!("{:016x}", entropy.hash_one("incarnation"));
        Self { incarnation, seal: Seal::new(&key), live: LiveIds { seal: Some(key), ..LiveIds::default() } }
    }

    /// 16 hex digits.
    pub(crate) fn incarnation(&self) -> &str {
        &self.incarnation
    }

    pub(crate) fn mint(&mut self) -> AdmissionId {
        self.live.minted = self.live.minted.wrapping_add(1);
        self.live.numbers.insert(self.live.minted);
        self.seal.seal(self.live.minted)
    }

    /// Nobody answers for this id any more: the service has refused it, or has its settlement.
    pub(crate) fn is_over(&mut self, id: &AdmissionId) {
        if let Some(number) = self.seal.open(id) {
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
        assert_eq!((mint.live().minted, &mint.live().numbers), (3, &[1, 3].into()));
        let report = mint.live().of(mint.incarnation());
        assert!(report.is_over(&ids[1]) && !report.is_over(&ids[2]));
    }

    #[test]
    fn two_workers_never_mint_the_same_id_and_cannot_read_each_others() {
        let (mut one, mut two) = (IdMint::new(), IdMint::new());
        let (first, others) = (one.mint(), two.mint());
        assert_ne!(first, others);
        assert_ne!(one.mint(), one.mint());
        assert_eq!((one.seal.open(&first), one.seal.open(&others)), (Some(1), None));
        assert_ne!(one.incarnation(), two.incarnation());
    }

    #[test]
    fn a_mint_does_not_show_its_key() {
        let mint = IdMint::new();
        let key = serde_json::to_string(&mint.live().seal).unwrap();
        assert!(!format!("{mint:?}").contains(key.trim_matches('"')));
    }
}
