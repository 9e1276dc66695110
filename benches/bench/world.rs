//! The core that is not measured: origin, log reader and, during a window, a load, all turned by one loop.

use std::time::{Duration, Instant};

use crate::failure::{Failure, Outcome};
use crate::log_reader::LogReader;
use crate::origin::Origin;
use crate::poll::{Owner, Poll, Ready};

/// Clients of a proxy.
pub(crate) trait Load {
    fn on_event(&mut self, poll: &Poll, index: usize) -> Outcome<()>;
    /// Answers that came whole and right.
    fn completed(&self) -> u64;
    /// Sends what is due now, and says how long it may sleep unless something happens.
    fn tick(&mut self, _: &Poll) -> Outcome<Duration> {
        Ok(Duration::ZERO)
    }
}

pub(crate) struct World {
    pub poll: Poll,
    pub origin: Origin,
    pub log: LogReader,
    ready: Ready,
}

/// Between two looks at a condition.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

impl World {
    pub(crate) fn new() -> Outcome<Self> {
        let poll = Poll::new()?;
        let origin = Origin::new(&poll)?;
        let log = LogReader::new(&poll)?;
        Ok(Self { poll, origin, log, ready: Ready::new() })
    }

    /// Serves whoever is ready, waiting at most `timeout` for the first.
    pub(crate) fn turn(&mut self, mut load: Option<&mut dyn Load>, timeout: Duration) -> Outcome<()> {
        self.poll.wait(&mut self.ready, timeout)?;
        for token in self.ready.take() {
            let index = token.index as usize;
            match token.owner {
                Owner::OriginListener => self.origin.accept(&self.poll, index)?,
                Owner::Origin => self.origin.on_event(&self.poll, index)?,
                Owner::LogListener => self.log.accept(&self.poll)?,
                Owner::Log => self.log.on_event(index),
                Owner::Load => {
                    if let Some(load) = &mut load {
                        load.on_event(&self.poll, index)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Lets a load run for `time`.
    pub(crate) fn run(&mut self, load: &mut dyn Load, time: Duration) -> Outcome<()> {
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            let timeout = load.tick(&self.poll)?.min(left);
            self.turn(Some(&mut *load), timeout)?;
        }
    }

    /// Only origin and log: while the proxies are idle.
    pub(crate) fn serve(&mut self, time: Duration) -> Outcome<()> {
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.turn(None, left)?;
        }
    }

    /// Lets a load run until it has `completed` answers.
    pub(crate) fn run_until(
        &mut self,
        load: &mut dyn Load,
        completed: u64,
        patience: Duration,
    ) -> Outcome<()> {
        let deadline = Instant::now() + patience;
        while load.completed() < completed {
            if Instant::now() > deadline {
                let came = load.completed();
                return Err(Failure::new(format!(
                    "only {came} of {completed} answers came within {patience:?}"
                )));
            }
            self.turn(Some(&mut *load), LOOK_AGAIN)?;
        }
        Ok(())
    }

    /// Serves until `look` finds what it wants, or fails after `patience` with what was seen last.
    pub(crate) fn until<T>(
        &mut self,
        what: &str,
        patience: Duration,
        mut look: impl FnMut() -> Result<T, String>,
    ) -> Outcome<T> {
        let deadline = Instant::now() + patience;
        loop {
            match look() {
                Ok(found) => return Ok(found),
                Err(seen) if Instant::now() > deadline => {
                    return Err(Failure::new(format!("{what}: not within {patience:?}; at last: {seen}")));
                }
                Err(_) => self.serve(LOOK_AGAIN)?,
            }
        }
    }
}
