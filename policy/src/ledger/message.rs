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
    /// Whether a ledger that has never heard of this account must be silent for a lease first: it may have lost it.
    pub guarded: bool,
    /// Whether to lend of rates and budgets what nobody waits for yet.
    pub ahead: bool,
    /// What flows were charged since the last call that was answered.
    pub spent: Vec<Spent>,
    /// Who waits, at most [`MOST_ROWS`], in the holder's own order.
    pub rows: Vec<Row>,
    pub meters: BTreeMap<MeterName, MeterReport>,
}

/// The rows a holder reports in one call.
pub const MOST_ROWS: usize = 64;

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
    /// When asking again may help, if a rate is what the first row waits for.
    pub wait: Option<Millis>,
    /// Nobody else holds anything of this account.
    pub alone: bool,
    /// Slots of the vanished that nobody may use yet.
    pub zombies: u32,
    /// No slots are handed out but those that others give up, until then: the ledger may have lost what it knew.
    pub frozen_until: Option<Millis>,
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
