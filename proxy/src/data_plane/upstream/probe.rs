//! One probe of one endpoint: connect, ask, and say what was seen.
//!
//! When to probe and what it means is decided by `model::health` and `model::diagnosis`; what else speaks on
//! a port that does not speak HTTP/1.1 is found out in `detect`.

mod detect;
mod recording;

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONNECTION, CONTENT_TYPE, HOST, HeaderName, LOCATION, SERVER, USER_AGENT};
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use model::diagnosis::{Answer, ProbeOutcome, Protocol};
use model::probe;
use model::service::GatePolicy;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, sleep, timeout_at};

use self::recording::{End, Recording, Trace};
use crate::release::Endpoint;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The body is read for the diagnosis only; it gets no more of the probe's time than this.
const BODY_TIMEOUT: Duration = Duration::from_secs(1);
/// After so long without a byte, a closer look is due.
const SILENCE: Duration = Duration::from_secs(1);
/// Rails's error pages say what is wrong after 5 KiB of style; `model::probe::body_head` keeps 2 KiB of words.
const BODY_READ_BYTES_MAX: usize = 64 << 10;

const AGENT: &str = concat!("Portcullis/", env!("CARGO_PKG_VERSION"), " (health check)");

/// How much to find out about a port that does not answer as it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// What else may speak there: costs a connection or two more, and a line in the app's log.
    Closer,
    /// Whether it answers. For an app that has passed before: if it is busy now, we must not add to that.
    Quick,
}

/// Asks `endpoint` for the gate's path as `host`; redirects are not followed. Takes at most `timeout`, and a
/// second more when a body has to be read; a closer look at a broken answer may take two.
pub async fn probe(
    endpoint: &Endpoint,
    gate: &GatePolicy,
    host: &str,
    timeout: Duration,
    look: Look,
) -> ProbeOutcome {
    let endpoint = with_port(endpoint, gate.port);
    let Some(request) = request(&gate.path, host) else {
        return ProbeOutcome::Unreachable(format!("`{}` with host `{host}` cannot be asked for", gate.path));
    };
    let started = Instant::now();
    let deadline = started + timeout;
    let seen = match connect(&endpoint, deadline.min(started + CONNECT_TIMEOUT)).await {
        Ok(stream) => {
            let (stream, trace) = Recording::new(stream);
            tokio::select! {
                seen = exchange(stream, &trace, request, started, deadline) => seen,
                () = tls_behind_silence(&endpoint, &trace, timeout, look) => return ProbeOutcome::Tls,
            }
        }
        Err(outcome) => return outcome,
    };
    match seen {
        Seen::Answer(answer) if look == Look::Closer && is_plain_http_refused(&answer) => {
            if detect::speaks_tls(&endpoint).await {
                ProbeOutcome::Tls
            } else {
                ProbeOutcome::Answer(answer)
            }
        }
        Seen::Answer(answer) => ProbeOutcome::Answer(answer),
        Seen::Nothing => ProbeOutcome::Timeout { after: timeout },
        Seen::Broken(trace) => broken(&endpoint, &trace, look).await,
    }
}

fn with_port(endpoint: &Endpoint, port: Option<u16>) -> Endpoint {
    match (endpoint, port) {
        (Endpoint::Tcp(address), Some(port)) => Endpoint::Tcp((address.ip(), port).into()),
        _ => endpoint.clone(),
    }
}

fn request(path: &str, host: &str) -> Option<Request<Empty<Bytes>>> {
    Request::get(path)
        .header(HOST, host)
        .header("x-forwarded-proto", "https")
        .header("x-forwarded-for", "127.0.0.1")
        .header(USER_AGENT, AGENT)
        .header(CONNECTION, "close")
        .header(ACCEPT, "*/*")
        .body(Empty::new())
        .ok()
}

/// TCP or unix: a probe does not care.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

async fn connect(endpoint: &Endpoint, deadline: Instant) -> Result<Box<dyn Stream>, ProbeOutcome> {
    let connecting = async {
        Ok::<Box<dyn Stream>, io::Error>(match endpoint {
            Endpoint::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                // A port of the ephemeral range on this machine may connect to itself.
                if stream.local_addr()? == *address {
                    return Err(io::ErrorKind::ConnectionRefused.into());
                }
                Box::new(stream)
            }
            Endpoint::Unix(path) => Box::new(UnixStream::connect(path).await?),
        })
    };
    match timeout_at(deadline, connecting).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(connect_outcome(&error)),
        Err(_) => Err(ProbeOutcome::ConnectTimeout),
    }
}

fn connect_outcome(error: &io::Error) -> ProbeOutcome {
    match error.kind() {
        // A socket file that is not there yet is a port on which nobody listens yet.
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => ProbeOutcome::Refused,
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => ProbeOutcome::Reset,
        io::ErrorKind::TimedOut => ProbeOutcome::ConnectTimeout,
        _ => ProbeOutcome::Unreachable(error.to_string()),
    }
}

enum Seen {
    Answer(Answer),
    /// The deadline came first.
    Nothing,
    /// No HTTP/1 answer, but perhaps some bytes.
    Broken(Trace),
}

async fn exchange(
    stream: Recording<Box<dyn Stream>>,
    trace: &recording::Shared,
    request: Request<Empty<Bytes>>,
    started: Instant,
    deadline: Instant,
) -> Seen {
    let Ok((mut sender, connection)) = http1::handshake(TokioIo::new(stream)).await else {
        return Seen::Broken(trace.take());
    };
    // The connection moves the bytes; how it ended is told by the answer and the trace.
    let driving = async {
        let _ = connection.await;
        std::future::pending::<Infallible>().await
    };
    tokio::pin!(driving);
    let response = tokio::select! {
        response = timeout_at(deadline, sender.send_request(request)) => response,
        never = &mut driving => match never {},
    };
    let response = match response {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => return Seen::Broken(trace.take()),
        Err(_) => return Seen::Nothing,
    };
    let elapsed = started.elapsed();
    tokio::select! {
        answer = answer(response, elapsed, Instant::now() + BODY_TIMEOUT) => Seen::Answer(answer),
        never = &mut driving => match never {},
    }
}

/// Ends if a port that says nothing turns out to speak TLS: Puma with `ssl_bind` lets a plain request wait for
/// ever, and each of those probes would take its full ten seconds.
async fn tls_behind_silence(endpoint: &Endpoint, trace: &recording::Shared, timeout: Duration, look: Look) {
    if look == Look::Closer {
        sleep(SILENCE.min(timeout / 2)).await;
        if trace.take().first.is_empty() && detect::speaks_tls(endpoint).await {
            return;
        }
    }
    std::future::pending().await
}

async fn answer(response: Response<Incoming>, elapsed: Duration, body_deadline: Instant) -> Answer {
    let (parts, body) = response.into_parts();
    let field = |name: HeaderName| parts.headers.get(name).map(text);
    let mut answer = Answer {
        status: parts.status.as_u16(),
        location: field(LOCATION),
        server: field(SERVER),
        content_type: field(CONTENT_TYPE),
        body_head: String::new(),
        elapsed,
    };
    if !parts.status.is_success() {
        answer.body_head = probe::body_head(&beginning(body, body_deadline).await);
    }
    answer
}

fn text(value: &HeaderValue) -> String {
    probe::printable(&String::from_utf8_lossy(value.as_bytes()), 300)
}

/// What comes until the deadline, the limit, or an error: a part is better than nothing.
async fn beginning(mut body: Incoming, deadline: Instant) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < BODY_READ_BYTES_MAX {
        let Ok(Some(Ok(frame))) = timeout_at(deadline, body.frame()).await else { break };
        if let Some(data) = frame.data_ref() {
            let room = BODY_READ_BYTES_MAX - bytes.len();
            bytes.extend_from_slice(&data[..data.len().min(room)]);
        }
    }
    bytes
}

/// Servers with TLS on the port that take the trouble to say so answer 400 in plain HTTP.
fn is_plain_http_refused(answer: &Answer) -> bool {
    answer.status == 400 && answer.body_head.to_ascii_lowercase().contains("https")
}

async fn broken(endpoint: &Endpoint, trace: &Trace, look: Look) -> ProbeOutcome {
    let closer = look == Look::Closer;
    if detect::is_tls_record(&trace.first) {
        return ProbeOutcome::Tls;
    }
    match (probe::guess_protocol(&trace.first), trace.end) {
        (Some(protocol), _) => ProbeOutcome::NotHttp(protocol),
        // It began like HTTP/1 and was not.
        (None, End::Open) if !trace.first.is_empty() => {
            let first = String::from_utf8_lossy(&trace.first).into_owned();
            ProbeOutcome::NotHttp(Protocol::Unknown(first))
        }
        _ if closer && detect::speaks_tls(endpoint).await => ProbeOutcome::Tls,
        _ if detect::speaks_redis(endpoint).await => ProbeOutcome::NotHttp(Protocol::Named("Redis")),
        _ if closer && detect::speaks_http2(endpoint).await => ProbeOutcome::NotHttp(Protocol::Http2),
        (None, End::Reset) => ProbeOutcome::Reset,
        (None, _) => ProbeOutcome::Closed,
    }
}

#[cfg(test)]
mod tests;
