//! A ledger on one of the engines, with what a case needs of it.

use e2e::folder::Folder;
use e2e::stack::Redis;
use e2e::stack::redis::cluster::Cluster;
use e2e::stack::redis::{Engine, Setup};
use quota_service::ledger::link::{Link, RedisSecrets, RedisSettings};
use quota_service::ledger::{Account, EmbeddedLedger, Ledger, RedisLedger};
use sluice_policy::ledger::{SyncReply, SyncRequest};
use std::cell::{Cell, RefCell};
use std::io::Write;

/// Set by `./justw test`, whose setup has installed every engine. Anybody else is told which ones went untested.
const NEEDS_ALL: &str = "SLUICE_NEEDS_ALL_ENGINES";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Where {
    Embedded,
    Redis,
    Valkey,
    Cluster,
}

pub(crate) struct Rig {
    place: Where,
    version: String,
    ledger: Box<dyn Ledger>,
    /// Those that take writes; killed and removed with the rig.
    servers: Vec<Redis>,
    _folder: Option<Folder>,
    case: RefCell<&'static str>,
    accounts: Cell<u32>,
}

impl Rig {
    /// `None` where the engine is not installed and need not be.
    pub(crate) async fn start(place: Where) -> Option<Self> {
        match start(place).await {
            Ok(rig) => Some(rig),
            Err(missing) if missing.to_string().contains("is missing") && std::env::var_os(NEEDS_ALL).is_none() => {
                aloud(&format!("NOT TESTED on {place:?}: {missing}"));
                None
            }
            Err(error) => panic!("{place:?}: {error:#}"),
        }
    }

    /// An account that no case has touched yet.
    pub(crate) fn account(&self) -> Account {
        self.accounts.set(self.accounts.get() + 1);
        Account::Pool(format!("case-{}", self.accounts.get()).as_str().into())
    }

    pub(crate) async fn sync(&self, account: &Account, request: &SyncRequest) -> SyncReply {
        match self.ledger.sync(account, request).await {
            Ok(reply) => reply,
            Err(error) => panic!("{} on {:?}: {error}, asked {request:?}", self.case.borrow(), self.place),
        }
    }

    /// Runs a command of an operator's on every server, of which the embedded ledger has none.
    pub(crate) fn everywhere(&self, command: &[&str]) {
        for server in &self.servers {
            server.cli(command).unwrap();
        }
    }

    /// A failed test prints the last name.
    pub(crate) fn begin(&self, case: &'static str) {
        *self.case.borrow_mut() = case;
        println!("{case}");
    }

    pub(crate) fn finish(&self, cases: usize) {
        println!("{cases} cases and {} accounts on {:?} ({})", self.accounts.get(), self.place, self.version);
    }
}

async fn start(place: Where) -> anyhow::Result<Rig> {
    if place == Where::Embedded {
        return Ok(Rig::new(place, Box::new(EmbeddedLedger::default()), Vec::new(), None));
    }
    let folder = Folder::create(&format!("conformance-{place:?}"))?;
    let (settings, servers) = match place {
        Where::Embedded | Where::Redis => one(&folder, Engine::Redis).await?,
        Where::Valkey => one(&folder, Engine::Valkey).await?,
        Where::Cluster => {
            let cluster = Cluster::start(&folder, Engine::Redis).await?;
            let urls: Vec<String> = cluster.nodes.iter().map(Redis::url).collect();
            (RedisSettings::from_nodes(&urls), cluster.nodes)
        }
    };
    let link =
        Link::new(&settings.map_err(anyhow::Error::msg)?, &RedisSecrets::default()).map_err(anyhow::Error::msg)?;
    Ok(Rig::new(place, Box::new(RedisLedger::new(link)), servers, Some(folder)))
}

async fn one(folder: &Folder, engine: Engine) -> anyhow::Result<(Result<RedisSettings, &'static str>, Vec<Redis>)> {
    let server = Redis::launch(folder, Setup::named("server").engine(engine)).await?;
    Ok((RedisSettings::from_url(&server.url()), vec![server]))
}

impl Rig {
    fn new(place: Where, ledger: Box<dyn Ledger>, servers: Vec<Redis>, folder: Option<Folder>) -> Self {
        let version = servers.first().and_then(|server| server.info().ok()).map(|info| {
            let field = |name: &str| info.get(name).cloned();
            let name = field("server_name").unwrap_or_else(|| "redis".to_owned());
            let version = field(&format!("{name}_version")).unwrap_or_default();
            format!("{name} {version}")
        });
        let version = version.unwrap_or_else(|| "in process".to_owned());
        Self { place, version, ledger, servers, _folder: folder, case: RefCell::default(), accounts: Cell::default() }
    }
}

/// Past the test harness, which shows what a test prints only when it fails.
fn aloud(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
