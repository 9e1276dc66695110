//! Visitors of HTTP/1.1 who come at a fixed rate, whether or not those before them have been served.
//!
//! A request's latency counts from when it was due, not from when it could be sent: a proxy that stalls pays for
//! all who waited meanwhile ("coordinated omission" is to forget them).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::failure::{Failure, Outcome};
use crate::origin::Body;
use crate::poll::{Owner, Poll, Token};
use crate::response::ResponseReader;
use crate::transport::{Dial, Transport};
use crate::visitor::Visitor;
use crate::world::Load;

pub(crate) struct Paced {
    connections: Vec<Connection>,
    /// Of connections that wait for nothing; the one that has waited longest comes first.
    free: VecDeque<usize>,
    /// When the requests were due that no connection was free for.
    waiting: VecDeque<Instant>,
    rate: u32,
    /// `None` between two stretches.
    schedule: Option<Schedule>,
    asked: u64,
    latencies: Vec<Duration>,
    is_recording: bool,
    scratch: Vec<u8>,
    completed: u64,
}

struct Connection {
    transport: Transport,
    request: Vec<u8>,
    response: ResponseReader,
    /// Of the request under way.
    due: Option<Instant>,
    is_checked: bool,
}

/// Request `i` is due at `start + i / rate`: no error adds up.
struct Schedule {
    start: Instant,
    rate: u32,
    next: u64,
}

impl Schedule {
    fn next_due(&self) -> Instant {
        self.start + Duration::from_secs_f64(self.next as f64 / f64::from(self.rate))
    }

    fn take(&mut self, now: Instant) -> Option<Instant> {
        let due = self.next_due();
        (due <= now).then(|| {
            self.next += 1;
            due
        })
    }
}

const CONNECTIONS: usize = 64;
/// Before a request is due, and while one is under way, the load spins.
const WAKE_EARLY: Duration = Duration::from_micros(100);

impl Paced {
    /// Opens the connections; nothing is due yet.
    pub(crate) fn open(poll: &Poll, dial: &Dial, body: Body, rate: u32) -> Outcome<Self> {
        let open = |number| {
            Ok(Connection {
                transport: Transport::open(dial, poll, Token::new(Owner::Load, number))?,
                request: Visitor::new(number).http1(body, dial.tls.is_some(), false),
                response: ResponseReader::new(body.bytes()),
                due: None,
                is_checked: false,
            })
        };
        let mut load = Self {
            connections: (0..CONNECTIONS).map(open).collect::<Outcome<_>>()?,
            free: (0..CONNECTIONS).collect(),
            waiting: VecDeque::new(),
            rate,
            schedule: None,
            asked: 0,
            latencies: Vec::new(),
            is_recording: false,
            scratch: vec![0; 256 * 1024],
            completed: 0,
        };
        // Handshakes begin now, and not with the first request of each.
        load.connections.iter_mut().try_for_each(|connection| connection.transport.flush(poll))?;
        Ok(load)
    }

    /// From now on requests are due; their latencies are not kept yet.
    pub(crate) fn begin(&mut self) {
        self.schedule = Some(Schedule { start: Instant::now(), rate: self.rate, next: 0 });
        self.is_recording = false;
    }

    /// The warm-up is over.
    pub(crate) fn record(&mut self) {
        self.is_recording = true;
    }

    /// No more requests are due; how many answers there will be in the end.
    pub(crate) fn rest(&mut self) -> u64 {
        self.schedule = None;
        self.asked
    }

    /// In µs, sorted.
    pub(crate) fn latencies_us(&self) -> Vec<f64> {
        let all = self.latencies.iter().map(Duration::as_secs_f64);
        let mut all: Vec<f64> = all.map(|seconds| seconds * 1e6).collect();
        all.sort_by(f64::total_cmp);
        all
    }
}

impl Load for Paced {
    fn tick(&mut self, poll: &Poll) -> Outcome<Duration> {
        let now = Instant::now();
        while let Some(due) = self.schedule.as_mut().and_then(|schedule| schedule.take(now)) {
            self.asked += 1;
            self.waiting.push_back(due);
        }
        while !self.waiting.is_empty()
            && let Some(index) = self.free.pop_front()
        {
            let connection = &mut self.connections[index];
            connection.due = self.waiting.pop_front();
            connection.transport.send(poll, &connection.request)?;
        }
        // A sleep takes longer than it is told, and waking takes its time: that would be measured, too.
        let is_quiet = self.free.len() == self.connections.len();
        let until_due = match &self.schedule {
            Some(schedule) => schedule.next_due().saturating_duration_since(now),
            None => Duration::MAX,
        };
        Ok(if is_quiet { until_due.saturating_sub(WAKE_EARLY) } else { Duration::ZERO })
    }

    fn on_event(&mut self, poll: &Poll, index: usize) -> Outcome<()> {
        let connection = &mut self.connections[index];
        let response = &mut connection.response;
        let mut ended = 0;
        let is_open = connection.transport.receive(&mut self.scratch, |bytes| {
            ended += u64::from(response.feed(bytes)?);
            Ok(())
        })?;
        if !is_open {
            return Err(Failure::new("a proxy closed a connection"));
        }
        if ended > 0 {
            let due = connection.due.take().filter(|_| ended == 1);
            let due = due.ok_or_else(|| Failure::new("a proxy answered twice"))?;
            if !std::mem::replace(&mut connection.is_checked, true) {
                connection.transport.check_handshake(b"http/1.1")?;
            }
            if self.is_recording {
                self.latencies.push(due.elapsed());
            }
            self.completed += 1;
            self.free.push_back(index);
        }
        connection.transport.flush(poll)
    }

    fn completed(&self) -> u64 {
        self.completed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_left_out_however_late_the_look() {
        let start = Instant::now();
        let mut schedule = Schedule { start, rate: 1000, next: 0 };
        let ms = |ms| start + Duration::from_millis(ms);
        assert_eq!(schedule.take(start), Some(start));
        assert_eq!(schedule.take(start), None);
        // A look after a pause finds all that were due meanwhile, each with its own time.
        let found: Vec<_> = std::iter::from_fn(|| schedule.take(ms(3))).collect();
        assert_eq!(found, [ms(1), ms(2), ms(3)]);
    }
}
