//! What a holder and the ledger say to each other.

use super::meter::{Limit, MeterName};
use crate::queue::SharePolicy;
use crate::units::{GroupName, HolderId, Millis, PoolName, Priority, TenantId, Tokens};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// What a call is charged to, by the name of its key in Redis.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Account {
    Pool(PoolName),
    Tenant(TenantId),
}

impl fmt::Display for Account {
    /// The braces are a hash tag, so that all that ever belongs to an account lies in one slot of a Redis Cluster.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Account::Pool(name) => write!(f, "sluice:{{pool:{name}}}"),
            Account::Tenant(id) => write!(f, "sluice:{{tenant:{id}}}"),
        }
    }
}

/// Not the name of an account.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the name of an account")]
pub struct NotAnAccount(String);

impl FromStr for Account {
    type Err = NotAnAccount;

    fn from_str(key: &str) -> Result<Self, NotAnAccount> {
        let inner = key.strip_prefix("sluice:{").and_then(|rest| rest.strip_suffix('}'));
        match inner.and_then(|inner| inner.split_once(':')) {
            Some(("pool", name)) => Ok(Account::Pool(name.into())),
            Some(("tenant", id)) => Ok(Account::Tenant(id.into())),
            _ => Err(NotAnAccount(key.to_owned())),
        }
    }
}

/// A flow by its names, which all replicas know it by: a tenant at a level, in the group that the account counts the
/// tenant to. The group's name is empty where groups have no shares.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FlowName {
    pub group: GroupName,
    pub level: Priority,
    pub tenant: TenantId,
}

impl fmt::Display for FlowName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.group, u8::from(self.level), self.tenant)
    }
}

/// Not of the form `group/level/tenant`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not of the form group/level/tenant")]
pub struct NotAFlow(String);

impl FromStr for FlowName {
    type Err = NotAFlow;

    fn from_str(text: &str) -> Result<Self, NotAFlow> {
        let mut parts = text.splitn(3, '/');
        let parts = (parts.next(), parts.next().and_then(Priority::parse), parts.next());
        let (Some(group), Some(level), Some(tenant)) = parts else { return Err(NotAFlow(text.to_owned())) };
        Ok(Self { group: group.into(), level, tenant: tenant.into() })
    }
}

impl TryFrom<String> for FlowName {
    type Error = NotAFlow;

    fn try_from(text: String) -> Result<Self, NotAFlow> {
        text.parse()
    }
}

impl From<FlowName> for String {
    fn from(flow: FlowName) -> String {
        flow.to_string()
    }
}

/// How an account is shared and limited, as a holder's configuration has it. The highest version wins.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Terms {
    pub version: Version,
    /// Slots in all.
    pub capacity: u32,
    pub policy: SharePolicy,
    /// Weights of P0 to P9, each at least 1.
    pub levels: [u64; Priority::COUNT],
    /// Shares of groups, each at least 1; a group that is not named has 1.
    pub groups: BTreeMap<GroupName, u64>,
    pub meters: BTreeMap<MeterName, Limit>,
}

impl Terms {
    /// The capacity of an account whose slots nobody counts.
    pub const UNCOUNTED: u32 = u32::MAX;

    #[must_use]
    pub fn has_slots(&self) -> bool {
        self.capacity < Self::UNCOUNTED
    }
}

/// Which of two configurations is the later one, compared from left to right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version {
    /// The configuration file's `revision`.
    pub file: u64,
    /// The operators' overlay.
    pub overlay: u64,
    /// Unix milliseconds at which a time rule or a reload put these settings in force.
    pub since: u64,
}

/// One call to the ledger about one account: what the holder has and does, never what has changed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SyncRequest {
    pub holder: HolderId,
    /// Grows with every start of the holder.
    pub incarnation: u64,
    /// Grows with every call of this incarnation.
    pub seq: u64,
    /// Slots that the holder keeps of those it was granted; it has lowered itself to this before it asks.
    pub keep: u32,
    /// Slots that it would like to hold in all, if nobody waits elsewhere; 0 when it only gives back.
    pub want: u32,
    pub terms: Terms,
    /// At least 1 ms: whoever calls holds what it is told.
    pub lease: Millis,
    /// How long a call may run at most.
    pub longest_request: Millis,
    /// The ledger's time of the last reply that was accepted, and how long ago that came in, by the holder's clock.
    pub last_heard: Option<(Millis, Millis)>,
    /// The time of day by the caller's own clock, in Unix milliseconds, where the ledger is another machine's.
    pub wall: Option<Millis>,
    /// The number of the last call of this incarnation that was answered: a ledger that does not know of it has lost it.
    pub answered: Option<u64>,
    /// How long the caller waits for the answer; after that the call is worth nothing. `None` where it is answered at once,
    /// and where no other call follows.
    pub patience: Option<Millis>,
    /// How far the ledger's clock was ahead of what the caller had seen pass since that reply, when a late answer came in
    /// time: the caller had waited for it no longer than that, so it is the clock that has jumped.
    pub jump: Option<Millis>,
    /// Whether a ledger that has never heard of this account must be silent for a lease first: it may have lost it.
    pub guarded: bool,
    /// Whether to lend of rates and budgets what nobody waits for yet.
    pub ahead: bool,
    /// What flows were charged since the last call that was answered.
    pub spent: Vec<Spent>,
    /// The ledger's servers that this replica knows, from its calls about other accounts too; at most [`MOST_SERVERS`].
    pub servers: Vec<Sighting>,
    /// Who waits, at most [`MOST_ROWS`], in the holder's own order.
    pub rows: Vec<Row>,
    pub meters: BTreeMap<MeterName, MeterReport>,
}

/// The servers a holder reports in one call: as many as a large cluster has masters.
pub const MOST_SERVERS: usize = 16;

/// A server of the ledger, as an account or a replica has seen it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sighting {
    /// Another one after every start of a server.
    pub run: String,
    /// How long it has been in charge at least.
    pub ago: Millis,
    pub lost: Loss,
}

/// What a server had lost of what the one before it knew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// As far as is known.
    #[default]
    None,
    /// Its latest moments, perhaps.
    Latest,
    /// Accounts were not there any more.
    All,
}

/// The rows a holder reports in one call.
pub const MOST_ROWS: usize = 64;

/// The flows whose charges a holder reports in one call, but for its last.
pub const MOST_SPENT: usize = 64;

/// What one call to the ledger told first of one flow. It is repeated in later calls until one is answered, under the
/// number of the first, so that it is counted once.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Spent {
    pub seq: u64,
    pub flow: FlowName,
    /// The tenant's weight beside others of its level, at least 1.
    pub weight: u64,
    /// Charges of calls that started, corrected by those that settled; weighted tokens.
    pub charge: i64,
}

/// A flow that waits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Row {
    pub flow: FlowName,
    pub weight: u64,
    /// What its first call will be charged.
    pub head: Tokens,
    /// What that costs, in millionths of a currency unit; 0 where money does not limit.
    pub money: u64,
    /// Calls; at least 1.
    pub waiting: u32,
    /// How long the first call has waited.
    pub waited: Millis,
}

/// What a holder has of a rate or a budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MeterReport {
    /// Drawn by this incarnation so far, corrected by what was given back.
    pub drawn: i64,
    /// Of that, what an answered call has told. A ledger that does not know the holder (any more) takes the rest.
    pub counted: i64,
    /// What it keeps of what it was lent and has not drawn; it has lowered itself to this before it asks.
    pub keep: u64,
    /// The budget's period that both are of; 0 for a rate.
    pub period: u64,
}

/// The ledger's answer, to the caller or, as a notice, to another holder whom somebody else's call has changed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SyncReply {
    pub incarnation: u64,
    /// The latest number this ledger has seen from the holder; any other than the one just sent is no answer.
    pub seq: u64,
    /// Slots that the holder may use in all.
    pub granted: u32,
    /// Of these, the ones whose turn it is by the global order, by flow, since the call of this number.
    pub picks: BTreeMap<FlowName, u32>,
    /// Somebody waits at another holder: start only picks, and hand back every slot that comes free.
    pub contended: bool,
    pub meters: BTreeMap<MeterName, MeterGrant>,
    /// The ledger's clock.
    pub now: Millis,
    /// The call came too late and has changed nothing, or the clock has jumped.
    pub late: bool,
    /// When asking again may help, if a rate is what the first row waits for.
    pub wait: Option<Millis>,
    /// Nobody else holds anything of this account.
    pub alone: bool,
    /// Slots of the vanished that nobody may use yet.
    pub zombies: u32,
    /// No slots are handed out but those that others give up, until then: the ledger may have lost what it knew.
    pub frozen_until: Option<Millis>,
    /// Absent in notices of the release before.
    pub server: Option<Sighting>,
}

impl SyncReply {
    /// The answer to a call that came too late: nothing but the time.
    pub(super) fn late(request: &SyncRequest, now: Millis) -> Self {
        Self {
            incarnation: request.incarnation,
            seq: request.seq,
            granted: 0,
            picks: BTreeMap::new(),
            contended: false,
            meters: BTreeMap::new(),
            now,
            late: true,
            wait: None,
            alone: false,
            zombies: 0,
            frozen_until: None,
            server: None,
        }
    }
}

/// What a holder may draw of a rate or a budget without asking.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MeterGrant {
    pub held: u64,
    /// What is left for everybody, beside what is lent; negative is debt.
    pub level: i64,
    /// What has come in of the next unit, in parts of 1/window (in ms).
    pub fraction: u64,
    pub period: u64,
}

/// What a call to the ledger has caused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Synced {
    pub reply: SyncReply,
    /// What other holders must hear of at once. A notice that is lost is made up for by their next call.
    pub notices: BTreeMap<HolderId, SyncReply>,
}
