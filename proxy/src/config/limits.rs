//! The limits of the process towards clients.

use std::time::Duration;

use model::pace::MinRate;
use serde::Deserialize;

use super::sizing::Machine;
use super::{ConfigError, duration};

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawLimits {
    connections: Option<usize>,
    connections_per_client: Option<usize>,
    handshakes: Option<usize>,
    buffered_bytes: Option<u64>,
    bytes_per_second_min: Option<u32>,
    handshake_timeout: Option<String>,
    request_head_timeout: Option<String>,
    keep_alive_timeout: Option<String>,
    stall_timeout: Option<String>,
    http2_streams: Option<u32>,
}

/// At each of them something is shed and counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    pub connections: usize,
    /// Of one IPv4 address or one IPv6 /64; 0: no limit. Trusted proxies have none.
    pub connections_per_client: usize,
    /// TLS handshakes in progress.
    pub handshakes: usize,
    /// What is held for clients that have not read it yet, in all.
    pub buffered_bytes: u64,
    /// Of a client that sends a body or reads one, on average; 0: no limit but `stall_timeout`.
    pub bytes_per_second_min: u32,
    pub handshake_timeout: Duration,
    /// From a connection's beginning to the first byte, and from a head's first byte to its last.
    pub request_head_timeout: Duration,
    /// Between requests.
    pub keep_alive_timeout: Duration,
    /// A client that neither sends what it owes nor reads what it is sent.
    pub stall_timeout: Duration,
    pub http2_streams: u32,
}

impl Limits {
    pub const REQUEST_HEAD_BYTES: usize = 64 * 1024;
    pub const REQUEST_FIELDS: usize = 100;
    /// hpack makes small frames into large lists; 64 KiB would cost megabytes a connection.
    pub const HTTP2_HEADER_LIST_BYTES: u32 = 16 * 1024;

    /// WebSockets, event streams and requests that a pause keeps waiting, of all connections: nobody closes them for a
    /// newcomer as an idle one, so what is left is for those who ask and go. Over HTTP/2 each counts as if it had a
    /// connection of its own.
    pub fn staying(&self) -> usize {
        (self.connections - self.connections / 4).max(1)
    }

    /// How fast a client has to read.
    pub fn reading(&self) -> MinRate {
        MinRate { bytes_per_second: self.bytes_per_second_min, grace: self.stall_timeout }
    }

    /// How fast a client has to send a body that may stand still for `grace`.
    pub fn sending(&self, grace: Duration) -> MinRate {
        MinRate { bytes_per_second: self.bytes_per_second_min, grace }
    }
}

pub(super) fn resolve(raw: &RawLimits, workers: usize, machine: &Machine) -> Result<Limits, ConfigError> {
    for (key, is_zero) in [
        ("limits.connections", raw.connections == Some(0)),
        ("limits.handshakes", raw.handshakes == Some(0)),
        ("limits.buffered_bytes", raw.buffered_bytes == Some(0)),
        ("limits.http2_streams", raw.http2_streams == Some(0)),
    ] {
        if is_zero {
            return Err(ConfigError::Value { key, message: "it must be at least 1".to_owned() });
        }
    }
    let connections = raw.connections.unwrap_or_else(|| machine.connections());
    let mut limits = Limits {
        connections,
        connections_per_client: raw
            .connections_per_client
            .unwrap_or_else(|| Machine::connections_per_client(connections)),
        handshakes: raw.handshakes.unwrap_or_else(|| Machine::handshakes(connections, workers)),
        buffered_bytes: raw.buffered_bytes.unwrap_or_else(|| machine.buffered_bytes()),
        bytes_per_second_min: raw.bytes_per_second_min.unwrap_or(500),
        handshake_timeout: duration("limits.handshake_timeout", raw.handshake_timeout.as_ref(), 10)?,
        request_head_timeout: duration("limits.request_head_timeout", raw.request_head_timeout.as_ref(), 10)?,
        keep_alive_timeout: duration("limits.keep_alive_timeout", raw.keep_alive_timeout.as_ref(), 75)?,
        stall_timeout: duration("limits.stall_timeout", raw.stall_timeout.as_ref(), 30)?,
        http2_streams: raw.http2_streams.unwrap_or(100),
    };
    machine.fit(&mut limits);
    Ok(limits)
}
