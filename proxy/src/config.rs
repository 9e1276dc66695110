//! What the process is told at start: flags, environment, file, defaults, in this order.
//!
//! Services are not here: they are runtime objects, made by `agentctl` and kept in the state file.

mod buffers;
mod limits;
mod sizing;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use ipnet::IpNet;
use serde::Deserialize;

pub use self::buffers::BufferLimits;
use self::buffers::RawBuffers;
pub use self::limits::Limits;
use self::limits::RawLimits;
use self::sizing::Machine;
use crate::telemetry::access_log::Destination;

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
    /// Proxies whose X-Forwarded-* fields are believed, as CIDR; repeatable or comma-separated
    #[arg(
        long = "trusted-proxy",
        value_name = "CIDR",
        env = "PORTCULLIS_TRUSTED_PROXIES",
        value_delimiter = ','
    )]
    pub trusted_proxies: Vec<IpNet>,
    /// Secret shared by all VMs of a fleet, so that they agree on every canary visitor
    #[arg(long, value_name = "TEXT", env = "PORTCULLIS_FLEET_SECRET", hide_env_values = true)]
    pub fleet_secret: Option<String>,
    /// How long requests in flight may take to end after SIGTERM, such as 30s
    #[arg(long, value_name = "DURATION", env = "PORTCULLIS_SHUTDOWN_TIMEOUT", value_parser = model::duration::parse)]
    pub shutdown_timeout: Option<Duration>,
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
    trusted_proxies: Option<Vec<IpNet>>,
    fleet_secret: Option<String>,
    shutdown_timeout: Option<String>,
    reason_header: Option<bool>,
    limits: RawLimits,
    groups: RawGroups,
    buffers: RawBuffers,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawGroups {
    read: Option<String>,
    operate: Option<String>,
    admin: Option<String>,
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
    pub trusted_proxies: Vec<IpNet>,
    pub fleet_secret: Option<String>,
    pub shutdown_timeout: Duration,
    /// Whether clients see `X-Portcullis-Reason`.
    pub reason_header: bool,
    pub limits: Limits,
    pub groups: Groups,
    pub buffers: BufferLimits,
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
    let machine = Machine::this_one();
    let state_dir = flags.state_dir.or(raw.state_dir).unwrap_or_else(|| "/var/lib/portcullis".into());
    Ok(Config {
        http,
        https,
        metrics: listen("metrics", flags.metrics, raw.metrics.as_ref(), Listen::Off)?,
        control: flags.control.or(raw.control).unwrap_or_else(|| "/run/portcullis/control.sock".into()),
        buffers: buffers::resolve(raw.buffers, &state_dir, &machine)?,
        state_dir,
        workers,
        access_log: match flags.access_log.or(raw.access_log).as_deref() {
            None | Some("-") => Destination::Stdout,
            Some("off") => Destination::Off,
            Some(path) => Destination::File(path.into()),
        },
        trusted_proxies,
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
    })
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
            ("[buffers]\nmemory_bytes = 1000", "at least 1048576"),
            ("[buffers]\ndirectory = \"spool\"", "`spool` is not an absolute path"),
            ("[buffers]\ndisk = 1", "unknown field `disk`, expected one of `directory`"),
        ] {
            let error = config(text).unwrap_err();
            assert!(error.contains(wants), "{text:?} gave {error:?}");
        }
    }
}
