//! Counters and timings, per worker and summed on read, and their Prometheus text.
//!
//! Each cell has one writer, its worker, so that counting costs a plain addition.

mod exposition;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use model::canary::Cohort;
use model::reason::{Fault, Reason};
use prometheus_client::registry::Registry;

use self::exposition::Scrape;
use super::buffers::Buffers;
use super::connections::Connections;

/// Upper bounds in seconds; the last, infinite bucket is implied.
const BUCKETS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// A number with one writer.
#[derive(Default)]
struct Count(AtomicU64);

impl Count {
    fn add(&self, n: u64) {
        // One writer per cell: a load and a store cost less than an atomic addition.
        self.0.store(self.0.load(Ordering::Relaxed) + n, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Default)]
struct Histogram {
    buckets: [Count; BUCKETS.len() + 1],
    sum_us: Count,
}

impl Histogram {
    fn observe(&self, value: Duration) {
        let seconds = value.as_secs_f64();
        self.buckets[BUCKETS.partition_point(|bound| *bound < seconds)].add(1);
        self.sum_us.add(value.as_micros() as u64);
    }
}

/// One request, as far as the metrics care.
#[derive(Debug, Clone, Copy, Default)]
pub struct Observation {
    pub method: MethodLabel,
    pub status: u16,
    /// `None`: the app answered.
    pub reason: Option<Reason>,
    /// Waiting for a slot; 0 where there was no queue.
    pub queue: Option<Duration>,
    /// `None` where a pooled connection was used.
    pub connect: Option<Duration>,
    /// From the request's arrival to the response head.
    pub first_byte: Option<Duration>,
    pub total: Duration,
    pub request_body_bytes: u64,
    pub response_body_bytes: u64,
    pub retried: bool,
}

impl Observation {
    /// 502, 503, 504 or a reset, whoever produced it.
    pub fn is_gateway_error(&self) -> bool {
        match self.reason {
            Some(reason) => reason.fault() == Fault::Upstream,
            None => matches!(self.status, 502..=504),
        }
    }
}

/// The app's answers by method and exact status, as many pairs as a target is likely to have; the rest by class of status.
///
/// Which methods there are clients may make up, so they are few; statuses are the app's. A place is given to the first who
/// comes, so the frequent ones are near the front.
struct ByCode {
    /// What `key` makes of them; 0: free.
    keys: [AtomicU32; Self::PLACES],
    counts: [Count; Self::PLACES],
    others: [Count; CLASSES.len()],
}

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

fn class(status: u16) -> usize {
    usize::from(status / 100).clamp(1, CLASSES.len()) - 1
}

impl Default for ByCode {
    fn default() -> Self {
        Self {
            keys: std::array::from_fn(|_| AtomicU32::new(0)),
            counts: std::array::from_fn(|_| Count::default()),
            others: Default::default(),
        }
    }
}

impl ByCode {
    const PLACES: usize = 32;

    fn add(&self, method: MethodLabel, status: u16) {
        let wanted = Self::key(method, status);
        for (key, count) in self.keys.iter().zip(&self.counts) {
            match key.load(Ordering::Relaxed) {
                taken if taken == wanted => return count.add(1),
                // There is one writer per cell.
                0 => {
                    key.store(wanted, Ordering::Relaxed);
                    return count.add(1);
                }
                _ => {}
            }
        }
        self.others[class(status)].add(1);
    }

    fn key(method: MethodLabel, status: u16) -> u32 {
        (u32::from(method.0) + 1) << 16 | u32::from(status)
    }

    fn total(&self) -> u64 {
        self.counts.iter().chain(&self.others).map(Count::get).sum()
    }

    /// By class, method and status, into `sums`.
    fn sum_into(&self, sums: &mut BTreeMap<(usize, &'static str, Option<u16>), u64>) {
        for (key, count) in self.keys.iter().zip(&self.counts) {
            let key = key.load(Ordering::Relaxed);
            let Some(method) = (key >> 16).checked_sub(1) else { continue };
            let (method, status) = (MethodLabel(method as u8), (key & 0xffff) as u16);
            *sums.entry((class(status), method.as_str(), Some(status))).or_default() += count.get();
        }
        for (class, count) in self.others.iter().enumerate() {
            *sums.entry((class, MethodLabel::default().as_str(), None)).or_default() += count.get();
        }
    }
}

/// A method that has a label of its own, or `OTHER`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MethodLabel(u8);

impl MethodLabel {
    const NAMES: [&str; 8] = ["OTHER", "GET", "POST", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"];

    pub fn of(method: &str) -> Self {
        let known = Self::NAMES.iter().skip(1).position(|name| *name == method);
        Self(known.map_or(0, |index| index as u8 + 1))
    }

    fn as_str(self) -> &'static str {
        Self::NAMES.get(usize::from(self.0)).copied().unwrap_or(Self::NAMES[0])
    }
}

struct ByReason([Count; Reason::ALL.len()]);

impl Default for ByReason {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Count::default()))
    }
}

#[derive(Default)]
#[repr(align(64))]
struct Cell {
    /// Answered by the app.
    app: ByCode,
    /// Answered by us.
    own: ByReason,
    gateway_errors: Count,
    retries: Count,
    request_body_bytes: Count,
    response_body_bytes: Count,
    queue: Histogram,
    connect: Histogram,
    first_byte: Histogram,
    total: Histogram,
}

/// The numbers of one target in one release and cohort.
pub struct TargetStats {
    cells: Box<[Cell]>,
}

/// What a bake looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    pub requests: u64,
    pub gateway_errors: u64,
}

impl TargetStats {
    pub fn new(workers: usize) -> Self {
        Self { cells: (0..workers.max(1)).map(|_| Cell::default()).collect() }
    }

    pub fn record(&self, worker: usize, seen: &Observation) {
        let cell = &self.cells[worker];
        match seen.reason {
            Some(reason) => cell.own.0[reason.index()].add(1),
            None => cell.app.add(seen.method, seen.status),
        }
        if seen.is_gateway_error() {
            cell.gateway_errors.add(1);
        }
        if seen.retried {
            cell.retries.add(1);
        }
        cell.request_body_bytes.add(seen.request_body_bytes);
        cell.response_body_bytes.add(seen.response_body_bytes);
        for (histogram, value) in [
            (&cell.queue, seen.queue),
            (&cell.connect, seen.connect),
            (&cell.first_byte, seen.first_byte),
            (&cell.total, Some(seen.total)),
        ] {
            if let Some(value) = value {
                histogram.observe(value);
            }
        }
    }

    /// Without those for whom the release was not to blame in any way: whoever meets a service that is stopped says
    /// nothing about what would have served them.
    pub fn totals(&self) -> Totals {
        let own = |cell: &Cell| {
            let counted = Reason::ALL.iter().filter(|reason| reason.fault() != Fault::Nobody);
            counted.map(|reason| cell.own.0[reason.index()].get()).sum::<u64>()
        };
        let all = |cell: &Cell| cell.app.total() + own(cell);
        Totals {
            requests: self.cells.iter().map(all).sum(),
            gateway_errors: self.sum(|cell| &cell.gateway_errors),
        }
    }

    fn has_counted(&self) -> bool {
        self.cells.iter().any(|cell| cell.app.total() > 0 || cell.own.0.iter().any(|count| count.get() > 0))
    }

    fn sum(&self, of: impl Fn(&Cell) -> &Count) -> u64 {
        self.cells.iter().map(|cell| of(cell).get()).sum()
    }
}

/// The labels of a series.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Labels {
    pub service: Arc<str>,
    pub release: Arc<str>,
    pub cohort: Cohort,
    pub target: Arc<str>,
}

impl Labels {
    /// Of requests that waited for a target in vain.
    pub const NO_TARGET: &str = "";

    fn pairs(&self) -> [(&str, &str); 4] {
        [
            ("service", &self.service),
            ("release", &self.release),
            ("cohort", self.cohort.as_str()),
            ("target", &self.target),
        ]
    }
}

/// How full things are at the moment of a scrape.
pub struct Gauges {
    /// By target: requests that it has in flight, and upgraded connections and event streams.
    pub in_flight: Vec<(Labels, u64, u64)>,
    /// By release, without a target: requests that wait for a seat.
    pub waiting: Vec<(Labels, u64)>,
    /// Services that are paused or stopped.
    pub halted: Vec<Halted>,
    /// The seconds until each certificate ends.
    pub certificates: Vec<(CertificateLabels, i64)>,
}

/// The labels of a certificate's series.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateLabels {
    pub name: Arc<str>,
    /// Of several that show it, one.
    pub service: Arc<str>,
    /// Directory of the authority that issued it, or the path of its file.
    pub source: Arc<str>,
}

pub struct Halted {
    pub service: Arc<str>,
    pub is_pause: bool,
    /// Requests that wait for the end of the pause.
    pub waiting: u64,
}

/// Every series of the process.
pub struct Metrics {
    workers: usize,
    targets: Mutex<BTreeMap<Labels, Arc<TargetStats>>>,
    /// Requests that reached no service.
    unrouted: Arc<TargetStats>,
    process: Process,
    connections: Connections,
    buffers: Buffers,
}

/// Numbers of the process as a whole; written from several threads, but seldom.
#[derive(Default)]
pub struct Process {
    pub access_log_dropped: AtomicU64,
    /// Refused by hyper's parser, so that no request came of them.
    pub malformed_requests: AtomicU64,
    pub panics: AtomicU64,
    /// Orders of certificates, by how they ended.
    pub certificates_issued: AtomicU64,
    pub certificates_failed: AtomicU64,
}

impl Metrics {
    pub fn new(workers: usize) -> Arc<Self> {
        Arc::new(Self {
            workers,
            targets: Mutex::default(),
            unrouted: Arc::new(TargetStats::new(workers)),
            process: Process::default(),
            connections: Connections::new(workers),
            buffers: Buffers::default(),
        })
    }

    pub fn process(&self) -> &Process {
        &self.process
    }

    pub fn connections(&self) -> &Connections {
        &self.connections
    }

    pub fn buffers(&self) -> &Buffers {
        &self.buffers
    }

    pub fn unrouted(&self) -> &Arc<TargetStats> {
        &self.unrouted
    }

    /// The series with these labels; the same one whenever it is asked for again, so that counters of a
    /// release that returns go on.
    pub fn target(&self, labels: &Labels) -> Arc<TargetStats> {
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(targets.entry(labels.clone()).or_insert_with(|| Arc::new(TargetStats::new(self.workers))))
    }

    /// Forgets the series that `keep` does not want, so that old releases do not pile up.
    pub fn retain(&self, keep: impl Fn(&Labels) -> bool) {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner).retain(|labels, _| keep(labels));
    }

    /// The text of a scrape (OpenMetrics 1.0).
    pub fn render(self: &Arc<Self>, gauges: Gauges) -> String {
        let mut registry = Registry::with_prefix("portcullis");
        registry.register_collector(Box::new(Scrape(Arc::clone(self), gauges)));
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
        text
    }

    fn series(&self) -> Vec<(Labels, Arc<TargetStats>)> {
        let targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        targets.iter().map(|(labels, stats)| (labels.clone(), Arc::clone(stats))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::connections::{Closed, Refused};

    #[test]
    fn a_scrape_sums_the_workers_and_keeps_own_answers_apart() {
        let metrics = Metrics::new(2);
        let labels = Labels {
            service: "shop".into(),
            release: "r1".into(),
            cohort: Cohort::Stable,
            target: "127.0.0.1:1".into(),
        };
        let stats = metrics.target(&labels);
        let get = MethodLabel::of("GET");
        let ok = Observation {
            method: get,
            status: 200,
            total: Duration::from_millis(3),
            ..Observation::default()
        };
        stats.record(0, &ok);
        stats.record(1, &ok);
        let refused =
            Observation { status: 502, reason: Some(Reason::ConnectFailed), ..Observation::default() };
        stats.record(1, &refused);
        assert_eq!(stats.totals(), Totals { requests: 3, gateway_errors: 1 });
        let stopped = Observation { status: 503, reason: Some(Reason::Stopped), ..Observation::default() };
        let nobody = Labels { target: Labels::NO_TARGET.into(), ..labels.clone() };
        metrics.target(&nobody).record(0, &stopped);
        assert_eq!(metrics.target(&nobody).totals(), Totals::default(), "no release is judged by a stop");

        metrics.connections().count_refused(Refused::Client);
        metrics.connections().count_closed(Closed::Memory);
        metrics.connections().count_closed(Closed::Memory);
        metrics.connections().workers[1].held_bytes.store(7, Ordering::Relaxed);

        let halted = [("shop", true, 5), ("docs", false, 0)];
        let halted =
            halted.map(|(service, is_pause, waiting)| Halted { service: service.into(), is_pause, waiting });
        let end = |name: &str| CertificateLabels {
            name: name.into(),
            service: "shop".into(),
            source: "/c.pem".into(),
        };
        let text = metrics.render(Gauges {
            in_flight: vec![(labels, 3, 1)],
            waiting: vec![(nobody, 7)],
            halted: halted.into(),
            certificates: vec![(end("shop.test"), 86_400), (end("old.test"), -5)],
        });
        let of = r#"service="shop",release="r1",cohort="stable",target="127.0.0.1:1""#;
        for line in [
            format!("portcullis_requests_total{{{of},code=\"2xx\",method=\"GET\",status=\"200\"}} 2"),
            format!("portcullis_own_answers_total{{{of},reason=\"connect_failed\"}} 1"),
            format!("portcullis_request_seconds_bucket{{le=\"0.005\",{of}}} 3"),
            format!("portcullis_request_seconds_count{{{of}}} 3"),
            format!("portcullis_in_flight{{{of}}} 3"),
            format!("portcullis_sockets{{{of}}} 1"),
            r#"portcullis_waiting{service="shop",release="r1",cohort="stable"} 7"#.to_owned(),
            "portcullis_connections_refused_total{reason=\"client\"} 1".to_owned(),
            "portcullis_connections_closed_total{reason=\"memory\"} 2".to_owned(),
            "portcullis_held_bytes 7".to_owned(),
            r#"portcullis_own_answers_total{service="shop",release="r1",cohort="stable",target="",reason="stopped"} 1"#
                .to_owned(),
            r#"portcullis_halted{service="shop",state="paused"} 1"#.to_owned(),
            r#"portcullis_halted{service="docs",state="stopped"} 1"#.to_owned(),
            r#"portcullis_paused_requests{service="shop"} 5"#.to_owned(),
            r#"portcullis_certificate_seconds_left{name="shop.test",service="shop",source="/c.pem"} 86400"#.to_owned(),
            r#"portcullis_certificate_seconds_left{name="old.test",service="shop",source="/c.pem"} -5"#.to_owned(),
        ] {
            assert!(text.contains(&line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn answers_are_told_apart_by_method_and_status_and_no_client_makes_series() {
        let metrics = Metrics::new(2);
        let seen = |method: &str, status| Observation {
            method: MethodLabel::of(method),
            status,
            ..Observation::default()
        };
        for (worker, method, status) in [
            (0, "GET", 200),
            (1, "GET", 200),
            (1, "POST", 201),
            (0, "GET", 404),
            (0, "BREW", 200),
            (1, "SIP", 200),
            (1, "get", 200),
        ] {
            metrics.unrouted().record(worker, &seen(method, status));
        }
        let lines = |text: &str| {
            let lines = text.lines().filter_map(|line| line.strip_prefix("portcullis_requests_total{"));
            let lines = lines.filter_map(|line| Some(line.split_once(r#"target="","#)?.1.to_owned()));
            lines.collect::<Vec<_>>()
        };
        let gauges = || Gauges {
            in_flight: Vec::new(),
            waiting: Vec::new(),
            halted: Vec::new(),
            certificates: Vec::new(),
        };
        assert_eq!(
            lines(&metrics.render(gauges())),
            [
                r#"code="2xx",method="GET",status="200"} 2"#,
                r#"code="2xx",method="OTHER",status="200"} 3"#,
                r#"code="2xx",method="POST",status="201"} 1"#,
                r#"code="4xx",method="GET",status="404"} 1"#,
            ]
        );
        // An app that answers with everything there is does not grow the metrics without end, and is counted all the same.
        (100..=599).for_each(|status| metrics.unrouted().record(0, &seen("GET", status)));
        let text = metrics.render(gauges());
        let lines = lines(&text);
        assert!(lines.len() <= 2 * ByCode::PLACES + CLASSES.len(), "{text}");
        assert!(
            lines.iter().any(|line| line.starts_with(r#"code="5xx",method="OTHER",status="other"} 100"#)),
            "{text}"
        );
        assert_eq!(metrics.unrouted().totals().requests, 507);
    }
}
