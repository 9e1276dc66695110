//! What the process is told at start: flags, environment, file, defaults, in this order.
//!
//! Services are not here: they are runtime objects, made by `agentctl` and kept in the state file.

mod acme;
mod buffers;
mod limits;
mod networks;
mod redis;
pub mod secret_file;
mod sizing;
mod store;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use model::forwarded::{ClientIpHeader, InvalidClientIpHeader};
use model::networks::Networks;
use serde::Deserialize;

pub use self::acme::{Acme, Authority, ChallengeKind, ExternalAccount};
use self::acme::{RawAcme, Surroundings};
pub use self::buffers::BufferLimits;
use self::buffers::RawBuffers;
pub use self::limits::Limits;
use self::limits::RawLimits;
pub use self::redis::{Login, RedisConfig, Topology};
use self::sizing::Machine;
use self::store::RawStore;
pub use self::store::{KeySource, SharedStore, StoreConfig};
use crate::telemetry::access_log::Destination;

/// Looking at files without a pause would keep a core busy.
const CHECK_INTERVAL_MIN: Duration = Duration::from_millis(50);

/// Flags of `portcullis run`. What is left out comes from the file, then from the defaults.
#[derive(Debug, Clone, Default, Args)]
pub struct Flags {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE", env = "PORTCULLIS_CONFIG")]
    pub config: Option<PathBuf>,
    /// Plain HTTP listener, such as 0.0.0.0:80; port 0 picks a free one; `off` for none
    #[arg(long, value_name = "ADDR:PORT", env = "PORTCULLIS_HTTP", value_parser = parse_listen)]
    pub http: Option<Listen>,
    /// HTTPS listener, such as 0.0.0.0:443
    #[arg(long, value_name = "ADDR:PORT", env = "PORTCULLIS_HTTPS", value_parser = parse_listen)]
    pub https: Option<Listen>,
    /// Prometheus metrics listener, such as 127.0.0.1:9100 [default: off]
    #[arg(long, value_name = "ADDR:PORT", env = "PORTCULLIS_METRICS", value_parser = parse_listen)]
    pub metrics: Option<Listen>,
    /// Control socket
    #[arg(long, value_name = "PATH", env = "PORTCULLIS_CONTROL")]
    pub control: Option<PathBuf>,
    /// Directory of the state file
    #[arg(long, value_name = "DIR", env = "PORTCULLIS_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// Threads of the data plane [default: one per core]
    #[arg(long, value_name = "N", env = "PORTCULLIS_WORKERS")]
    pub workers: Option<usize>,
    /// Access log: a file, `-` for standard output, `off` for none
    #[arg(long, value_name = "FILE", env = "PORTCULLIS_ACCESS_LOG")]
    pub access_log: Option<String>,
    /// Proxies whose X-Forwarded-* fields are believed: CIDR, a preset such as cloudflare, or a file of them; repeatable
    /// or comma-separated
    #[arg(
        long = "trusted-proxy",
        value_name = "NETWORK",
        env = "PORTCULLIS_TRUSTED_PROXIES",
        value_delimiter = ','
    )]
    pub trusted_proxies: Vec<String>,
    /// Secret shared by all VMs of a fleet, so that they agree on every canary visitor
    #[arg(long, value_name = "TEXT", env = "PORTCULLIS_FLEET_SECRET", hide_env_values = true)]
    pub fleet_secret: Option<String>,
    /// How long requests in flight may take to end after SIGTERM, such as 30s
    #[arg(long, value_name = "DURATION", env = "PORTCULLIS_SHUTDOWN_TIMEOUT", value_parser = model::duration::parse)]
    pub shutdown_timeout: Option<Duration>,
    /// Path that answers 200, for whatever host, while the daemon serves, such as /_portcullis/up [default: none]
    #[arg(long, value_name = "PATH", env = "PORTCULLIS_HEALTH_PATH")]
    pub health_path: Option<String>,
    /// How long to go on serving after SIGTERM while the health path answers 503 already [default: 0s]
    #[arg(long, value_name = "DURATION", env = "PORTCULLIS_SHUTDOWN_DELAY", value_parser = model::duration::parse)]
    pub shutdown_delay: Option<Duration>,
    /// ACME directory that automatic certificates come from; `off` for none [default: Let's Encrypt]
    #[arg(long, value_name = "URL", env = "PORTCULLIS_ACME_DIRECTORY")]
    pub acme_directory: Option<String>,
    /// How often to look whether certificate files have changed [default: 10s]
    #[arg(long, value_name = "DURATION", env = "PORTCULLIS_CERTIFICATE_CHECK_INTERVAL", value_parser = model::duration::parse)]
    pub certificate_check_interval: Option<Duration>,
}

/// An address to listen on, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    Off,
    On(SocketAddr),
}

impl Listen {
    pub fn address(self) -> Option<SocketAddr> {
        match self {
            Self::Off => None,
            Self::On(address) => Some(address),
        }
    }
}

fn parse_listen(text: &str) -> Result<Listen, String> {
    if text == "off" {
        return Ok(Listen::Off);
    }
    text.parse()
        .map(Listen::On)
        .map_err(|_| "write ADDR:PORT, such as 0.0.0.0:80 or [::]:443, or `off`".to_owned())
}

/// The file, as written.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawConfig {
    http: Option<String>,
    https: Option<String>,
    metrics: Option<String>,
    control: Option<PathBuf>,
    state_dir: Option<PathBuf>,
    workers: Option<usize>,
    access_log: Option<String>,
    trusted_proxies: Option<Vec<String>>,
    fleet_secret: Option<String>,
    shutdown_timeout: Option<String>,
    reason_header: Option<bool>,
    limits: RawLimits,
    groups: RawGroups,
    health: RawHealth,
    proxy_headers: Option<String>,
    client_ip_header: Option<String>,
    proxy_protocol: RawProxyProtocol,
    buffers: RawBuffers,
    acme: RawAcme,
    certificate_check_interval: Option<String>,
    store: RawStore,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawHealth {
    path: Option<String>,
    shutdown_delay: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawGroups {
    read: Option<String>,
    operate: Option<String>,
    admin: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawProxyProtocol {
    http: Vec<String>,
    https: Vec<String>,
}

/// Everything resolved and valid.
#[derive(Debug, Clone)]
pub struct Config {
    pub http: Option<SocketAddr>,
    pub https: Option<SocketAddr>,
    pub metrics: Option<SocketAddr>,
    pub control: PathBuf,
    pub state_dir: PathBuf,
    pub workers: usize,
    pub access_log: Destination,
    pub trusted_proxies: Networks,
    pub fleet_secret: Option<String>,
    pub shutdown_timeout: Duration,
    /// Whether clients see `X-Portcullis-Reason`.
    pub reason_header: bool,
    pub limits: Limits,
    pub groups: Groups,
    /// Answers 200 for whatever host.
    pub health_path: Option<String>,
    /// From SIGTERM to the end of the listeners; the health path answers 503 meanwhile.
    pub shutdown_delay: Duration,
    pub proxy_headers: ProxyHeaders,
    /// Where trusted proxies name the client, before all chains; services may say otherwise.
    pub client_ip_header: Option<ClientIpHeader>,
    pub proxy_protocol: ProxyProtocol,
    pub buffers: BufferLimits,
    /// `None`: no certificate comes by itself; placeholders stay.
    pub acme: Option<Acme>,
    /// Where certificates are kept, and what seals them.
    pub store: StoreConfig,
    /// Between two looks at the files of own certificates.
    pub certificate_check_interval: Duration,
}

/// Which fields trusted proxies write. They pass the others on as their clients sent them, so one kind is read, and it
/// has to be known which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyHeaders {
    /// `X-Forwarded-For`, `-Proto`, `-Host`, `-Port`.
    XForwarded,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

/// Whose connections begin with a PROXY header, by listener.
#[derive(Debug, Clone, Default)]
pub struct ProxyProtocol {
    pub http: Networks,
    pub https: Networks,
}

/// Groups of the operating system whose members may use the control socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Groups {
    /// Has the socket: who is not a member cannot even connect.
    pub read: String,
    pub operate: String,
    pub admin: String,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration file {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the configuration file {path} is not valid: {message}")]
    Parse { path: PathBuf, message: String },
    #[error("`{key}` in the configuration is not valid: {message}")]
    Value { key: &'static str, message: String },
    #[error("neither an HTTP nor an HTTPS listener is on: there is nothing to serve")]
    NoListener,
}

impl Config {
    /// Reads the file that `flags` name, if any, and resolves everything.
    pub fn load(flags: Flags) -> Result<Self, ConfigError> {
        let raw = match &flags.config {
            Some(path) => read(path)?,
            None => RawConfig::default(),
        };
        resolve(flags, raw)
    }
}

fn read(path: &Path) -> Result<RawConfig, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    toml::from_str(&text)
        .map_err(|error| ConfigError::Parse { path: path.to_owned(), message: error.to_string() })
}

fn resolve(flags: Flags, raw: RawConfig) -> Result<Config, ConfigError> {
    let listen = |key, flag: Option<Listen>, file: Option<&String>, default: Listen| match (flag, file) {
        (Some(listen), _) => Ok(listen.address()),
        (None, Some(text)) => {
            parse_listen(text).map(Listen::address).map_err(|message| ConfigError::Value { key, message })
        }
        (None, None) => Ok(default.address()),
    };
    let every = |port| Listen::On(SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 0], port)));
    let http = listen("http", flags.http, raw.http.as_ref(), every(80))?;
    let https = listen("https", flags.https, raw.https.as_ref(), every(443))?;
    if http.is_none() && https.is_none() {
        return Err(ConfigError::NoListener);
    }
    let workers = flags.workers.or(raw.workers).unwrap_or_else(cores);
    if !(1..=256).contains(&workers) {
        return Err(ConfigError::Value {
            key: "workers",
            message: "write a number from 1 to 256".to_owned(),
        });
    }
    let trusted_proxies = match (flags.trusted_proxies, raw.trusted_proxies) {
        (flag, file) if flag.is_empty() => file.unwrap_or_default(),
        (flag, _) => flag,
    };
    let client_ip_header = raw.client_ip_header.filter(|name| !name.is_empty()).map(|name| name.parse());
    let around =
        Surroundings { directory: flags.acme_directory, http: http.is_some(), https: https.is_some() };
    let machine = Machine::this_one();
    let state_dir = flags.state_dir.or(raw.state_dir).unwrap_or_else(|| "/var/lib/portcullis".into());
    Ok(Config {
        http,
        https,
        metrics: listen("metrics", flags.metrics, raw.metrics.as_ref(), Listen::Off)?,
        control: flags.control.or(raw.control).unwrap_or_else(|| "/run/portcullis/control.sock".into()),
        buffers: buffers::resolve(raw.buffers, &state_dir, &machine)?,
        store: store::resolve(raw.store, &state_dir, store::credentials())?,
        state_dir,
        workers,
        access_log: match flags.access_log.or(raw.access_log).as_deref() {
            None | Some("-") => Destination::Stdout,
            Some("off") => Destination::Off,
            Some(path) => Destination::File(path.into()),
        },
        trusted_proxies: networks::resolve("trusted_proxies", &trusted_proxies)?,
        fleet_secret: flags.fleet_secret.or(raw.fleet_secret).filter(|secret| !secret.is_empty()),
        shutdown_timeout: match flags.shutdown_timeout {
            Some(timeout) => timeout,
            None => duration("shutdown_timeout", raw.shutdown_timeout.as_ref(), 30)?,
        },
        reason_header: raw.reason_header.unwrap_or(true),
        limits: limits::resolve(&raw.limits, workers, &machine)?,
        groups: Groups {
            read: raw.groups.read.unwrap_or_else(|| "portcullis".to_owned()),
            operate: raw.groups.operate.unwrap_or_else(|| "portcullis-operate".to_owned()),
            admin: raw.groups.admin.unwrap_or_else(|| "portcullis-admin".to_owned()),
        },
        health_path: health_path(flags.health_path.or(raw.health.path))?,
        shutdown_delay: match (flags.shutdown_delay, &raw.health.shutdown_delay) {
            (Some(delay), _) => delay,
            (None, None) => Duration::ZERO,
            (None, Some(text)) => model::duration::parse(text).map_err(|error| ConfigError::Value {
                key: "health.shutdown_delay",
                message: error.to_string(),
            })?,
        },
        proxy_headers: match raw.proxy_headers.as_deref() {
            None | Some("x-forwarded") => ProxyHeaders::XForwarded,
            Some("forwarded") => ProxyHeaders::Forwarded,
            Some(other) => {
                let message = format!("`{other}` is neither `x-forwarded` nor `forwarded`");
                return Err(ConfigError::Value { key: "proxy_headers", message });
            }
        },
        client_ip_header: client_ip_header.transpose().map_err(|error: InvalidClientIpHeader| {
            ConfigError::Value { key: "client_ip_header", message: error.to_string() }
        })?,
        proxy_protocol: ProxyProtocol {
            http: networks::resolve("proxy_protocol.http", &raw.proxy_protocol.http)?,
            https: networks::resolve("proxy_protocol.https", &raw.proxy_protocol.https)?,
        },
        acme: acme::resolve(raw.acme, around)?,
        certificate_check_interval: match flags.certificate_check_interval {
            Some(interval) => interval.max(CHECK_INTERVAL_MIN),
            None => duration("certificate_check_interval", raw.certificate_check_interval.as_ref(), 10)?
                .max(CHECK_INTERVAL_MIN),
        },
    })
}

/// An empty text is none.
fn health_path(text: Option<String>) -> Result<Option<String>, ConfigError> {
    let Some(path) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    let is_path = path.starts_with('/') && path.len() > 1;
    if is_path && path.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'?' | b'#')) {
        return Ok(Some(path));
    }
    let message = format!(
        "`{path}` is not a path of its own: write one that no app has, such as `/_portcullis/up`, without query"
    );
    Err(ConfigError::Value { key: "health.path", message })
}

fn duration(key: &'static str, text: Option<&String>, default_s: u64) -> Result<Duration, ConfigError> {
    let Some(text) = text else { return Ok(Duration::from_secs(default_s)) };
    match model::duration::parse(text) {
        Ok(Duration::ZERO) => {
            Err(ConfigError::Value { key, message: "it must be longer than 0s".to_owned() })
        }
        Ok(duration) => Ok(duration),
        Err(error) => Err(ConfigError::Value { key, message: error.to_string() }),
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<Config, String> {
        let raw = toml::from_str(text).map_err(|error| error.to_string())?;
        resolve(Flags::default(), raw).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults() {
        let config = config("").unwrap();
        assert_eq!(config.http, Some("[::]:80".parse().unwrap()));
        assert_eq!(config.metrics, None);
        assert_eq!(config.limits.keep_alive_timeout, Duration::from_secs(75));
        assert!(config.limits.connections >= 16);
        assert_eq!(config.limits.connections_per_client, (config.limits.connections / 4).max(16));
        assert_eq!(config.limits.bytes_per_second_min, 500);
        let buffers = config.buffers;
        assert_eq!(buffers.directory, Path::new("/var/lib/portcullis/buffers"));
        assert!(buffers.memory_bytes >= 32 << 20 && buffers.disk_bytes >= 64 << 20, "{buffers:?}");
    }

    #[test]
    fn the_file_that_is_shipped_says_what_it_means() {
        let shipped = include_str!("../../systemd/portcullis.toml");
        assert!(config(shipped).unwrap().trusted_proxies.is_empty(), "every line is a comment");
        let is_setting = |line: &str| line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '));
        let in_force: Vec<&str> = shipped
            .lines()
            .map(|line| line.strip_prefix('#').filter(|rest| is_setting(rest)).unwrap_or(line))
            .collect();
        let config = config(&in_force.join("\n")).unwrap();
        assert!(config.trusted_proxies.contains([10, 0, 0, 1].into()), "and each can be put in force");
    }

    #[test]
    fn flags_come_before_the_file() {
        let raw = toml::from_str("http = \"127.0.0.1:81\"\nhttps = \"off\"").unwrap();
        let flags = Flags { http: Some(parse_listen("127.0.0.1:82").unwrap()), ..Flags::default() };
        let config = resolve(flags, raw).unwrap();
        assert_eq!((config.http, config.https), (Some("127.0.0.1:82".parse().unwrap()), None));
    }

    #[test]
    fn bad_values_say_what_and_why() {
        for (text, wants) in [
            ("htpp = \"x\"", "unknown field `htpp`, expected one of `http`"),
            ("http = \"80\"", "`http` in the configuration is not valid: write ADDR:PORT"),
            ("http = \"off\"\nhttps = \"off\"", "nothing to serve"),
            ("workers = 0", "from 1 to 256"),
            ("[limits]\nkeep_alive_timeout = \"75\"", "such as `30s`"),
            ("[limits]\nstall_timeout = \"0s\"", "longer than 0s"),
            ("[limits]\nconnections = 0", "at least 1"),
            ("[limits]\nhandshakes = 0", "at least 1"),
            ("[limits]\nbuffered_bytes = 0", "at least 1"),
            ("[limits]\nmin_rate = 1", "unknown field `min_rate`, expected one of `connections`"),
            ("trusted_proxies = [\"10.0.0.0/33\"]", "trusted_proxies"),
            ("[health]\npath = \"up\"", "`up` is not a path of its own"),
            ("[health]\npath = \"/\"", "such as `/_portcullis/up`"),
            ("[health]\npath = \"/up?x=1\"", "without query"),
            ("[health]\nshutdown_delay = \"5\"", "`health.shutdown_delay` in the configuration"),
            ("[health]\nport = 1", "expected `path` or `shutdown_delay`"),
            ("proxy_headers = \"via\"", "`via` is neither `x-forwarded` nor `forwarded`"),
            ("client_ip_header = \"X-Forwarded-For\"", "chain"),
            ("[proxy_protocol]\nhttp = [\"all\"]", "`proxy_protocol.http`"),
            ("[proxy_protocol]\nmetrics = []", "unknown field `metrics`, expected `http` or `https`"),
            ("[buffers]\nmemory_bytes = 1000", "at least 1048576"),
            ("[buffers]\ndirectory = \"spool\"", "`spool` is not an absolute path"),
            ("[store]\ndirectory = \"/a\"", "unknown field `directory`, expected one of `dir`"),
            ("[store]\ndir = \"share\"", "`share` is not an absolute path"),
            ("[store]\ndir = \"/share\"", "`key_file` in [store]"),
            ("[store]\ndir = \"/share\"\nredis = \"redis://a\"", "either `dir` or `redis`"),
            ("[store]\npoll = \"0s\"", "longer than 0s"),
            ("certificate_check_interval = \"0s\"", "longer than 0s"),
            ("[buffers]\ndisk = 1", "unknown field `disk`, expected one of `directory`"),
        ] {
            let error = config(text).unwrap_err();
            assert!(error.contains(wants), "{text:?} gave {error:?}");
        }
    }
}
