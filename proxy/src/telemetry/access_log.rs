//! One JSON line per request, off the hot path.
//!
//! A worker formats into a buffer of its own and hands whole buffers to one writer thread. When the writer
//! lags, buffers are dropped and counted: a full disk or a stuck pipe never holds a request.

use std::cell::RefCell;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use tokio::sync::Notify;

use crate::clock;
use crate::telemetry::metrics::Metrics;

/// A buffer is handed over when it is this long, or `FLUSH_AFTER` after its first line.
const BUFFER_BYTES: usize = 64 * 1024;
const FLUSH_AFTER: Duration = Duration::from_millis(100);
/// Buffers on their way to the writer: at most 8 MiB.
const QUEUE_BUFFERS: usize = 128;
const PATIENCE: Duration = Duration::from_secs(5);
/// Longer values are cut: a log line is for reading.
const VALUE_BYTES_MAX: usize = 2048;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    Off,
    Stdout,
    File(PathBuf),
}

#[derive(Debug, thiserror::Error)]
#[error("cannot open the access log {path}")]
pub struct OpenError {
    path: PathBuf,
    source: io::Error,
}

/// The writer thread; it ends when the last `Sink` is dropped and everything is written.
pub struct Writer {
    /// Disconnected when the thread has ended.
    done: Option<Receiver<()>>,
}

/// What a worker writes through.
#[derive(Clone)]
pub struct Sink {
    queue: Option<SyncSender<Vec<u8>>>,
    metrics: Arc<Metrics>,
}

/// Opens `destination` and starts the writer thread.
pub fn open(destination: &Destination, metrics: Arc<Metrics>) -> Result<(Writer, Sink), OpenError> {
    let output: Box<dyn Write + Send> = match destination {
        Destination::Off => return Ok((Writer { done: None }, Sink { queue: None, metrics })),
        Destination::Stdout => Box::new(io::stdout()),
        Destination::File(path) => Box::new(open_file(path)?),
    };
    let (queue, buffers) = sync_channel(QUEUE_BUFFERS);
    let counted = Arc::clone(&metrics);
    let (ending, done) = sync_channel(0);
    std::thread::Builder::new()
        .name("access-log".to_owned())
        .spawn(move || {
            write_all(output, &buffers, &counted);
            drop(ending);
        })
        .map_err(|source| OpenError { path: "(thread)".into(), source })?;
    Ok((Writer { done: Some(done) }, Sink { queue: Some(queue), metrics }))
}

fn open_file(path: &Path) -> Result<std::fs::File, OpenError> {
    let opened = OpenOptions::new().append(true).create(true).open(path);
    opened.map_err(|source| OpenError { path: path.to_owned(), source })
}

impl Writer {
    /// Waits until everything that was handed over is written, but no longer than `PATIENCE`: a pipe that
    /// nobody reads must not hold the process.
    pub fn finish(self) {
        if let Some(done) = self.done {
            // Both errors mean that waiting is over.
            let _ = done.recv_timeout(PATIENCE);
        }
    }
}

fn write_all(mut output: Box<dyn Write + Send>, buffers: &Receiver<Vec<u8>>, metrics: &Metrics) {
    for buffer in buffers {
        // A full disk must not end the log: later lines may fit again.
        if output.write_all(&buffer).and_then(|()| output.flush()).is_err() {
            count_dropped(metrics, &buffer);
        }
    }
}

fn count_dropped(metrics: &Metrics, buffer: &[u8]) {
    let lines = memchr::memchr_iter(b'\n', buffer).count() as u64;
    metrics.process().access_log_dropped.fetch_add(lines, Ordering::Relaxed);
}

/// One worker's end of the log.
#[derive(Clone)]
pub struct AccessLog(Rc<Buffer>);

struct Buffer {
    sink: Sink,
    lines: RefCell<Vec<u8>>,
    first_line: Notify,
    clock: RefCell<Clock>,
}

impl AccessLog {
    pub fn new(sink: Sink) -> Self {
        let lines =
            RefCell::new(Vec::with_capacity(if sink.queue.is_some() { BUFFER_BYTES + 4096 } else { 0 }));
        Self(Rc::new(Buffer { sink, lines, first_line: Notify::new(), clock: RefCell::default() }))
    }

    pub fn is_off(&self) -> bool {
        self.0.sink.queue.is_none()
    }

    /// Appends one line; `write` adds the fields after `time`.
    pub fn line(&self, write: impl FnOnce(&mut Line<'_>)) {
        if self.is_off() {
            return;
        }
        let mut lines = self.0.lines.borrow_mut();
        if lines.is_empty() {
            self.0.first_line.notify_one();
        }
        lines.extend_from_slice(b"{\"time\":\"");
        self.0.clock.borrow_mut().write_now(&mut lines);
        lines.push(b'"');
        write(&mut Line(&mut lines));
        lines.extend_from_slice(b"}\n");
        if lines.len() >= BUFFER_BYTES {
            self.0.hand_over(&mut lines);
        }
    }

    /// Hands over whatever is buffered.
    pub fn flush(&self) {
        let mut lines = self.0.lines.borrow_mut();
        if !lines.is_empty() {
            self.0.hand_over(&mut lines);
        }
    }

    /// Runs for as long as the worker: no line waits much longer than `FLUSH_AFTER`.
    pub async fn flush_regularly(&self) {
        loop {
            self.0.first_line.notified().await;
            tokio::time::sleep(FLUSH_AFTER).await;
            self.flush();
        }
    }
}

impl Drop for Buffer {
    /// Requests that the shutdown cut off log their line last of all.
    fn drop(&mut self) {
        let mut lines = self.lines.take();
        if !lines.is_empty() {
            self.hand_over(&mut lines);
        }
    }
}

impl Buffer {
    fn hand_over(&self, lines: &mut Vec<u8>) {
        let Some(queue) = &self.sink.queue else { return };
        let full = std::mem::replace(lines, Vec::with_capacity(BUFFER_BYTES + 4096));
        if let Err(TrySendError::Full(buffer) | TrySendError::Disconnected(buffer)) = queue.try_send(full) {
            count_dropped(&self.sink.metrics, &buffer);
        }
    }
}

/// Formats the present time, the date only once a second.
#[derive(Default)]
struct Clock {
    second: u64,
    text: String,
}

impl Clock {
    fn write_now(&mut self, out: &mut Vec<u8>) {
        let now = clock::unix_time();
        if self.text.is_empty() || self.second != now.as_secs() {
            self.second = now.as_secs();
            let time =
                jiff::Timestamp::from_second(i64::try_from(self.second).unwrap_or(0)).unwrap_or_default();
            self.text = time.strftime("%Y-%m-%dT%H:%M:%S").to_string();
        }
        out.extend_from_slice(self.text.as_bytes());
        Line(out).thousandths(u64::from(now.subsec_millis()));
        out.push(b'Z');
    }
}

/// Adds fields to a line. Names are ours and need no escaping; values are anybody's.
pub struct Line<'b>(&'b mut Vec<u8>);

impl Line<'_> {
    #[inline(always)] // With the name known, it is a few stores.
    fn name(&mut self, name: &str) {
        self.0.extend_from_slice(b",\"");
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    #[inline(always)]
    pub fn text(&mut self, name: &str, value: &[u8]) {
        self.name(name);
        self.0.push(b'"');
        escape(self.0, value);
        self.0.push(b'"');
    }

    /// Several values as one text, with commas between them; none is an empty text.
    pub fn list<'v>(&mut self, name: &str, values: impl Iterator<Item = &'v [u8]>) {
        self.name(name);
        self.0.push(b'"');
        for (index, value) in values.enumerate() {
            if index > 0 {
                self.0.push(b',');
            }
            escape(self.0, value);
        }
        self.0.push(b'"');
    }

    pub fn number(&mut self, name: &str, value: u64) {
        self.name(name);
        self.digits(value);
    }

    fn digits(&mut self, value: u64) {
        self.0.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }

    pub fn millis(&mut self, name: &str, value: Duration) {
        self.name(name);
        let micros = value.as_micros() as u64;
        self.digits(micros / 1000);
        self.thousandths(micros % 1000);
    }

    /// `.007`
    fn thousandths(&mut self, value: u64) {
        let digit = |n: u64| b'0' + (n % 10) as u8;
        self.0.extend_from_slice(&[b'.', digit(value / 100), digit(value / 10), digit(value)]);
    }

    pub fn address(&mut self, name: &str, value: IpAddr) {
        self.name(name);
        let _ = write!(self.0, "\"{value}\"");
    }

    pub fn flag(&mut self, name: &str) {
        self.name(name);
        self.0.extend_from_slice(b"true");
    }
}

/// JSON text (RFC 8259 §7), ASCII only: terminals that show the log see no control or bidi characters.
fn escape(out: &mut Vec<u8>, value: &[u8]) {
    let value = &value[..value.len().min(VALUE_BYTES_MAX)];
    // Looks at all of them, because a loop that may stop early is not vectorised.
    let needs_escape = |b: &u8| !matches!(b, 0x20..=0x7e) || matches!(b, b'"' | b'\\');
    if !value.iter().fold(false, |found, b| found | needs_escape(b)) {
        return out.extend_from_slice(value);
    }
    for c in String::from_utf8_lossy(value).chars() {
        match c {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            ' '..='~' => out.push(c as u8),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_escaped() {
        for value in ["plain", "a\"b\\c", "line\nfeed\r\x1b[31m", "bidi\u{202e}", "emoji 🎉", "\0"] {
            let mut out = vec![b'"'];
            escape(&mut out, value.as_bytes());
            out.push(b'"');
            assert!(out.iter().all(|b| matches!(b, 0x20..=0x7e)), "{value:?}");
            assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), value);
        }
        let mut out = Vec::new();
        escape(&mut out, &[0xff, 0xfe]);
        assert_eq!(out, b"\\ufffd\\ufffd");
    }

    #[test]
    fn lines_are_json_and_reach_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        let (writer, sink) = open(&Destination::File(path.clone()), Metrics::new(1)).unwrap();
        let log = AccessLog::new(sink);
        for n in 0..1000 {
            log.line(|line| {
                line.number("n", n);
                line.text("path", b"/\"quoted\"");
                line.millis("duration_ms", Duration::from_micros(1_500));
                line.flag("retried");
            });
        }
        log.flush();
        drop(log);
        writer.finish();
        let text = std::fs::read_to_string(path).unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 1000);
        assert_eq!(lines[999]["n"], 999);
        assert_eq!(lines[0]["path"], "/\"quoted\"");
        assert_eq!(lines[0]["duration_ms"], 1.5);
        assert!(lines[0]["time"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
    }
}
