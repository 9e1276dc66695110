//! What a client connection is doing, and the watchdog that closes it when it does nothing for too long.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use model::pace::{MinRate, Pace};
use tokio::time::Instant;

use super::exchange::Connection;
use crate::clock;
use crate::config::Limits;
use crate::telemetry::connections::WorkerConnections;

/// Shared by a connection's stream, its requests and its watchdog.
///
/// All of them run on one thread, but hyper wants streams that could move to another, so the cells are
/// atomics; read and written apart, never read-modify-write, they cost what a `Cell` costs.
pub struct Activity {
    /// 1 or 0; told after the handshake.
    http2: AtomicU64,
    /// Times below are in µs after it.
    origin: Instant,
    /// Requests between the end of their head and the end of both bodies.
    active: AtomicU64,
    /// Those of them that wait for the app rather than for the client.
    waiting_for_app: AtomicU64,
    /// Event streams among them: a client that stops sending has left.
    event_streams: AtomicU64,
    /// Requests that wait for a seat, or for the end of a pause: a client that stops sending has left, too.
    queueing: AtomicU64,
    /// When the first byte of the next head came; `NEVER` before.
    head_began: AtomicU64,
    /// 1: the client has said something.
    heard: AtomicU64,
    idle_since: AtomicU64,
    progress: AtomicU64,
    /// The client's pace as a reader; its turn lasts while the socket does not take what is written.
    left_us: AtomicU64,
    turn_since: AtomicU64,
    reading: MinRate,
    /// Of answers, handed to hyper and not yet taken by the socket. An estimate: the heads of answers are not
    /// counted when they are handed over, but they are when they are taken.
    held: AtomicU64,
    held_by_worker: Arc<WorkerConnections>,
    /// Bytes that the socket took, and those of them that the kernel still had behind the last large write.
    written: AtomicU64,
    unacknowledged: AtomicU64,
    /// 1: what was sent and not read is not worth keeping.
    cut: AtomicU64,
    /// 1: a request was answered before its body had been read.
    unread: AtomicU64,
    /// 1: more has come than is read ahead, so that reading does not show whether the client leaves.
    blind: AtomicU64,
    /// 1: what comes next belongs to a tunnel.
    tunnel: AtomicU64,
}

/// How far a client has got with its answer, in bytes, as of the last large write.
#[derive(Debug, Clone, Copy)]
pub struct Uptake {
    pub acknowledged: u64,
    /// In the kernel's hands.
    pub unacknowledged: u64,
    /// The socket takes no more.
    pub is_blocked: bool,
}

const NEVER: u64 = u64::MAX;

/// Why a connection is closed by its watchdog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expired {
    /// The client never said anything.
    FirstByte,
    /// The head did not arrive in time.
    Head,
    /// Nothing was asked for.
    KeepAlive,
    /// The client does not read what it asked for, or too slowly.
    Stall,
}

impl Activity {
    pub fn new(limits: &Limits, held_by_worker: Arc<WorkerConnections>) -> Self {
        let zero = || AtomicU64::new(0);
        let reading = limits.reading();
        let pace = Pace::new(&reading);
        Self {
            http2: zero(),
            origin: Instant::now(),
            active: zero(),
            waiting_for_app: zero(),
            event_streams: zero(),
            queueing: zero(),
            head_began: AtomicU64::new(NEVER),
            heard: zero(),
            idle_since: zero(),
            progress: zero(),
            left_us: AtomicU64::new(pace.left_us),
            turn_since: AtomicU64::new(pace.since_us),
            reading,
            held: zero(),
            held_by_worker,
            written: zero(),
            unacknowledged: zero(),
            cut: zero(),
            unread: zero(),
            blind: zero(),
            tunnel: zero(),
        }
    }

    /// The transport is ready for requests: what came before was no idleness.
    pub fn begin(&self, http2: bool) {
        set(&self.http2, u64::from(http2));
        set(&self.idle_since, self.now());
    }

    pub fn is_http2(&self) -> bool {
        get(&self.http2) == 1
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

    pub fn is_blind(&self, blind: bool) {
        set(&self.blind, u64::from(blind));
    }

    /// Whether only the socket itself can tell that the client leaves, and it matters.
    pub fn has_to_ask_the_socket(&self) -> bool {
        get(&self.blind) == 1 && self.leaves_with_its_input()
    }

    pub fn leave_unread(&self) {
        set(&self.unread, 1);
    }

    pub fn has_left_unread(&self) -> bool {
        get(&self.unread) == 1
    }

    /// From now on the client sends no requests but the bytes of a tunnel.
    pub fn begin_tunnel(&self) {
        set(&self.tunnel, 1);
    }

    pub fn is_tunnel(&self) -> bool {
        get(&self.tunnel) == 1
    }

    /// The connection ends without regard for what its client has not read.
    pub fn cut(&self) {
        set(&self.cut, 1);
    }

    pub fn is_cut(&self) -> bool {
        get(&self.cut) == 1
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
            set(&self.heard, 1);
        }
    }

    fn pace(&self) -> Pace {
        Pace { left_us: get(&self.left_us), since_us: get(&self.turn_since) }
    }

    fn set_pace(&self, pace: Pace) {
        set(&self.left_us, pace.left_us);
        set(&self.turn_since, pace.since_us);
    }

    /// The socket took `bytes`; `whole`: all that it was given.
    pub fn has_written(&self, bytes: usize, whole: bool) {
        self.let_go(bytes as u64);
        set(&self.written, get(&self.written) + bytes as u64);
        let mut pace = self.pace();
        if whole && !pace.is_clients_turn() && self.is_idle() {
            // The end of an answer, or a ping: an idle connection stays as idle as it was.
            return;
        }
        let now = self.now();
        pace.moved(bytes as u64, now, &self.reading);
        match whole {
            true => pace.end_turn(now, &self.reading),
            false => pace.begin_turn(now),
        }
        self.set_pace(pace);
        set(&self.progress, now);
    }

    /// The kernel keeps `bytes` of what was written until the client has acknowledged them.
    pub fn kernel_holds(&self, bytes: u64) {
        set(&self.unacknowledged, bytes);
    }

    /// All that the socket took in the life of the connection.
    pub fn written_bytes(&self) -> u64 {
        get(&self.written)
    }

    /// What became of all that was written behind the first `from` bytes of the connection.
    pub fn uptake(&self, from: u64) -> Uptake {
        let unacknowledged = get(&self.unacknowledged);
        let acknowledged = (get(&self.written) - from).saturating_sub(unacknowledged);
        Uptake { acknowledged, unacknowledged, is_blocked: self.has_unflushed() }
    }

    /// The socket has not taken all that was written.
    pub fn has_unflushed(&self) -> bool {
        self.pace().is_clients_turn()
    }

    pub fn cannot_write(&self) {
        let mut pace = self.pace();
        if !pace.is_clients_turn() {
            pace.begin_turn(self.now());
            self.set_pace(pace);
        }
    }

    /// Bytes of an answer's body are on their way to the client.
    pub fn hand_over(&self, bytes: usize) {
        set(&self.held, get(&self.held) + bytes as u64);
        let all = &self.held_by_worker.held_bytes;
        set(all, get(all) + bytes as u64);
    }

    fn let_go(&self, bytes: u64) {
        let held = get(&self.held);
        if held > 0 {
            let gone = held.min(bytes);
            set(&self.held, held - gone);
            let all = &self.held_by_worker.held_bytes;
            set(all, get(all).saturating_sub(gone));
        }
    }

    /// hyper has nothing left to write, and the socket has all. Over HTTP/2 a stream may still hold back.
    pub fn has_flushed(&self) {
        if !self.is_http2() {
            self.let_go(u64::MAX);
        }
    }

    /// Whether `enough` bytes were handed over for this client that its socket has not taken, or any that it did not want to
    /// take; over HTTP/2 the client's windows say how much is enough.
    pub fn holds(&self, enough: u64) -> bool {
        let enough = if self.has_unflushed() { 1 } else { enough };
        !self.is_http2() && get(&self.held) >= enough
    }

    pub fn held_bytes(&self) -> u64 {
        get(&self.held)
    }

    /// Whether the client has taken nothing for `long` although it is its turn.
    pub fn is_slow_reader(&self, now: Instant, long: Duration) -> bool {
        self.pace().is_clients_turn() && now - self.at(get(&self.progress)) >= long
    }

    /// When the connection is to be closed unless something happens; `None` while the app has the word.
    ///
    /// Streams of HTTP/2 stall one by one and are reset one by one (`http2_stream`), so here only idle
    /// connections of it have a deadline, and those whose socket takes nothing for any stream.
    pub fn deadline(&self, limits: &Limits) -> Option<(Instant, Expired)> {
        if let Some(deadline) = self.pace().deadline_us() {
            // Whatever else there is to wait for, the client does not take what is there.
            return Some((self.at(deadline), Expired::Stall));
        }
        if !self.is_idle() {
            let stall = || (self.at(get(&self.progress)) + limits.stall_timeout, Expired::Stall);
            return (!self.is_http2() && get(&self.waiting_for_app) == 0).then(stall);
        }
        let began = get(&self.head_began);
        if began != NEVER && !self.is_http2() {
            return Some((self.at(began) + limits.request_head_timeout, Expired::Head));
        }
        if get(&self.heard) == 0 {
            return Some((self.at(get(&self.idle_since)) + limits.request_head_timeout, Expired::FirstByte));
        }
        let idle_since = get(&self.idle_since).max(get(&self.progress));
        Some((self.at(idle_since) + limits.keep_alive_timeout, Expired::KeepAlive))
    }

    fn begin_request(&self) {
        add(&self.active);
        set(&self.head_began, NEVER);
    }

    fn end_request(&self) {
        subtract(&self.active);
    }

    fn is_idle_since(&self, now: Instant) {
        set(&self.idle_since, (now - self.origin).as_micros() as u64);
    }

    fn now(&self) -> u64 {
        (clock::now() - self.origin).as_micros() as u64
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

impl Drop for Activity {
    fn drop(&mut self) {
        self.let_go(u64::MAX);
    }
}

/// Keeps a connection from being idle: a request, or a request body that outlives its answer.
pub struct Busy(Rc<Connection>);

impl Busy {
    pub fn new(connection: &Rc<Connection>) -> Self {
        let activity = &connection.activity;
        if activity.is_idle() {
            connection.place.is_busy();
        }
        activity.begin_request();
        Self(Rc::clone(connection))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let activity = &self.0.activity;
        activity.end_request();
        if activity.is_idle() {
            let now = clock::now();
            activity.is_idle_since(now);
            self.0.place.is_idle(now);
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
    use crate::config::{Config, Flags};

    fn limits() -> Limits {
        let s = Duration::from_secs;
        Limits {
            bytes_per_second_min: 500,
            request_head_timeout: s(10),
            keep_alive_timeout: s(75),
            stall_timeout: s(30),
            ..Config::load(Flags::default()).unwrap().limits
        }
    }

    fn activity(http2: bool) -> Arc<Activity> {
        let activity = Activity::new(&limits(), Arc::default());
        activity.begin(http2);
        Arc::new(activity)
    }

    async fn advance(seconds: u64) {
        tokio::time::advance(Duration::from_secs(seconds)).await;
    }

    struct Request(Arc<Activity>);

    impl Request {
        fn of(activity: &Arc<Activity>) -> Self {
            activity.begin_request();
            Self(Arc::clone(activity))
        }
    }

    impl Drop for Request {
        fn drop(&mut self) {
            self.0.end_request();
            self.0.is_idle_since(Instant::now());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn deadlines_follow_what_the_connection_does() {
        for http2 in [false, true] {
            let (activity, start) = (activity(http2), Instant::now());
            let after = || activity.deadline(&limits()).map(|(at, why)| ((at - start).as_secs(), why));
            assert_eq!(after(), Some((10, Expired::FirstByte)));
            activity.has_read();
            // Heads of HTTP/2 are short, and hyper keeps them together.
            assert_eq!(after(), Some(if http2 { (75, Expired::KeepAlive) } else { (10, Expired::Head) }));
            let request = Request::of(&activity);
            activity.begin_waiting_for_app();
            assert_eq!(after(), None);
            advance(20).await;
            activity.end_waiting_for_app();
            assert_eq!(after(), (!http2).then_some((50, Expired::Stall)));
            advance(20).await;
            activity.has_written(100_000, false);
            assert_eq!(after(), Some((70, Expired::Stall)));
            activity.begin_waiting_for_app();
            assert_eq!(after(), Some((70, Expired::Stall)), "the app's turn is no excuse");
            activity.end_waiting_for_app();
            drop(request);
            assert_eq!(after(), Some((70, Expired::Stall)), "what is written is not yet read");
            advance(10).await;
            activity.has_written(100_000, true);
            assert_eq!(after(), Some((125, Expired::KeepAlive)));
            advance(10).await;
            activity.has_written(17, true);
            assert_eq!(after(), Some((125, Expired::KeepAlive)), "our pings keep nobody");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_trickles_is_as_slow_as_one_that_stands_still() {
        for http2 in [false, true] {
            let (activity, start) = (activity(http2), Instant::now());
            activity.has_read();
            let _request = Request::of(&activity);
            activity.cannot_write();
            for _ in 0..29 {
                advance(1).await;
                activity.has_written(1, false);
            }
            let (at, why) = activity.deadline(&limits()).unwrap();
            assert_eq!(((at - start).as_secs(), why), (30, Expired::Stall));
            activity.has_written(20_000, false);
            let (at, _) = activity.deadline(&limits()).unwrap();
            assert_eq!((at - start).as_secs(), 59, "enough for the grace anew");
        }
    }

    #[test]
    fn what_is_held_is_counted_once_and_given_back() {
        let worker = Arc::new(WorkerConnections::default());
        let held = || worker.held_bytes.load(Ordering::Relaxed);
        let [a, b] = [false, true].map(|http2| {
            let activity = Activity::new(&limits(), Arc::clone(&worker));
            activity.begin(http2);
            activity
        });
        a.hand_over(1_000);
        b.hand_over(500);
        a.has_written(300, false);
        assert_eq!((a.held_bytes(), held()), (700, 1_200));
        b.has_flushed();
        assert_eq!(held(), 1_200, "streams of HTTP/2 hold back what has no window");
        a.has_flushed();
        assert_eq!(held(), 500);
        a.has_written(10_000, true);
        drop(b);
        assert_eq!((a.held_bytes(), held()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_outlives_its_answer_is_no_head() {
        let activity = activity(false);
        let (answer, body) = (Request::of(&activity), Request::of(&activity));
        drop(answer);
        activity.has_read();
        assert!(!activity.head_has_begun() && !activity.is_idle());
        drop(body);
        activity.has_read();
        assert!(activity.head_has_begun());
    }

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_fires_at_the_deadline_of_the_moment() {
        let (activity, limits, start) = (activity(false), limits(), Instant::now());
        let mut watchdog = Watchdog::new(&activity, &limits);
        advance(5).await;
        activity.has_read();
        let expired = std::future::poll_fn(|cx| watchdog.poll(cx, &activity, &limits)).await;
        assert_eq!((expired, start.elapsed().as_secs()), (Expired::Head, 15));
    }
}
