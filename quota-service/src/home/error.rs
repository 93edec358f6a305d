//! What a home says when it cannot do what it was asked.

/// The home did not answer. The call may have been applied all the same; the next one makes up for it.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    #[error("Redis: {0}")]
    Redis(redis::RedisError),
    #[error("Redis takes no writes ({code}): {mend}")]
    NoWrites { code: String, mend: &'static str },
    #[error("Redis did not answer within {0} ms")]
    Timeout(u128),
    #[error("Redis answered in a form that this release does not know: {0}")]
    Malformed(String),
    #[error("Redis is away: {0}")]
    Away(String),
    #[error("Redis is not used: {0}")]
    Unfit(String),
    #[error("the ledger's file: {0}")]
    File(String),
}

impl From<redis::RedisError> for HomeError {
    fn from(error: redis::RedisError) -> Self {
        let mend = match error.code() {
            Some("OOM") => "it is out of memory: free some, or raise `maxmemory`",
            Some("MISCONF") => "it cannot save what it knows: look for a full disk, and into its log",
            Some("NOREPLICAS") => "too few replicas follow it: see `min-replicas-to-write`",
            _ => return Self::Redis(error),
        };
        Self::NoWrites { code: error.code().unwrap_or_default().to_owned(), mend }
    }
}
