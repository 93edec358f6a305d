//! Passwords and certificates, from where the settings say they are.

use super::settings::{Password, Place, RedisSettings, TlsFiles};
use crate::secret::{Secret, read_private};
use redis::{ClientTlsConfig, TlsCertificates};
use sluice_policy::config::reader::ConfigError;
use std::path::Path;

/// How PEM calls it.
const PRIVATE_KEY: &str = "PRIVATE KEY";

/// What [`RedisSettings`] names, opened.
#[derive(Default)]
pub struct RedisSecrets {
    pub password: Option<Secret>,
    pub sentinel_password: Option<Secret>,
    pub certificates: Option<TlsCertificates>,
}

impl RedisSecrets {
    /// Opens what the settings name, and adds what is wrong to `errors`.
    pub(crate) fn open(settings: &RedisSettings, errors: &mut Vec<ConfigError>) -> Self {
        let mut report = |path: &str, problem: String| errors.push(ConfigError { path: path.to_owned(), problem });
        let password = open_password(&settings.login.password, &mut report);
        let sentinel_password = match &settings.place {
            Place::Sentinel { login, .. } => open_password(&login.password, &mut report),
            Place::One(_) | Place::Cluster(_) => None,
        };
        let certificates = settings.tls.as_ref().map(|files| open_certificates(files, &mut report));
        Self { password, sentinel_password, certificates }
    }
}

fn open_password(password: &Password, report: &mut impl FnMut(&str, String)) -> Option<Secret> {
    match password {
        Password::None => None,
        Password::Inline(secret) => Some(secret.clone()),
        // Somebody else's password may be shorter than we would make it.
        Password::File { file, at } => {
            Secret::from_file(file, 1).map_err(|problem| report(at, format!("{}: {problem}", file.display()))).ok()
        }
        Password::Environment { variable, at } => match std::env::var(variable) {
            Ok(text) if !text.is_empty() => Some(Secret::new(text)),
            Ok(_) | Err(_) => {
                report(at, format!("the environment variable {variable} is not set"));
                None
            }
        },
    }
}

fn open_certificates(files: &TlsFiles, report: &mut impl FnMut(&str, String)) -> TlsCertificates {
    let mut open = |field: &str, file: &Path, holds: &str| {
        let at = format!("ledger.redis.tls.{field}");
        let text = match holds {
            PRIVATE_KEY => read_private(file).map(|text| text.to_string()),
            _ => std::fs::read_to_string(file).map_err(|error| error.to_string()),
        };
        let text = match text {
            Ok(text) => text,
            Err(problem) => {
                report(&at, format!("{}: {problem}", file.display()));
                return Vec::new();
            }
        };
        // Without one the crate would trust nobody, and say so only when it connects.
        if !text.lines().any(|line| line.starts_with("-----BEGIN ") && line.contains(holds)) {
            report(&at, format!("{}: holds no {holds} in PEM form", file.display()));
        }
        text.into_bytes()
    };
    TlsCertificates {
        root_cert: files.authority.as_ref().map(|file| open("ca_file", file, "CERTIFICATE")),
        client_tls: files.client.as_ref().map(|(certificate, key)| ClientTlsConfig {
            client_cert: open("cert_file", certificate, "CERTIFICATE"),
            client_key: open("key_file", key, PRIVATE_KEY),
        }),
    }
}
