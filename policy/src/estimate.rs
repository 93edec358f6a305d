//! What a call will probably yield, so that a reservation is neither the client's wish nor a guess.

use crate::units::Tokens;

/// An integer moving average of the output tokens of one tenant's calls to one model, per sequence.
///
/// Each sample moves it by an eighth of the distance, as TCP's smoothed round-trip time does (RFC 6298).
#[derive(Clone, Copy, Debug, Default)]
pub struct Yield {
    /// The average × [`Yield::SCALE`]; `None` until the first call has settled.
    scaled: Option<u64>,
}

impl Yield {
    const SCALE: u64 = 8;
    /// Reserved for the first calls, when nothing is known and the client set no limit.
    pub const UNKNOWN: Tokens = Tokens(256);
    /// Never reserve less than this: an average of very short replies must not let a flood through unreserved.
    pub const LEAST: Tokens = Tokens(16);

    /// The reservation for one sequence: the smaller of the client's limit and the usual yield, and at most what
    /// the context leaves.
    #[must_use]
    pub fn reservation(self, max_tokens: Option<Tokens>, context_left: Tokens) -> Tokens {
        let usual = match self.scaled {
            Some(scaled) => Tokens(scaled.div_ceil(Self::SCALE)).max(Self::LEAST),
            None => max_tokens.unwrap_or(Self::UNKNOWN),
        };
        usual.min(max_tokens.unwrap_or(usual)).min(context_left)
    }

    /// Learns from a call that ended by itself. `output` is per sequence.
    pub fn learn(&mut self, output: Tokens) {
        let sample = output.0.saturating_mul(Self::SCALE);
        self.scaled = Some(match self.scaled {
            None => sample,
            Some(old) => old.saturating_sub(old / 8).saturating_add(output.0),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_call_reserves_what_the_client_allows() {
        let fresh = Yield::default();
        assert_eq!(fresh.reservation(Some(Tokens(900)), Tokens(4_000)), Tokens(900));
        assert_eq!(fresh.reservation(None, Tokens(4_000)), Yield::UNKNOWN);
        assert_eq!(fresh.reservation(Some(Tokens(900)), Tokens(100)), Tokens(100));
    }

    #[test]
    fn later_calls_reserve_the_usual_yield_within_the_clients_limit() {
        let mut learnt = Yield::default();
        for _ in 0..50 {
            learnt.learn(Tokens(100));
        }
        assert_eq!(learnt.reservation(Some(Tokens(4_000)), Tokens(8_000)), Tokens(100));
        assert_eq!(learnt.reservation(Some(Tokens(7)), Tokens(8_000)), Tokens(7));
        for _ in 0..50 {
            learnt.learn(Tokens(1));
        }
        assert_eq!(learnt.reservation(None, Tokens(8_000)), Yield::LEAST);
    }
}
