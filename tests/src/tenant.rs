//! A tenant as a test wants it.

use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

#[derive(Clone, Debug)]
pub struct Tenant {
    pub id: String,
    document: Value,
}

impl Tenant {
    /// A tenant of the middle priority without limits.
    #[must_use]
    pub fn new(id: &str) -> Self {
        let document = json!({
            "id": id,
            "namespace": id,
            "tier": "internal",
            "priority": {"default": 5, "ceiling": 0},
            "limits": {},
        });
        Self { id: id.to_owned(), document }
    }

    /// A tenant of the shipped configuration.
    #[must_use]
    pub fn from_section(section: &Value) -> Self {
        Self { id: text(&section["id"]), document: section.clone() }
    }

    #[must_use]
    pub fn tier_name(&self) -> String {
        text(&self.document["tier"])
    }

    /// The level of its calls when they ask for none.
    #[must_use]
    pub fn default_level(&self) -> u64 {
        self.document["priority"]["default"].as_u64().unwrap_or_default()
    }

    /// The level of its calls, which is also the best it may have.
    #[must_use]
    pub fn priority(self, level: u8) -> Self {
        self.with("priority", json!({"default": level, "ceiling": level}))
    }

    #[must_use]
    pub fn tier(self, name: &str) -> Self {
        self.with("tier", json!(name))
    }

    /// One of `concurrent`, `requests_per_s`, `requests_per_min`, `tokens_per_min`.
    #[must_use]
    pub fn limit(mut self, name: &str, value: u64) -> Self {
        self.document["limits"][name] = json!(value);
        self
    }

    #[must_use]
    pub fn tokens_per_day(self, tokens: u64) -> Self {
        self.budget("tokens_per_day", tokens)
    }

    /// One of `tokens_per_day`, `micros_per_month` and the like. Its day and month begin in half a day at the earliest.
    #[must_use]
    pub fn budget(self, name: &str, amount: u64) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let hour = now.as_secs() / 3_600 % 24;
        // In these names the sign is the other way round.
        let zone = if hour < 12 { format!("Etc/GMT-{}", 12 - hour) } else { format!("Etc/GMT+{}", hour - 12) };
        self.with("budgets", json!({name: amount, "time_zone": zone}))
    }

    /// Any other field of the tenant's section.
    #[must_use]
    pub fn with(mut self, field: &str, value: Value) -> Self {
        self.document[field] = value;
        self
    }

    /// Its section of the sidecar's configuration.
    #[must_use]
    pub fn section(&self, keys: Vec<Value>) -> Value {
        let mut section = self.document.clone();
        section["keys"] = Value::Array(keys);
        section
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
