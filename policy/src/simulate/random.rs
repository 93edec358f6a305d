//! Pseudo-random numbers for traces; nothing that decides uses them.

/// SplitMix64 (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number Generators", 2014; constants as in Vigna's
/// splitmix64.c). Not for secrets.
#[derive(Clone, Debug)]
pub struct SplitMix64 {
    state: u64,
}

impl SplitMix64 {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// From 0 to `end` - 1, evenly to within `end` / 2^64; 0 when `end` is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        let product = u128::from(self.bits()) * u128::from(end);
        u64::try_from(product >> 64).unwrap_or(0)
    }

    /// True in `percent` of a hundred cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// From 2^`low` to 2^`high` - 1, every doubling as likely as the others: many are small, a few large.
    pub fn log_uniform(&mut self, low: u64, high: u64) -> u64 {
        let exponent = low + self.below(high.saturating_sub(low).max(1));
        let base = 1_u64 << exponent.min(62);
        base + self.below(base)
    }

    /// Exponentially distributed around `mean`, in its unit: the gap between two calls of a crowd. By von Neumann's
    /// comparison method (1951), which needs no logarithm and hence no floating point.
    pub fn exponential(&mut self, mean: u64) -> u64 {
        for whole in 0_u64..64 {
            let first = self.bits() >> 32;
            let (mut last, mut run) = (first, 1_u32);
            loop {
                let next = self.bits() >> 32;
                if next >= last {
                    break;
                }
                (last, run) = (next, run + 1);
            }
            if run % 2 == 1 {
                let scaled = u128::from(mean) * u128::from((whole << 32) + first);
                return u64::try_from(scaled >> 32).unwrap_or(u64::MAX);
            }
        }
        mean
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_numbers_are_those_of_the_reference() {
        let mut random = SplitMix64::new(1_234_567);
        let first: Vec<u64> = (0..3).map(|_| random.bits()).collect();
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn exponential_gaps_have_the_mean_and_the_spread_they_should() {
        let mut random = SplitMix64::new(7);
        let gaps: Vec<u64> = (0..100_000).map(|_| random.exponential(1_000)).collect();
        let mean = gaps.iter().sum::<u64>() / 100_000;
        let beyond_mean = gaps.iter().filter(|gap| **gap > 1_000).count();
        assert!((985..=1_015).contains(&mean), "{mean}");
        // e^-1 of all.
        assert!((36_200..=37_400).contains(&beyond_mean), "{beyond_mean}");
    }
}
