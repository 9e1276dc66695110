//! Where words go: data on stdout, talk on stderr, and what each of them can show.
//!
//! What the words are is decided in `render` and `progress`.

use std::io::{self, IsTerminal, Write};

use crate::failure::{Failure, USAGE};
use crate::render::paint::Paint;
use crate::render::{annotation, problem};

/// Columns and rows of the terminal behind stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) columns: usize,
    pub(crate) rows: usize,
}

pub(crate) struct Output {
    data: Box<dyn Write>,
    talk: Box<dyn Write>,
    /// The reader of stdout has gone, as `head` does. Operations go on: their exit code still counts.
    data_closed: bool,
    pub(crate) data_paint: Paint,
    pub(crate) talk_paint: Paint,
    /// Stderr can be drawn over.
    pub(crate) live: bool,
    /// Failures are also written as annotations of a GitHub workflow.
    annotate: bool,
    /// Somebody sits there who can answer a question.
    pub(crate) asks: bool,
}

impl Output {
    pub(crate) fn of_process() -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let (stdout, stderr) = (io::stdout(), io::stderr());
        let paint = |is_terminal: bool| Paint::new(is_terminal && !dumb && !set("NO_COLOR"));
        Self {
            data_paint: paint(stdout.is_terminal()),
            talk_paint: paint(stderr.is_terminal()),
            live: stderr.is_terminal() && !dumb,
            asks: stderr.is_terminal() && io::stdin().is_terminal(),
            annotate: std::env::var_os("GITHUB_ACTIONS").is_some_and(|value| value == "true"),
            data: Box::new(stdout),
            talk: Box::new(stderr),
            data_closed: false,
        }
    }

    #[cfg(test)]
    pub(crate) fn to(data: impl Write + 'static, talk: impl Write + 'static) -> Self {
        Self {
            data: Box::new(data),
            talk: Box::new(talk),
            data_closed: false,
            data_paint: Paint::new(false),
            talk_paint: Paint::new(false),
            live: false,
            annotate: false,
            asks: false,
        }
    }

    /// Writes `text` to stdout at once; a reader that has gone is no failure.
    pub(crate) fn data(&mut self, text: &str) -> Result<(), Failure> {
        if self.data_closed {
            return Ok(());
        }
        match self.data.write_all(text.as_bytes()).and_then(|()| self.data.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.data_closed = true;
                Ok(())
            }
            written => written.map_err(Failure::Output),
        }
    }

    /// Whether nobody reads stdout any more.
    pub(crate) fn data_closed(&self) -> bool {
        self.data_closed
    }

    /// Writes to stderr. Where talk cannot be heard, the exit code must do.
    pub(crate) fn talk(&mut self, text: &str) {
        let _ = self.talk.write_all(text.as_bytes()).and_then(|()| self.talk.flush());
    }

    /// Asks on the terminal; anything but a yes is a no.
    pub(crate) fn confirm(&mut self, question: &str) -> bool {
        self.talk(&format!("{question} [y/N] "));
        let mut answer = String::new();
        if !io::stdin().read_line(&mut answer).is_ok_and(|bytes| bytes > 0) {
            // Nobody ended the line.
            self.talk("\n");
        }
        matches!(answer.trim().to_lowercase().as_str(), "y" | "yes")
    }

    /// Tells of a failure and returns the exit code.
    pub(crate) fn fail(&mut self, title: &str, failure: &Failure) -> u8 {
        let report = failure.report();
        self.talk(&problem::text(&report, self.talk_paint));
        if self.annotate {
            self.talk(&annotation::error(title, &report));
        }
        failure.exit_code()
    }

    /// Prints help or what is wrong with the command line, and returns the exit code.
    pub(crate) fn usage(&mut self, error: &clap::Error) -> u8 {
        // clap knows whether it goes to stdout or stderr, and whether colour is wanted there.
        let _ = error.print();
        if !error.use_stderr() {
            return 0;
        }
        if self.annotate {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            let message = first.strip_prefix("error: ").unwrap_or(first).to_owned();
            self.talk(&annotation::error(
                "agentctl",
                &crate::failure::Report { message, ..Default::default() },
            ));
        }
        USAGE
    }
}

/// The size of the terminal behind stderr; the oldest of them if it does not tell.
pub(crate) fn terminal_size() -> Size {
    match rustix::termios::tcgetwinsize(io::stderr()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
            Size { columns: size.ws_col.into(), rows: size.ws_row.into() }
        }
        _ => Size { columns: 80, rows: 24 },
    }
}
