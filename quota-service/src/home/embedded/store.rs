//! The embedded ledger's file: tables of redb, each commit a transaction that is on disk when it returns.
//!
//! Everything in it is text: an account is JSON under the name of its key in Redis, so that one who looks into either
//! home finds the same names.

use crate::home::overlay::Overlay;
use crate::home::records::{Counts, Field, Hour, Record};
use redb::backends::FileBackend;
use redb::{
    Database, DatabaseError, ReadTransaction, ReadableDatabase, ReadableTable, StorageError, TableDefinition,
    TableError,
};
use serde::{Deserialize, Serialize};
use sluice_policy::ledger::{Account, AccountLedger};
use sluice_policy::units::{HolderId, Millis, TenantId};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::ops::RangeInclusive;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// `format`, `incarnation` and `clock`.
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// Account → [`AccountLedger`].
const ACCOUNTS: TableDefinition<&str, &str> = TableDefinition::new("accounts");
/// Account → [`Lent`].
const LENT: TableDefinition<&str, &str> = TableDefinition::new("lent");

/// `version` and `change` of the operators' overlay.
const OVERLAY: TableDefinition<&str, &str> = TableDefinition::new("overlay");
/// Hours since 1970, tenant, and [`Field`] → [`Counts`]. By hour first: what is too old lies together.
const USAGE: TableDefinition<(u32, &str, &str), &str> = TableDefinition::new("usage");

const FORMAT: u64 = 2;
/// The file is small and read once; redb's own default is a gigabyte.
const CACHE_BYTES: usize = 8 << 20;

/// Why a file cannot be used, or a commit was not made.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{}: another process has it open; only one quota-service may use it", file.display())]
    Locked { file: PathBuf },
    #[error("{}: is not a ledger of quota-service: {why}", file.display())]
    Foreign { file: PathBuf, why: String },
    #[error("{}: is of format {found}; this release knows {FORMAT}: run the release that wrote it", file.display())]
    OtherFormat { file: PathBuf, found: u64 },
    #[error("{}: is damaged: {why}; restore it from a copy, or move it away to start anew", file.display())]
    Damaged { file: PathBuf, why: String },
    #[error("{}: cannot be used: {why}", file.display())]
    Unusable { file: PathBuf, why: String },
    #[error("{}: another process has used it meanwhile", file.display())]
    Taken { file: PathBuf },
}

/// Slots that a holder may have in use although the account's own entry does not say so yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lent {
    pub(super) holder: HolderId,
    pub(super) incarnation: u64,
    /// The most that it has been told it may use, lately.
    pub(super) most: u32,
}

/// Usage that is to be written.
pub(super) type UsageRows = BTreeMap<(Hour, TenantId), BTreeMap<Field, Counts>>;

/// What one transaction changes.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) accounts: BTreeMap<Account, AccountLedger>,
    pub(super) lent: BTreeMap<Account, Lent>,
    pub(super) usage: UsageRows,
    pub(super) overlay: Option<Overlay>,
    pub(super) clock: Millis,
}

/// What a file held when it was opened.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) accounts: BTreeMap<Account, AccountLedger>,
    pub(super) lent: BTreeMap<Account, Lent>,
    pub(super) overlay: Overlay,
    /// The ledger's time at the last commit.
    pub(super) clock: Millis,
}

pub(super) struct Store {
    path: PathBuf,
    /// This process's, which the file says too.
    incarnation: u64,
    /// Of usage records, in hours.
    retention: u32,
    /// `None` after a failure, when the file has to be opened again.
    database: Mutex<Option<Database>>,
}

impl Store {
    /// Opens a file, or makes one, and keeps it from everybody else. `incarnation` is made larger than any before it.
    pub(super) fn open(path: &Path, incarnation: u64, retention: Duration) -> Result<(Self, Contents), StoreError> {
        let database = open_database(path)?;
        let (before, mut contents) = read(&database).map_err(|error| error.of(path))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = Millis(u64::try_from(now.as_millis()).unwrap_or(u64::MAX)).max(contents.clock);
        let forgotten: Vec<Account> =
            contents.accounts.extract_if(.., |_, account| account.is_forgotten(now)).map(|(name, _)| name).collect();
        let incarnation = incarnation.max(before.saturating_add(1));
        let retention = u32::try_from(retention.as_secs() / 3_600).unwrap_or(u32::MAX);
        let store = Self { path: path.to_owned(), incarnation, retention, database: Mutex::new(None) };
        store.begin(&database, &forgotten).map_err(|error| error.of(path))?;
        *store.lock() = Some(database);
        Ok((store, contents))
    }

    pub(super) fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Makes changes, all or none, and returns when they are on disk.
    pub(super) fn commit(&self, changes: &Changes) -> Result<(), StoreError> {
        let mut open = self.lock();
        let database = match open.take() {
            Some(database) => database,
            None => self.open_again()?,
        };
        // What failed once fails until it is opened again, so it is put back only after success.
        let oldest = Hour::now().before(self.retention);
        write(&database, changes, oldest).map_err(|error| error.of(&self.path))?;
        *open = Some(database);
        Ok(())
    }

    /// The usage records of a tenant.
    pub(super) fn usage(&self, tenant: &TenantId, hours: &RangeInclusive<Hour>) -> Result<Vec<Record>, StoreError> {
        let open = self.lock();
        let gone = || StoreError::Unusable { file: self.path.clone(), why: "it could not be written".to_owned() };
        let database = open.as_ref().ok_or_else(gone)?;
        read_usage(database, tenant, hours).map_err(|error| error.of(&self.path))
    }

    /// What it has of these records' fields.
    pub(super) fn kept_usage(&self, records: &[Record]) -> Result<Vec<Record>, StoreError> {
        let mut open = self.lock();
        let database = match open.take() {
            Some(database) => database,
            None => self.open_again()?,
        };
        let kept = read_kept_usage(&database, records).map_err(|error| error.of(&self.path))?;
        *open = Some(database);
        Ok(kept)
    }

    fn open_again(&self) -> Result<Database, StoreError> {
        let database = open_database(&self.path)?;
        let (found, _) = read(&database).map_err(|error| error.of(&self.path))?;
        if found == self.incarnation { Ok(database) } else { Err(StoreError::Taken { file: self.path.clone() }) }
    }

    /// Notes this process, and removes accounts that nobody has used for so long that they say nothing any more.
    fn begin(&self, database: &Database, forgotten: &[Account]) -> Result<(), Trouble> {
        let transaction = database.begin_write()?;
        {
            let (mut accounts, mut lent) = (transaction.open_table(ACCOUNTS)?, transaction.open_table(LENT)?);
            for account in forgotten.iter().map(Account::to_string) {
                accounts.remove(account.as_str())?;
                lent.remove(account.as_str())?;
            }
            let mut meta = transaction.open_table(META)?;
            meta.insert("format", FORMAT)?;
            meta.insert("incarnation", self.incarnation)?;
        }
        Ok(transaction.commit()?)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Database>> {
        self.database.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open_database(path: &Path) -> Result<Database, StoreError> {
    let unusable = |error: std::io::Error| StoreError::Unusable { file: path.to_owned(), why: error.to_string() };
    // It tells who uses how much: for its owner only.
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path).map_err(unusable)?;
    let is_new = file.metadata().map_err(unusable)?.len() == 0;
    let backend = FileBackend::new(file).map_err(|error| Trouble::from(error).of(path))?;
    let database = Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(backend);
    let database = database.map_err(|error| Trouble::from(error).of(path))?;
    if is_new {
        // The file's name must outlive a power failure as well as what is in it.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(unusable)?;
    }
    Ok(database)
}

/// The last incarnation that used the file, and all that is in it.
fn read(database: &Database) -> Result<(u64, Contents), Trouble> {
    let transaction = database.begin_read()?;
    let meta = match transaction.open_table(META) {
        Ok(meta) => meta,
        Err(TableError::TableDoesNotExist(_)) if transaction.list_tables()?.next().is_none() => {
            return Ok((0, Contents::default()));
        }
        Err(TableError::Storage(error)) => return Err(error.into()),
        Err(error) => return Err(Trouble::Foreign(error.to_string())),
    };
    let number = |name: &str| Ok::<_, StorageError>(meta.get(name)?.map(|value| value.value()));
    match number("format")? {
        Some(FORMAT) => {}
        Some(found) => return Err(Trouble::OtherFormat(found)),
        None => return Err(Trouble::Foreign("it has no format".to_owned())),
    }
    let mut contents = Contents { clock: Millis(number("clock")?.unwrap_or(0)), ..Contents::default() };
    match transaction.open_table(ACCOUNTS) {
        Ok(accounts) => contents.accounts = read_all(&accounts)?,
        Err(TableError::TableDoesNotExist(_)) => {}
        Err(error) => return Err(error.into()),
    }
    match transaction.open_table(LENT) {
        Ok(lent) => contents.lent = read_all(&lent)?,
        Err(TableError::TableDoesNotExist(_)) => {}
        Err(error) => return Err(error.into()),
    }
    contents.overlay = read_overlay(&transaction)?;
    Ok((number("incarnation")?.unwrap_or(0), contents))
}

fn read_overlay(transaction: &ReadTransaction) -> Result<Overlay, Trouble> {
    let table = match transaction.open_table(OVERLAY) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => return Ok(Overlay::default()),
        Err(error) => return Err(error.into()),
    };
    let (version, change) = (table.get("version")?, table.get("change")?);
    let overlay = Overlay::parse(version.as_ref().map(|text| text.value()), change.as_ref().map(|text| text.value()));
    overlay.map_err(|error| Trouble::Damaged(error.to_string()))
}

fn read_all<T: for<'de> Deserialize<'de>>(
    table: &impl ReadableTable<&'static str, &'static str>,
) -> Result<BTreeMap<Account, T>, Trouble> {
    let mut all = BTreeMap::new();
    for entry in table.iter()? {
        let (key, value) = entry?;
        let account = key.value().parse().map_err(|error| Trouble::Damaged(format!("{error}")))?;
        let value = serde_json::from_str(value.value())
            .map_err(|error| Trouble::Damaged(format!("the entry {:?}: {error}", key.value())))?;
        all.insert(account, value);
    }
    Ok(all)
}

fn read_usage(database: &Database, tenant: &TenantId, hours: &RangeInclusive<Hour>) -> Result<Vec<Record>, Trouble> {
    let transaction = database.begin_read()?;
    let table = match transaction.open_table(USAGE) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut records = Vec::new();
    for hour in hours.start().number()..=hours.end().number() {
        let mut fields = BTreeMap::new();
        for row in table.range((hour, tenant.as_str(), "")..)? {
            let (key, counts) = row?;
            let (of_hour, of_tenant, field) = key.value();
            if (of_hour, of_tenant) != (hour, tenant.as_str()) {
                break;
            }
            let damaged = |error: String| Trouble::Damaged(format!("usage {hour} {tenant} {field}: {error}"));
            let counts: Counts = serde_json::from_str(counts.value()).map_err(|error| damaged(error.to_string()))?;
            let field: Field = field.parse().map_err(|error| damaged(format!("{error}")))?;
            fields.insert(field, counts);
        }
        if !fields.is_empty() {
            records.push(Record { tenant: tenant.clone(), hour: Hour::numbered(hour), fields });
        }
    }
    Ok(records)
}

fn read_kept_usage(database: &Database, records: &[Record]) -> Result<Vec<Record>, Trouble> {
    let transaction = database.begin_read()?;
    let table = match transaction.open_table(USAGE) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut kept = Vec::new();
    for record in records {
        let mut fields = BTreeMap::new();
        for field in record.fields.keys() {
            let key = (record.hour.number(), record.tenant.as_str(), field.to_string());
            if let Some(counts) = table.get((key.0, key.1, key.2.as_str()))? {
                let damaged = |error| Trouble::Damaged(format!("usage {} {} {}: {error}", key.0, key.1, key.2));
                fields.insert(field.clone(), serde_json::from_str(counts.value()).map_err(damaged)?);
            }
        }
        kept.push(Record { fields, ..record.clone() });
    }
    Ok(kept)
}

fn write(database: &Database, changes: &Changes, oldest: Hour) -> Result<(), Trouble> {
    let transaction = database.begin_write()?;
    {
        let mut accounts = transaction.open_table(ACCOUNTS)?;
        for (account, ledger) in &changes.accounts {
            accounts.insert(account.to_string().as_str(), json(ledger)?.as_str())?;
        }
        let mut lent = transaction.open_table(LENT)?;
        for (account, most) in &changes.lent {
            lent.insert(account.to_string().as_str(), json(most)?.as_str())?;
        }
        if let Some(overlay) = &changes.overlay {
            let mut table = transaction.open_table(OVERLAY)?;
            table.insert("version", overlay.version.to_string().as_str())?;
            table.insert("change", Overlay::text(overlay.change.as_ref()).as_str())?;
        }
        if !changes.usage.is_empty() {
            let mut usage = transaction.open_table(USAGE)?;
            for ((hour, tenant), fields) in &changes.usage {
                for (field, counts) in fields {
                    let key = (hour.number(), tenant.as_str(), field.to_string());
                    usage.insert((key.0, key.1, key.2.as_str()), json(counts)?.as_str())?;
                }
            }
            usage.retain_in(..(oldest.number(), "", ""), |_, _| false)?;
        }
        transaction.open_table(META)?.insert("clock", changes.clock.0)?;
    }
    Ok(transaction.commit()?)
}

fn json(value: &impl Serialize) -> Result<String, Trouble> {
    serde_json::to_string(value).map_err(|error| Trouble::Damaged(error.to_string()))
}

/// What redb and what we found wrong, before it has the file's name.
enum Trouble {
    Locked,
    Foreign(String),
    OtherFormat(u64),
    Damaged(String),
    Failed(String),
}

impl Trouble {
    fn of(self, path: &Path) -> StoreError {
        let file = path.to_owned();
        match self {
            Trouble::Locked => StoreError::Locked { file },
            Trouble::Foreign(why) => StoreError::Foreign { file, why },
            Trouble::OtherFormat(found) => StoreError::OtherFormat { file, found },
            Trouble::Damaged(why) => StoreError::Damaged { file, why },
            Trouble::Failed(why) => StoreError::Unusable { file, why },
        }
    }
}

impl From<DatabaseError> for Trouble {
    fn from(error: DatabaseError) -> Self {
        match error {
            DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => Trouble::Locked,
            DatabaseError::UpgradeRequired(_) => Trouble::Foreign(error.to_string()),
            DatabaseError::Storage(error) => error.into(),
            error => Trouble::Failed(error.to_string()),
        }
    }
}

impl From<StorageError> for Trouble {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Corrupted(why) => Trouble::Damaged(why),
            StorageError::Io(error) if error.kind() == ErrorKind::InvalidData => Trouble::Foreign(error.to_string()),
            error => Trouble::Failed(error.to_string()),
        }
    }
}

impl From<TableError> for Trouble {
    fn from(error: TableError) -> Self {
        match error {
            TableError::Storage(error) => error.into(),
            error => Trouble::Foreign(error.to_string()),
        }
    }
}

impl From<redb::TransactionError> for Trouble {
    fn from(error: redb::TransactionError) -> Self {
        Trouble::Failed(error.to_string())
    }
}

impl From<redb::CommitError> for Trouble {
    fn from(error: redb::CommitError) -> Self {
        Trouble::Failed(error.to_string())
    }
}
