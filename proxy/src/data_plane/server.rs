//! One client connection: which protocol it speaks, and hyper's server with our limits on it.

use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tower::Service;

use super::activity::{Activity, Expired, Watchdog};
use super::client_io::{ClientIo, Interim};
use super::exchange::{Connection, Tls};
use super::http2_stream::{Ended, StreamTask};
use super::roster::{Place, Told};
use super::stack::stack;
use super::tls::handshake::Open;
use super::wire::Wire;
use super::worker::Worker;
use crate::clock;
use crate::config::Limits;
use crate::telemetry::connections::Closed;

/// What the listener knows about a connection.
pub struct Accepted {
    pub peer: IpAddr,
    pub port: u16,
    pub place: Place,
    pub activity: Arc<Activity>,
}

/// How HTTP/2 without TLS begins (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What hyper may gather of an answer before it has to be written: slow readers cost this much.
const HTTP1_BUFFER_BYTES: usize = 64 * 1024 + 8 * 1024;
const HTTP2_SEND_BYTES: usize = 64 * 1024;
/// What a client may send before its target has taken it: of one body, and of all on a connection.
const HTTP2_STREAM_WINDOW: u32 = 256 * 1024;
const HTTP2_CONNECTION_WINDOW: u32 = 512 * 1024;
/// Streams that were opened and reset before we looked at them (CVE-2023-44487), and those that we reset
/// because they broke the rules (CVE-2025-8671), before the connection is closed for it.
const HTTP2_RESETS_PENDING: usize = 20;
const HTTP2_ERROR_RESETS: usize = 256;
/// Enough for most heads.
const PREFIX_BYTES: usize = 4096;

/// Waits for the first bytes, and only then builds what serving takes.
pub async fn serve_plain(worker: Rc<Worker>, mut stream: TcpStream, accepted: Accepted) {
    let told = tokio::select! {
        () = worker.shutdown.cancelled() => return,
        _ = accepted.place.told() => return,
        told = speaks_http2(&mut stream, &worker.config.limits) => told,
    };
    let stream_of = |stream| Wire::new(stream, Arc::clone(&accepted.activity));
    match told {
        Ok((true, prefix)) => {
            let stream = stream_of(stream);
            worker.tasks.spawn_local(serve_http2(Rc::clone(&worker), stream, prefix, accepted, None));
        }
        Ok((false, prefix)) => {
            let stream = stream_of(stream);
            worker.tasks.spawn_local(serve_http1(Rc::clone(&worker), stream, prefix, accepted, None));
        }
        Err(Unheard::TooLate(why)) => worker.metrics.connections().count_closed(why),
        Err(Unheard::Gone) => {}
    }
}

/// Why a connection came to nothing before it had said what it speaks.
enum Unheard {
    Gone,
    TooLate(Closed),
}

/// Reads until the preface has come or cannot come any more, and returns what was read.
async fn speaks_http2(stream: &mut TcpStream, limits: &Limits) -> Result<(bool, BytesMut), Unheard> {
    let first = timeout(limits.request_head_timeout, first_bytes(stream)).await;
    let mut prefix = first.map_err(|_| Unheard::TooLate(Closed::FirstByte))?.map_err(|_| Unheard::Gone)?;
    // What has begun is a head, and has to go on like one.
    let more = timeout(limits.request_head_timeout, async {
        // "PRI" is no method of HTTP/1.1, so three bytes decide.
        while prefix.len() < 3 && begins_http2(&prefix) {
            if stream.read_buf(&mut prefix).await? == 0 {
                return Ok(false);
            }
        }
        Ok(begins_http2(&prefix))
    });
    match more.await {
        Ok(Ok(http2)) => Ok((http2, prefix)),
        Ok::<io::Result<bool>, _>(Err(_)) => Err(Unheard::Gone),
        Err(_) => Err(Unheard::TooLate(Closed::Head)),
    }
}

fn begins_http2(bytes: &[u8]) -> bool {
    let n = bytes.len().min(PREFACE.len());
    bytes[..n] == PREFACE[..n]
}

/// Waits without a buffer: most connections are silent for a moment, and some for ever.
async fn first_bytes(stream: &TcpStream) -> io::Result<BytesMut> {
    loop {
        stream.readable().await?;
        match try_read(stream) {
            // A new socket may look readable before it is.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => return read,
        }
    }
}

/// Not a part of the future above, which would be as large as the buffer.
fn try_read(stream: &TcpStream) -> io::Result<BytesMut> {
    let mut bytes = [0; PREFIX_BYTES];
    match stream.try_read(&mut bytes)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        n => Ok(BytesMut::from(&bytes[..n])),
    }
}

/// Shakes hands, and only then builds what serving takes.
pub async fn serve_tls(worker: Rc<Worker>, stream: TcpStream, accepted: Accepted) {
    accepted.place.shakes_hands();
    let wire = Wire::new(stream, Arc::clone(&accepted.activity));
    let shaken = tokio::select! {
        _ = accepted.place.told() => return,
        shaken = worker.handshakes.shake(wire, accepted.peer) => shaken,
    };
    let (stream, tls) = match shaken {
        Ok(Some(Open { stream, tls })) => (stream, tls),
        Ok(None) => return,
        Err(_) => {
            worker.metrics.connections().handshakes_failed.fetch_add(1, Ordering::Relaxed);
            return;
        }
    };
    accepted.place.is_new(Instant::now());
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let tls = Some(tls);
    let owner = Rc::clone(&worker);
    if http2 {
        worker.tasks.spawn_local(serve_http2(owner, stream, BytesMut::new(), accepted, tls));
    } else {
        worker.tasks.spawn_local(serve_http1(owner, stream, BytesMut::new(), accepted, tls));
    }
}

fn connection(worker: Rc<Worker>, accepted: Accepted, tls: Option<Tls>, http2: bool) -> Rc<Connection> {
    accepted.activity.begin(http2);
    Rc::new(Connection {
        is_trusted: worker.config.trusted_proxies.contains(accepted.peer),
        worker,
        peer: accepted.peer,
        peer_text: accepted.peer.to_string().into(),
        port: accepted.port,
        tls,
        activity: accepted.activity,
        interim: Arc::new(Interim::default()),
        place: accepted.place,
    })
}

fn client_io<S>(stream: S, prefix: BytesMut, connection: &Connection) -> TokioIo<ClientIo<S>> {
    let (activity, interim) = (Arc::clone(&connection.activity), Arc::clone(&connection.interim));
    TokioIo::new(ClientIo::new(stream, prefix, activity, interim))
}

async fn serve_http1<S>(worker: Rc<Worker>, stream: S, prefix: BytesMut, accepted: Accepted, tls: Option<Tls>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = connection(Rc::clone(&worker), accepted, tls, false);
    let io = client_io(stream, prefix, &connection);
    let stack = stack(Rc::clone(&connection));
    let service = service_fn(move |request| stack.clone().call(request));
    let serving = http1::Builder::new()
        // A client may close its sending side and still read its answer (RFC 9112 §9.6).
        .half_close(true)
        .max_headers(Limits::REQUEST_FIELDS)
        .max_header_size(Limits::REQUEST_HEAD_BYTES)
        .max_buf_size(HTTP1_BUFFER_BYTES)
        // Ours knows a head from an idle connection.
        .header_read_timeout(None)
        .serve_connection(io, service)
        .with_upgrades();
    let mut serving = pin!(serving);
    watched(&worker, &connection, |cx, shutting_down| {
        if shutting_down {
            serving.as_mut().graceful_shutdown();
        }
        serving.as_mut().poll(cx)
    })
    .await;
}

async fn serve_http2<S>(worker: Rc<Worker>, stream: S, prefix: BytesMut, accepted: Accepted, tls: Option<Tls>)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let connection = connection(Rc::clone(&worker), accepted, tls, true);
    let io = client_io(stream, prefix, &connection);
    let stack = stack(Rc::clone(&connection));
    // hyper and the runtime move a stream's future about half a dozen times before it runs: let that be a pointer.
    let service = service_fn(move |request| Box::pin(stack.clone().call(request)));
    let serving = http2::Builder::new(LocalExecutor(Rc::clone(&worker)))
        .max_concurrent_streams(worker.config.limits.http2_streams)
        .max_header_list_size(Limits::HTTP2_HEADER_LIST_BYTES)
        .max_send_buf_size(HTTP2_SEND_BYTES)
        .initial_stream_window_size(HTTP2_STREAM_WINDOW)
        .initial_connection_window_size(HTTP2_CONNECTION_WINDOW)
        .max_pending_accept_reset_streams(HTTP2_RESETS_PENDING)
        .max_local_error_reset_streams(HTTP2_ERROR_RESETS)
        // A peer that vanished is noticed although nobody writes to it.
        .timer(TokioTimer::new())
        .keep_alive_interval(worker.config.limits.stall_timeout)
        .keep_alive_timeout(worker.config.limits.stall_timeout)
        .enable_connect_protocol()
        .serve_connection(io, service);
    let mut serving = pin!(serving);
    watched(&worker, &connection, |cx, shutting_down| {
        if shutting_down {
            serving.as_mut().graceful_shutdown();
        }
        serving.as_mut().poll(cx)
    })
    .await;
}

/// How long a client may take to end a connection that it was told to leave.
const GOODBYE: Duration = Duration::from_secs(2);

/// Drives a connection beside its watchdog and the shutdown signal. `poll` is told when to begin a graceful
/// end. Errors are the client's business, but for those that it caused by malformed requests.
async fn watched(
    worker: &Worker,
    connection: &Connection,
    mut poll: impl FnMut(&mut Context<'_>, bool) -> Poll<hyper::Result<()>>,
) {
    let limits = &worker.config.limits;
    let mut watchdog = Watchdog::new(&connection.activity, limits);
    let mut shutdown = pin!(worker.shutdown.cancelled());
    let mut told = false;
    // Whoever has asked once is woken; asking again at each poll takes locks.
    let mut asked = false;
    let mut goodbye: Option<Pin<Box<tokio::time::Sleep>>> = None;
    std::future::poll_fn(|cx| {
        let _held = clock::hold();
        // First what has already arrived, then the news: a request that came in time is served.
        let mut ended = poll(cx, false);
        if ended.is_pending() && !told && (worker.is_stopping.get() || !asked) {
            asked = true;
            if shutdown.as_mut().poll(cx).is_ready() {
                told = true;
                ended = poll(cx, true);
            }
        }
        if ended.is_pending() {
            match connection.place.poll_told(cx) {
                Poll::Ready(Told::Vanish) => {
                    connection.activity.cut();
                    return Poll::Ready(());
                }
                Poll::Ready(Told::Leave) if goodbye.is_none() => {
                    ended = poll(cx, true);
                    if !connection.activity.is_http2() && connection.activity.is_idle() {
                        // HTTP/1.1 knows no goodbye; an unfinished head is all that can be left.
                        return Poll::Ready(());
                    }
                    goodbye = Some(Box::pin(tokio::time::sleep(GOODBYE)));
                }
                Poll::Ready(Told::Leave) | Poll::Pending => {}
            }
        }
        if let Poll::Ready(served) = ended {
            if let Err(error) = served {
                note_error(worker, connection, &error);
            }
            return Poll::Ready(());
        }
        loop {
            if let Some(timer) = &mut goodbye
                && timer.as_mut().poll(cx).is_ready()
            {
                if connection.activity.is_idle() {
                    return Poll::Ready(());
                }
                // It sent one before it heard; that one has its own deadlines.
                timer.as_mut().reset(Instant::now() + GOODBYE);
                continue;
            }
            let expired = std::task::ready!(watchdog.poll(cx, &connection.activity, limits));
            let is_idle = matches!(expired, Expired::FirstByte | Expired::KeepAlive);
            if is_idle && goodbye.is_some() {
                return Poll::Pending;
            }
            tracing::debug!(peer = %connection.peer, ?expired, "closing a connection");
            worker.metrics.connections().count_closed(match expired {
                Expired::FirstByte => Closed::FirstByte,
                Expired::Head => Closed::Head,
                Expired::KeepAlive => Closed::KeepAlive,
                Expired::Stall => Closed::Response,
            });
            if expired == Expired::Stall {
                connection.activity.cut();
            }
            if expired != Expired::KeepAlive || poll(cx, true).is_ready() {
                return Poll::Ready(());
            }
            // An idle client is told (GOAWAY, close_notify), so that it sends no request into the void.
            goodbye = Some(Box::pin(tokio::time::sleep(GOODBYE)));
        }
    })
    .await;
}

/// What a client did wrong; its other troubles are its own business.
fn note_error(worker: &Worker, connection: &Connection, error: &hyper::Error) {
    let peer = &connection.peer;
    if error.is_parse() {
        tracing::debug!(%peer, %error, "refusing a malformed request");
        worker.metrics.process().malformed_requests.fetch_add(1, Ordering::Relaxed);
    } else if is_flood(error) {
        tracing::debug!(%peer, ?error, "closing a connection for a flood");
        worker.metrics.connections().count_closed(Closed::Flood);
    }
}

/// Whether h2 or `frame_guard` had enough.
fn is_flood(error: &hyper::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<h2::Error>());
    cause.is_some_and(|cause| !cause.is_remote() && cause.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM))
}

/// Runs hyper's HTTP/2 streams on the worker's own thread.
#[derive(Clone)]
struct LocalExecutor(Rc<Worker>);

impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future<Output = ()> + 'static,
{
    fn execute(&self, stream: F) {
        let worker = Rc::clone(&self.0);
        let task = StreamTask::new(stream, worker.config.limits.reading());
        self.0.tasks.spawn_local(async move {
            if task.await == Ended::TooSlow {
                worker.metrics.connections().count_closed(Closed::Response);
            }
        });
    }
}
