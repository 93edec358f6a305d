//! New keys: `slk_<key id>_<secret>_<checksum>`.
//!
//! The prefix lets secret scanners find a leaked key, the id lets the service look it up without an index over
//! secrets, and the checksum lets the filter refuse a mistyped key without asking anyone.

use super::mac;
use crate::secret::Secret;
use sha2::{Digest, Sha256};
use std::fmt::Write;

/// A new key, shown once.
pub struct IssuedKey {
    pub key: Secret,
    pub id: String,
    /// `v<pepper version>:<hex>`, for the configuration.
    pub hmac: String,
}

/// Makes a key of 128 random bits.
///
/// # Errors
/// The system has no randomness to give.
pub fn issue(pepper: (u32, &Secret)) -> Result<IssuedKey, String> {
    let (id, secret) = (random_hex::<6>()?, random_hex::<16>()?);
    let body = format!("slk_{id}_{secret}");
    let checksum: String = hex(&Sha256::digest(body.as_bytes())).chars().take(8).collect();
    let key = Secret::new(format!("{body}_{checksum}"));
    let hmac = hash_foreign(pepper, key.expose())?;
    Ok(IssuedKey { key, id, hmac })
}

/// What the configuration keeps of a key that someone else made.
///
/// # Errors
/// The pepper cannot be used as an HMAC key.
pub fn hash_foreign((version, pepper): (u32, &Secret), key: &str) -> Result<String, String> {
    let digest = Sha256::digest(key.as_bytes()).into();
    let mac = mac(pepper, &digest).ok_or("the pepper cannot be used")?;
    Ok(format!("v{version}:{}", hex(&mac)))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn random_hex<const BYTES: usize>() -> Result<String, String> {
    let mut bytes = [0; BYTES];
    getrandom::fill(&mut bytes).map_err(|error| format!("no randomness: {error}"))?;
    Ok(hex(&bytes))
}
