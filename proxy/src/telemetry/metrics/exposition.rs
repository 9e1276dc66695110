//! The series as Prometheus reads them: summed over the workers, by name and labels.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use model::canary::Cohort;
use model::reason::Reason;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::{
    BUCKETS, CLASSES, Cell, CertificateLabels, Count, Gauges, Halted, Histogram, Labels, Metrics, Process,
    TargetStats,
};

/// All series, with how full things are now.
pub(super) struct Scrape(pub(super) Arc<Metrics>, pub(super) Gauges);

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scrape")
    }
}

type HistogramOf = fn(&Cell) -> &Histogram;
type CountOf = fn(&Cell) -> &Count;

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut series = self.0.series();
        let nowhere: Arc<str> = "".into();
        let unrouted = Labels {
            service: Arc::clone(&nowhere),
            release: Arc::clone(&nowhere),
            cohort: Cohort::Stable,
            target: nowhere,
        };
        // Services where nobody ever waited in vain need no such series.
        series.retain(|(labels, stats)| &*labels.target != Labels::NO_TARGET || stats.has_counted());
        series.insert(0, (unrouted, Arc::clone(&self.0.unrouted)));

        encode_requests(&mut encoder, &series)?;
        encode_own_answers(&mut encoder, &series)?;
        for (name, help, of) in [
            (
                "gateway_errors",
                "Requests that ended in 502, 503, 504 or a reset",
                (|cell| &cell.gateway_errors) as CountOf,
            ),
            ("retries", "Requests that were sent to a target again", |cell| &cell.retries),
            ("request_body_bytes", "Bytes of request bodies", |cell| &cell.request_body_bytes),
            ("response_body_bytes", "Bytes of response bodies", |cell| &cell.response_body_bytes),
        ] {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (labels, stats) in &series {
                metric
                    .encode_family(&labels.pairs())?
                    .encode_counter::<NoLabelSet, _, u64>(&stats.sum(of), None)?;
            }
        }
        for (name, help, of) in [
            ("queue_seconds", "Time waiting for a slot", (|cell| &cell.queue) as HistogramOf),
            ("connect_seconds", "Time to connect to the target, new connections only", |cell| &cell.connect),
            ("first_byte_seconds", "Time until the response head", |cell| &cell.first_byte),
            ("request_seconds", "Time until the end of the response body", |cell| &cell.total),
        ] {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
            for (labels, stats) in &series {
                encode_histogram(metric.encode_family(&labels.pairs())?, stats, of)?;
            }
        }
        encode_gauges(&mut encoder, &self.1)?;
        self.0.connections.encode(&mut encoder)?;
        self.0.buffers.encode(&mut encoder)?;
        encode_process(&mut encoder, &self.0.process)
    }
}

type Series = [(Labels, Arc<TargetStats>)];

fn encode_requests(encoder: &mut DescriptorEncoder<'_>, series: &Series) -> fmt::Result {
    let help = "Requests answered by the app, by class of status, method and status";
    let mut metric = encoder.encode_descriptor("requests", help, None, MetricType::Counter)?;
    for (labels, stats) in series {
        let mut sums = BTreeMap::new();
        stats.cells.iter().for_each(|cell| cell.app.sum_into(&mut sums));
        for ((class, method, status), count) in sums.into_iter().filter(|(_, count)| *count > 0) {
            let status = status.map_or_else(|| "other".to_owned(), |status| status.to_string());
            let [a, b, c, d] = labels.pairs();
            let pairs = [a, b, c, d, ("code", CLASSES[class]), ("method", method), ("status", &status)];
            metric.encode_family(&pairs)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
    }
    Ok(())
}

fn encode_own_answers(encoder: &mut DescriptorEncoder<'_>, series: &Series) -> fmt::Result {
    let help = "Requests that Portcullis answered by itself, by reason";
    let mut metric = encoder.encode_descriptor("own_answers", help, None, MetricType::Counter)?;
    for (labels, stats) in series {
        for reason in Reason::ALL {
            let count = stats.sum(|cell| &cell.own.0[reason.index()]);
            let [a, b, c, d] = labels.pairs();
            if count > 0 {
                metric
                    .encode_family(&[a, b, c, d, ("reason", reason.code())])?
                    .encode_counter::<NoLabelSet, _, u64>(&count, None)?;
            }
        }
    }
    Ok(())
}

fn encode_histogram(mut metric: MetricEncoder<'_>, stats: &TargetStats, of: HistogramOf) -> fmt::Result {
    let counts: Vec<(f64, u64)> = BUCKETS
        .iter()
        .copied()
        .chain([f64::MAX])
        .enumerate()
        .map(|(index, bound)| (bound, stats.sum(|cell| &of(cell).buckets[index])))
        .collect();
    let sum = stats.sum(|cell| &of(cell).sum_us) as f64 / 1e6;
    let count = counts.iter().map(|(_, count)| count).sum();
    metric.encode_histogram::<NoLabelSet>(sum, count, &counts, None)
}

fn encode_gauges(encoder: &mut DescriptorEncoder<'_>, gauges: &Gauges) -> fmt::Result {
    let requests = gauges.in_flight.iter().map(|(labels, requests, _)| (labels, *requests));
    encode_gauge(encoder, "in_flight", "Requests that the target has in flight", requests)?;
    let sockets = gauges.in_flight.iter().map(|(labels, _, sockets)| (labels, *sockets));
    encode_gauge(encoder, "sockets", "WebSockets and event streams of the target", sockets)?;
    let waiting = gauges.waiting.iter().map(|(labels, waiting)| (labels, *waiting));
    encode_gauge(encoder, "waiting", "Requests that wait for a seat of one of the targets", waiting)?;
    encode_halted(encoder, &gauges.halted)?;
    encode_certificates(encoder, &gauges.certificates)
}

fn encode_certificates(
    encoder: &mut DescriptorEncoder<'_>,
    certificates: &[(CertificateLabels, i64)],
) -> fmt::Result {
    let help = "Seconds until the certificate ends; negative once it has";
    let mut metric = encoder.encode_descriptor("certificate_seconds_left", help, None, MetricType::Gauge)?;
    for (CertificateLabels { name, service, source }, left) in certificates {
        let pairs = [("name", &**name), ("service", &**service), ("source", &**source)];
        metric.encode_family(&pairs)?.encode_gauge(left)?;
    }
    Ok(())
}

fn encode_halted(encoder: &mut DescriptorEncoder<'_>, halted: &[Halted]) -> fmt::Result {
    let help = "1 for each service that is paused or stopped";
    let mut metric = encoder.encode_descriptor("halted", help, None, MetricType::Gauge)?;
    for one in halted {
        let state = if one.is_pause { "paused" } else { "stopped" };
        metric.encode_family(&[("service", &*one.service), ("state", state)])?.encode_gauge(&1i64)?;
    }
    let help = "Requests that wait for the end of a pause";
    let mut metric = encoder.encode_descriptor("paused_requests", help, None, MetricType::Gauge)?;
    for one in halted.iter().filter(|one| one.is_pause) {
        let waiting = i64::try_from(one.waiting).unwrap_or(i64::MAX);
        metric.encode_family(&[("service", &*one.service)])?.encode_gauge(&waiting)?;
    }
    Ok(())
}

fn encode_gauge<'l>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl Iterator<Item = (&'l Labels, u64)>,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in values {
        let pairs = labels.pairs();
        // Those of a release have no target.
        let pairs = if &*labels.target == Labels::NO_TARGET { &pairs[..3] } else { &pairs[..] };
        metric.encode_family(&pairs)?.encode_gauge(&i64::try_from(value).unwrap_or(i64::MAX))?;
    }
    Ok(())
}

fn encode_process(encoder: &mut DescriptorEncoder<'_>, process: &Process) -> fmt::Result {
    for (name, help, count) in [
        (
            "access_log_dropped",
            "Access log lines dropped because the writer lagged",
            &process.access_log_dropped,
        ),
        (
            "malformed_requests",
            "Connections ended because what came was no HTTP",
            &process.malformed_requests,
        ),
        ("panics", "Requests that ended in a panic", &process.panics),
    ] {
        let counter = prometheus_client::metrics::counter::ConstCounter::new(count.load(Ordering::Relaxed));
        counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
    }
    let help = "Attempts to have a certificate issued, by outcome";
    let mut metric = encoder.encode_descriptor("certificate_orders", help, None, MetricType::Counter)?;
    for (outcome, count) in
        [("issued", &process.certificates_issued), ("failed", &process.certificates_failed)]
    {
        let count = count.load(Ordering::Relaxed);
        metric.encode_family(&[("outcome", outcome)])?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
    }
    Ok(())
}
