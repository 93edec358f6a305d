//! API keys, made the way an operator makes them: by `quota-service key new`.

use crate::paths;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

/// A raw key and the entry that makes the sidecar know it.
pub struct NewKey {
    pub raw: String,
    pub entry: Value,
}

/// Makes a key for a tenant that `config` lists.
///
/// # Errors
/// When the command fails or does not print a key and its entry.
pub fn new_key(folder: &Path, config: &Path, tenant: &str) -> Result<NewKey> {
    let name = format!("{}_key", tenant.replace('-', "_"));
    let output = Command::new(paths::built("quota-service")?)
        .current_dir(folder)
        .args(["key", "new", "--tenant", tenant, "--name", &name, "--config"])
        .arg(config)
        .output()?;
    let printed = String::from_utf8(output.stdout)?;
    if !output.status.success() {
        bail!("quota-service key new: {}{printed}", String::from_utf8_lossy(&output.stderr));
    }
    read_new_key(&name, &printed).with_context(|| format!("quota-service key new printed:\n{printed}"))
}

/// A well-formed key that no sidecar knows: `slk_<id>_<secret>_<checksum>`.
#[must_use]
pub fn unknown_key() -> &'static str {
    // The checksum is the first 8 hex digits of SHA-256 over what stands before it.
    "slk_000000000000_00000000000000000000000000000000_629421ec"
}

fn read_new_key(name: &str, printed: &str) -> Result<NewKey> {
    let words = || printed.split(|c: char| c.is_whitespace() || "\"'`,{}".contains(c));
    let raw = words().find(|word| word.starts_with("slk_")).context("no key")?;
    let hmac = words().find(|word| is_versioned_hmac(word)).context("no hmac")?;
    let id = raw.split('_').nth(1).context("no id in the key")?;
    Ok(NewKey { raw: raw.to_owned(), entry: json!({"name": name, "id": id, "hmac": hmac}) })
}

/// `v<version>:<64 hex digits>`.
fn is_versioned_hmac(word: &str) -> bool {
    word.strip_prefix('v')
        .and_then(|rest| rest.split_once(':'))
        .is_some_and(|(_, hex)| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
}
