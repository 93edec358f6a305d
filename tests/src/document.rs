//! The shipped YAML files as values: a test changes what it must and runs the rest as it is shipped.

use anyhow::{Context, Result};
use serde_json::Value;
use std::path::Path;

/// Reads a YAML file.
///
/// # Errors
/// When it cannot be read or is not YAML.
pub fn load(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_saphyr::from_str(&text).with_context(|| format!("{} is not YAML", path.display()))
}

/// JSON is YAML, so this is what gets written where a YAML file is expected.
#[must_use]
pub fn text(document: &Value) -> String {
    format!("{document:#}")
}

/// The first mapping, depth first, for which `wanted` holds.
pub fn find_mut<'a>(document: &'a mut Value, wanted: &impl Fn(&Value) -> bool) -> Option<&'a mut Value> {
    if wanted(document) {
        return Some(document);
    }
    match document {
        Value::Object(fields) => fields.values_mut().find_map(|value| find_mut(value, wanted)),
        Value::Array(items) => items.iter_mut().find_map(|value| find_mut(value, wanted)),
        _ => None,
    }
}
