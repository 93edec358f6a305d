//! The ledger by its stored form, which is public: the embedded ledger writes it to disk.

use serde_json::{Map, Value, json};
use sluice_policy::ledger::AccountLedger;

/// A ledger, opened for changes that no call makes. A field that is not there is a mutant that no longer means anything,
/// so it panics rather than pass.
pub(super) struct Stored(Value);

impl Stored {
    /// Changes a ledger in its stored form.
    #[allow(clippy::expect_used, reason = "a mutant that cannot be made must not pass for one that was survived")]
    pub(super) fn change(ledger: &mut AccountLedger, change: impl FnOnce(&mut Stored)) {
        let mut stored = Stored(serde_json::to_value(&*ledger).expect("a ledger can be stored"));
        change(&mut stored);
        *ledger = serde_json::from_value(stored.0).expect("a ledger can be restored");
    }

    #[allow(clippy::expect_used, reason = "see above")]
    fn object<'a>(value: &'a mut Value, name: &str) -> &'a mut Map<String, Value> {
        value.get_mut(name).and_then(Value::as_object_mut).expect("the stored form has changed")
    }

    /// Shares by their holder.
    pub(super) fn shares(&mut self) -> impl Iterator<Item = (&String, Share<'_>)> {
        Self::object(&mut self.0, "shares").iter_mut().map(|(holder, share)| (holder, Share(share)))
    }

    pub(super) fn share(&mut self, holder: &str) -> Option<Share<'_>> {
        Self::object(&mut self.0, "shares").get_mut(holder).map(Share)
    }

    /// Incarnations that have not said what they hold since something was lost.
    pub(super) fn awaited(&mut self) -> &mut Map<String, Value> {
        Self::object(self.field("watch"), "awaited")
    }

    pub(super) fn number(&mut self, name: &str) -> u64 {
        self.field(name).as_u64().unwrap_or(0)
    }

    pub(super) fn set(&mut self, name: &str, value: u64) {
        *self.field(name) = json!(value);
    }

    /// Adds to what is left of every rate and budget.
    pub(super) fn raise_levels(&mut self, by: u64) {
        for meter in Self::object(&mut self.0, "meters").values_mut() {
            let level = meter.get("level").and_then(Value::as_i64).unwrap_or(0);
            *Share(meter).field("level") = json!(level.saturating_add_unsigned(by));
        }
    }

    fn field(&mut self, name: &str) -> &mut Value {
        Share(&mut self.0).into_field(name)
    }
}

/// What one holder has, in its stored form.
pub(super) struct Share<'a>(&'a mut Value);

impl<'a> Share<'a> {
    #[allow(clippy::expect_used, reason = "see above")]
    fn into_field(self, name: &str) -> &'a mut Value {
        self.0.get_mut(name).expect("the stored form has changed")
    }

    #[allow(clippy::expect_used, reason = "see above")]
    pub(super) fn field(&mut self, name: &str) -> &mut Value {
        self.0.get_mut(name).expect("the stored form has changed")
    }

    pub(super) fn number(&mut self, name: &str) -> u64 {
        self.field(name).as_u64().unwrap_or(0)
    }

    pub(super) fn set(&mut self, name: &str, value: u64) {
        *self.field(name) = json!(value);
    }

    /// What it holds of rates and budgets.
    pub(super) fn lent(&mut self) -> u64 {
        let lent = self.field("lent").as_object();
        lent.map_or(0, |lent| lent.values().filter_map(|meter| meter.get("held")?.as_u64()).sum())
    }
}
