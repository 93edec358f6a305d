//! One connection to whatever kind of Redis the configuration names.

use super::credentials::RedisSecrets;
use super::fitness::{self, Facts, Unfit};
use super::sentinel;
use super::settings::{Place, RedisSettings};
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, IntoConnectionInfo, Pipeline, RedisConnectionInfo, RedisFuture,
    RedisResult, TlsCertificates, Value,
};
use std::time::Duration;
use tokio::time::timeout;

/// Knows the way to Redis; dials it as often as needed.
pub(super) struct Dialer {
    way: Way,
    timeout: Duration,
}

enum Way {
    One(Client),
    Sentinel { nodes: Vec<Client>, master: String, opener: Opener },
    Cluster { cluster: Box<ClusterClient>, nodes: Vec<Client> },
}

/// What turns an address into a client that may log in there.
struct Opener {
    login: RedisConnectionInfo,
    certificates: Option<TlsCertificates>,
}

/// A fresh connection.
pub(super) struct Dialed {
    /// For the log.
    pub(super) name: String,
    /// Or what must be changed before it may keep a ledger.
    pub(super) verdict: Result<Facts, String>,
    pub(super) connection: Connection,
    pub(super) listening_posts: Vec<Client>,
}

#[derive(Clone)]
pub(super) enum Connection {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Dialer {
    /// # Errors
    /// The certificates cannot be used.
    pub(super) fn new(settings: &RedisSettings, secrets: &RedisSecrets) -> RedisResult<Self> {
        let certificates = secrets.certificates.clone();
        let opener = Opener { login: settings.login.with(secrets.password.as_ref()), certificates };
        let way = match &settings.place {
            Place::One(address) => Way::One(opener.client(address.clone())?),
            Place::Sentinel { nodes, master, login } => {
                let login = login.with(secrets.sentinel_password.as_ref());
                let sentinels = Opener { login, certificates: opener.certificates.clone() };
                Way::Sentinel { nodes: sentinels.clients(nodes)?, master: master.clone(), opener }
            }
            Place::Cluster(nodes) => {
                let cluster = Box::new(opener.cluster(nodes, settings.timeout)?);
                Way::Cluster { cluster, nodes: opener.clients(nodes)? }
            }
        };
        Ok(Self { way, timeout: settings.timeout })
    }

    /// Connects, and looks whether the server, or every master of a cluster, may keep a ledger.
    ///
    /// # Errors
    /// Why nothing usable was reached; the text holds no secret.
    pub(super) async fn dial(&self) -> Result<Dialed, String> {
        let patience = match &self.way {
            // A stopped master must not keep us from asking for the new one.
            Way::One(_) | Way::Sentinel { .. } => self.timeout,
            // Time to get over stopped nodes, first as a way in and then as a master.
            Way::Cluster { .. } => self.timeout * 2,
        };
        let too_late = |_| Err(format!("no connection within {} ms", patience.as_millis()));
        timeout(patience, self.open_and_check()).await.unwrap_or_else(too_late)
    }

    async fn open_and_check(&self) -> Result<Dialed, String> {
        let (name, mut connection, listening_posts) = self.open().await?;
        let verdict = match connection.check().await {
            Ok(facts) => Ok(facts),
            Err(Unfit::Setting(problem)) => Err(format!("{name}: {problem}")),
            Err(Unfit::NotNow(problem)) => return Err(format!("{name}: {problem}")),
        };
        Ok(Dialed { name, verdict, connection, listening_posts })
    }

    async fn open(&self) -> Result<(String, Connection, Vec<Client>), String> {
        let client = match &self.way {
            Way::One(client) => client.clone(),
            Way::Sentinel { nodes, master, opener } => {
                let (host, port) = sentinel::find_master(nodes, master, self.timeout / 2).await?;
                // As the Sentinels are asked, so is the master: with TLS or without.
                let is_tls = nodes.iter().any(|node| is_tls(node.get_connection_info().addr()));
                opener.client(tcp_address(host, port, is_tls)).map_err(|error| error.to_string())?
            }
            Way::Cluster { cluster, nodes } => {
                let name = format!("cluster of {}", names(nodes));
                let connection = cluster.get_async_connection().await.map_err(|error| format!("{name}: {error}"))?;
                return Ok((name, Connection::Cluster(connection), nodes.clone()));
            }
        };
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(Some(self.timeout));
        let name = client.get_connection_info().addr().to_string();
        let connection = client.get_multiplexed_async_connection_with_config(&config).await;
        let connection = connection.map_err(|error| format!("{name}: {error}"))?;
        Ok((name, Connection::Single(connection), vec![client]))
    }
}

fn is_tls(address: &ConnectionAddr) -> bool {
    matches!(address, ConnectionAddr::TcpTls { .. })
}

fn tcp_address(host: String, port: u16, is_tls: bool) -> ConnectionAddr {
    if is_tls {
        ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
    } else {
        ConnectionAddr::Tcp(host, port)
    }
}

fn names(nodes: &[Client]) -> String {
    let names: Vec<String> = nodes.iter().map(|node| node.get_connection_info().addr().to_string()).collect();
    names.join(", ")
}

impl Opener {
    fn client(&self, address: ConnectionAddr) -> RedisResult<Client> {
        let is_tls = is_tls(&address);
        let info = address.into_connection_info()?.set_redis_settings(self.login.clone());
        match &self.certificates {
            Some(certificates) if is_tls => Client::build_with_tls(info, certificates.clone()),
            Some(_) | None => Client::open(info),
        }
    }

    fn clients(&self, addresses: &[ConnectionAddr]) -> RedisResult<Vec<Client>> {
        addresses.iter().map(|address| self.client(address.clone())).collect()
    }

    fn cluster(&self, nodes: &[ConnectionAddr], whole: Duration) -> RedisResult<ClusterClient> {
        let with_login = |address: &ConnectionAddr| {
            address.clone().into_connection_info().map(|info| info.set_redis_settings(self.login.clone()))
        };
        let nodes = nodes.iter().map(with_login).collect::<RedisResult<Vec<_>>>()?;
        // A silent node leaves time to ask another one within the same call.
        let node = whole * 2 / 5;
        let mut builder = ClusterClient::builder(nodes)
            .connection_timeout(node)
            .response_timeout(node)
            .overall_response_timeout(Some(whole))
            .min_retry_wait(10)
            .max_retry_wait(100);
        if let Some(certificates) = &self.certificates {
            builder = builder.certs(certificates.clone());
        }
        builder.build()
    }
}

impl Connection {
    pub(super) fn is_cluster(&self) -> bool {
        matches!(self, Connection::Cluster(_))
    }

    async fn check(&mut self) -> Result<Facts, Unfit> {
        let is_cluster = self.is_cluster();
        let infos = match self.infos().await {
            Ok(infos) => infos,
            Err(error) if fitness::is_denied(&error) => return Err(fitness::blind()),
            // The accounts on the other masters need not wait for this one.
            Err(error) if is_cluster => {
                tracing::info!("not every master answers, so maxmemory-policy goes unchecked: {error}");
                return Ok(Facts::Unknown);
            }
            Err(error) => return Err(Unfit::NotNow(error.to_string())),
        };
        let mut facts = Facts::Unknown;
        for (node, info) in &infos {
            facts = fitness::check(info, is_cluster).map_err(|unfit| unfit.at(node))?;
        }
        Ok(facts)
    }

    /// What `INFO` prints, by the name of the master that printed it; without a name where there is only one.
    async fn infos(&mut self) -> RedisResult<Vec<(String, String)>> {
        let info = redis::cmd("INFO");
        match self {
            Connection::Single(connection) => Ok(vec![(String::new(), info.query_async(connection).await?)]),
            Connection::Cluster(connection) => {
                let masters = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
                let answers = connection.route_command(info, masters).await?;
                let answers: Vec<(String, Value)> = redis::from_redis_value(answers)?;
                answers
                    .into_iter()
                    .map(|(node, text)| Ok((node, redis::from_redis_value(text.extract_error()?)?)))
                    .collect()
            }
        }
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Connection::Single(connection) => connection.req_packed_command(cmd),
            Connection::Cluster(connection) => connection.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Connection::Single(connection) => connection.req_packed_commands(pipeline, offset, count),
            Connection::Cluster(connection) => connection.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Connection::Single(connection) => connection.get_db(),
            Connection::Cluster(connection) => connection.get_db(),
        }
    }
}
