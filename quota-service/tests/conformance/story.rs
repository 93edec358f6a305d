//! A short story of calls to one account, told the same way in every home of the ledger.

use super::homes::{Call, Home};
use sluice_policy::ledger::{
    Account, FlowName, Limit, Loss, MeterName, MeterReport, Row, Sighting, Spent, SyncReply, SyncRequest, Synced,
    Terms, Version,
};
use sluice_policy::queue::SharePolicy;
use sluice_policy::units::{HolderId, Millis, Tokens};
use std::collections::BTreeMap;

pub(crate) const LEASE: u64 = 2_000;
pub(crate) const LONGEST: u64 = 10_000;
pub(crate) const HOUR: i64 = 3_600_000;

pub(crate) struct Story<'a> {
    home: &'a mut dyn Home,
    account: Account,
    /// As every call tells them, unless it tells otherwise.
    pub(crate) terms: Terms,
    /// As time passes, whatever the server's clock says.
    time: u64,
    wrong: i64,
    run: u32,
    tellers: BTreeMap<HolderId, Teller>,
    /// All that was answered.
    pub(crate) transcript: Vec<Synced>,
}

#[derive(Clone, Default)]
struct Teller {
    incarnation: u64,
    seq: u64,
    granted: u32,
    heard: Option<(Millis, u64)>,
    counted: BTreeMap<MeterName, i64>,
}

impl<'a> Story<'a> {
    pub(crate) fn begin(home: &'a mut dyn Home, name: &str) -> Self {
        let terms = Terms {
            version: Version::default(),
            capacity: 10,
            policy: SharePolicy::Hybrid,
            levels: [256, 128, 64, 32, 16, 8, 4, 2, 1, 1],
            groups: BTreeMap::new(),
            meters: BTreeMap::new(),
        };
        let account = Account::Tenant(name.into());
        let time = 1_790_000_000_000;
        Self { home, account, terms, time, wrong: 0, run: 0, tellers: BTreeMap::new(), transcript: Vec::new() }
    }

    /// Time passes.
    pub(crate) fn wait(&mut self, ms: u64) {
        self.time += ms;
    }

    /// The server's clock is set.
    pub(crate) fn jump(&mut self, ms: i64) {
        self.wrong += ms;
    }

    /// What the server's clock says.
    pub(crate) fn now(&self) -> Millis {
        Millis(self.time.saturating_add_signed(self.wrong))
    }

    /// Another server answers from now on, and knows what the last one knew.
    pub(crate) fn fail_over(&mut self) {
        self.run += 1;
    }

    fn run(&self) -> String {
        format!("run{}", self.run)
    }

    /// The account is gone.
    pub(crate) fn lose(&mut self) {
        self.home.lose(&self.account);
    }

    /// The holder starts anew.
    pub(crate) fn restart(&mut self, holder: &str) {
        let teller = self.tellers.entry(holder.into()).or_default();
        *teller = Teller { incarnation: teller.incarnation + 1, ..Teller::default() };
    }

    pub(crate) fn set_meter(&mut self, name: MeterName, limit: Limit) {
        self.terms.meters.insert(name, limit);
    }

    /// Begins the next call of a holder: it keeps what it was granted, as far as it has heard, and wants no more.
    pub(crate) fn call(&mut self, holder: &str) -> Ask<'_, 'a> {
        let time = self.time;
        let teller = self.tellers.entry(holder.into()).or_default();
        teller.seq += 1;
        let request = SyncRequest {
            holder: holder.into(),
            incarnation: teller.incarnation,
            seq: teller.seq,
            keep: teller.granted,
            want: 0,
            terms: self.terms.clone(),
            lease: Millis(LEASE),
            longest_request: Millis(LONGEST),
            last_heard: teller.heard.map(|(ledger, at)| (ledger, Millis(time - at))),
            answered: None,
            wall: None,
            guarded: false,
            ahead: false,
            spent: Vec::new(),
            servers: Vec::new(),
            patience: None,
            jump: None,
            rows: Vec::new(),
            meters: BTreeMap::new(),
        };
        Ask { story: self, request }
    }

    /// A call arrives, perhaps not for the first time.
    pub(crate) fn deliver(&mut self, request: &SyncRequest) -> Said {
        let call = Call { request: request.clone(), run: self.run(), now: self.now() };
        let answer = self.home.sync(&self.account, std::slice::from_ref(&call)).remove(0);
        for (holder, reply) in answer.notices.iter().chain([(&request.holder, &answer.reply)]) {
            self.hear(holder, reply, holder == &request.holder);
        }
        if let Some(teller) = self.tellers.get_mut(&request.holder) {
            teller.counted.extend(request.meters.iter().map(|(name, report)| (*name, report.drawn)));
        }
        self.transcript.push(answer.clone());
        Said(answer)
    }

    fn hear(&mut self, holder: &HolderId, reply: &SyncReply, is_answer: bool) {
        let Some(teller) = self.tellers.get_mut(holder) else { return };
        if !reply.late && (teller.incarnation, teller.seq) == (reply.incarnation, reply.seq) {
            teller.granted = reply.granted;
            if is_answer {
                teller.heard = Some((reply.now, self.time));
            }
        }
    }
}

/// A call in the making.
pub(crate) struct Ask<'s, 'a> {
    story: &'s mut Story<'a>,
    request: SyncRequest,
}

impl Ask<'_, '_> {
    pub(crate) fn keep(mut self, slots: u32) -> Self {
        self.request.keep = slots;
        self
    }

    pub(crate) fn want(mut self, slots: u32) -> Self {
        self.request.want = slots;
        self
    }

    /// How long its calls may run (ms).
    pub(crate) fn longest(mut self, longest: u64) -> Self {
        self.request.longest_request = Millis(longest);
        self
    }

    pub(crate) fn guarded(mut self) -> Self {
        self.request.guarded = true;
        self
    }

    pub(crate) fn ahead(mut self) -> Self {
        self.request.ahead = true;
        self
    }

    pub(crate) fn lease(mut self, ms: u64) -> Self {
        self.request.lease = Millis(ms);
        self
    }

    /// Its replica knows that the server which answers now has been in charge for so long, and lost so much.
    pub(crate) fn knows(mut self, ago: u64, lost: Loss) -> Self {
        let run = self.story.run();
        self.request.servers.push(Sighting { run, ago: Millis(ago), lost });
        self
    }

    /// Its replica knows the server before the one that answers now.
    pub(crate) fn knows_the_last_server(mut self) -> Self {
        self.request.servers.push(Sighting { run: "run".to_owned(), ago: Millis(1_000_000), lost: Loss::None });
        self
    }

    /// It waits so long for its answer.
    pub(crate) fn patience(mut self, ms: u64) -> Self {
        self.request.patience = Some(Millis(ms));
        self
    }

    /// A late answer has shown that the server's clock is ahead by so much.
    pub(crate) fn jump(mut self, ms: u64) -> Self {
        self.request.jump = Some(Millis(ms));
        self
    }

    /// It is its call of this number; those before went elsewhere.
    pub(crate) fn numbered(mut self, seq: u64) -> Self {
        self.request.seq = seq;
        self.story.tellers.entry(self.request.holder.clone()).or_default().seq = seq;
        self
    }

    /// Its call of this number was answered, so long ago.
    pub(crate) fn answered(mut self, seq: u64, ago: u64) -> Self {
        self.request.answered = Some(seq);
        self.request.last_heard = Some((self.story.now().since(Millis(ago)), Millis(ago)));
        self
    }

    /// Its own clock is right.
    pub(crate) fn by_the_clock(mut self) -> Self {
        self.request.wall = Some(Millis(self.story.time));
        self
    }

    /// It remembers no earlier answer.
    pub(crate) fn unaware(mut self) -> Self {
        self.request.last_heard = None;
        self
    }

    pub(crate) fn terms(mut self, change: impl FnOnce(&mut Terms)) -> Self {
        change(&mut self.request.terms);
        self
    }

    /// So many calls of a flow wait, of no charge.
    pub(crate) fn row(self, flow: &str, waiting: u32) -> Self {
        self.row_of(flow, 1, 0, waiting, 0)
    }

    pub(crate) fn row_of(mut self, flow: &str, weight: u64, head: u64, waiting: u32, waited: u64) -> Self {
        let (flow, head, waited) = (name(flow), Tokens(head), Millis(waited));
        self.request.rows.push(Row { flow, weight, head, money: 0, waiting, waited });
        self
    }

    /// The first call of the row told last costs so much money.
    pub(crate) fn costing(mut self, money: u64) -> Self {
        self.request.rows.last_mut().unwrap().money = money;
        self
    }

    pub(crate) fn spent(self, flow: &str, charge: i64) -> Self {
        self.spent_by(1, flow, charge)
    }

    pub(crate) fn spent_by(mut self, weight: u64, flow: &str, charge: i64) -> Self {
        self.request.spent.push(Spent { seq: self.request.seq, flow: name(flow), weight, charge });
        self
    }

    /// First told by the call of this number.
    pub(crate) fn spent_at(mut self, seq: u64, flow: &str, charge: i64) -> Self {
        self.request.spent.push(Spent { seq, flow: name(flow), weight: 1, charge });
        self
    }

    pub(crate) fn drew(self, meter: MeterName, drawn: i64, keep: u64) -> Self {
        self.drew_in(0, meter, drawn, keep)
    }

    pub(crate) fn drew_in(mut self, period: u64, meter: MeterName, drawn: i64, keep: u64) -> Self {
        let teller = self.story.tellers.entry(self.request.holder.clone()).or_default();
        let counted = teller.counted.get(&meter).copied().unwrap_or_default();
        self.request.meters.insert(meter, MeterReport { drawn, counted, keep, period });
        self
    }

    pub(crate) fn send(self) -> Said {
        self.story.deliver(&self.request)
    }

    /// Keeps the call back.
    pub(crate) fn hold_back(self) -> SyncRequest {
        self.request
    }
}

/// What a call has caused.
pub(crate) struct Said(Synced);

impl std::ops::Deref for Said {
    type Target = SyncReply;

    fn deref(&self) -> &SyncReply {
        &self.0.reply
    }
}

impl Said {
    pub(crate) fn picks(&self, flow: &str) -> u32 {
        picks(&self.0.reply, flow)
    }

    pub(crate) fn held(&self, meter: MeterName) -> u64 {
        self.0.reply.meters[&meter].held
    }

    pub(crate) fn level(&self, meter: MeterName) -> i64 {
        self.0.reply.meters[&meter].level
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.0.notices.is_empty()
    }

    /// What the holder must hear.
    pub(crate) fn notice(&self, holder: &str) -> &SyncReply {
        self.0.notices.get(&HolderId::from(holder)).unwrap_or_else(|| panic!("{holder} hears nothing"))
    }

    pub(crate) fn notified(&self) -> Vec<&str> {
        self.0.notices.keys().map(HolderId::as_str).collect()
    }
}

pub(crate) fn picks(reply: &SyncReply, flow: &str) -> u32 {
    reply.picks.get(&name(flow)).copied().unwrap_or(0)
}

fn name(flow: &str) -> FlowName {
    flow.parse().unwrap()
}
