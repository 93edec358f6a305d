//! Gzip of stored blocks only: every reader opens it, and nothing here needs a compressor.

/// A file that is written piece by piece, so that a stream can be packed while it comes.
#[derive(Debug)]
pub struct Gzip {
    crc: u32,
    length: u32,
}

impl Gzip {
    /// Deflate, no flags, no time, an unknown system.
    pub const HEAD: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    /// A block's length has 16 bits.
    const BLOCK_BYTES_MAX: usize = 0xffff;

    /// To follow on [`Gzip::HEAD`].
    #[must_use]
    pub fn begin() -> Self {
        Self { crc: !0, length: 0 }
    }

    /// The next piece, packed: readers can open it as soon as it is there.
    pub fn piece(&mut self, content: &[u8]) -> Vec<u8> {
        let mut packed = Vec::new();
        for block in content.chunks(Self::BLOCK_BYTES_MAX) {
            packed.extend(block_head(false, block.len()));
            packed.extend_from_slice(block);
            self.length = self.length.wrapping_add(u32::try_from(block.len()).unwrap_or(0));
            self.crc = block.iter().fold(self.crc, |crc, byte| crc32_byte(crc, *byte));
        }
        packed
    }

    /// The last block, which is empty, and the sums.
    #[must_use]
    pub fn end(&self) -> Vec<u8> {
        [&block_head(true, 0)[..], &(!self.crc).to_le_bytes(), &self.length.to_le_bytes()].concat()
    }
}

/// A whole file.
#[must_use]
pub fn gzip(content: &[u8]) -> Vec<u8> {
    let mut file = Gzip::begin();
    [Gzip::HEAD.to_vec(), file.piece(content), file.end()].concat()
}

fn block_head(is_last: bool, bytes: usize) -> [u8; 5] {
    let [low, high] = u16::try_from(bytes).unwrap_or(0).to_le_bytes();
    [u8::from(is_last), low, high, !low, !high]
}

/// The checksum of RFC 1952, bit by bit: what is packed here is short.
fn crc32_byte(crc: u32, byte: u8) -> u32 {
    const POLYNOMIAL: u32 = 0xedb8_8320;
    (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (POLYNOMIAL * (crc & 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sums_are_those_of_the_specification() {
        // The check value that every catalogue of CRC-32 gives.
        let file = gzip(b"123456789");
        assert_eq!(file[file.len() - 8..], [0x26, 0x39, 0xf4, 0xcb, 9, 0, 0, 0]);
    }

    #[test]
    fn what_is_longer_than_a_block_goes_into_several() {
        let content = vec![7; Gzip::BLOCK_BYTES_MAX + 1];
        assert_eq!(gzip(&content).len(), content.len() + Gzip::HEAD.len() + 3 * 5 + 8);
    }
}
