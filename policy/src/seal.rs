//! Admission ids that say nothing to a reader without the key.
//!
//! A worker numbers its calls. Clients, model servers and logs see a number as one block of AES-128 under a key that the
//! worker makes when it starts, so nobody outside can count, order, attribute or guess ids; the service is given the key
//! with the worker's report of the calls that live, and reads them.

use crate::units::AdmissionId;
use crate::wire::bounded::text_up_to;
use aes::Aes128;
use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// The key of one worker: a secret, and its `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct SealKey(u128);

/// Seals and opens the ids of one worker.
#[derive(Clone)]
pub struct Seal(Aes128);

/// Reads the numbers of one worker's ids.
#[derive(Clone, Debug)]
pub struct IdReader {
    worker: String,
    /// Absent for a filter of the release before, whose ids are `<worker>-<number>`.
    seal: Option<Seal>,
}

/// 128 bits in letters of five, without one that an address, a shell or an eye takes for something else.
const DIGITS: u32 = 26;

impl SealKey {
    /// 128 random bits.
    #[must_use]
    pub fn new(entropy: u128) -> Self {
        Self(entropy)
    }
}

impl Seal {
    #[must_use]
    pub fn new(key: &SealKey) -> Self {
        Self(Aes128::new(&key.0.to_be_bytes().into()))
    }

    /// The id of the call with this number.
    #[must_use]
    pub fn seal(&self, number: u64) -> AdmissionId {
        let mut block = u128::from(number).to_be_bytes().into();
        self.0.encrypt_block(&mut block);
        AdmissionId::from(to_text(u128::from_be_bytes(block.into())))
    }

    /// The number of a call of this worker; `None` for the id of another. That the upper half is zero proves it: a
    /// foreign id passes once in 2^64.
    #[must_use]
    pub fn open(&self, id: &AdmissionId) -> Option<u64> {
        let mut block = from_text(id.as_str())?.to_be_bytes().into();
        self.0.decrypt_block(&mut block);
        u64::try_from(u128::from_be_bytes(block.into())).ok()
    }
}

impl IdReader {
    #[must_use]
    pub fn new(worker: &str, key: Option<&SealKey>) -> Self {
        Self { worker: worker.to_owned(), seal: key.map(Seal::new) }
    }

    #[must_use]
    pub fn worker(&self) -> &str {
        &self.worker
    }

    /// `None` for the id of another worker.
    #[must_use]
    pub fn number(&self, id: &AdmissionId) -> Option<u64> {
        match &self.seal {
            Some(seal) => seal.open(id),
            None => id.as_str().strip_prefix(self.worker.as_str())?.strip_prefix('-')?.parse().ok(),
        }
    }
}

/// In the alphabet of RFC 4648, lower case.
fn to_text(bits: u128) -> String {
    let digit = |place: u32| {
        let value = u8::try_from(bits >> (5 * place) & 31).unwrap_or_default();
        char::from(if value < 26 { b'a' + value } else { b'2' + value - 26 })
    };
    (0..DIGITS).rev().map(digit).collect()
}

fn from_text(text: &str) -> Option<u128> {
    if text.len() != usize::try_from(DIGITS).ok()? {
        return None;
    }
    text.bytes().try_fold(0_u128, |bits, digit| {
        let value = match digit {
            b'a'..=b'z' => digit - b'a',
            b'2'..=b'7' => digit - b'2' + 26,
            _ => return None,
        };
        Some(bits.checked_mul(32)? | u128::from(value))
    })
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Serialize for SealKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&to_text(self.0))
    }
}

impl<'de> Deserialize<'de> for SealKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text: String = text_up_to(64, deserializer)?;
        from_text(&text).map(Self).ok_or_else(|| serde::de::Error::custom("a seal has 26 letters of base 32"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn seal(key: u128) -> Seal {
        Seal::new(&SealKey::new(key))
    }

    /// FIPS 197, appendix C.1.
    #[test]
    fn it_is_aes_128() {
        let standard = seal(0x0001_0203_0405_0607_0809_0a0b_0c0d_0e0f);
        let mut block = 0x0011_2233_4455_6677_8899_aabb_ccdd_eeff_u128.to_be_bytes().into();
        standard.0.encrypt_block(&mut block);
        assert_eq!(u128::from_be_bytes(block.into()), 0x69c4_e0d8_6a7b_0430_d8cd_b780_70b4_c55a);
    }

    proptest! {
        #[test]
        fn only_the_key_that_sealed_an_id_opens_it(key: u128, other: u128, number: u64) {
            let id = seal(key).seal(number);
            prop_assert_eq!(id.as_str().len(), 26);
            prop_assert!(id.as_str().bytes().all(|byte| byte.is_ascii_lowercase() || matches!(byte, b'2'..=b'7')));
            prop_assert_eq!(seal(key).open(&id), Some(number));
            prop_assert!(key == other || seal(other).open(&id).is_none());
        }

        #[test]
        fn no_other_text_is_an_id(key: u128, text in "[a-z2-7A-Z0-9-]{0,30}") {
            prop_assert_eq!(seal(key).open(&AdmissionId::from(text)), None);
        }

        #[test]
        fn a_key_travels_and_does_not_show_itself(key: u128) {
            let key = SealKey::new(key);
            let text = serde_json::to_string(&key).unwrap();
            prop_assert_eq!(serde_json::from_str::<SealKey>(&text).unwrap(), key.clone());
            prop_assert_eq!(format!("{key:?}{:?}", Seal::new(&key)), "[redacted][redacted]");
        }
    }

    #[test]
    fn the_ids_of_consecutive_numbers_have_nothing_in_common() {
        let ids: Vec<String> = (0..1_000).map(|number| seal(7).seal(number).to_string()).collect();
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());
        let alike = |(one, other): (&String, &String)| {
            one.bytes().zip(other.bytes()).filter(|(one, other)| one == other).count()
        };
        let alike: usize = ids.iter().zip(ids.iter().skip(1)).map(alike).sum();
        // Two random texts agree in 1 of 32 letters: 812 of these 25,974.
        assert!((600..1_000).contains(&alike), "{alike} letters agree");
    }
}
