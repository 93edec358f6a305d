//! The ledger on one of the engines, twice: as the service reaches it, and as the tests do, who tell it the time.

use super::homes::Redis;
use e2e::folder::Folder;
use e2e::stack::redis::cluster::Cluster;
use e2e::stack::redis::{Engine, Setup, documented_rights};
use quota_service::home::link::{Link, RedisSecrets, RedisSettings};
use quota_service::home::redis::RedisHome;
use quota_service::secret::Secret;
use std::io::Write;
use std::time::Duration;

/// Set by `./justw test`, whose setup has installed every engine. Anybody else is told which ones went untested.
const NEEDS_ALL: &str = "SLUICE_NEEDS_ALL_ENGINES";
/// Of the user `sluice`, who has the rights that docs/LEDGER.md asks for and no others.
const PASSWORD: &str = "conformance";
/// No master is replaced while a test runs, however busy the machine.
const NODE_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Where {
    Redis,
    Valkey,
    Cluster,
}

pub(crate) struct Rig {
    /// All nodes; killed and removed with the rig.
    pub(crate) servers: Vec<e2e::stack::Redis>,
    _folder: Folder,
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

    /// The ledger, with the time and the run that a test tells it.
    pub(crate) fn home(&self) -> Redis {
        Redis::on(&self.servers)
    }

    /// The way that the service goes, with the rights that it asks for.
    pub(crate) fn link(&self) -> Link {
        let urls: Vec<String> = self.servers.iter().map(e2e::stack::Redis::url).collect();
        let mut settings = match &urls[..] {
            [url] => RedisSettings::from_url(url),
            urls => RedisSettings::from_nodes(urls),
        }
        .unwrap();
        settings.login.user = Some("sluice".to_owned());
        let password = Some(Secret::new(PASSWORD.to_owned()));
        Link::new(&settings, &RedisSecrets { password, ..RedisSecrets::default() }).unwrap()
    }

    /// What a server has refused to anybody.
    pub(crate) fn refusals(&self) -> Vec<String> {
        let log = |server: &e2e::stack::Redis| server.cli(&["ACL", "LOG"]).unwrap().trim().to_owned();
        self.servers.iter().map(log).filter(|log| !log.is_empty()).collect()
    }

    pub(crate) fn ledger(&self) -> RedisHome {
        RedisHome::new(self.link(), Duration::from_secs(86_400))
    }

    pub(crate) fn version(&self) -> String {
        let info = self.servers[0].info().unwrap();
        let name = info.get("server_name").map_or("redis", String::as_str);
        format!("{} x {name} {}", self.servers.len(), info[&format!("{name}_version")])
    }
}

async fn start(place: Where) -> anyhow::Result<Rig> {
    let folder = Folder::create(&format!("conformance-{place:?}"))?;
    let one = |engine| e2e::stack::Redis::launch(&folder, Setup::named("server").engine(engine));
    let servers = match place {
        Where::Redis => vec![one(Engine::Redis).await?],
        Where::Valkey => vec![one(Engine::Valkey).await?],
        Where::Cluster => Cluster::launch(&folder, Engine::Redis, NODE_TIMEOUT).await?.nodes,
    };
    let mut rights = documented_rights(PASSWORD)?;
    if place == Where::Cluster {
        rights.extend(["+cluster|slots", "+asking"].map(str::to_owned));
    }
    for server in &servers {
        let rights = rights.iter().map(String::as_str);
        server.cli(&["ACL", "SETUSER", "sluice"].into_iter().chain(rights).collect::<Vec<_>>())?;
    }
    Ok(Rig { servers, _folder: folder })
}

/// Past the test harness, which shows what a test prints only when it fails.
fn aloud(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
