//! Steady load that notices every request that a deploy could lose.
//!
//! A connection that the server closes *between* two answers (`Connection: close`, GOAWAY) is opened again
//! and not held against it; whatever happens to a request that was sent is.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::clock::now_ms;
use crate::exchange::{Answer, collect, say};
use crate::runtime::runtime;
use crate::tls;
use crate::wait::{PATIENCE, eventually};

#[derive(Debug, Clone)]
pub struct LoadPlan {
    pub host: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub http1_connections: usize,
    pub http2_connections: usize,
    /// TLS, with the host as the server's name.
    pub tls: bool,
    /// Between two requests of one connection.
    pub pause: Duration,
}

impl Default for LoadPlan {
    fn default() -> Self {
        Self {
            host: "shop.test".to_owned(),
            path: "/".to_owned(),
            headers: Vec::new(),
            http1_connections: 4,
            http2_connections: 2,
            tls: false,
            pause: Duration::from_millis(40),
        }
    }
}

/// One request of the load.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Unix time in ms.
    pub sent_ms: u64,
    pub answered_ms: u64,
    pub result: Result<Answer, String>,
}

/// Load that goes on until it is finished.
pub struct Load {
    shared: Arc<Shared>,
    connections: JoinSet<()>,
}

struct Shared {
    address: SocketAddr,
    plan: LoadPlan,
    over: AtomicBool,
    samples: Mutex<Vec<Sample>>,
    reopened: Mutex<u64>,
}

impl Load {
    pub fn start(address: SocketAddr, plan: LoadPlan) -> Self {
        let shared = Arc::new(Shared {
            address,
            plan,
            over: AtomicBool::new(false),
            samples: Mutex::default(),
            reopened: Mutex::default(),
        });
        let mut connections = JoinSet::new();
        for n in 0..shared.plan.http1_connections + shared.plan.http2_connections {
            let h2 = n >= shared.plan.http1_connections;
            let shared = Arc::clone(&shared);
            connections.spawn_on(async move { shared.keep_asking(h2).await }, runtime().handle());
        }
        Self { shared, connections }
    }

    /// Waits until another `count` requests were answered or lost.
    pub fn goes_on_for(&self, count: usize) {
        let goal = self.len() + count;
        eventually("the load goes on", || if self.len() >= goal { Ok(()) } else { Err(self.so_far()) });
    }

    fn len(&self) -> usize {
        self.shared.samples.lock().expect("no holder panics").len()
    }

    fn so_far(&self) -> String {
        self.shared.summary().to_string()
    }

    /// Ends after the requests under way, none of which is cut.
    pub fn finish(mut self) -> Summary {
        self.shared.over.store(true, Ordering::Relaxed);
        runtime().block_on(async {
            while let Some(ended) = self.connections.join_next().await {
                ended.expect("a connection of the load does not panic");
            }
        });
        self.shared.summary()
    }
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Shared {
    async fn keep_asking(&self, h2: bool) {
        let mut ticks = interval(self.plan.pause);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut drivers = JoinSet::new();
        let mut sender = None;
        while !self.over.load(Ordering::Relaxed) {
            ticks.tick().await;
            while drivers.try_join_next().is_some() {}
            if sender.as_ref().is_none_or(Sender::is_closed) {
                match self.open(h2, &mut drivers).await {
                    Ok(opened) => {
                        if sender.replace(opened).is_some() {
                            *self.reopened.lock().expect("no holder panics") += 1;
                        }
                    }
                    Err(why) => {
                        self.record(now_ms(), Err(format!("cannot connect: {why}")));
                        continue;
                    }
                }
            }
            let open = sender.as_mut().expect("opened above");
            let sent_ms = now_ms();
            let result = timeout(PATIENCE, open.ask(&self.plan, h2)).await;
            let result = result.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")));
            if result.is_err() {
                sender = None;
            }
            self.record(sent_ms, result);
        }
    }

    async fn open(&self, h2: bool, drivers: &mut JoinSet<()>) -> Result<Sender, String> {
        let tcp = TcpStream::connect(self.address).await.map_err(say)?;
        tcp.set_nodelay(true).map_err(say)?;
        if self.plan.tls {
            let alpn: &[&str] = if h2 { &["h2"] } else { &["http/1.1"] };
            return Self::begin(tls::connect(tcp, &self.plan.host, alpn).await?, h2, drivers).await;
        }
        Self::begin(tcp, h2, drivers).await
    }

    async fn begin<Io>(io: Io, h2: bool, drivers: &mut JoinSet<()>) -> Result<Sender, String>
    where
        Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let io = TokioIo::new(io);
        // What ends a connection shows in the request that it hits, or nowhere.
        if h2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.map_err(say)?;
            drivers.spawn(async { drop(connection.await) });
            Ok(Sender::Http2(sender))
        } else {
            let (sender, connection) = http1::handshake(io).await.map_err(say)?;
            drivers.spawn(async { drop(connection.await) });
            Ok(Sender::Http1(sender))
        }
    }

    fn record(&self, sent_ms: u64, result: Result<Answer, String>) {
        let sample = Sample { sent_ms, answered_ms: now_ms(), result };
        self.samples.lock().expect("no holder panics").push(sample);
    }

    fn summary(&self) -> Summary {
        let mut samples = self.samples.lock().expect("no holder panics").clone();
        samples.sort_by_key(|sample| sample.sent_ms);
        Summary::of(samples, *self.reopened.lock().expect("no holder panics"))
    }
}

impl Sender {
    fn is_closed(&self) -> bool {
        match self {
            Self::Http1(sender) => sender.is_closed(),
            Self::Http2(sender) => sender.is_closed(),
        }
    }

    async fn ask(&mut self, plan: &LoadPlan, h2: bool) -> Result<Answer, String> {
        let mut request = Request::builder();
        request = if h2 {
            let scheme = if plan.tls { "https" } else { "http" };
            request.uri(format!("{scheme}://{}{}", plan.host, plan.path))
        } else {
            request.uri(&plan.path).header("host", &plan.host)
        };
        for (name, value) in &plan.headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(Bytes::new())).map_err(say)?;
        let response = match self {
            Self::Http1(sender) => {
                sender.ready().await.map_err(say)?;
                sender.send_request(request).await
            }
            Self::Http2(sender) => sender.send_request(request).await,
        };
        collect(response.map_err(say)?).await
    }
}

/// All that a load saw, in the order in which the requests were sent.
pub struct Summary {
    pub requests: usize,
    /// Answers that never came or broke off: resets, early ends, timeouts, refused connections.
    pub reset: usize,
    /// Answers with a 5xx.
    pub server_errors: usize,
    /// Answers that were neither 2xx nor counted above, and all that were.
    pub failed: usize,
    pub by_release: BTreeMap<String, usize>,
    /// Connections that the server closed between two answers.
    pub reopened: u64,
    pub samples: Vec<Sample>,
}

impl Summary {
    fn of(samples: Vec<Sample>, reopened: u64) -> Self {
        let mut by_release = BTreeMap::new();
        let (mut reset, mut server_errors, mut failed) = (0, 0, 0);
        for sample in &samples {
            match &sample.result {
                Ok(answer) => {
                    *by_release.entry(answer.header("x-release").to_owned()).or_default() += 1;
                    server_errors += usize::from(answer.status.is_server_error());
                    failed += usize::from(!answer.status.is_success());
                }
                Err(_) => {
                    reset += 1;
                    failed += 1;
                }
            }
        }
        let requests = samples.len();
        Self { requests, reset, server_errors, failed, by_release, reopened, samples }
    }

    pub fn last_body(&self) -> String {
        self.samples.iter().rev().find_map(|s| s.result.as_ref().ok()).map(Answer::text).unwrap_or_default()
    }

    /// The releases that answered, without how often.
    pub fn releases(&self) -> Vec<&str> {
        self.by_release.keys().map(String::as_str).collect()
    }

    /// Nothing failed, and there was something to fail.
    #[track_caller]
    pub fn lost_nothing(self) -> Self {
        assert!(self.requests > 0, "the load sent nothing");
        assert_eq!((self.failed, self.reset, self.server_errors), (0, 0, 0), "{self}");
        self
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { requests, failed, reset, server_errors, by_release, reopened, .. } = self;
        writeln!(
            f,
            "{requests} requests, {failed} failed ({reset} cut, {server_errors} 5xx), {reopened} connections \
             opened again, answered by {by_release:?}"
        )?;
        let bad = self.samples.iter().filter(|s| s.result.as_ref().map_or(true, |a| !a.status.is_success()));
        for sample in bad.take(5) {
            match &sample.result {
                Ok(answer) => writeln!(f, "  sent at {}: {answer}", sample.sent_ms)?,
                Err(why) => writeln!(f, "  sent at {}: {why}", sample.sent_ms)?,
            }
        }
        Ok(())
    }
}
