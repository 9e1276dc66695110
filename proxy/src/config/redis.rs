//! How Redis or Valkey is reached: one server, one behind Sentinels, or a cluster.

use std::fmt;
use std::path::{Path, PathBuf};

use redis::{ConnectionAddr, IntoConnectionInfo};
use serde::de::{Deserializer, MapAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, de};

use super::ConfigError;
use super::store::secret;

/// A URL, or a table for what a URL cannot say.
#[derive(Debug, Clone, Default)]
pub(super) struct RawRedis(RawTable);

#[derive(Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawTable {
    url: Option<String>,
    urls: Vec<String>,
    username: Option<String>,
    password_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
    cluster: bool,
    sentinel_master: Option<String>,
    sentinel_username: Option<String>,
    sentinel_password_file: Option<PathBuf>,
    database: Option<i64>,
    prefix: Option<String>,
}

#[derive(Debug, Clone)]
pub struct RedisConfig {
    /// Servers, Sentinels or members of the cluster; the first that answers will do.
    pub nodes: Vec<(String, u16)>,
    pub tls: bool,
    /// Trusted authorities, as PEM; `None`: the system's.
    pub ca: Option<Vec<u8>>,
    pub login: Login,
    pub database: i64,
    pub topology: Topology,
    /// Begins every key, so that several fleets can share a server.
    pub prefix: String,
}

#[derive(Debug, Clone)]
pub enum Topology {
    Single,
    Sentinel { master: String, login: Login },
    Cluster,
}

/// An ACL user, or the default user.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Login {
    pub username: Option<String>,
    pub password: Option<String>,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let password = self.password.as_ref().map(|_| "…");
        f.debug_struct("Login").field("username", &self.username).field("password", &password).finish()
    }
}

/// A URL may have a password in it.
impl fmt::Debug for RawTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawTable").finish_non_exhaustive()
    }
}

impl<'de> Deserialize<'de> for RawRedis {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct UrlOrTable;
        impl<'de> Visitor<'de> for UrlOrTable {
            type Value = RawRedis;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a URL such as \"redis://127.0.0.1:6379\", or a table with `url`")
            }

            fn visit_str<E: de::Error>(self, url: &str) -> Result<RawRedis, E> {
                Ok(RawRedis(RawTable { url: Some(url.to_owned()), ..RawTable::default() }))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawRedis, A::Error> {
                RawTable::deserialize(MapAccessDeserializer::new(map)).map(RawRedis)
            }
        }
        deserializer.deserialize_any(UrlOrTable)
    }
}

/// `key` is where it stands in the configuration.
pub(super) fn resolve(key: &'static str, raw: RawRedis) -> Result<RedisConfig, ConfigError> {
    let RawRedis(raw) = raw;
    let refused = |message: &str| ConfigError::Value { key, message: message.to_owned() };
    let urls: Vec<String> = raw.url.into_iter().chain(raw.urls).collect();
    let nodes = urls.iter().map(|url| Node::parse(key, url)).collect::<Result<Vec<_>, _>>()?;
    let Some(first) = nodes.first() else {
        return Err(refused("`url` is missing, such as \"redis://127.0.0.1:6379\""));
    };
    if nodes
        .iter()
        .any(|node| (node.tls, &node.login, node.database) != (first.tls, &first.login, first.database))
    {
        return Err(refused("all URLs have the same scheme, user, password and database"));
    }
    let topology = match (raw.sentinel_master, raw.cluster) {
        (Some(_), true) => return Err(refused("`sentinel_master` and `cluster` are two different things")),
        (Some(master), false) => Topology::Sentinel {
            master,
            login: Login {
                username: raw.sentinel_username,
                password: password(key, raw.sentinel_password_file.as_deref())?,
            },
        },
        (None, _) if raw.sentinel_username.is_some() || raw.sentinel_password_file.is_some() => {
            return Err(refused(
                "a login for Sentinels needs `sentinel_master`, the name of what they watch",
            ));
        }
        (None, true) => Topology::Cluster,
        (None, false) if nodes.len() > 1 => {
            return Err(refused("several URLs need `sentinel_master = \"NAME\"` or `cluster = true`"));
        }
        (None, false) => Topology::Single,
    };
    let login = Login {
        username: raw.username.or_else(|| first.login.username.clone()),
        password: password(key, raw.password_file.as_deref())?.or_else(|| first.login.password.clone()),
    };
    if login.username.is_some() && login.password.is_none() {
        return Err(refused("a user needs a password: name its file as `password_file`"));
    }
    let database = raw.database.unwrap_or(first.database);
    if matches!(topology, Topology::Cluster) && database != 0 {
        return Err(refused("a cluster has database 0 only"));
    }
    if raw.ca_file.is_some() && !first.tls {
        return Err(refused("`ca_file` is for TLS: write rediss:// instead of redis://"));
    }
    let prefix = raw.prefix.unwrap_or_else(|| "portcullis".to_owned());
    if prefix.is_empty() || !prefix.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b)) {
        return Err(refused("`prefix` is made of ASCII letters, digits and `-_.:`"));
    }
    let tls = first.tls;
    Ok(RedisConfig {
        nodes: nodes.into_iter().map(|node| node.address).collect(),
        tls,
        ca: raw.ca_file.map(|path| certificates(key, &path)).transpose()?,
        login,
        database,
        topology,
        prefix,
    })
}

struct Node {
    address: (String, u16),
    tls: bool,
    login: Login,
    database: i64,
}

impl Node {
    /// What is wrong with a URL is said without the URL, for there may be a password in it.
    fn parse(key: &'static str, url: &str) -> Result<Self, ConfigError> {
        let refused = |message: String| ConfigError::Value { key, message };
        let info = url.into_connection_info().map_err(|error| {
            refused(format!(
                "it is no URL such as \"redis://127.0.0.1:6379\", or \"rediss://…\" for TLS ({})",
                error.detail().unwrap_or(error.category())
            ))
        })?;
        let (address, tls) = match info.addr() {
            ConnectionAddr::Tcp(host, port) => ((host.clone(), *port), false),
            ConnectionAddr::TcpTls { host, port, insecure: false, .. } => ((host.clone(), *port), true),
            ConnectionAddr::TcpTls { .. } => {
                return Err(refused("a server whose certificate is not checked could be anybody's: name its authority as `ca_file`".to_owned()));
            }
            _ => {
                return Err(refused(
                    "a socket of this VM is not shared with others: write redis://HOST:PORT".to_owned(),
                ));
            }
        };
        let settings = info.redis_settings();
        let login = Login {
            username: settings.username().map(str::to_owned),
            password: settings.password().map(str::to_owned),
        };
        Ok(Self { address, tls, login, database: settings.db() })
    }
}

fn password(key: &'static str, path: Option<&Path>) -> Result<Option<String>, ConfigError> {
    path.map(|path| secret(key, path)).transpose()
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<u8>, ConfigError> {
    let refused = |why: String| {
        let message = format!("`ca_file` {} {why}", path.display());
        ConfigError::Value { key, message }
    };
    let bytes = std::fs::read(path).map_err(|error| refused(format!("cannot be read: {error}")))?;
    match memchr::memmem::find(&bytes, b"BEGIN CERTIFICATE") {
        Some(_) => Ok(bytes),
        None => Err(refused("holds no `BEGIN CERTIFICATE` block".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Section {
        redis: RawRedis,
    }

    fn config(text: &str) -> Result<RedisConfig, String> {
        let section: Section = toml::from_str(text).map_err(|error| error.to_string())?;
        resolve("store.redis", section.redis).map_err(|error| error.to_string())
    }

    #[test]
    fn a_url_or_a_table() {
        let plain = config("redis = \"redis://shop:hunter2@redis.test/3\"").unwrap();
        assert_eq!(plain.nodes, [("redis.test".to_owned(), 6379)]);
        assert_eq!(
            (plain.login.username.as_deref(), plain.login.password.as_deref()),
            (Some("shop"), Some("hunter2"))
        );
        assert_eq!((plain.tls, plain.database, plain.prefix.as_str()), (false, 3, "portcullis"));
        assert!(!format!("{plain:?}").contains("hunter2"));

        let table = "[redis]\nurls = [\"rediss://a:1\", \"rediss://b:2\"]\nsentinel_master = \"main\"";
        let sentinels = config(table).unwrap();
        assert_eq!(sentinels.nodes, [("a".to_owned(), 1), ("b".to_owned(), 2)]);
        assert!(sentinels.tls);
        assert!(matches!(sentinels.topology, Topology::Sentinel { master, .. } if master == "main"));
        let cluster = config("[redis]\nurl = \"redis://a:1\"\ncluster = true\nprefix = \"staging\"").unwrap();
        assert!(matches!(cluster.topology, Topology::Cluster));
    }

    #[test]
    fn passwords_come_from_files_of_ours_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        std::fs::write(&path, "hunter2\n").unwrap();
        let text = format!(
            "[redis]\nurl = \"redis://a\"\nusername = \"shop\"\npassword_file = \"{}\"",
            path.display()
        );
        for (mode, want) in [(0o600, ""), (0o644, "chmod 600")] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            match config(&text) {
                Ok(config) => assert_eq!((config.login.password.as_deref(), want), (Some("hunter2"), "")),
                Err(error) => assert!(!want.is_empty() && error.contains(want), "{error}"),
            }
        }
    }

    #[test]
    fn what_cannot_be_is_refused_and_no_password_is_told() {
        for (text, want) in [
            ("redis = 6379", "a URL such as"),
            ("redis = \"127.0.0.1:6379\"", "no URL such as"),
            ("redis = \"http://:hunter2@a\"", "no URL such as"),
            ("redis = \"redis+unix:///run/redis.sock\"", "not shared with others"),
            ("redis = \"rediss://a/#insecure\"", "could be anybody's"),
            ("[redis]\nuri = \"redis://a\"", "unknown field `uri`, expected one of `url`"),
            ("[redis]\ncluster = true", "`url` is missing"),
            ("[redis]\nurls = [\"redis://a\", \"redis://b\"]", "need `sentinel_master"),
            ("[redis]\nurls = [\"redis://a\", \"rediss://b\"]\ncluster = true", "same scheme"),
            ("[redis]\nurl = \"redis://a/1\"\ncluster = true", "database 0 only"),
            ("[redis]\nurl = \"redis://a\"\ncluster = true\nsentinel_master = \"m\"", "two different things"),
            ("[redis]\nurl = \"redis://a\"\nsentinel_username = \"m\"", "needs `sentinel_master`"),
            ("[redis]\nurl = \"redis://a\"\nusername = \"shop\"", "needs a password"),
            ("[redis]\nurl = \"redis://a\"\nca_file = \"/ca.pem\"", "write rediss://"),
            ("[redis]\nurl = \"rediss://a\"\nca_file = \"/missing.pem\"", "cannot be read"),
            ("[redis]\nurl = \"redis://a\"\nprefix = \"{a}\"", "`prefix` is made of"),
            ("[redis]\nurl = \"redis://a\"\npassword_file = \"/missing\"", "cannot read /missing"),
        ] {
            let error = config(text).unwrap_err();
            assert!(error.contains(want) && !error.contains("hunter2"), "{text:?} gave {error:?}");
        }
    }
}
