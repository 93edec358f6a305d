//! Seeded chance: SplitMix64 (Steele, Lea and Flood 2014). The same seed gives the same run for ever.

use proptest::test_runner::{Config as ProptestConfig, FileFailurePersistence};

#[derive(Clone, Debug)]
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn seeded(seed: u64) -> Self {
        // Neighbouring seeds would give overlapping sequences.
        Self(seed.wrapping_mul(0x2545_f491_4f6c_dd1d))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One of `least` to `most`, both included.
    pub(crate) fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.next() % (most - least + 1)
    }

    /// Small ones as often as large ones: each power of two is equally likely.
    pub(crate) fn size(&mut self, least: u64, most: u64) -> u64 {
        let (low, high) = (u64::from(least.max(1).ilog2()), u64::from(most.ilog2()));
        let bits = self.between(low, high);
        self.between(1 << bits, (2 << bits) - 1).clamp(least, most)
    }

    pub(crate) fn percent(&mut self, likely: u64) -> bool {
        self.next() % 100 < likely
    }

    pub(crate) fn index(&mut self, len: usize) -> usize {
        (self.next() % (len as u64)) as usize
    }

    pub(crate) fn pick<T: Clone>(&mut self, items: &[T]) -> T {
        items[self.index(items.len())].clone()
    }
}

/// How properties run here: regressions of all of them in one file, by its place in the crate.
pub(crate) fn cases(cases: u32) -> ProptestConfig {
    let file = FileFailurePersistence::Direct("proptest-regressions/fair_queue.txt");
    ProptestConfig { cases, failure_persistence: Some(Box::new(file)), ..ProptestConfig::default() }
}
