//! Counts of client connections: how many there are, and what became of those that are not.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

/// Why a connection was not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// `limits.connections`, and nobody was idle.
    Connections,
    /// `limits.connections_per_client`.
    Client,
    /// The process has no descriptor left.
    Descriptors,
    /// It comes from a balancer that has to begin with a PROXY header, and did not.
    ProxyHeader,
}

/// Why we closed a connection, or for HTTP/2 a stream, that its client did not end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// It never said anything.
    FirstByte,
    Head,
    KeepAlive,
    RequestBody,
    Response,
    /// It was idle, and a new one needed its place.
    Room,
    /// It did not read, and what was held for it was needed elsewhere.
    Memory,
    /// Frames of HTTP/2 that ask for nothing, or streams given up, without measure.
    Flood,
}

const REFUSED: [&str; 4] = ["connections", "client", "descriptors", "proxy_header"];
const CLOSED: [&str; 8] =
    ["first_byte", "head", "keep_alive", "request_body", "response", "room", "memory", "flood"];

/// Written once or twice in a connection's life, so the workers may share them.
#[derive(Default)]
pub struct Connections {
    pub accepted: AtomicU64,
    pub open: AtomicUsize,
    pub accept_errors: AtomicU64,
    pub handshakes_failed: AtomicU64,
    /// Dropped at `limits.handshakes` to let a newer one in.
    pub handshakes_dropped: AtomicU64,
    refused: [AtomicU64; REFUSED.len()],
    closed: [AtomicU64; CLOSED.len()],
    pub workers: Box<[Arc<WorkerConnections>]>,
}

/// One worker's share; it alone writes here, often.
#[derive(Default)]
#[repr(align(64))]
pub struct WorkerConnections {
    pub idle: AtomicUsize,
    pub handshakes: AtomicUsize,
    /// Handed to hyper for clients and not yet taken by a socket.
    pub held_bytes: AtomicU64,
}

impl Connections {
    pub fn new(workers: usize) -> Self {
        Self { workers: (0..workers.max(1)).map(|_| Arc::default()).collect(), ..Self::default() }
    }

    /// Returns how often it has happened.
    pub fn count_refused(&self, why: Refused) -> u64 {
        self.refused[why as usize].fetch_add(1, Ordering::Relaxed) + 1
    }

    pub fn count_closed(&self, why: Closed) {
        self.closed[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// What all workers hold for their clients.
    pub fn held_bytes(&self) -> u64 {
        self.workers.iter().map(|worker| worker.held_bytes.load(Ordering::Relaxed)).sum()
    }

    pub fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, count) in [
            ("connections", "Client connections accepted", &self.accepted),
            ("accept_errors", "Times that a connection could not be accepted", &self.accept_errors),
            ("handshakes_failed", "TLS handshakes that failed", &self.handshakes_failed),
            ("handshakes_dropped", "TLS handshakes dropped to let newer ones in", &self.handshakes_dropped),
        ] {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            metric.encode_counter::<NoLabelSet, _, u64>(&count.load(Ordering::Relaxed), None)?;
        }
        let help = "Client connections not let in, by limit";
        encode_reasons(encoder, "connections_refused", help, ("reason", &REFUSED), &self.refused)?;
        let help = "Client connections and streams that were closed for their client, by reason";
        encode_reasons(encoder, "connections_closed", help, ("reason", &CLOSED), &self.closed)?;
        let sum = |of: fn(&WorkerConnections) -> &AtomicUsize| {
            self.workers.iter().map(|worker| of(worker).load(Ordering::Relaxed)).sum::<usize>() as u64
        };
        for (name, help, value) in [
            ("connections_open", "Client connections", self.open.load(Ordering::Relaxed) as u64),
            ("connections_idle", "Client connections without a request", sum(|worker| &worker.idle)),
            ("handshakes_open", "TLS handshakes in progress", sum(|worker| &worker.handshakes)),
            ("held_bytes", "Bytes held for clients that have not read them", self.held_bytes()),
        ] {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            metric.encode_gauge(&value)?;
        }
        Ok(())
    }
}

/// One series for each of the values of a label.
pub(super) fn encode_reasons(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    (label, values): (&str, &[&str]),
    counts: &[AtomicU64],
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (value, count) in values.iter().zip(counts) {
        metric
            .encode_family(&[(label, *value)])?
            .encode_counter::<NoLabelSet, _, u64>(&count.load(Ordering::Relaxed), None)?;
    }
    Ok(())
}
