//! Who is calling: from what the filter knows of a key to the tenant it belongs to.
//!
//! What is kept is HMAC-SHA-256(pepper, SHA-256(key)), and the pepper lies outside the configuration and outside
//! Redis: whoever steals either learns no key and can test no guess.

mod issue;

pub use issue::{IssuedKey, hash_foreign, issue};

use crate::secret::Secret;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use sluice_policy::config::{Config, KeyRecord, parse_digest};
use sluice_policy::units::TenantId;
use sluice_policy::wire::KeyProof;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};
use subtle::ConstantTimeEq;

/// Peppers by version.
pub type Peppers = BTreeMap<u32, Secret>;

pub struct Identity {
    peppers: Peppers,
    by_id: HashMap<String, Known>,
    /// Keys of foreign formats have no id to look them up by.
    by_mac: HashMap<[u8; 32], Known>,
}

/// The identity that is in force, which a reload replaces for the calls that come after it.
#[derive(Clone)]
pub struct SharedIdentity(Arc<RwLock<Arc<Identity>>>);

impl SharedIdentity {
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(identity))))
    }

    #[must_use]
    pub fn current(&self) -> Arc<Identity> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn replace(&self, identity: Identity) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(identity);
    }
}

struct Known {
    tenant: TenantId,
    record: KeyRecord,
}

impl Identity {
    #[must_use]
    pub fn new(config: &Config, peppers: Peppers) -> Self {
        let (mut by_id, mut by_mac) = (HashMap::new(), HashMap::new());
        for (tenant, settings) in &config.tenants {
            for record in &settings.keys {
                let known = Known { tenant: tenant.clone(), record: record.clone() };
                match &record.id {
                    Some(id) => by_id.insert(id.clone(), known).map(drop),
                    None => by_mac.insert(record.mac, known).map(drop),
                };
            }
        }
        Self { peppers, by_id, by_mac }
    }

    /// The tenant and what is known of the key, if it is.
    #[must_use]
    pub fn verify(&self, proof: &KeyProof) -> Option<(&TenantId, &KeyRecord)> {
        let digest = parse_digest(&proof.digest)?;
        let known = match &proof.id {
            Some(id) => self.by_id.get(id).filter(|known| {
                let mac = self.peppers.get(&known.record.pepper).and_then(|pepper| mac(pepper, &digest));
                mac.is_some_and(|mac| bool::from(mac.ct_eq(&known.record.mac)))
            })?,
            // The lookup's timing tells only about HMACs, which the caller can neither see nor choose.
            None => self.peppers.values().find_map(|pepper| self.by_mac.get(&mac(pepper, &digest)?))?,
        };
        Some((&known.tenant, &known.record))
    }
}

fn mac(pepper: &Secret, digest: &[u8; 32]) -> Option<[u8; 32]> {
    // HMAC takes a key of any length; the error is one of the trait's, not of this use.
    let mut hmac = Hmac::<Sha256>::new_from_slice(pepper.expose().as_bytes()).ok()?;
    hmac.update(digest);
    Some(hmac.finalize().into_bytes().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::Digest;
    use sluice_policy::config::reader::read_document;

    fn pepper() -> Secret {
        Secret::new("p".repeat(32))
    }

    fn proof(key: &str, id: Option<&str>) -> KeyProof {
        let digest = Sha256::digest(key.as_bytes());
        KeyProof { id: id.map(str::to_owned), digest: issue::hex(&digest) }
    }

    fn identity(id: Option<&str>, hmac: &str) -> Identity {
        let document = serde_json::json!({
            "pools": [{"name": "p", "models": ["m"], "capacity": {"concurrent": 1}}],
            "tenants": [{"id": "dept-a", "keys": [{"name": "web", "id": id, "hmac": hmac}]}],
        });
        let config = read_document(&document, Config::read).unwrap();
        Identity::new(&config, Peppers::from([(1, pepper())]))
    }

    #[test]
    fn an_issued_key_is_recognised_and_no_other() {
        let issued = issue((1, &pepper())).unwrap();
        let identity = identity(Some(&issued.id), &issued.hmac);
        let key = issued.key.expose();
        let verified = identity.verify(&proof(key, Some(&issued.id)));
        assert_eq!(verified.map(|(tenant, key)| (tenant.as_str(), key.name.as_str())), Some(("dept-a", "web")));
        assert_eq!(identity.verify(&proof("slk_other", Some(&issued.id))), None);
        assert_eq!(identity.verify(&proof(key, Some("someone"))), None);
        // The id must be presented with the key: a key of our format is not looked up as a foreign one.
        assert_eq!(identity.verify(&proof(key, None)), None);
    }

    #[test]
    fn a_foreign_key_is_found_by_its_hmac() {
        let hmac = hash_foreign((1, &pepper()), "sk-handed-out-long-ago").unwrap();
        let identity = identity(None, &hmac);
        assert!(identity.verify(&proof("sk-handed-out-long-ago", None)).is_some());
        assert!(identity.verify(&proof("sk-another", None)).is_none());
    }

    #[test]
    fn a_proof_that_is_no_digest_proves_nothing() {
        let identity = identity(None, &format!("v1:{}", "0".repeat(64)));
        for digest in ["", "00", &"g".repeat(64), &"é".repeat(32)] {
            assert!(identity.verify(&KeyProof { id: None, digest: digest.to_owned() }).is_none());
        }
    }
}
