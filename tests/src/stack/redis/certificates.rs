//! An authority of one test, and what it certifies: a server on loopback and a client.

use crate::folder::Folder;
use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use serde_json::{Value, json};
use std::path::PathBuf;

/// Where the PEM files lie.
#[derive(Clone, Debug)]
pub struct Certificates {
    pub authority: PathBuf,
    pub server: Pair,
    pub client: Pair,
}

#[derive(Clone, Debug)]
pub struct Pair {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Certificates {
    /// Makes them; the files bear `name`.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn create(folder: &Folder, name: &str) -> Result<Self> {
        let mut params = named("authority", Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let certify = |whom: &str, names: Vec<String>| -> Result<Pair> {
            let key = KeyPair::generate()?;
            let certificate = named(whom, names)?.signed_by(&key, &authority)?;
            Ok(Pair {
                certificate: folder.write(&format!("{name}-{whom}.pem"), &certificate.pem())?,
                key: folder.write_secret(&format!("{name}-{whom}.key"), &key.serialize_pem())?,
            })
        };
        Ok(Self {
            server: certify("server", vec!["127.0.0.1".to_owned()])?,
            client: certify("client", Vec::new())?,
            authority: folder.write(&format!("{name}-ca.pem"), &authority.pem())?,
        })
    }

    /// The section `tls` of a service that uses them.
    #[must_use]
    pub fn settings(&self) -> Value {
        json!({"ca_file": self.authority, "cert_file": self.client.certificate, "key_file": self.client.key})
    }

    pub(super) fn server_arguments(&self) -> [String; 6] {
        let files = [
            ("--tls-ca-cert-file", &self.authority),
            ("--tls-cert-file", &self.server.certificate),
            ("--tls-key-file", &self.server.key),
        ];
        arguments(files)
    }

    pub(super) fn cli_arguments(&self) -> Vec<String> {
        let files = [("--cacert", &self.authority), ("--cert", &self.client.certificate), ("--key", &self.client.key)];
        std::iter::once("--tls".to_owned()).chain(arguments(files)).collect()
    }
}

/// Every one has a name of its own: OpenSSL takes a certificate whose issuer bears its own name for self-signed.
fn named(whom: &str, names: Vec<String>) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, whom);
    Ok(params)
}

fn arguments(files: [(&str, &PathBuf); 3]) -> [String; 6] {
    let [a, b, c] = files.map(|(option, file)| (option.to_owned(), file.display().to_string()));
    [a.0, a.1, b.0, b.1, c.0, c.1]
}
