//! A worker's idle connections to its targets.
//!
//! Ours and not a generic pool, because of rules that fit Puma: a connection is reused for less time than
//! Puma keeps it (its keep-alive timeout is 20 s in old versions), retired after a number of requests and
//! at an age, and the one used last is used first, so that spare ones grow old and go.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use hyper::client::conn::http1::SendRequest;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::data_plane::body::RequestBody;
use crate::release::Ending;

/// Below Puma's keep-alive timeout, so that we close first.
pub const IDLE_MAX: Duration = Duration::from_secs(10);
const AGE_MAX: Duration = Duration::from_secs(300);
const USES_MAX: u32 = 900;

/// One open connection. Dropped, it is closed at once, whatever it is doing: hyper alone would go on
/// writing an abandoned request body for as long as the target does not take it.
pub struct Connection {
    pub sender: SendRequest<RequestBody>,
    driver: AbortHandle,
    opened: Instant,
    uses: u32,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection {
    pub fn new(sender: SendRequest<RequestBody>, driver: AbortHandle) -> Self {
        Self { sender, driver, opened: Instant::now(), uses: 0 }
    }

    fn is_worn_out(&self, now: Instant) -> bool {
        self.uses >= USES_MAX || now - self.opened >= AGE_MAX
    }
}

struct Idle {
    connection: Connection,
    since: Instant,
}

#[derive(Clone, Default)]
pub struct Pool {
    idle: Rc<RefCell<HashMap<u64, Vec<Idle>>>>,
    /// The tasks that drive connections. Nobody waits for them at shutdown: an idle one is of no use then,
    /// and a busy one is held by its request.
    tasks: TaskTracker,
}

impl Pool {
    /// The connection to `target` that was used last and still lives.
    pub fn take(&self, target: u64) -> Option<Lease> {
        let now = Instant::now();
        let mut idle = self.idle.borrow_mut();
        let connections = idle.get_mut(&target)?;
        while let Some(Idle { connection, since }) = connections.pop() {
            // Ready means: the last answer was complete and nothing came after it.
            if connection.sender.is_ready() && now - since < IDLE_MAX && !connection.is_worn_out(now) {
                drop(idle);
                return Some(self.lend(target, connection));
            }
        }
        None
    }

    pub fn lend(&self, target: u64, mut connection: Connection) -> Lease {
        let reused = connection.uses > 0;
        connection.uses += 1;
        Lease { connection, target, reused, pool: self.clone() }
    }

    /// Drives a connection until it ends or its release is cut; in-flight requests on it then fail.
    pub fn drive<E>(
        &self,
        connection: impl Future<Output = Result<(), E>> + 'static,
        mut ending: watch::Receiver<Ending>,
    ) -> AbortHandle {
        let driver = self.tasks.spawn_local(async move {
            tokio::select! {
                // Errors reach whoever waits for the answer; an idle connection's end concerns nobody.
                _ = connection => {}
                _ = ending.wait_for(|ending| *ending == Ending::Cut) => {}
            }
        });
        driver.abort_handle()
    }

    /// Runs for as long as the worker: closes what was idle for too long.
    pub async fn sweep_regularly(&self) {
        let mut tick = tokio::time::interval(IDLE_MAX / 2);
        loop {
            tick.tick().await;
            let now = Instant::now();
            self.idle.borrow_mut().retain(|_, connections| {
                connections.retain(|idle| now - idle.since < IDLE_MAX && !idle.connection.sender.is_closed());
                !connections.is_empty()
            });
        }
    }
}

/// A connection in use. Given back only after a complete answer; dropped, it is closed.
pub struct Lease {
    pub connection: Connection,
    pub reused: bool,
    target: u64,
    pool: Pool,
}

impl Lease {
    pub fn give_back(self) {
        let now = Instant::now();
        if self.connection.sender.is_closed() || self.connection.is_worn_out(now) {
            return;
        }
        let idle = Idle { connection: self.connection, since: now };
        self.pool.idle.borrow_mut().entry(self.target).or_default().push(idle);
    }
}
