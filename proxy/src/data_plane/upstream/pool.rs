//! A worker's idle connections to its targets.
//!
//! Ours and not a generic pool, because of rules that fit Puma: a connection is reused for less time than
//! Puma keeps it (its keep-alive timeout is 20 s in old versions), retired after a number of requests and
//! at an age, and the one used last is used first, so that spare ones grow old and go.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use model::service::Timeouts;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::connection::{AskError, Connection, Cut, ReadError, Reading, Terms, UploadProgress, upload_limit};
use super::framing::{Framing, Piece};
use super::response_head::ResponseHead;
use super::stream::{Scratch, Stream};
use super::upload::Upload;
use crate::clock;
use crate::release::{Ending, InFlight};

/// Below Puma's keep-alive timeout, so that we close first.
pub const IDLE_MAX: Duration = Duration::from_secs(10);
const AGE_MAX: Duration = Duration::from_secs(300);
const USES_MAX: u32 = 900;
/// Buffers for heads that wait for the next request, and how large one may have grown.
const SPARE_BUFFERS_MAX: usize = 64;
const SPARE_BUFFER_BYTES_MAX: usize = 32 * 1024;

struct Idle {
    connection: Box<Connection>,
    since: Instant,
}

#[derive(Clone, Default)]
pub struct Pool(Rc<Shared>);

#[derive(Default)]
struct Shared {
    idle: RefCell<HashMap<u64, Vec<Idle>>>,
    scratch: RefCell<Scratch>,
    buffers: RefCell<Vec<Vec<u8>>>,
    /// What goes on beside the requests: uploads that their answer has overtaken, and who waits for a release to
    /// be cut off. Nobody waits for them at shutdown; a request that still needs one holds it.
    tasks: TaskTracker,
}

impl Pool {
    /// The connection to `target` that was used last and still lives.
    pub fn take(&self, target: u64) -> Option<Lease> {
        let now = clock::now();
        let mut idle = self.0.idle.borrow_mut();
        let connections = idle.get_mut(&target)?;
        while let Some(Idle { connection, since }) = connections.pop() {
            if now - since < IDLE_MAX && !is_worn_out(&connection, now) && connection.is_free() {
                drop(idle);
                return Some(self.lend(target, connection));
            }
        }
        None
    }

    /// A new connection, to be closed when its release is cut off.
    pub fn adopt(&self, target: u64, stream: Stream, mut ending: watch::Receiver<Ending>) -> Lease {
        let cut = Rc::new(Cut::new(ending.borrow().cuts_requests()));
        let told = Rc::clone(&cut);
        let guard = self.0.tasks.spawn_local(async move {
            // An error means that the release itself is gone, which is the same.
            let _ = ending.wait_for(Ending::cuts_requests).await;
            if told.is_held_by_a_socket() {
                let _ = ending.wait_for(|ending| *ending == Ending::Cut).await;
            }
            told.happen();
        });
        self.lend(target, Box::new(Connection::new(stream, cut, guard.abort_handle())))
    }

    fn lend(&self, target: u64, mut connection: Box<Connection>) -> Lease {
        let reused = connection.uses() > 0;
        connection.begin();
        Lease { connection, target, reused, pool: self.clone() }
    }

    /// An empty buffer for a head.
    pub fn buffer(&self) -> Vec<u8> {
        self.0.buffers.borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(2048))
    }

    fn put_buffer(&self, mut buffer: Vec<u8>) {
        let mut buffers = self.0.buffers.borrow_mut();
        if buffers.len() < SPARE_BUFFERS_MAX && buffer.capacity() <= SPARE_BUFFER_BYTES_MAX {
            buffer.clear();
            buffers.push(buffer);
        }
    }

    /// Runs for as long as the worker: closes what was idle for too long, or was closed by its target.
    pub async fn sweep_regularly(&self) {
        let mut tick = tokio::time::interval(IDLE_MAX / 2);
        loop {
            tick.tick().await;
            let now = Instant::now();
            self.0.idle.borrow_mut().retain(|_, connections| {
                connections.retain(|idle| now - idle.since < IDLE_MAX && idle.connection.is_free());
                !connections.is_empty()
            });
        }
    }
}

fn is_worn_out(connection: &Connection, now: Instant) -> bool {
    connection.uses() >= USES_MAX || connection.age(now) >= AGE_MAX
}

/// A connection in use. Given back only after a complete answer; dropped, it is closed.
pub struct Lease {
    connection: Box<Connection>,
    pub reused: bool,
    target: u64,
    pool: Pool,
}

impl Lease {
    /// Sends `upload` and waits for the head of its answer.
    pub async fn ask(&mut self, upload: &mut Upload, terms: &Terms<'_>) -> Result<ResponseHead, AskError> {
        let (began, scratch) = (clock::now(), &self.pool.0.scratch);
        poll_fn(|cx| self.connection.poll_ask(cx, upload, terms, began, scratch)).await
    }

    /// Counts the request out when the answer's body has ended, or when its release is cut off, whichever is first:
    /// a client that does not read its answer must not hold the drain.
    pub fn hold(&mut self, in_flight: InFlight) {
        self.connection.hold(in_flight);
    }

    /// The whole body of an answer whose head has just been read, if it came along.
    pub fn take_whole(&mut self, framing: &Framing) -> Option<Bytes> {
        framing.length().and_then(|length| self.connection.take_unread(length))
    }

    pub fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        framing: &mut Framing,
        reading: Reading,
    ) -> Poll<Result<Piece, ReadError>> {
        self.connection.poll_body(cx, framing, reading, &self.pool.0.scratch)
    }

    /// The answer has begun; what is left of the request goes on in a task of its own, since a client may read
    /// only after it has sent everything.
    pub fn let_upload_go_on(
        &mut self,
        upload: Upload,
        timeouts: &Timeouts,
        mut ending: watch::Receiver<Ending>,
    ) {
        if upload.is_done() {
            return self.pool.put_buffer(upload.into_buffer());
        }
        let progress = Rc::new(UploadProgress::begin());
        let (stream, told) = (Rc::clone(self.connection.stream()), Rc::clone(&progress));
        let limit = upload_limit(timeouts);
        let task = self.pool.0.tasks.spawn_local(async move {
            tokio::select! {
                sent = upload.finish(&stream, limit, &told.moved) => told.done.set(sent.is_ok()),
                _ = ending.wait_for(Ending::cuts_requests) => {}
            }
        });
        self.connection.upload_goes_on(task.abort_handle(), progress);
    }

    pub fn give_back(mut self) {
        self.connection.let_go();
        if !self.connection.is_settled() {
            // The target has answered before it had everything; the rest is sent, and then the connection ends.
            return self.connection.leave_upload();
        }
        let now = clock::now();
        if !is_worn_out(&self.connection, now) {
            let idle = Idle { connection: self.connection, since: now };
            self.pool.0.idle.borrow_mut().entry(self.target).or_default().push(idle);
        }
    }

    /// The connection itself, for a tunnel.
    pub fn into_stream(self) -> Option<(Stream, Bytes)> {
        self.connection.into_stream()
    }
}
