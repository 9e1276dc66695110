//! One client connection: which protocol it speaks, and hyper's server with our limits on it.

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
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tower::Service;

use super::activity::{Activity, Expired, Watchdog};
use super::client_io::{ClientIo, Interim};
use super::exchange::{Connection, Tls};
use super::http2_stream::StreamTask;
use super::listener::Counted;
use super::stack::stack;
use super::tls;
use super::worker::Worker;
use crate::config::Limits;

/// What the listener knows about a connection.
pub struct Accepted {
    pub peer: IpAddr,
    pub port: u16,
    pub counted: Counted,
}

/// How HTTP/2 without TLS begins (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What hyper may gather of an answer before it has to be written: slow readers cost this much.
const HTTP1_BUFFER_BYTES: usize = 64 * 1024 + 8 * 1024;
const HTTP2_SEND_BYTES: usize = 64 * 1024;
const HTTP2_STREAM_WINDOW: u32 = 256 * 1024;
const HTTP2_CONNECTION_WINDOW: u32 = 1024 * 1024;

pub async fn serve_plain(worker: Rc<Worker>, mut stream: TcpStream, accepted: Accepted) {
    let mut prefix = BytesMut::new();
    let told = tokio::select! {
        () = worker.shutdown.cancelled() => return,
        told = speaks_http2(&mut stream, &mut prefix, &worker.config.limits) => told,
    };
    match told {
        Ok(true) => serve_http2(worker, stream, prefix, accepted, None).await,
        Ok(false) => serve_http1(worker, stream, prefix, accepted, None).await,
        // Gone or silent before it had said anything.
        Err(_) => {}
    }
}

/// Reads until the preface has come or cannot come any more.
async fn speaks_http2(
    stream: &mut TcpStream,
    prefix: &mut BytesMut,
    limits: &Limits,
) -> std::io::Result<bool> {
    prefix.reserve(4096);
    let mut limit = limits.keep_alive_timeout;
    loop {
        if timeout(limit, stream.read_buf(prefix)).await?? == 0 {
            return Ok(false);
        }
        // What has begun is a head, and has to go on like one.
        limit = limits.request_head_timeout;
        let n = prefix.len().min(PREFACE.len());
        if prefix[..n] != PREFACE[..n] {
            return Ok(false);
        }
        // "PRI" is no method of HTTP/1.1, so three bytes decide.
        if n >= 3 {
            return Ok(true);
        }
    }
}

pub async fn serve_tls(worker: Rc<Worker>, stream: TcpStream, accepted: Accepted) {
    let acceptor = TlsAcceptor::from(Arc::clone(&worker.tls));
    let handshake = timeout(worker.config.limits.handshake_timeout, acceptor.accept(stream));
    let Ok(Ok(stream)) = handshake.await else {
        worker.metrics.process().handshakes_failed.fetch_add(1, Ordering::Relaxed);
        return;
    };
    let session = stream.get_ref().1;
    let http2 = session.alpn_protocol() == Some(b"h2");
    let server_name = session.server_name().map(str::to_ascii_lowercase);
    // The one that the handshake showed, unless it was replaced in these milliseconds; then its successor.
    let shown = tls::certificate(&worker.published.load().certificates, server_name.as_deref());
    let Some(certificate) = shown else { return };
    let tls = Some(Tls { certificate, server_name });
    if http2 {
        serve_http2(worker, stream, BytesMut::new(), accepted, tls).await;
    } else {
        serve_http1(worker, stream, BytesMut::new(), accepted, tls).await;
    }
}

fn connection(worker: Rc<Worker>, accepted: Accepted, tls: Option<Tls>, http2: bool) -> Rc<Connection> {
    Rc::new(Connection {
        worker,
        peer: accepted.peer,
        peer_text: accepted.peer.to_string().into(),
        port: accepted.port,
        tls,
        activity: Arc::new(Activity::new(http2)),
        interim: Arc::new(Interim::default()),
        counted: accepted.counted,
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
    let service = service_fn(move |request| stack.clone().call(request));
    let serving = http2::Builder::new(LocalExecutor(Rc::clone(&worker)))
        .max_concurrent_streams(worker.config.limits.http2_streams)
        .max_header_list_size(Limits::HTTP2_HEADER_LIST_BYTES)
        .max_send_buf_size(HTTP2_SEND_BYTES)
        .initial_stream_window_size(HTTP2_STREAM_WINDOW)
        .initial_connection_window_size(HTTP2_CONNECTION_WINDOW)
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
    let mut goodbye: Option<Pin<Box<tokio::time::Sleep>>> = None;
    std::future::poll_fn(|cx| {
        // First what has already arrived, then the news: a request that came in time is served.
        let mut ended = poll(cx, false);
        if ended.is_pending() && !told && shutdown.as_mut().poll(cx).is_ready() {
            told = true;
            ended = poll(cx, true);
        }
        if let Poll::Ready(served) = ended {
            if served.is_err_and(|error| error.is_parse()) {
                worker.metrics.process().malformed_requests.fetch_add(1, Ordering::Relaxed);
            }
            return Poll::Ready(());
        }
        loop {
            match &mut goodbye {
                None => {
                    let expired = std::task::ready!(watchdog.poll(cx, &connection.activity, limits));
                    tracing::debug!(peer = %connection.peer, ?expired, "closing a connection");
                    if expired != Expired::KeepAlive || poll(cx, true).is_ready() {
                        return Poll::Ready(());
                    }
                    // An idle client is told (GOAWAY, close_notify), so that it sends no request into the void.
                    goodbye = Some(Box::pin(tokio::time::sleep(GOODBYE)));
                }
                Some(timer) => {
                    std::task::ready!(timer.as_mut().poll(cx));
                    if connection.activity.is_idle() {
                        return Poll::Ready(());
                    }
                    // It sent one before it heard.
                    timer.as_mut().reset(tokio::time::Instant::now() + GOODBYE);
                }
            }
        }
    })
    .await;
}

/// Runs hyper's HTTP/2 streams on the worker's own thread.
#[derive(Clone)]
struct LocalExecutor(Rc<Worker>);

impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future<Output = ()> + 'static,
{
    fn execute(&self, stream: F) {
        self.0.tasks.spawn_local(StreamTask::new(stream, self.0.config.limits.stall_timeout));
    }
}
