//! The homes of the ledger's state machine, behind one trait.

use quota_service::ledger::wire;
use redis::{Client, Cmd, Connection, FromRedisValue, RedisResult, cmd};
use sluice_policy::ledger::{Account, AccountLedger, SyncRequest, Synced};
use sluice_policy::units::Millis;
use std::collections::BTreeMap;

/// A call, and what the server that gets it says of itself.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) request: SyncRequest,
    pub(crate) run: String,
    pub(crate) now: Millis,
}

impl Call {
    /// For the script behind the prelude.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let mut arguments = wire::encode(&self.request);
        arguments.extend([self.now.0.to_string(), self.run.clone()]);
        arguments
    }
}

pub(crate) trait Home {
    /// Makes calls one after the other.
    fn sync(&mut self, account: &Account, calls: &[Call]) -> Vec<Synced>;

    /// Forgets an account.
    fn lose(&mut self, account: &Account);
}

/// The function itself.
#[derive(Default)]
pub(crate) struct Pure {
    pub(crate) accounts: BTreeMap<Account, AccountLedger>,
}

impl Home for Pure {
    fn sync(&mut self, account: &Account, calls: &[Call]) -> Vec<Synced> {
        let ledger = self.accounts.entry(account.clone()).or_default();
        let sync = |call: &Call| {
            let server = sluice_policy::ledger::Server { run: &call.run, now: call.now };
            ledger.sync(&call.request, server)
        };
        calls.iter().map(sync).collect()
    }

    fn lose(&mut self, account: &Account) {
        self.accounts.remove(account);
    }
}

/// The script, on one server or on the masters of a cluster.
pub(crate) struct Redis {
    /// By port.
    nodes: Vec<(u16, Connection)>,
    hash: String,
    places: BTreeMap<Account, usize>,
}

/// Stands between the script and the server: the time and the run are the test's, and the notices come with the answer.
const PRELUDE: &str = r"
local published = {}
local server = redis
local redis = {error_reply = server.error_reply}
function redis.call(command, ...)
  local now = tonumber(ARGV[#ARGV - 1])
  if command == 'TIME' then return {tostring(math.floor(now / 1000)), tostring(now % 1000 * 1000)} end
  if command == 'INFO' then return 'run_id:' .. ARGV[#ARGV] end
  return server.call(command, ...)
end
function redis.pcall(command, ...)
  published[#published + 1] = select(2, ...)
  return server.pcall(command, ...)
end
local answer = (function()
";
const POSTLUDE: &str = "end)()\nreturn {answer, unpack(published)}\n";

impl Redis {
    pub(crate) fn on(servers: &[e2e::stack::Redis]) -> Self {
        let (flags, body) = wire::SCRIPT.split_once('\n').unwrap();
        let script = [flags, PRELUDE, body, POSTLUDE].concat();
        let (mut nodes, mut hash) = (Vec::new(), String::new());
        for server in servers {
            let mut connection = Client::open(server.url()).unwrap().get_connection().unwrap();
            hash = cmd("SCRIPT").arg("LOAD").arg(&script).query(&mut connection).unwrap();
            nodes.push((server.port(), connection));
        }
        Self { nodes, hash, places: BTreeMap::new() }
    }

    /// Makes calls one after the other, of these arguments each.
    pub(crate) fn sync_encoded(&mut self, account: &Account, calls: &[&[String]]) -> Vec<Synced> {
        if calls.is_empty() {
            return Vec::new();
        }
        let mut pipeline = redis::pipe();
        for call in calls {
            pipeline.cmd("EVALSHA").arg(&self.hash).arg(1).arg(account.to_string()).arg(*call);
        }
        let answers: Vec<Vec<String>> = pipeline.query(self.node_of(account)).unwrap();
        answers.iter().map(|answer| parse(account, answer)).collect()
    }

    /// Runs a command on the node that has the account.
    pub(crate) fn ask<T: FromRedisValue>(&mut self, account: &Account, command: &Cmd) -> RedisResult<T> {
        command.query(self.node_of(account))
    }

    /// What the hash holds under this field.
    pub(crate) fn field(&mut self, account: &Account, field: &str) -> Option<String> {
        self.ask(account, cmd("HGET").arg(account.to_string()).arg(field)).unwrap()
    }

    /// The only one, or the master that the first one points at.
    fn node_of(&mut self, account: &Account) -> &mut Connection {
        let place = match self.places.get(account) {
            Some(place) => *place,
            None => self.find(account),
        };
        self.places.insert(account.clone(), place);
        &mut self.nodes[place].1
    }

    fn find(&mut self, account: &Account) -> usize {
        let answer: RedisResult<i64> = cmd("EXISTS").arg(account.to_string()).query(&mut self.nodes[0].1);
        let Err(moved) = answer else { return 0 };
        let (address, _) = moved.redirect_node().unwrap();
        self.nodes.iter().position(|(port, _)| address.ends_with(&format!(":{port}"))).unwrap()
    }
}

impl Home for Redis {
    fn sync(&mut self, account: &Account, calls: &[Call]) -> Vec<Synced> {
        let calls: Vec<Vec<String>> = calls.iter().map(Call::arguments).collect();
        self.sync_encoded(account, &calls.iter().map(Vec::as_slice).collect::<Vec<_>>())
    }

    fn lose(&mut self, account: &Account) {
        let _: i64 = self.ask(account, cmd("DEL").arg(account.to_string())).unwrap();
    }
}

fn parse(account: &Account, answer: &[String]) -> Synced {
    let (reply, notices) = answer.split_first().unwrap();
    let notice = |text: &String| {
        let notice = wire::parse_notice(text).unwrap_or_else(|| panic!("no notice: {text:?}"));
        assert_eq!(notice.account, *account);
        (notice.holder, notice.reply)
    };
    Synced {
        reply: wire::parse(reply).unwrap_or_else(|| panic!("no reply: {reply:?}")),
        notices: notices.iter().map(notice).collect(),
    }
}
