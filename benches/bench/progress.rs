//! What goes on, on standard error: one line that changes on a terminal, nothing elsewhere but the rounds.

use std::io::{IsTerminal, Write, stderr};

pub(crate) struct Progress {
    is_live: bool,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self { is_live: stderr().is_terminal() }
    }

    /// Of passing interest.
    pub(crate) fn now(&self, text: &str) {
        if self.is_live {
            // A terminal that is gone is nobody's loss.
            let _ = write!(stderr(), "\r\x1b[K{text}").and_then(|()| stderr().flush());
        }
    }

    /// To be kept.
    pub(crate) fn say(&self, text: &str) {
        let start = if self.is_live { "\r\x1b[K" } else { "" };
        let _ = writeln!(stderr(), "{start}{text}");
    }
}
