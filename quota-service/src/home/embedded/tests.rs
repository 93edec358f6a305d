use super::book::Book;
use super::store::Contents;
use super::*;
use e2e::folder::Folder;
use proptest::prelude::*;
use sluice_policy::bucket::Rate;
use sluice_policy::ledger::{Limit, MeterName, MeterReport, Terms, Version};
use sluice_policy::queue::SharePolicy;
use sluice_policy::units::Millis;
use std::path::PathBuf;

const CAPACITY: u32 = 8;
const DAY: Duration = Duration::from_secs(86_400);

fn pool() -> Account {
    Account::Pool("smol".into())
}

/// A call of the holder's `incarnation`: it keeps some slots and would like others.
fn request(incarnation: u64, seq: u64, keep: u32, want: u32) -> SyncRequest {
    let rate = Limit::Rate(Rate::per_minute(60_000));
    SyncRequest {
        holder: "gate-0".into(),
        incarnation,
        seq,
        keep,
        want,
        terms: Terms {
            version: Version::default(),
            capacity: CAPACITY,
            policy: SharePolicy::Hybrid,
            levels: [1; 10],
            groups: [].into(),
            meters: [(MeterName::TokensPerMinute, rate)].into(),
        },
        lease: Millis(2_000),
        longest_request: Millis(600_000),
        last_heard: None,
        answered: None,
        wall: None,
        guarded: false,
        ahead: false,
        spent: Vec::new(),
        servers: Vec::new(),
        patience: None,
        jump: None,
        rows: Vec::new(),
        meters: [(MeterName::TokensPerMinute, MeterReport::default())].into(),
    }
}

fn file(folder: &Folder) -> PathBuf {
    folder.path().join("ledger.redb")
}

/// The disk of a machine that tests has other things to do.
fn open(file: &Path) -> EmbeddedHome {
    let ledger = EmbeddedHome::open(file, 1, DAY).unwrap();
    EmbeddedHome { patience: Duration::from_secs(60), ..ledger }
}

/// A file as it is when its process is killed: whoever has it open goes on writing to another one.
fn copy_of(file: &Path, name: &str) -> PathBuf {
    let copy = file.with_file_name(name);
    std::fs::copy(file, &copy).unwrap();
    copy
}

#[tokio::test]
async fn slots_are_told_of_when_the_file_knows_of_them() {
    let folder = Folder::create("ledger-raise").unwrap();
    let ledger = open(&file(&folder));
    let first = request(1, 1, 0, 5);
    assert_eq!(ledger.sync_at_once(&pool(), &first), None);
    assert_eq!(ledger.sync(&pool(), &first).await.unwrap().granted, 5);
    let lower = ledger.sync_at_once(&pool(), &request(1, 2, 3, 3)).map(|reply| reply.granted);
    assert_eq!(lower, Some(3));
    let again = ledger.sync_at_once(&pool(), &request(1, 3, 3, 5)).map(|reply| reply.granted);
    assert_eq!(again, Some(5), "the file has known of five for less than five seconds");
}

#[tokio::test]
async fn what_a_killed_process_had_in_use_is_zombies_to_the_next() {
    let folder = Folder::create("ledger-killed").unwrap();
    let ledger = open(&file(&folder));
    ledger.sync(&pool(), &request(1, 1, 0, 5)).await.unwrap();
    let next = open(&copy_of(&file(&folder), "killed.redb"));
    assert_eq!(next.incarnation(), Some(2), "a start is later than the one before, whatever the clock says");
    let reply = next.sync(&pool(), &request(2, 1, 0, CAPACITY)).await.unwrap();
    assert_eq!((reply.granted, reply.zombies), (CAPACITY - 5, 5));
}

#[tokio::test]
async fn a_process_that_ends_in_order_leaves_what_it_drew_and_nothing_else() {
    let folder = Folder::create("ledger-order").unwrap();
    let ledger = open(&file(&folder));
    ledger.sync(&pool(), &request(1, 1, 0, 5)).await.unwrap();
    let drawn = MeterReport { drawn: 20_000, ..MeterReport::default() };
    let meters = [(MeterName::TokensPerMinute, drawn)].into();
    ledger.sync(&pool(), &SyncRequest { meters, ..request(1, 2, 0, 0) }).await.unwrap();
    ledger.close().await.unwrap();
    let next = open(&copy_of(&file(&folder), "ended.redb"));
    let reply = next.sync(&pool(), &request(2, 1, 0, CAPACITY)).await.unwrap();
    assert_eq!((reply.granted, reply.zombies), (CAPACITY, 0));
    let level = reply.meters[&MeterName::TokensPerMinute].level;
    // A thousand a second come in.
    assert!((40_000..60_000).contains(&level), "{level}");
}

#[tokio::test]
async fn an_overlay_is_there_after_a_kill() {
    let folder = Folder::create("ledger-overlay").unwrap();
    let ledger = open(&file(&folder));
    let change = Change { weights: Some([9; 10]), ..Change::default() };
    let set = ledger.replace_overlay(4, Some(&change)).await.unwrap();
    let next = open(&copy_of(&file(&folder), "killed.redb"));
    assert_eq!(next.overlay().await.unwrap(), set);
    assert_eq!(set, Overlay { version: 5, change: Some(change) });
}

#[tokio::test]
async fn a_file_that_cannot_be_trusted_is_refused_with_the_reason() {
    let folder = Folder::create("ledger-refused").unwrap();
    let refused =
        |file: &Path| EmbeddedHome::open(file, 1, DAY).err().map(|error| error.to_string()).unwrap_or_default();
    let ledger = open(&file(&folder));
    assert!(refused(&file(&folder)).contains("another process has it open"));
    ledger.close().await.unwrap();
    drop(ledger);

    let garbage = folder.path().join("garbage");
    std::fs::write(&garbage, "not a database, but long enough to be one".repeat(1_000)).unwrap();
    assert!(refused(&garbage).contains("is not a ledger"), "{}", refused(&garbage));
    let torn = copy_of(&file(&folder), "torn");
    std::fs::OpenOptions::new().write(true).open(&torn).unwrap().set_len(5_000).unwrap();
    assert!(!refused(&torn).is_empty());
    let foreign = folder.path().join("foreign");
    write_meta(&foreign, "other", 1);
    assert!(refused(&foreign).contains("is not a ledger"), "{}", refused(&foreign));
    let newer = folder.path().join("newer");
    write_meta(&newer, "format", 3);
    assert!(refused(&newer).contains("is of format 3"), "{}", refused(&newer));
    assert!(refused(folder.path()).contains("cannot be used"), "{}", refused(folder.path()));
}

fn write_meta(file: &Path, name: &str, value: u64) {
    let database = redb::Database::create(file).unwrap();
    let transaction = database.begin_write().unwrap();
    let table: redb::TableDefinition<'_, &str, u64> = redb::TableDefinition::new("meta");
    transaction.open_table(table).unwrap().insert(name, value).unwrap();
    transaction.commit().unwrap();
}

#[derive(Clone, Debug)]
enum Step {
    /// The holder gives up this many of its slots, and then would like to hold so many.
    Ask { gives: u32, want: u32 },
    /// A commit begins.
    Begin,
    /// The commit is on disk, and is said to be, or not: the process is killed just before.
    End { is_told: bool },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..=CAPACITY, 0..=CAPACITY).prop_map(|(gives, want)| Step::Ask { gives, want }),
        2 => Just(Step::Begin),
        2 => any::<bool>().prop_map(|is_told| Step::End { is_told }),
    ];
    proptest::collection::vec(step, 1..60)
}

proptest! {
    /// Wherever the process is killed, what it may have in use and what the next one is granted fit into the pool.
    #[test]
    fn a_crash_at_any_moment_never_makes_slots(steps in steps()) {
        let mut book = Book::new(Contents::default());
        let (mut disk, mut under_way) = (Contents::default(), None);
        let (mut hold, mut seq, mut waiting) = (0_u32, 0, None);
        for step in steps {
            match step {
                Step::Ask { gives, want } if waiting.is_none() => {
                    hold = hold.saturating_sub(gives);
                    seq += 1;
                    let reply = book.answer(&pool(), &request(1, seq, hold, want));
                    if book.is_safe(&pool(), &reply) {
                        hold = reply.granted;
                    } else {
                        waiting = Some((reply.granted, book.latest_change()));
                    }
                }
                Step::Ask { .. } => {}
                Step::Begin => if under_way.is_none() {
                    let (changes, change) = book.changes();
                    under_way = changes.map(|changes| (changes, change));
                },
                Step::End { is_told } => if let Some((changes, change)) = under_way.take() {
                    disk.accounts.extend(changes.accounts.clone());
                    disk.lent.extend(changes.lent.clone());
                    disk.clock = changes.clock;
                    if !is_told {
                        break;
                    }
                    book.committed(&changes);
                    if let Some((granted, _)) = waiting.filter(|(_, at)| *at <= change) {
                        hold = granted;
                        waiting = None;
                    }
                },
            }
        }
        let mut next = Book::new(disk);
        let reply = next.answer(&pool(), &request(2, 1, 0, CAPACITY));
        prop_assert!(reply.granted + hold <= CAPACITY, "{hold} in use, {} granted", reply.granted);
    }
}
