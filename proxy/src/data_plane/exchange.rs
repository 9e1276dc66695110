//! One request as the layers pass it on, and the facts about it that the log and the metrics need.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Version};
use http_body::Body;
use hyper::body::Incoming;
use model::canary::Cohort;
use model::reason::Reason;
use rustls::sign::CertifiedKey;
use tokio::time::Instant;

use super::activity::{Activity, Busy};
use super::body::RequestProgress;
use super::client_io::Interim;
use super::layers::request_id::RequestId;
use super::roster::Place;
use super::tls::client_auth::Client;
use super::worker::Worker;
use crate::clock;
use crate::halt::{Going, Halt};
use crate::release::{Target, Ticket};
use crate::snapshot::Service;
use crate::telemetry::access_log::Line;
use crate::telemetry::connections::Closed;
use crate::telemetry::metrics::{MethodLabel, Observation, TargetStats};

/// What all requests of a connection share.
pub struct Connection {
    pub worker: Rc<Worker>,
    pub peer: IpAddr,
    pub peer_text: Box<str>,
    /// The peer is one of the trusted proxies.
    pub is_trusted: bool,
    /// Of the listener.
    pub port: u16,
    /// `None`: plain HTTP.
    pub tls: Option<Tls>,
    pub activity: Arc<Activity>,
    pub interim: Arc<Interim>,
    /// Counts the connection for as long as a request or tunnel of it lives.
    pub place: Place,
}

pub struct Tls {
    /// The certificate that the handshake showed: other hosts of the same certificate are welcome on this
    /// connection, all others are misdirected (RFC 9110 §7.4).
    pub certificate: Arc<CertifiedKey>,
    pub server_name: Option<String>,
    /// `None`: it was not asked who it is.
    pub client: Option<Client>,
}

/// A request on its way in; its head is among the facts.
pub struct Exchange {
    pub body: Incoming,
    pub facts: Rc<Facts>,
}

/// What happened to a request, filled in as it happens.
///
/// Whoever still works for the request holds it: the handler, the response body, a tunnel. When the last
/// one lets go, however that comes, the line is logged and the request is counted. Nothing is forgotten,
/// and nothing is logged twice.
pub struct Facts {
    pub connection: Rc<Connection>,
    pub arrived: Instant,
    /// As the client sent it, but for what `hygiene` brings into its normal form.
    pub head: RefCell<Parts>,
    pub request_body: RequestProgress,
    pub response_body_bytes: Cell<u64>,
    /// `None` until the response head is handed to the client.
    pub status: Cell<Option<u16>>,
    pub cut_short: Cell<Option<CutShort>>,
    pub known: RefCell<Known>,
    waiting_for_app: Cell<bool>,
    has_body: bool,
    is_head: bool,
    _busy: Busy,
}

/// Who ended a response body before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CutShort {
    Client,
    Target,
}

#[derive(Default)]
pub struct Known {
    pub client: Option<IpAddr>,
    pub https: bool,
    pub request_id: Option<RequestId>,
    pub service: Option<Arc<Service>>,
    pub release: Option<Arc<str>>,
    pub cohort: Option<Cohort>,
    pub overridden: bool,
    pub target: Option<Arc<Target>>,
    pub reason: Option<Reason>,
    /// In line for a seat, all waits together; `None` if there was none to wait for.
    pub queue: Option<Duration>,
    pub ticket: Option<Ticket>,
    /// Counts the request if it never gets to a target.
    pub unseated: Option<Arc<TargetStats>>,
    pub connect: Option<Duration>,
    pub first_byte: Option<Duration>,
    pub retried: bool,
    /// For the access log, in the order of the service's `log_fields.response`; all values of each.
    pub response_fields: Box<[Vec<HeaderValue>]>,
    /// The service does not count requests for this path.
    pub uncounted: bool,
    /// The last one that kept it waiting or refused it.
    pub halt: Option<Arc<Halt>>,
    /// Its turn to go on after a pause, until its answer begins.
    pub going: Option<Going>,
    /// Let through although its service is halted.
    pub bypassed: bool,
    /// Kept waiting by a pause, all waits together; `None` if it never was.
    pub paused: Option<Duration>,
}

impl Facts {
    pub fn new(connection: &Rc<Connection>, head: Parts, body: &Incoming) -> Rc<Self> {
        Rc::new(Self {
            connection: Rc::clone(connection),
            arrived: clock::now(),
            is_head: head.method == Method::HEAD,
            head: RefCell::new(head),
            request_body: RequestProgress::default(),
            response_body_bytes: Cell::new(0),
            status: Cell::new(None),
            cut_short: Cell::new(None),
            known: RefCell::default(),
            waiting_for_app: Cell::new(false),
            has_body: !body.is_end_stream(),
            _busy: Busy::new(connection),
        })
    }

    pub fn is_head(&self) -> bool {
        self.is_head
    }

    pub fn has_body(&self) -> bool {
        self.has_body
    }

    pub fn note(&self, change: impl FnOnce(&mut Known)) {
        change(&mut self.known.borrow_mut());
    }

    /// How long it stood in line.
    pub fn queued(&self) -> Duration {
        self.known.borrow().queue.unwrap_or_default()
    }

    /// Remembers what the access log shows of the answer's head, if anything.
    pub fn note_response_fields(&self, headers: &HeaderMap) {
        let mut known = self.known.borrow_mut();
        let Some(service) = known.service.as_ref().filter(|service| !service.log_fields.response.is_empty())
        else {
            return;
        };
        let values = |(name, _): &(HeaderName, _)| headers.get_all(name).iter().cloned().collect();
        let values = service.log_fields.response.iter().map(values).collect();
        known.response_fields = values;
    }

    /// Tells the connection's watchdog whose turn it is; returns what it believed before.
    pub fn set_waiting_for_app(&self, waiting: bool) -> bool {
        let before = self.waiting_for_app.replace(waiting);
        if before != waiting {
            match waiting {
                true => self.connection.activity.begin_waiting_for_app(),
                false => self.connection.activity.end_waiting_for_app(),
            }
        }
        before
    }

    /// The status that the client saw and, if the answer is not the app's whole answer, why.
    fn outcome(&self) -> (u16, Option<Reason>) {
        let Some(status) = self.status.get() else {
            return (Reason::ClientClosed.status(), Some(Reason::ClientClosed));
        };
        let broken = (self.cut_short.get() == Some(CutShort::Target)).then_some(Reason::UpstreamClosed);
        (status, self.known.borrow().reason.or(broken))
    }

    /// A response body broke off on its way from the target: was it the target, or did the client's own
    /// body or the end of the release take the connection down?
    pub fn blame_for_cut(&self) {
        if let Some(reason) = self.request_body.failed.get() {
            self.note(|known| known.reason = Some(reason));
            return self.cut_short.set(Some(CutShort::Client));
        }
        self.cut_short.set(Some(CutShort::Target));
    }

    fn write(&self, line: &mut Line<'_>, status: u16, reason: Option<Reason>, total: Duration) {
        let (known, head) = (self.known.borrow(), self.head.borrow());
        if let Some(id) = &known.request_id {
            line.text("request_id", id.as_bytes());
        }
        match known.client.filter(|client| *client != self.connection.peer) {
            Some(client) => {
                line.address("client", client);
                line.text("peer", self.connection.peer_text.as_bytes());
            }
            None => line.text("client", self.connection.peer_text.as_bytes()),
        }
        line.text("method", head.method.as_str().as_bytes());
        let authority = head.uri.authority().map(|authority| authority.as_str().as_bytes());
        let field = |name| head.headers.get(name).map(HeaderValue::as_bytes);
        if let Some(host) = authority.or_else(|| field(header::HOST)) {
            line.text("host", host);
        }
        line.text("path", head.uri.path().as_bytes());
        if let Some(query) = head.uri.query() {
            line.text("query", query.as_bytes());
        }
        line.text("proto", if head.version == Version::HTTP_2 { b"HTTP/2" } else { b"HTTP/1.1" });
        line.text("scheme", if known.https { b"https" } else { b"http" });
        line.number("status", u64::from(status));
        if let Some(reason) = reason {
            line.text("reason", reason.code().as_bytes());
        }
        if let Some(service) = &known.service {
            line.text("service", service.name.as_bytes());
        }
        if let Some(release) = &known.release {
            line.text("release", release.as_bytes());
        }
        if let Some(cohort) = known.cohort {
            line.text("cohort", cohort.as_str().as_bytes());
        }
        if let Some(target) = &known.target {
            line.text("target", target.label.as_bytes());
        }
        line.millis("duration_ms", total);
        let times =
            [("queue_ms", known.queue), ("connect_ms", known.connect), ("first_byte_ms", known.first_byte)];
        for (name, value) in times {
            if let Some(value) = value {
                line.millis(name, value);
            }
        }
        line.number("request_bytes", self.request_body.bytes.get());
        line.number("response_bytes", self.response_body_bytes.get());
        for (name, value) in [("user_agent", field(header::USER_AGENT)), ("referer", field(header::REFERER))]
        {
            if let Some(value) = value {
                line.text(name, value);
            }
        }
        match self.cut_short.get() {
            Some(CutShort::Client) => line.text("cut_short_by", b"client"),
            Some(CutShort::Target) => line.text("cut_short_by", b"target"),
            None => {}
        }
        if let Some(paused) = known.paused {
            line.millis("pause_ms", paused);
        }
        let flags =
            [("retried", known.retried), ("overridden", known.overridden), ("bypassed", known.bypassed)];
        for (name, is_set) in flags {
            if is_set {
                line.flag(name);
            }
        }
        if let Some(service) = &known.service {
            for (name, label) in &service.log_fields.request {
                line.list(label, head.headers.get_all(name).iter().map(HeaderValue::as_bytes));
            }
            for ((_, label), values) in service.log_fields.response.iter().zip(&known.response_fields) {
                line.list(label, values.iter().map(HeaderValue::as_bytes));
            }
        }
    }
}

impl Drop for Facts {
    fn drop(&mut self) {
        self.set_waiting_for_app(false);
        if self.has_body && !self.request_body.is_read() {
            self.connection.activity.leave_unread();
        }
        let worker = &self.connection.worker;
        if self.request_body.failed.get() == Some(Reason::BodyTimeout) {
            worker.metrics.connections().count_closed(Closed::RequestBody);
        }
        let total = clock::now() - self.arrived;
        let (status, reason) = self.outcome();
        worker.log.line(|line| self.write(line, status, reason, total));
        let known = self.known.borrow();
        if known.uncounted {
            return;
        }
        let stats = known.target.as_ref().map(|target| &target.stats).or(known.unseated.as_ref());
        let stats = stats.unwrap_or_else(|| worker.metrics.unrouted());
        stats.record(
            worker.index,
            &Observation {
                method: MethodLabel::of(self.head.borrow().method.as_str()),
                status,
                reason,
                queue: known.queue,
                connect: known.connect,
                first_byte: known.first_byte,
                total,
                request_body_bytes: self.request_body.bytes.get(),
                response_body_bytes: self.response_body_bytes.get(),
                retried: known.retried,
            },
        );
    }
}
