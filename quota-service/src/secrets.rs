//! Every file of secrets that the configuration names, opened.

use crate::home::link::RedisSecrets;
use crate::identity::Peppers;
use crate::secret::Secret;
use crate::settings::{FilterListener, LEAST_SECRET_BYTES, Settings};
use sluice_policy::config::reader::{ConfigError, ConfigErrors};
use std::path::Path;

/// What the configuration names by file, opened.
pub struct Secrets {
    pub peppers: Peppers,
    pub operators_token: Secret,
    pub filter_secret: Option<Secret>,
    /// Empty for the embedded ledger.
    pub redis: RedisSecrets,
}

impl Secrets {
    /// Opens every file of secrets that the configuration names.
    ///
    /// # Errors
    /// All that are missing, unreadable or too short, at once.
    pub fn open(settings: &Settings) -> Result<Self, ConfigErrors> {
        let mut errors = Vec::new();
        let mut open = |path: String, file: &Path, least| match Secret::from_file(file, least) {
            Ok(secret) => Some(secret),
            Err(problem) => {
                errors.push(ConfigError { path, problem: format!("{}: {problem}", file.display()) });
                None
            }
        };
        let operators_token =
            open("listeners.operators.token_file".to_owned(), &settings.operators_token, LEAST_SECRET_BYTES);
        let filter_secret = match &settings.filter_listener {
            FilterListener::Unix(_) => None,
            FilterListener::Tcp { secret, .. } => {
                open("listeners.filter.secret_file".to_owned(), secret, LEAST_SECRET_BYTES)
            }
        };
        let peppers = settings.peppers.iter();
        let peppers: Peppers = peppers
            .filter_map(|(&version, file)| {
                Some((version, open(format!("identity.peppers (version {version})"), file, LEAST_SECRET_BYTES)?))
            })
            .collect();
        let redis = settings.ledger.redis().map(|redis| RedisSecrets::open(redis, &mut errors)).unwrap_or_default();
        match operators_token {
            Some(operators_token) if errors.is_empty() => Ok(Self { peppers, operators_token, filter_secret, redis }),
            Some(_) | None => Err(ConfigErrors(errors)),
        }
    }
}
