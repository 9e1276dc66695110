//! Listening sockets and the loop that accepts from them.

mod shortage;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt;
use model::networks::Networks;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};

use self::shortage::Shortage;
use super::admission::NoPlace;
use super::balancer;
use super::server::{self, Accepted};
use super::worker::Worker;

/// Completed connections that wait to be accepted; the kernel's own maximum may be lower.
const BACKLOG: i32 = 4096;
/// After an error that the next try would meet again at once.
const ERROR_PAUSE: Duration = Duration::from_millis(50);
/// How long, and how often, to wait for places that are being given up.
const PLACE_PAUSE: Duration = Duration::from_millis(2);
const PLACE_TRIES: u32 = 10;
/// What our kernel takes beyond what a client's window lets it send. Less would show sooner how a client reads,
/// but 128 KiB cost a tenth more processor time for answers of 1 MB to fast clients.
const UNSENT_BYTES_MAX: u32 = 512 * 1024;
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
    /// Whose connections begin with a PROXY header.
    pub balancers: Networks,
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
    // The kernel takes megabytes for a client that does not read; a megabyte each for thousands of them is
    // the machine's memory, and hides for minutes whether a client reads at all.
    let _ = socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX);
}

/// Accepts until shutdown. No error ends the loop: a connection that died in the queue and a lack of
/// descriptors both pass.
pub async fn accept(worker: Rc<Worker>, listening: Listening) {
    let listener = match TcpListener::from_std(listening.socket) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "cannot use a listening socket"),
    };
    let port = listener.local_addr().map_or(0, |address| address.port());
    let mut shortage = Shortage::new();
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
        match accepted {
            Ok((stream, peer)) => {
                shortage.ends();
                let peer = peer.ip().to_canonical();
                let is_balancer = listening.balancers.contains(peer);
                admit(&worker, stream, Arrival { peer, port, tls: listening.tls, is_balancer }).await;
            }
            Err(error) => {
                worker.metrics.connections().accept_errors.fetch_add(1, Ordering::Relaxed);
                if shortage::is_one(&error) {
                    shortage.relieve(&worker.roster, &listener, &error).await;
                } else {
                    tracing::debug!(%error, "cannot accept a connection");
                    tokio::time::sleep(ERROR_PAUSE).await;
                }
            }
        }
    }
}

/// Who has come, and to which listener.
#[derive(Clone, Copy)]
struct Arrival {
    peer: IpAddr,
    port: u16,
    tls: bool,
    is_balancer: bool,
}

/// Finds the newcomer a place, or hangs up on it.
async fn admit(worker: &Rc<Worker>, stream: TcpStream, arrival: Arrival) {
    let Arrival { peer, port, tls, is_balancer } = arrival;
    let mut entered = worker.roster.enter(peer, is_balancer);
    let mut tries = 0;
    while matches!(entered, Err(NoPlace::NotYet)) && tries < PLACE_TRIES {
        // Those that were asked to go need a moment for it; further newcomers wait in the kernel's queue.
        tokio::time::sleep(PLACE_PAUSE).await;
        tries += 1;
        entered = worker.roster.enter(peer, is_balancer);
    }
    match entered {
        Ok((place, activity)) => {
            worker.metrics.connections().accepted.fetch_add(1, Ordering::Relaxed);
            set_options(&stream);
            let accepted = Accepted { peer, port, place, activity };
            let owner = Rc::clone(worker);
            if is_balancer {
                worker.tasks.spawn_local(balancer::serve(owner, stream, accepted, tls));
            } else if tls {
                worker.tasks.spawn_local(server::serve_tls(owner, stream, accepted));
            } else {
                worker.tasks.spawn_local(server::serve_plain(owner, stream, accepted));
            }
        }
        Err(why) => worker.roster.count_refused(why),
    }
}
