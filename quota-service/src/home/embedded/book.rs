//! What the embedded ledger knows, and which of it the file does not know yet.

use super::store::{Changes, Contents, Lent, UsageRows};
use crate::home::overlay::Overlay;
use crate::home::records::{Hour, Record};
use sluice_policy::ledger::{Account, AccountLedger, MeterName, MeterReport, Server, SyncReply, SyncRequest};
use sluice_policy::schedule::Change;
use sluice_policy::units::{HolderId, Millis, TenantId};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::time::Instant;

/// How often the slots that a crash would block are counted anew: a holder that goes up and down within a few seconds
/// waits for the file once, not every time.
const PEAK_LASTS: Millis = Millis(5_000);

/// Usage records of a ledger without a file are for looking at, not for bills.
const HOURS_IN_MEMORY: u32 = 48;
/// A call that starts is told to the file within a commit's time, so that no process started one much later than its
/// last commit.
const MOST_UNSEEN: Millis = Millis(2_000);

pub(super) struct Book {
    clock: Clock,
    accounts: BTreeMap<Account, AccountLedger>,
    /// What each holder was told last, and the most that it was told lately.
    told: BTreeMap<Account, Told>,
    /// Of the processes before this one: what they may have had in use when they ended.
    estates: BTreeMap<Account, Lent>,
    /// When the last of them is known to have lived.
    seen_alive: Millis,
    /// Answers that wait for the file.
    answers: BTreeMap<Account, SyncReply>,
    /// Changed since the last commit.
    changed: BTreeSet<Account>,
    /// Usage records since the last commit; in memory, of the last [`HOURS_IN_MEMORY`].
    usage: UsageRows,
    overlay: Overlay,
    has_new_overlay: bool,
    /// Counts changes; a commit is of all up to one of them.
    changes: u64,
    counted_at: Millis,
}

/// A clock that goes on where the file ends, and never jumps while the process lives.
struct Clock {
    began: Millis,
    started: Instant,
}

impl Clock {
    fn new(last: Millis) -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix = Millis(u64::try_from(unix.as_millis()).unwrap_or(u64::MAX));
        Self { began: unix.max(last), started: Instant::now() }
    }

    fn now(&self) -> Millis {
        self.began.plus(Millis(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)))
    }
}

/// Invariant: `durable` is what the file says at least; nobody is told of more.
struct Told {
    holder: HolderId,
    incarnation: u64,
    granted: u32,
    /// The most since the peaks were last counted, and the most of the time before.
    peaks: [u32; 2],
    durable: u32,
    meters: BTreeMap<MeterName, MeterReport>,
}

impl Told {
    fn most(&self) -> u32 {
        self.peaks.into_iter().fold(self.granted, u32::max)
    }
}

impl Book {
    pub(super) fn new(contents: Contents) -> Self {
        Self {
            clock: Clock::new(contents.clock),
            accounts: contents.accounts,
            told: BTreeMap::new(),
            estates: contents.lent,
            seen_alive: contents.clock,
            answers: BTreeMap::new(),
            changed: BTreeSet::new(),
            usage: UsageRows::new(),
            overlay: contents.overlay,
            has_new_overlay: false,
            changes: 0,
            counted_at: Millis::ZERO,
        }
    }

    /// Answers one call.
    pub(super) fn answer(&mut self, account: &Account, request: &SyncRequest) -> SyncReply {
        let now = self.clock.now();
        // What this process forgets it forgets with all its holders, so it is always the same run of the server.
        let server = Server { run: "", now };
        let ledger = self.accounts.entry(account.clone()).or_default();
        if let Some(estate) = self.estates.remove(account) {
            let longest_request = request.longest_request.max(ledger.longest_request_of(&estate.holder));
            let may_run = now < self.seen_alive.plus(longest_request).plus(MOST_UNSEEN);
            take_over(ledger, &estate, may_run, &SyncRequest { longest_request, ..request.clone() }, server);
        }
        let reply = ledger.sync(request, server).reply;
        self.note(account, request, &reply);
        reply
    }

    /// Whether the file knows of all slots that an answer tells of.
    pub(super) fn is_safe(&self, account: &Account, reply: &SyncReply) -> bool {
        self.told.get(account).is_some_and(|told| reply.granted <= told.durable)
    }

    /// Keeps an answer until the file knows of its slots.
    pub(super) fn keep_answer(&mut self, account: &Account, reply: SyncReply) {
        self.answers.insert(account.clone(), reply);
    }

    /// The answer that was kept for this call.
    pub(super) fn take_answer(&mut self, account: &Account, request: &SyncRequest) -> Option<SyncReply> {
        let asked = (request.incarnation, request.seq);
        self.answers.remove(account).filter(|reply| (reply.incarnation, reply.seq) == asked)
    }

    pub(super) fn latest_change(&self) -> u64 {
        self.changes
    }

    pub(super) fn overlay(&self) -> &Overlay {
        &self.overlay
    }

    /// Takes an overlay in the place of those up to version `after`. Gives the change to wait for.
    pub(super) fn replace_overlay(&mut self, after: u64, change: Option<&Change>) -> u64 {
        if self.overlay.version <= after {
            self.overlay = Overlay { version: after + 1, change: change.cloned() };
            self.has_new_overlay = true;
            self.changes += 1;
        }
        self.changes
    }

    /// Takes usage records. Gives the change to wait for.
    pub(super) fn keep_usage(&mut self, records: &[Record]) -> u64 {
        for record in records {
            let fields = self.usage.entry((record.hour, record.tenant.clone())).or_default();
            fields.extend(record.fields.clone());
        }
        self.changes += u64::from(!records.is_empty());
        self.changes
    }

    /// What it has of these records' fields, where there is no file.
    pub(super) fn kept_usage(&self, records: &[Record]) -> Vec<Record> {
        let kept = |record: &Record| {
            let kept = self.usage.get(&(record.hour, record.tenant.clone()))?;
            let fields = record.fields.keys().filter_map(|field| Some((field.clone(), *kept.get(field)?)));
            Some(Record { fields: fields.collect(), ..record.clone() })
        };
        records.iter().filter_map(kept).collect()
    }

    /// The usage records of a tenant, where there is no file.
    pub(super) fn usage(&mut self, tenant: &TenantId, hours: &RangeInclusive<Hour>) -> Vec<Record> {
        let of_tenant = self.usage.iter().filter(|((hour, of), _)| of == tenant && hours.contains(hour));
        let record = |((hour, tenant), fields): (&(Hour, TenantId), &BTreeMap<_, _>)| Record {
            tenant: tenant.clone(),
            hour: *hour,
            fields: fields.clone(),
        };
        of_tenant.map(record).collect()
    }

    /// Forgets usage that is too old for memory.
    pub(super) fn forget_usage(&mut self, now: Hour) {
        let oldest = (now.before(HOURS_IN_MEMORY), TenantId::from(""));
        self.usage = self.usage.split_off(&oldest);
    }

    /// The process ends: from now on the file need not allow for what comes and goes.
    pub(super) fn settle_down(&mut self) -> u64 {
        for (account, told) in &mut self.told {
            told.peaks = [told.granted; 2];
            self.changed.insert(account.clone());
        }
        self.changes += 1;
        self.changes
    }

    /// What the next commit must bring to the file, and up to which change; `None` when it knows all up to there.
    pub(super) fn changes(&mut self) -> (Option<Changes>, u64) {
        self.count_peaks();
        let changed = std::mem::take(&mut self.changed);
        let usage = std::mem::take(&mut self.usage);
        let overlay = std::mem::take(&mut self.has_new_overlay).then(|| self.overlay.clone());
        if changed.is_empty() && usage.is_empty() && overlay.is_none() {
            return (None, self.changes);
        }
        let accounts =
            changed.iter().filter_map(|account| Some((account.clone(), self.accounts.get(account)?.clone())));
        let accounts = accounts.collect();
        let lent = changed.into_iter().filter_map(|account| {
            let told = self.told.get_mut(&account)?;
            let most = told.most();
            // From here on it is not known which of the two the file says.
            told.durable = told.durable.min(most);
            Some((account, Lent { holder: told.holder.clone(), incarnation: told.incarnation, most }))
        });
        let changes = Changes { accounts, lent: lent.collect(), usage, overlay, clock: self.clock.now() };
        (Some(changes), self.changes)
    }

    /// The file has these.
    pub(super) fn committed(&mut self, changes: &Changes) {
        for (account, lent) in &changes.lent {
            if let Some(told) = self.told.get_mut(account) {
                told.durable = lent.most;
            }
        }
    }

    /// The file may or may not have these: they are tried again.
    pub(super) fn failed(&mut self, changes: Changes) {
        self.changed.extend(changes.accounts.into_keys());
        self.has_new_overlay |= changes.overlay.is_some();
        for (at, mut fields) in changes.usage {
            let latest = self.usage.entry(at).or_default();
            fields.append(latest);
            *latest = fields;
        }
    }

    /// Whether there are accounts of which the file says more than is in use, so that it must hear of it some time.
    pub(super) fn is_high(&self) -> bool {
        self.told.values().any(|told| told.durable > told.granted)
    }

    fn note(&mut self, account: &Account, request: &SyncRequest, reply: &SyncReply) {
        let told = self.told.entry(account.clone()).or_insert_with(|| Told {
            holder: request.holder.clone(),
            incarnation: request.incarnation,
            granted: 0,
            peaks: [0; 2],
            durable: 0,
            meters: BTreeMap::new(),
        });
        // A call that only says "I am still here" changes nothing that the next start would need.
        let is_news = told.granted != reply.granted
            || told.meters != request.meters
            || told.incarnation != request.incarnation
            || reply.granted > told.durable
            || !request.spent.is_empty()
            || !request.rows.is_empty();
        if !is_news {
            return;
        }
        (told.holder, told.incarnation) = (request.holder.clone(), request.incarnation);
        told.granted = reply.granted;
        told.peaks[0] = told.peaks[0].max(reply.granted);
        if told.meters != request.meters {
            told.meters.clone_from(&request.meters);
        }
        self.changed.insert(account.clone());
        self.changes += 1;
    }

    fn count_peaks(&mut self) {
        let now = self.clock.now();
        if now.since(self.counted_at) < PEAK_LASTS {
            return;
        }
        self.counted_at = now;
        for (account, told) in &mut self.told {
            let [latest, _] = told.peaks;
            told.peaks = [told.granted, latest];
            if told.most() < told.durable {
                self.changed.insert(account.clone());
                self.changes += 1;
            }
        }
    }
}

/// Speaks for a holder that has ended, before the next one asks for the first time: what the file says it had in use at
/// most becomes zombies, unless none of its calls can run any more.
fn take_over(ledger: &mut AccountLedger, estate: &Lent, may_run: bool, next: &SyncRequest, server: Server<'_>) {
    let most = if may_run { estate.most } else { 0 };
    let last_word = SyncRequest {
        holder: estate.holder.clone(),
        incarnation: estate.incarnation,
        seq: u64::MAX,
        keep: most,
        want: most,
        guarded: false,
        ahead: false,
        last_heard: None,
        answered: None,
        wall: None,
        spent: Vec::new(),
        rows: Vec::new(),
        meters: BTreeMap::new(),
        ..next.clone()
    };
    ledger.sync(&last_word, server);
}
