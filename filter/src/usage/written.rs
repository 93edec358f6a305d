//! Our count of what a model wrote into a stream, where its server does not tell.
//!
//! Most servers send a token a piece, so the pieces are counted. Speculative decoding, intervals and coalescing proxies put
//! several tokens into one: such pieces are longer, on the whole, than tokens are, and then the bytes are counted. A piece
//! by itself proves nothing, because a single token may have more than a dozen bytes.

use super::tokens_of;
use serde::de::{Deserialize, Deserializer, Visitor};
use sluice_policy::units::Tokens;
use std::fmt;
use std::ops::AddAssign;

/// Tokens of text are shorter on average, in any language: by our measure 2 to 5 bytes (the page on dialects).
const BYTES_PER_PIECE_MAX: u64 = 8;
/// So many bytes of long tokens may come together before they tell anything.
const CHANCE_BYTES: u64 = 64;

/// Pieces of text, and the bytes in them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Written {
    pieces: u64,
    bytes: u64,
}

impl Written {
    /// A piece of so many bytes; one without any is none.
    pub(super) fn piece(bytes: usize) -> Self {
        Self { pieces: u64::from(bytes > 0), bytes: bytes as u64 }
    }

    /// Output of a kind that cannot be read.
    pub(super) const UNREADABLE: Self = Self { pieces: 1, bytes: 0 };

    pub(super) fn is_empty(self) -> bool {
        self.pieces == 0
    }

    /// Fewer tokens than these hardly make so much text in so many pieces. Some proxies send single letters, which prove
    /// nothing.
    pub(super) fn least_tokens(self) -> Tokens {
        const BYTES_PER_TOKEN_MIN: u64 = 2;
        Tokens(self.pieces.min(self.bytes.div_ceil(BYTES_PER_TOKEN_MIN))).max(least_tokens_of(self.bytes))
    }

    /// How many there are.
    pub(super) fn pieces(self) -> u64 {
        self.pieces
    }

    pub(super) fn tokens(self) -> Tokens {
        let of_tokens = self.pieces.saturating_mul(BYTES_PER_PIECE_MAX).saturating_add(CHANCE_BYTES);
        if self.bytes <= of_tokens { Tokens(self.pieces) } else { Tokens(tokens_of(self.bytes).0.max(self.pieces)) }
    }
}

impl AddAssign for Written {
    fn add_assign(&mut self, more: Self) {
        self.pieces = self.pieces.saturating_add(more.pieces);
        self.bytes = self.bytes.saturating_add(more.bytes);
    }
}

impl std::iter::Sum for Written {
    fn sum<I: Iterator<Item = Self>>(pieces: I) -> Self {
        pieces.fold(Self::default(), |mut sum, piece| {
            sum += piece;
            sum
        })
    }
}

/// Fewer tokens than these hardly make so much text.
pub(super) fn least_tokens_of(bytes: u64) -> Tokens {
    Tokens(bytes.saturating_sub(CHANCE_BYTES) / BYTES_PER_PIECE_MAX)
}

/// The bytes of a JSON string, which itself is not kept.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TextBytes(pub(super) usize);

impl<'de> Deserialize<'de> for TextBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl Visitor<'_> for Reader {
            type Value = TextBytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E>(self, text: &str) -> Result<TextBytes, E> {
                Ok(TextBytes(text.len()))
            }
        }
        deserializer.deserialize_str(Reader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_pieces(count: usize, bytes: usize) -> Tokens {
        (0..count).map(|_| Written::piece(bytes)).sum::<Written>().tokens()
    }

    #[test]
    fn pieces_as_long_as_tokens_are_tokens_and_longer_ones_are_counted_by_their_bytes() {
        assert_eq!(of_pieces(0, 5), Tokens(0));
        assert_eq!(of_pieces(5, 0), Tokens(0));
        assert_eq!(of_pieces(100, 1), Tokens(100));
        assert_eq!(of_pieces(100, 8), Tokens(100));
        assert_eq!(of_pieces(100, 20), Tokens(500));
        assert_eq!(of_pieces(1, 400), Tokens(100));
        assert_eq!(Written::UNREADABLE.tokens(), Tokens(1));
    }

    #[test]
    fn a_few_long_tokens_are_no_proof() {
        assert_eq!(of_pieces(3, 17), Tokens(3));
        assert_eq!(of_pieces(1, 72), Tokens(1));
    }
}
