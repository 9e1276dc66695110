//! What a client connection is doing, and the watchdog that closes it when it does nothing for too long.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Limits;

/// Shared by a connection's stream, its requests and its watchdog.
///
/// All of them run on one thread, but hyper wants streams that could move to another, so the cells are
/// atomics; read and written apart, never read-modify-write, they cost what a `Cell` costs.
pub struct Activity {
    http2: bool,
    /// Times below are in µs after it.
    origin: Instant,
    /// Requests between the end of their head and the end of both bodies.
    active: AtomicU64,
    /// Those of them that wait for the app rather than for the client.
    waiting_for_app: AtomicU64,
    /// Event streams among them: a client that stops sending has left.
    event_streams: AtomicU64,
    /// Requests that wait for a seat: a client that stops sending has left, too.
    queueing: AtomicU64,
    /// When the first byte of the next head came; `NEVER` before.
    head_began: AtomicU64,
    idle_since: AtomicU64,
    progress: AtomicU64,
    /// 1: the client has not taken all that was written.
    unflushed: AtomicU64,
    /// 1: a request was answered before its body had been read.
    unread: AtomicU64,
}

const NEVER: u64 = u64::MAX;

/// Why a connection is closed by its watchdog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expired {
    /// The head did not arrive in time.
    Head,
    /// Nothing was asked for.
    KeepAlive,
    /// The client does not read what it asked for.
    Stall,
}

impl Activity {
    pub fn new(http2: bool) -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            http2,
            origin: Instant::now(),
            active: zero(),
            waiting_for_app: zero(),
            event_streams: zero(),
            queueing: zero(),
            head_began: AtomicU64::new(NEVER),
            idle_since: zero(),
            progress: zero(),
            unflushed: zero(),
            unread: zero(),
        }
    }

    pub fn is_http2(&self) -> bool {
        self.http2
    }

    pub fn begin_waiting_for_app(&self) {
        add(&self.waiting_for_app);
    }

    pub fn end_waiting_for_app(&self) {
        subtract(&self.waiting_for_app);
        set(&self.progress, self.now());
    }

    pub fn begin_event_stream(&self) {
        add(&self.event_streams);
    }

    pub fn end_event_stream(&self) {
        subtract(&self.event_streams);
    }

    pub fn begin_queueing(&self) {
        add(&self.queueing);
    }

    pub fn end_queueing(&self) {
        subtract(&self.queueing);
    }

    /// Whether a client that closes its sending side has left: one with an event stream, which nothing else
    /// would ever end, and one in line, whose place others wait for.
    pub fn leaves_with_its_input(&self) -> bool {
        get(&self.event_streams) > 0 || get(&self.queueing) > 0
    }

    pub fn leave_unread(&self) {
        set(&self.unread, 1);
    }

    pub fn has_left_unread(&self) -> bool {
        get(&self.unread) == 1
    }

    pub fn is_idle(&self) -> bool {
        get(&self.active) == 0
    }

    pub fn head_has_begun(&self) -> bool {
        get(&self.head_began) != NEVER
    }

    pub fn has_read(&self) {
        if !self.is_idle() {
            set(&self.progress, self.now());
        } else if !self.head_has_begun() {
            set(&self.head_began, self.now());
        }
    }

    /// `whole`: the socket took all that it was given.
    pub fn has_written(&self, whole: bool) {
        set(&self.unflushed, u64::from(!whole));
        set(&self.progress, self.now());
    }

    /// The client has not taken all that was written.
    pub fn has_unflushed(&self) -> bool {
        get(&self.unflushed) == 1
    }

    pub fn cannot_write(&self) {
        set(&self.unflushed, 1);
    }

    /// When the connection is to be closed unless something happens; `None` while the app has the word.
    ///
    /// Streams of HTTP/2 stall one by one and are reset one by one (`server`), so here only idle
    /// connections of it have a deadline.
    pub fn deadline(&self, limits: &Limits) -> Option<(Instant, Expired)> {
        let stall = || (self.at(get(&self.progress)) + limits.stall_timeout, Expired::Stall);
        if self.is_idle() {
            let began = get(&self.head_began);
            if get(&self.unflushed) == 1 {
                // The answer has ended for us, but not for the client.
                Some(stall())
            } else if began != NEVER && !self.http2 {
                Some((self.at(began) + limits.request_head_timeout, Expired::Head))
            } else {
                let idle_since = get(&self.idle_since).max(get(&self.progress));
                Some((self.at(idle_since) + limits.keep_alive_timeout, Expired::KeepAlive))
            }
        } else {
            (!self.http2 && get(&self.waiting_for_app) == 0).then(stall)
        }
    }

    fn now(&self) -> u64 {
        self.origin.elapsed().as_micros() as u64
    }

    fn at(&self, micros: u64) -> Instant {
        self.origin + Duration::from_micros(micros)
    }
}

fn get(cell: &AtomicU64) -> u64 {
    cell.load(Ordering::Relaxed)
}

fn set(cell: &AtomicU64, value: u64) {
    cell.store(value, Ordering::Relaxed);
}

fn add(cell: &AtomicU64) {
    set(cell, get(cell) + 1);
}

fn subtract(cell: &AtomicU64) {
    set(cell, get(cell).saturating_sub(1));
}

/// Keeps a connection from being idle: a request, or a request body that outlives its answer.
pub struct Busy(Arc<Activity>);

impl Busy {
    pub fn new(activity: &Arc<Activity>) -> Self {
        add(&activity.active);
        set(&activity.head_began, NEVER);
        Self(Arc::clone(activity))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        subtract(&self.0.active);
        if self.0.is_idle() {
            set(&self.0.idle_since, self.0.now());
        }
    }
}

/// Closes a connection when its `Activity` says so. Polled beside the connection; re-arms its one timer
/// only when that fires or an earlier deadline appears, so that a busy connection pays nothing.
pub struct Watchdog {
    timer: Pin<Box<tokio::time::Sleep>>,
}

impl Watchdog {
    const FAR: Duration = Duration::from_secs(24 * 3600);

    pub fn new(activity: &Activity, limits: &Limits) -> Self {
        let deadline = activity.deadline(limits).map_or_else(|| Instant::now() + Self::FAR, |(at, _)| at);
        Self { timer: Box::pin(tokio::time::sleep_until(deadline)) }
    }

    pub fn poll(&mut self, cx: &mut Context<'_>, activity: &Activity, limits: &Limits) -> Poll<Expired> {
        loop {
            let deadline = activity.deadline(limits);
            if let Some((at, _)) = deadline
                && at < self.timer.deadline()
            {
                self.timer.as_mut().reset(at);
            }
            std::task::ready!(self.timer.as_mut().poll(cx));
            match deadline {
                Some((at, expired)) if at <= Instant::now() => return Poll::Ready(expired),
                Some((at, _)) => self.timer.as_mut().reset(at),
                // The app has the word; look again when its turn may be over.
                None => self.timer.as_mut().reset(Instant::now() + limits.stall_timeout),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        let s = Duration::from_secs;
        Limits {
            connections: 10,
            handshake_timeout: s(10),
            request_head_timeout: s(10),
            keep_alive_timeout: s(75),
            stall_timeout: s(30),
            http2_streams: 100,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn deadlines_follow_what_the_connection_does() {
        let (activity, start) = (Arc::new(Activity::new(false)), Instant::now());
        let after = |activity: &Activity| activity.deadline(&limits()).map(|(at, why)| (at - start, why));
        let s = Duration::from_secs;
        assert_eq!(after(&activity), Some((s(75), Expired::KeepAlive)));
        activity.has_read();
        assert_eq!(after(&activity), Some((s(10), Expired::Head)));
        let request = Busy::new(&activity);
        activity.begin_waiting_for_app();
        assert_eq!(after(&activity), None);
        tokio::time::advance(s(20)).await;
        activity.end_waiting_for_app();
        assert_eq!(after(&activity), Some((s(50), Expired::Stall)));
        tokio::time::advance(s(20)).await;
        activity.has_written(false);
        assert_eq!(after(&activity), Some((s(70), Expired::Stall)));
        drop(request);
        assert_eq!(after(&activity), Some((s(70), Expired::Stall)), "what is written is not yet read");
        tokio::time::advance(s(10)).await;
        activity.has_written(true);
        assert_eq!(after(&activity), Some((s(125), Expired::KeepAlive)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_outlives_its_answer_is_no_head() {
        let activity = Arc::new(Activity::new(false));
        let (answer, body) = (Busy::new(&activity), Busy::new(&activity));
        drop(answer);
        activity.has_read();
        assert!(!activity.head_has_begun() && !activity.is_idle());
        drop(body);
        activity.has_read();
        assert!(activity.head_has_begun());
    }

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_fires_at_the_deadline_of_the_moment() {
        let (activity, limits, start) = (Activity::new(false), limits(), Instant::now());
        let mut watchdog = Watchdog::new(&activity, &limits);
        tokio::time::advance(Duration::from_secs(5)).await;
        activity.has_read();
        let expired = std::future::poll_fn(|cx| watchdog.poll(cx, &activity, &limits)).await;
        assert_eq!((expired, start.elapsed().as_secs()), (Expired::Head, 15));
    }
}
