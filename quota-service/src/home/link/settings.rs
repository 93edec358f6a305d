//! Where the ledger's Redis is, from `ledger.redis` or its short form `ledger.redis_url`.

use crate::secret::Secret;
use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo};
use sluice_policy::config::reader::Section;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A ledger that takes longer has failed for this lease; the next call asks again.
const TIMEOUT_MS: u64 = 500;

/// How to reach Redis; the files it names have not been opened yet.
#[derive(Debug)]
pub struct RedisSettings {
    pub place: Place,
    pub login: Login,
    pub tls: Option<TlsFiles>,
    /// Of one call, everything included: 50 to 500 ms.
    pub timeout: Duration,
}

#[derive(Debug)]
pub enum Place {
    /// One server, over TCP, TLS or a unix socket.
    One(ConnectionAddr),
    /// Whichever server the Sentinels call the master of this name. TLS for both or for neither.
    Sentinel { nodes: Vec<ConnectionAddr>, master: String, login: Login },
    /// A Redis Cluster, of which these nodes know the others.
    Cluster(Vec<ConnectionAddr>),
}

#[derive(Debug, Default)]
pub struct Login {
    pub user: Option<String>,
    pub password: Password,
    pub database: i64,
}

#[derive(Debug, Default)]
pub enum Password {
    #[default]
    None,
    /// In the URL.
    Inline(Secret),
    /// `at` is the field's path, for errors.
    File {
        file: PathBuf,
        at: String,
    },
    Environment {
        variable: String,
        at: String,
    },
}

/// PEM files.
#[derive(Debug)]
pub struct TlsFiles {
    /// Absent: the authorities that the machine trusts.
    pub authority: Option<PathBuf>,
    /// Certificate chain and private key, where Redis asks its clients for one.
    pub client: Option<(PathBuf, PathBuf)>,
}

impl RedisSettings {
    /// Reads the fields of `ledger` that concern Redis. Paths are relative to `folder`.
    pub(crate) fn read(ledger: &Section<'_>, folder: &Path) -> Option<Self> {
        let short = ledger.text("redis_url");
        let password = password_file(ledger, "redis_password_file", folder);
        if password.is_some() && short.is_none() {
            ledger.error("redis_password_file", "needs redis_url beside it");
        }
        if !ledger.has("redis") {
            let password = password.unwrap_or_default();
            return Self::from_parts(&Urls { section: ledger, field: "redis_url" }, short?, None, password);
        }
        if short.is_some() {
            ledger.error("redis_url", "and redis exclude each other: redis_url is short for redis: {url: …}");
        }
        Self::read_section(&ledger.section("redis"), folder)
    }

    fn read_section(section: &Section<'_>, folder: &Path) -> Option<Self> {
        let user = section.text("user").map(str::to_owned);
        let password = read_password(section, folder);
        let nodes = section.texts("nodes");
        let sentinel = section.section("sentinel");
        let sentinel_login = read_login(&sentinel, folder);
        let has_sentinel_login = section.has("sentinel");
        let tls = read_tls(&section.section("tls"), folder);
        let timeout = section.integer("timeout_ms", 50..=500).unwrap_or(TIMEOUT_MS);
        let settings = match (section.text("url"), nodes.is_empty()) {
            (Some(_), false) => {
                section.error("nodes", "and url exclude each other: nodes are those of a Redis Cluster");
                None
            }
            (None, true) => {
                section.error("url", "is required, or nodes, the ones of a Redis Cluster");
                None
            }
            (Some(url), true) => Self::from_parts(&Urls { section, field: "url" }, url, user, password),
            (None, false) => cluster(section, &nodes, Login { user, password, database: 0 }),
        };
        section.finish();
        let mut settings = settings?;
        match &mut settings.place {
            Place::Sentinel { login, .. } => *login = sentinel_login,
            Place::One(_) | Place::Cluster(_) if has_sentinel_login => {
                section.error("sentinel", "needs a url that begins with redis+sentinel://");
            }
            Place::One(_) | Place::Cluster(_) => {}
        }
        if tls.is_some() && !settings.place.is_tls() {
            section.error("tls", "needs rediss:// or rediss+sentinel://: what is configured does not use TLS");
        }
        Some(Self { tls, timeout: Duration::from_millis(timeout), ..settings })
    }

    fn from_parts(urls: &Urls<'_, '_>, url: &str, user: Option<String>, password: Password) -> Option<Self> {
        let (place, mut login) = match parse(url) {
            Ok(parsed) => parsed,
            Err(problem) => {
                urls.section.error(urls.field, problem);
                return None;
            }
        };
        if user.is_some() && login.user.is_some() {
            urls.section.error("user", format!("is also in {}: keep one", urls.field));
        }
        if !matches!(password, Password::None) {
            if matches!(login.password, Password::Inline(_)) {
                urls.section.error(urls.field, "holds a password, and there is a better place for it: keep that one");
            }
            login.password = password;
        }
        login.user = login.user.or(user);
        Some(Self { place, login, tls: None, timeout: Duration::from_millis(TIMEOUT_MS) })
    }

    /// As the short form, for those who have no configuration file.
    ///
    /// # Errors
    /// What is wrong with the URL, without repeating it.
    pub fn from_url(url: &str) -> Result<Self, &'static str> {
        let (place, login) = parse(url)?;
        Ok(Self { place, login, tls: None, timeout: Duration::from_millis(TIMEOUT_MS) })
    }

    /// A Redis Cluster without a password, known by these nodes.
    ///
    /// # Errors
    /// What is wrong with one of the URLs, without repeating it.
    pub fn from_nodes<T: AsRef<str>>(urls: &[T]) -> Result<Self, &'static str> {
        let nodes = urls.iter().map(|url| parse_single(url.as_ref()).map(|info| info.addr().clone()));
        let place = Place::Cluster(nodes.collect::<Result<_, _>>()?);
        Ok(Self { place, login: Login::default(), tls: None, timeout: Duration::from_millis(TIMEOUT_MS) })
    }
}

/// The field that a URL stands in.
struct Urls<'s, 'd> {
    section: &'s Section<'d>,
    field: &'static str,
}

const FORMS: &str = "must be like redis://user@host:6379/0, rediss://… (TLS), redis+unix:///path?user=… or \
                     redis+sentinel://user@host:26379,host:26379/master/0 (a password goes into a file of its own)";

/// Reads a URL. The problems do not repeat it, since it may hold a password.
fn parse(url: &str) -> Result<(Place, Login), &'static str> {
    let sentinels = [("redis+sentinel://", "redis"), ("rediss+sentinel://", "rediss")];
    for (prefix, scheme) in sentinels {
        if let Some(rest) = url.strip_prefix(prefix) {
            return parse_sentinel(scheme, rest);
        }
    }
    let info = parse_single(url)?;
    let login = login_of(info.redis_settings());
    Ok((Place::One(info.addr().clone()), login))
}

/// `user@host:port,host:port/master/database`
fn parse_sentinel(scheme: &str, rest: &str) -> Result<(Place, Login), &'static str> {
    let (authority, path) = rest.split_once('/').ok_or("names no master: redis+sentinel://host:26379/MASTER")?;
    let (master, database) = path.split_once('/').unwrap_or((path, ""));
    if master.is_empty() {
        return Err("names no master: redis+sentinel://host:26379/MASTER");
    }
    let (user, hosts) = authority.rsplit_once('@').map_or(("", authority), |(user, hosts)| (user, hosts));
    let node = |host: &str| {
        // The crate's default is Redis' port, which a Sentinel never listens on.
        let port = if host.ends_with(']') || !host.contains(':') { ":26379" } else { "" };
        parse_single(&format!("{scheme}://{host}{port}")).map(|info| info.addr().clone())
    };
    let nodes = hosts.split(',').map(node).collect::<Result<Vec<_>, _>>()?;
    let info = parse_single(&format!("{scheme}://{user}@host/{database}"))?;
    let login = login_of(info.redis_settings());
    Ok((Place::Sentinel { nodes, master: master.to_owned(), login: Login::default() }, login))
}

fn parse_single(url: &str) -> Result<ConnectionInfo, &'static str> {
    // `#insecure` would be read as: do not look at the certificate.
    if url.contains('#') {
        return Err("must not contain '#'; in a password it is written %23");
    }
    url.into_connection_info().map_err(|_| FORMS)
}

fn login_of(info: &RedisConnectionInfo) -> Login {
    let password = info.password().map_or(Password::None, |text| Password::Inline(Secret::new(text.to_owned())));
    Login { user: info.username().map(str::to_owned), password, database: info.db() }
}

fn cluster(section: &Section<'_>, urls: &[&str], login: Login) -> Option<RedisSettings> {
    let mut nodes = Vec::new();
    for url in urls {
        match parse(url) {
            Ok((Place::One(address @ (ConnectionAddr::Tcp(..) | ConnectionAddr::TcpTls { .. })), own)) => {
                if own.user.is_some() || matches!(own.password, Password::Inline(_)) || own.database != 0 {
                    section
                        .error("nodes", "must not say user, password or database: user and password_file do, for all");
                }
                nodes.push(address);
            }
            Ok(_) => section.error("nodes", "must be like redis://host:6379 or rediss://host:6379"),
            Err(problem) => section.error("nodes", problem),
        }
    }
    let is_tls = |address: &ConnectionAddr| matches!(address, ConnectionAddr::TcpTls { .. });
    if nodes.iter().any(&is_tls) && !nodes.iter().all(is_tls) {
        section.error("nodes", "must all begin with redis:// or all with rediss://");
    }
    Some(RedisSettings { place: Place::Cluster(nodes), login, tls: None, timeout: Duration::from_millis(TIMEOUT_MS) })
}

fn read_login(section: &Section<'_>, folder: &Path) -> Login {
    let user = section.text("user").map(str::to_owned);
    let password = read_password(section, folder);
    section.finish();
    Login { user, password, database: 0 }
}

fn read_password(section: &Section<'_>, folder: &Path) -> Password {
    let file = password_file(section, "password_file", folder);
    match (file, section.text("password_env")) {
        (Some(_), Some(_)) => {
            section.error("password_env", "and password_file exclude each other: keep one");
            Password::None
        }
        (Some(file), None) => file,
        (None, Some(variable)) => {
            Password::Environment { variable: variable.to_owned(), at: section.path_of("password_env") }
        }
        (None, None) => Password::None,
    }
}

fn password_file(section: &Section<'_>, field: &'static str, folder: &Path) -> Option<Password> {
    section.text(field).map(|file| Password::File { file: folder.join(file), at: section.path_of(field) })
}

fn read_tls(section: &Section<'_>, folder: &Path) -> Option<TlsFiles> {
    let file = |name| section.text(name).map(|path| folder.join(path));
    let (authority, certificate, key) = (file("ca_file"), file("cert_file"), file("key_file"));
    section.finish();
    let client = match (certificate, key) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (Some(_), None) => {
            section.error("key_file", "is required beside cert_file");
            None
        }
        (None, Some(_)) => {
            section.error("cert_file", "is required beside key_file");
            None
        }
    };
    (authority.is_some() || client.is_some()).then_some(TlsFiles { authority, client })
}

impl Place {
    fn is_tls(&self) -> bool {
        let nodes = match self {
            Place::One(node) => std::slice::from_ref(node),
            Place::Sentinel { nodes, .. } | Place::Cluster(nodes) => nodes,
        };
        nodes.iter().all(|node| matches!(node, ConnectionAddr::TcpTls { .. }))
    }
}

impl Login {
    /// As the crate wants it; `password` is the opened one.
    pub(super) fn with(&self, password: Option<&Secret>) -> RedisConnectionInfo {
        // Without CLIENT SETINFO: one command less to permit, and servers before 7.2 do not know it.
        let mut info = RedisConnectionInfo::default().set_db(self.database).set_skip_set_lib_name();
        if let Some(user) = &self.user {
            info = info.set_username(user);
        }
        match password {
            Some(password) => info.set_password(password.expose()),
            None => info,
        }
    }
}

#[cfg(test)]
mod tests;
