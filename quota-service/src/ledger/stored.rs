//! An account's hash as `sync.lua` writes it, read. docs/LEDGER.md explains every field; names here are the same.
//!
//! Fields that a later release adds are skipped.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use sluice_policy::ledger::FlowName;
use std::collections::BTreeMap;
use std::str::FromStr;

/// The format that this release reads and writes.
pub const FORMAT: u64 = 3;

/// All moments are milliseconds by the ledger's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredAccount {
    /// The configuration file's revision, the overlay's, and since when.
    pub version: [u64; 3],
    pub capacity: u32,
    pub policy: String,
    pub run: String,
    pub clock_offset: i64,
    pub frozen_until: u64,
    pub movable: u32,
    pub spent: i64,
    pub holders: BTreeMap<String, StoredHolder>,
    /// Slots of incarnations that are gone, by the moment they come free.
    pub zombies: BTreeMap<u64, u32>,
    pub meters: BTreeMap<String, StoredMeter>,
    /// Of the groups.
    pub virtual_time: u64,
    pub groups: BTreeMap<String, StoredBranch>,
    /// By `GROUP/LEVEL`.
    pub levels: BTreeMap<String, StoredBranch>,
    pub counters: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredHolder {
    pub share: StoredShare,
    /// When its rows were told.
    pub told_at: u64,
    pub rows: Vec<StoredRow>,
    pub picks: BTreeMap<String, StoredPick>,
    pub lent: BTreeMap<String, i64>,
    pub drawn: BTreeMap<String, i64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct StoredShare {
    pub incarnation: u64,
    pub seq: u64,
    pub granted: u32,
    pub zombies: u32,
    pub zombies_until: u64,
    pub renewed_at: u64,
    pub lease: u64,
    pub contended: u8,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRow {
    pub flow: FlowName,
    pub weight: u64,
    pub head: u64,
    pub waiting: u32,
    pub waited: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct StoredPick {
    pub slots: u32,
    pub weight: u64,
    pub head: u64,
    pub at: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct StoredMeter {
    pub amount: u64,
    /// 0 for a budget.
    pub window: u64,
    pub burst: u64,
    pub period: u64,
    pub level: i64,
    pub fraction: u64,
    pub refilled_at: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct StoredBranch {
    pub counter: u64,
    pub time: u64,
}

/// Why a hash cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("is of format {0:?}, and this release reads format {FORMAT}")]
    Format(String),
    #[error("has no sense in its field {field}: {text:?}")]
    Field { field: String, text: String },
}

impl StoredAccount {
    /// Reads what `HGETALL` answers.
    ///
    /// # Errors
    /// The hash is of another format, or one of its fields is not what that format has there.
    pub fn read(hash: &BTreeMap<String, String>) -> Result<Self, Unreadable> {
        let fields = Fields(hash);
        let format = fields.text("v");
        if format != FORMAT.to_string() {
            return Err(Unreadable::Format(format.to_owned()));
        }
        let holder = |name: &str| Ok((name.to_owned(), StoredHolder::read(&fields, name)?));
        let zombies = fields.json::<BTreeMap<String, u32>>("zombies")?;
        Ok(Self {
            version: fields.words("version")?,
            capacity: fields.number("capacity")?,
            policy: fields.text("policy").to_owned(),
            run: fields.text("run").to_owned(),
            clock_offset: fields.number("clock_offset")?,
            frozen_until: fields.number("frozen_until")?,
            movable: fields.number("movable")?,
            spent: fields.number("spent")?,
            holders: fields.text("holders").split_whitespace().map(holder).collect::<Result<_, _>>()?,
            zombies: fields.each("zombies", zombies, |at| at.parse().ok())?,
            meters: fields.all("meter:", parse_json)?,
            virtual_time: fields.number("virtual_time")?,
            groups: fields.all("group:", parse_json)?,
            levels: fields.all("level:", parse_json)?,
            counters: fields.all("counter:", |text| text.parse().ok())?,
        })
    }
}

impl StoredHolder {
    fn read(fields: &Fields<'_>, name: &str) -> Result<Self, Unreadable> {
        let field = |kind: &str| format!("{kind}:{name}");
        let rows = field("rows");
        let unreadable = || fields.unreadable(&rows);
        let mut lines = fields.text(&rows).lines();
        let told_at = lines.next().map_or(Some(0), |line| line.parse().ok()).ok_or_else(unreadable)?;
        let holder = field("holder");
        Ok(Self {
            share: parse_json(fields.text(&holder)).ok_or_else(|| fields.unreadable(&holder))?,
            told_at,
            rows: lines.map(StoredRow::read).collect::<Option<_>>().ok_or_else(unreadable)?,
            picks: fields.json(&field("picks"))?,
            lent: fields.json(&field("lent"))?,
            drawn: fields.json(&field("drawn"))?,
        })
    }
}

impl StoredRow {
    fn read(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split(' ').collect();
        let [flow, weight, head, waiting, waited, ..] = words[..] else { return None };
        Some(Self {
            flow: flow.parse().ok()?,
            weight: weight.parse().ok()?,
            head: head.parse().ok()?,
            waiting: waiting.parse().ok()?,
            waited: waited.parse().ok()?,
        })
    }
}

/// A hash whose missing fields say nothing.
struct Fields<'a>(&'a BTreeMap<String, String>);

impl Fields<'_> {
    fn text(&self, field: &str) -> &str {
        self.0.get(field).map_or("", String::as_str)
    }

    fn unreadable(&self, field: &str) -> Unreadable {
        Unreadable::Field { field: field.to_owned(), text: self.text(field).to_owned() }
    }

    fn number<T: FromStr + Default>(&self, field: &str) -> Result<T, Unreadable> {
        match self.text(field) {
            "" => Ok(T::default()),
            text => text.parse().map_err(|_| self.unreadable(field)),
        }
    }

    fn words<const N: usize>(&self, field: &str) -> Result<[u64; N], Unreadable> {
        let words: Option<Vec<u64>> = self.text(field).split(' ').map(|word| word.parse().ok()).collect();
        words.and_then(|words| words.try_into().ok()).ok_or_else(|| self.unreadable(field))
    }

    fn json<T: DeserializeOwned + Default>(&self, field: &str) -> Result<T, Unreadable> {
        match self.text(field) {
            "" => Ok(T::default()),
            text => parse_json(text).ok_or_else(|| self.unreadable(field)),
        }
    }

    /// What a field's object holds, under other keys.
    fn each<K: Ord, V>(
        &self,
        field: &str,
        values: BTreeMap<String, V>,
        key: impl Fn(&str) -> Option<K>,
    ) -> Result<BTreeMap<K, V>, Unreadable> {
        let pairs = values.into_iter().map(|(name, value)| Some((key(&name)?, value)));
        pairs.collect::<Option<_>>().ok_or_else(|| self.unreadable(field))
    }

    /// Fields of one kind, by what follows it in their names.
    fn all<T>(&self, kind: &str, read: impl Fn(&str) -> Option<T>) -> Result<BTreeMap<String, T>, Unreadable> {
        let fields = self.0.iter().filter_map(|(field, text)| Some((field, field.strip_prefix(kind)?, text)));
        fields
            .map(|(field, name, text)| Ok((name.to_owned(), read(text).ok_or_else(|| self.unreadable(field))?)))
            .collect()
    }
}

fn parse_json<T: DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_str(text).ok()
}
