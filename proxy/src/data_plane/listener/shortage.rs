//! What a listener does while the process has no descriptor to spare.
//!
//! A connection that cannot be accepted stays in the kernel's queue and wakes the listener for ever. So the
//! oldest idle connection is closed for it; and where none is idle, a descriptor kept for this is given up for
//! a moment, to take the connection and hang up: its client hears so at once and can try elsewhere.

use std::fs::File;
use std::io;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::data_plane::roster::Roster;
use crate::telemetry::connections::Refused;

/// For a connection that was told to go.
const ROOM_PAUSE: Duration = Duration::from_millis(5);
/// When nothing helps.
const PAUSE: Duration = Duration::from_millis(50);
const WARN_EVERY: Duration = Duration::from_secs(10);

pub(super) struct Shortage {
    /// A descriptor that can be given up.
    spare: Option<File>,
    /// Since the last connection was accepted.
    room_asked: bool,
    warned: Option<Instant>,
    unsaid: u64,
}

/// Whether the process, or the machine, is out of descriptors or of memory for them.
pub(super) fn is_one(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = error.raw_os_error();
    [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM]
        .iter()
        .any(|shortage| errno == Some(shortage.raw_os_error()))
}

fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

impl Shortage {
    pub(super) fn new() -> Self {
        Self { spare: spare(), room_asked: false, warned: None, unsaid: 0 }
    }

    pub(super) fn ends(&mut self) {
        self.room_asked = false;
        if self.spare.is_none() {
            self.spare = spare();
        }
    }

    /// Makes room for the next connection in the queue, or sends it away. Pauses unless it did either.
    pub(super) async fn relieve(&mut self, roster: &Roster, listener: &TcpListener, error: &io::Error) {
        self.warn(error);
        if !self.room_asked && roster.make_room() {
            self.room_asked = true;
            return tokio::time::sleep(ROOM_PAUSE).await;
        }
        self.room_asked = false;
        if self.spare.take().is_some()
            && let Some(Ok(turned_away)) = listener.accept().now_or_never()
        {
            roster.count_turned_away(Refused::Descriptors);
            drop(turned_away);
        }
        self.spare = spare();
        if self.spare.is_none() {
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Once in a while, with how often it happened meanwhile.
    fn warn(&mut self, error: &io::Error) {
        let now = Instant::now();
        if self.warned.is_some_and(|warned| now - warned < WARN_EVERY) {
            self.unsaid += 1;
            return;
        }
        tracing::warn!(
            %error,
            times = self.unsaid + 1,
            "cannot accept connections; idle ones are closed for new ones, raise LimitNOFILE"
        );
        (self.warned, self.unsaid) = (Some(now), 0);
    }
}
