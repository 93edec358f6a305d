//! Weights of levels and shares of groups, as the configuration, its time rules and the overlay write them alike.

use super::MOST_WEIGHT;
use super::reader::Section;
use crate::units::Priority;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

/// Weights of all levels: 10 integers from 1 to 1,000,000.
pub(crate) fn read_weights(section: &Section<'_>, field: &'static str) -> Option<[u64; Priority::COUNT]> {
    let given = section.raw(field)?;
    let Some(list) = given.as_array() else {
        section.error(field, "must be a list of 10 integers, for P0 to P9");
        return None;
    };
    if list.len() != Priority::COUNT {
        section.error(field, format!("must be 10 integers, for P0 to P9, found {}", list.len()));
    }
    let weights: Vec<u64> = list
        .iter()
        .enumerate()
        .filter_map(|(index, value)| weight(section, &format!("{field}[{index}]"), value))
        .collect();
    weights.try_into().ok()
}

fn weight(section: &Section<'_>, field: &str, value: &Value) -> Option<u64> {
    let weight = value.as_u64().filter(|weight| (1..=MOST_WEIGHT).contains(weight));
    if weight.is_none() {
        let found: &dyn Display = match value {
            Value::Null => &"nothing, or what is not a number",
            Value::Number(number) => number,
            Value::Bool(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => &"no number",
        };
        section.error(field, format!("must be an integer from 1 to {MOST_WEIGHT}, found {found}"));
    }
    weight
}

/// Reads `shares: {group: weight}`; every group must exist.
pub(crate) fn read_shares(pool: &Section<'_>, groups: &BTreeSet<String>) -> BTreeMap<String, u64> {
    let Some(given) = pool.raw("shares") else { return BTreeMap::new() };
    let Some(fields) = given.as_object() else {
        pool.error("shares", "must be a mapping from group to share");
        return BTreeMap::new();
    };
    if fields.is_empty() {
        pool.error("shares", "must name a group");
    }
    let mut shares = BTreeMap::new();
    for (group, value) in fields {
        let field = format!("shares.{group}");
        if !groups.contains(group) {
            let known: Vec<&str> = groups.iter().map(String::as_str).collect();
            pool.error(&field, format!("there is no group {group:?}; groups are {}", known.join(", ")));
        }
        shares.extend(weight(pool, &field, value).map(|share| (group.clone(), share)));
    }
    shares
}
