//! epoll, and whose descriptor an event is about.
//!
//! Origin, log reader and load share one thread and one epoll, so that the core which is not measured spends its
//! time on requests rather than on switching between tasks.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::failure::{Outcome, Tried};

/// Who is meant, and which of their connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token {
    pub owner: Owner,
    pub index: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    OriginListener,
    Origin,
    LogListener,
    Log,
    Load,
}

const OWNERS: [Owner; 5] =
    [Owner::OriginListener, Owner::Origin, Owner::LogListener, Owner::Log, Owner::Load];

impl Token {
    pub(crate) fn new(owner: Owner, index: usize) -> Self {
        Self { owner, index: u32::try_from(index).expect("there are never so many connections") }
    }

    fn pack(self) -> EventData {
        EventData::new_u64((self.owner as u64) << 32 | u64::from(self.index))
    }

    fn unpack(data: EventData) -> Self {
        let packed = data.u64();
        Self { owner: OWNERS[(packed >> 32) as usize % OWNERS.len()], index: packed as u32 }
    }
}

/// When a socket wants something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interest {
    Read,
    Write,
    Both,
    /// Only its end.
    None,
}

pub(crate) struct Poll(OwnedFd);

impl Poll {
    pub(crate) fn new() -> Outcome<Self> {
        epoll::create(epoll::CreateFlags::CLOEXEC).map(Self).tried(|| "make an epoll".to_owned())
    }

    /// Tells `token` when there is something to read.
    pub(crate) fn add(&self, source: impl AsFd, token: Token) -> Outcome<()> {
        epoll::add(&self.0, source, token.pack(), EventFlags::IN).tried(|| "watch a socket".to_owned())
    }

    /// What the token is told from now on.
    pub(crate) fn interest(&self, source: impl AsFd, token: Token, interest: Interest) -> Outcome<()> {
        let flags = match interest {
            Interest::Read => EventFlags::IN,
            Interest::Write => EventFlags::OUT,
            Interest::Both => EventFlags::IN | EventFlags::OUT,
            Interest::None => EventFlags::empty(),
        };
        epoll::modify(&self.0, source, token.pack(), flags).tried(|| "watch a socket".to_owned())
    }

    /// Fills `ready`.
    pub(crate) fn wait(&self, ready: &mut Ready, timeout: Duration) -> Outcome<()> {
        ready.0.clear();
        let mut timeout = Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        if timeout.tv_sec == 0 && timeout.tv_nsec > 0 {
            // epoll counts in ms, and a load at a fixed rate must not be late by its own clock.
            let mut this = [PollFd::new(&self.0, PollFlags::IN)];
            retried(poll(&mut this, Some(&timeout)))?;
            timeout.tv_nsec = 0;
        }
        let events = rustix::buffer::spare_capacity(&mut ready.0);
        retried(epoll::wait(&self.0, events, Some(&timeout)))
    }
}

/// A signal that came meanwhile is no failure: whoever waits looks again.
fn retried(waited: rustix::io::Result<usize>) -> Outcome<()> {
    match waited {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error).tried(|| "wait for sockets".to_owned()),
    }
}

/// The tokens of sockets that want something.
pub(crate) struct Ready(Vec<Event>);

impl Ready {
    pub(crate) fn new() -> Self {
        Self(Vec::with_capacity(256))
    }

    pub(crate) fn take(&mut self) -> impl Iterator<Item = Token> + '_ {
        self.0.drain(..).map(|event| Token::unpack(event.data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_kernel() {
        for owner in OWNERS {
            for index in [0, 1, 70_000] {
                let token = Token::new(owner, index);
                assert_eq!(Token::unpack(token.pack()), token, "{token:?}");
            }
        }
    }
}
