//! Serves the control API on its socket: connections, their limits, and who is at the other end.
//!
//! What the requests mean is known to `handlers`.

use std::convert::Infallible;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::access::{Caller, Peer};
use super::handlers::{self, Answer, Api};
use super::socket::Bound;
use crate::adapters::accounts::Accounts;

/// An operator, a pipeline, a few followers: more is a mistake or an attack.
const CONNECTIONS_MAX: usize = 32;
/// For the request head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// When the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts until `shutdown`, then waits for the connections, which end with their answers.
pub async fn serve(bound: Bound, api: Arc<Api>, shutdown: CancellationToken) {
    let connections = TaskTracker::new();
    let idle = Idle::default();
    let own_uid = std::fs::metadata("/proc/self").map_or(0, |process| process.uid());
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
        if connections.len() >= CONNECTIONS_MAX && !idle.evict_oldest() {
            tracing::warn!("a control connection was refused: {CONNECTIONS_MAX} are busy");
            continue;
        }
        match peer(&stream) {
            Ok(peer) => {
                let slot = idle.enter();
                let connection = connection(stream, peer, own_uid, Arc::clone(&api), slot, shutdown.clone());
                connections.spawn(connection);
            }
            Err(error) => tracing::warn!(%error, "cannot tell who connected to the control socket"),
        }
    }
    drop(bound);
    connections.close();
    connections.wait().await;
}

fn peer(stream: &UnixStream) -> std::io::Result<Peer> {
    let credentials = stream.peer_cred()?;
    Ok(Peer { uid: credentials.uid(), gid: credentials.gid(), pid: credentials.pid() })
}

/// Connections that have not brought a request yet, oldest first. When there are too many connections,
/// these go first, so that somebody who only holds connections open cannot lock operators out.
#[derive(Clone, Default)]
struct Idle(Arc<Mutex<Vec<Slot>>>);

#[derive(Clone, Default)]
struct Slot {
    busy: Arc<AtomicBool>,
    evicted: CancellationToken,
}

impl Idle {
    fn enter(&self) -> Slot {
        let slot = Slot::default();
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The list and the connection hold a slot; alone, the list holds one that has ended.
        slots.retain(|slot| Arc::strong_count(&slot.busy) > 1 && !slot.busy.load(Ordering::Relaxed));
        slots.push(slot.clone());
        slot
    }

    fn evict_oldest(&self) -> bool {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slots.retain(|slot| Arc::strong_count(&slot.busy) > 1 && !slot.busy.load(Ordering::Relaxed));
        if slots.is_empty() {
            return false;
        }
        slots.remove(0).evicted.cancel();
        true
    }
}

async fn connection(
    stream: UnixStream,
    peer: Peer,
    own_uid: u32,
    api: Arc<Api>,
    slot: Slot,
    shutdown: CancellationToken,
) {
    let busy = Arc::clone(&slot.busy);
    let service = service_fn(|request: Request<Incoming>| {
        busy.store(true, Ordering::Relaxed);
        answer(Arc::clone(&api), peer.clone(), own_uid, request)
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    // One request per connection: what a connection may wait for is then always clear.
    http.keep_alive(false).timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    let connection = http.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = slot.evicted.cancelled() => return,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        // A caller that hangs up is nothing to report.
        tracing::debug!(%error, "a control connection ended early");
    }
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
