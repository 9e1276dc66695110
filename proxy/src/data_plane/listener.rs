//! Listening sockets and the loop that accepts from them.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};

use super::server;
use super::worker::Worker;

/// Completed connections that wait to be accepted; the kernel's own maximum may be lower.
const BACKLOG: i32 = 4096;
/// After an error that the next try would meet again at once, such as EMFILE.
const ERROR_PAUSE: Duration = Duration::from_millis(50);
/// How long a client's kernel may be silent.
const SILENT_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}")]
pub struct ListenError {
    pub address: SocketAddr,
    pub source: std::io::Error,
}

/// One worker's share of a listener.
pub struct Listening {
    pub socket: std::net::TcpListener,
    pub tls: bool,
    pub open: Arc<AtomicUsize>,
}

/// Opens one socket per worker on `address` (`SO_REUSEPORT`, so that the kernel spreads connections and no
/// core wakes for another's), and returns the address with the port that was chosen.
pub fn listen(
    address: SocketAddr,
    workers: usize,
) -> Result<(SocketAddr, Vec<std::net::TcpListener>), ListenError> {
    let failed = |source| ListenError { address, source };
    // Without SO_REUSEPORT first: with it, a second daemon would silently take half of the connections.
    let probe = bind(address, false).map_err(failed)?;
    let bound = probe.local_addr().map_err(failed)?;
    drop(probe);
    let sockets = (0..workers).map(|_| bind(bound, true)).collect::<Result<_, _>>().map_err(failed)?;
    Ok((bound, sockets))
}

fn bind(address: SocketAddr, shared: bool) -> std::io::Result<std::net::TcpListener> {
    let any_v6 = address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    match open(address, shared) {
        // A host without IPv6 still has an "any address".
        Err(error)
            if any_v6 && error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error()) =>
        {
            open(SocketAddr::from(([0, 0, 0, 0], address.port())), shared)
        }
        opened => opened,
    }
}

fn open(address: SocketAddr, shared: bool) -> std::io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.bind(&address.into())?;
    if shared {
        socket.listen(BACKLOG)?;
    }
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Counts an open connection for as long as it lives.
pub struct Counted(Arc<AtomicUsize>);

impl Counted {
    /// `None` at the limit.
    fn new(open: &Arc<AtomicUsize>, max: usize) -> Option<Self> {
        let counted = Self(Arc::clone(open));
        (open.fetch_add(1, Ordering::Relaxed) < max).then_some(counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Options whose failure harms nobody.
fn set_options(stream: &TcpStream) {
    // Answers are written whole; waiting for an acknowledgement would only delay the last part.
    let _ = stream.set_nodelay(true);
    // A client that vanished without a word is noticed although nobody writes to it, such as an idle
    // tunnel's, and although its kernel acknowledges nothing.
    let socket = socket2::SockRef::from(stream);
    let keepalive = TcpKeepalive::new().with_time(SILENT_MAX).with_interval(SILENT_MAX / 4);
    let _ = socket.set_tcp_keepalive(&keepalive);
    let _ = socket.set_tcp_user_timeout(Some(SILENT_MAX));
}

/// Accepts until shutdown. No error ends the loop: a connection that died in the queue and a lack of
/// descriptors both pass.
pub async fn accept(worker: Rc<Worker>, listening: Listening) {
    let listener = match TcpListener::from_std(listening.socket) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "cannot use a listening socket"),
    };
    let port = listener.local_addr().map_or(0, |address| address.port());
    let process = worker.metrics.process();
    loop {
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted, // cancel safe
            // What the kernel has completed is taken first: closing the socket would reset it.
            () = worker.shutdown.cancelled() => match listener.accept().now_or_never() {
                Some(accepted) => accepted,
                None => return,
            },
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection");
                tokio::time::sleep(ERROR_PAUSE).await;
                continue;
            }
        };
        let Some(counted) = Counted::new(&listening.open, worker.config.limits.connections) else {
            process.connections_refused.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        process.connections.fetch_add(1, Ordering::Relaxed);
        serve(&worker, stream, peer, port, listening.tls, counted);
    }
}

fn serve(worker: &Rc<Worker>, stream: TcpStream, peer: SocketAddr, port: u16, tls: bool, counted: Counted) {
    set_options(&stream);
    let accepted = server::Accepted { peer: peer.ip().to_canonical(), port, counted };
    let owner = Rc::clone(worker);
    if tls {
        worker.tasks.spawn_local(server::serve_tls(owner, stream, accepted));
    } else {
        worker.tasks.spawn_local(server::serve_plain(owner, stream, accepted));
    }
}
