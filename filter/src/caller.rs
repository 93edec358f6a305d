//! Who is calling: the key in the request's headers, turned at once into what may leave this VM.

use crate::headers::Headers;
use sha2::{Digest as _, Sha256};
use sluice_policy::wire::{KeyProof, Reason};
use std::fmt;

/// Longer values are no keys; the bound keeps a hostile header from being hashed for long.
const KEY_BYTES_MAX: usize = 4096;
/// Marks keys of our own format: `slk_<key id>_<secret>_<checksum>`.
const OWN_PREFIX: &str = "slk_";
const ID_DIGITS: usize = 12;
const SECRET_DIGITS: usize = 32;
const CHECKSUM_DIGITS: usize = 8;

/// A caller's key after the key itself is forgotten. The digest is a credential, so `Debug` shows none of it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct CallerKey {
    id: Option<String>,
    digest: Digest,
}

/// SHA-256 of a whole key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Digest([u8; 32]);

impl CallerKey {
    pub(crate) fn digest(&self) -> Digest {
        self.digest
    }

    /// The form in which the key's proof travels to the quota service.
    pub(crate) fn proof(&self) -> KeyProof {
        KeyProof { id: self.id.clone(), digest: hex(&self.digest.0) }
    }
}

impl fmt::Debug for CallerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Why no key could be read: the reason and a sentence for the client's developer.
pub(crate) type KeyFault = (Reason, &'static str);

/// Finds the one key in the headers that may carry it.
///
/// # Errors
/// [`Reason::MissingKey`], [`Reason::ConflictingKeys`] or [`Reason::MalformedKey`].
pub(crate) fn identify(headers: &Headers, key_headers: &[String]) -> Result<CallerKey, KeyFault> {
    let mut found: Option<&[u8]> = None;
    for name in key_headers {
        let mut values = headers.spelled(name);
        let Some(value) = values.next() else { continue };
        if values.next().is_some() {
            return Err((Reason::ConflictingKeys, "A key header appears twice; send it once."));
        }
        let key = if name == "authorization" { bearer(value)? } else { value };
        if found.is_some_and(|other| other != key) {
            let message = "Two different API keys were sent; send one.";
            return Err((Reason::ConflictingKeys, message));
        }
        found = Some(key);
    }
    let missing = "No API key was sent; send it as 'Authorization: Bearer <key>'.";
    parse(found.ok_or((Reason::MissingKey, missing))?)
}

/// The token of a `Bearer` authorization.
fn bearer(value: &[u8]) -> Result<&[u8], KeyFault> {
    const SCHEME: &[u8] = b"bearer ";
    match value.split_at_checked(SCHEME.len()) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case(SCHEME) => Ok(token.trim_ascii()),
        _ => Err((Reason::MalformedKey, "The authorization header must be 'Bearer <key>'.")),
    }
}

fn parse(key: &[u8]) -> Result<CallerKey, KeyFault> {
    // A proxy before us may have joined two headers of one name.
    if key.contains(&b',') {
        return Err((Reason::ConflictingKeys, "A key header holds several values; send one key."));
    }
    let text = std::str::from_utf8(key)
        .ok()
        .filter(|text| (1..=KEY_BYTES_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()));
    let Some(text) = text else {
        return Err((Reason::MalformedKey, "The API key is empty or holds characters that no key has."));
    };
    let id = match text.starts_with(OWN_PREFIX) {
        true => Some(
            own_key_id(text)
                .ok_or((Reason::MalformedKey, "The API key is mistyped or cut off: its checksum does not fit."))?,
        ),
        false => None,
    };
    Ok(CallerKey { id, digest: Digest(Sha256::digest(text.as_bytes()).into()) })
}

/// The id inside a key of our own format, if shape and checksum fit.
fn own_key_id(key: &str) -> Option<String> {
    let (signed, checksum) = key.rsplit_once('_')?;
    let (id, secret) = signed.strip_prefix(OWN_PREFIX)?.split_once('_')?;
    let fits = is_hex(id, ID_DIGITS)
        && is_hex(secret, SECRET_DIGITS)
        && is_hex(checksum, CHECKSUM_DIGITS)
        && hex(&Sha256::digest(signed.as_bytes())).starts_with(checksum);
    fits.then(|| id.to_owned())
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    let digit = |value: u8| DIGITS.get(usize::from(value)).copied().unwrap_or('0');
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 0x0f)]).collect()
}

/// Like [`CallerKey`], from a bare key.
#[cfg(test)]
pub(crate) fn caller_key(key: &str) -> CallerKey {
    parse(key.as_bytes()).unwrap()
}

#[cfg(test)]
mod tests;
