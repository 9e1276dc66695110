//! Serves the control API on its socket: connections, their limits, and who is at the other end.
//!
//! What the requests mean is known to `handlers`.

mod impatient;
mod places;

use std::convert::Infallible;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::impatient::Impatient;
use self::places::{CONNECTIONS_MAX, Idle, Place};
use super::access::{Caller, Peer};
use super::handlers::{self, Answer, Api};
use super::socket::Bound;
use crate::adapters::accounts::Accounts;

/// For the request head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// For a client that does not read.
const WRITE_STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// For the answers under way when the daemon stops.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);
/// When the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Clients beyond the limit that are told so at the same time; the rest are only hung up on.
const TURNED_AWAY_MAX: usize = 16;
const TURN_AWAY_TIMEOUT: Duration = Duration::from_secs(2);

/// The daemon itself, as the kernel names it.
#[derive(Debug, Clone, Copy)]
pub struct Own {
    pub uid: u32,
    /// `None`: connections of this very process are served too.
    pub pid: Option<i32>,
}

impl Own {
    pub fn this_process() -> Self {
        let uid = std::fs::metadata("/proc/self").map_or(0, |process| process.uid());
        Self { uid, pid: i32::try_from(std::process::id()).ok() }
    }

    /// A target may lead to the control socket under a name that nobody foresaw. Through it the clients of
    /// the data plane would come with the daemon's own rights, so no connection of its own is served.
    fn is(&self, peer: &Peer) -> bool {
        self.pid.is_some() && self.pid == peer.pid
    }
}

/// Accepts until `shutdown`, then waits for the connections, which end with their answers or soon after.
pub async fn serve(bound: Bound, api: Arc<Api>, own: Own, shutdown: CancellationToken) {
    let (connections, turned_away) = (TaskTracker::new(), TaskTracker::new());
    let idle = Idle::default();
    loop {
        let stream = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = bound.listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept on the control socket");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        let peer = match peer(&stream) {
            Ok(peer) => peer,
            Err(error) => {
                tracing::warn!(%error, "cannot tell who connected to the control socket");
                continue;
            }
        };
        if own.is(&peer) {
            tracing::warn!("a target leads to the control socket; what came that way was refused");
            continue;
        }
        let privileged = peer.uid == 0 || peer.uid == own.uid;
        if idle.has_room(connections.len(), privileged) {
            let place = idle.enter();
            connections.spawn(connection(stream, peer, own.uid, Arc::clone(&api), place, shutdown.clone()));
            continue;
        }
        tracing::warn!(uid = peer.uid, "a control connection was refused: {CONNECTIONS_MAX} are busy");
        if turned_away.len() < TURNED_AWAY_MAX {
            turned_away.spawn(turn_away(stream));
        }
    }
    drop(bound);
    connections.close();
    turned_away.close();
    tokio::join!(connections.wait(), turned_away.wait());
}

fn peer(stream: &UnixStream) -> std::io::Result<Peer> {
    let credentials = stream.peer_cred()?;
    Ok(Peer { uid: credentials.uid(), gid: credentials.gid(), pid: credentials.pid() })
}

fn http() -> http1::Builder {
    let mut http = http1::Builder::new();
    // One request per connection: what a connection may wait for is then always clear.
    http.keep_alive(false).timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    http
}

async fn connection(
    stream: UnixStream,
    peer: Peer,
    own_uid: u32,
    api: Arc<Api>,
    place: Place,
    shutdown: CancellationToken,
) {
    let service = service_fn(|request: Request<Incoming>| {
        place.has_request();
        answer(Arc::clone(&api), peer.clone(), own_uid, request)
    });
    let stream = Impatient::new(stream, WRITE_STALL_TIMEOUT);
    let connection = http().serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = place.evicted() => return,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            match timeout(SHUTDOWN_TIMEOUT, connection).await {
                Ok(served) => served,
                Err(_) => return tracing::debug!("a control client did not take its answer before the end"),
            }
        }
    };
    if let Err(error) = served {
        // A caller that hangs up is nothing to report.
        tracing::debug!(%error, "a control connection ended early");
    }
}

/// Says why, whatever the request is.
async fn turn_away(stream: UnixStream) {
    let refusal = service_fn(|_: Request<Incoming>| async {
        let message = format!("{CONNECTIONS_MAX} connections to this agent are busy");
        Ok::<_, Infallible>(handlers::busy(message))
    });
    // Who does not hear it has gone, or brought no request.
    let _ = timeout(TURN_AWAY_TIMEOUT, http().serve_connection(TokioIo::new(stream), refusal)).await;
}

async fn answer(
    api: Arc<Api>,
    peer: Peer,
    own_uid: u32,
    request: Request<Incoming>,
) -> Result<Response<Answer>, Infallible> {
    // Without the files nobody has a name or group, and root is still root.
    let accounts = tokio::task::spawn_blocking(Accounts::read).await;
    let accounts = accounts.ok().and_then(Result::ok).unwrap_or_default();
    let caller = Caller::identify(&peer, own_uid, &accounts, &api.groups);
    Ok(handlers::answer(&api, &caller, &peer, request).await)
}
