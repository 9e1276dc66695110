//! The control socket: one request per connection, answered by a JSON document or by lines of JSON.
//!
//! What the documents mean is `commands`' business.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use model::protocol::{Problem, SSH_CONNECTION_HEADER};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

/// Until the head of an answer. Operations answer when they begin, so none needs longer.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two bytes of lines: while nothing happens the agent sends a blank line every 10 s.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// A thousand services with their targets take about a tenth of it.
const DOCUMENT_BYTES_MAX: usize = 16 << 20;
const LINE_BYTES_MAX: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("cannot reach the agent: there is no control socket at `{path}`")]
    Missing { path: PathBuf },
    #[error("cannot reach the agent: nobody listens on its control socket `{path}`")]
    Refused { path: PathBuf },
    #[error("you may not use the agent's control socket `{path}`")]
    NoRights { path: PathBuf },
    #[error("cannot connect to the agent's control socket `{path}`")]
    Connect { path: PathBuf, source: io::Error },
    #[error("the agent did not answer within {} s", after.as_secs())]
    NoReply { after: Duration },
    #[error("the agent has said nothing for {} s, though it should every 10 s", after.as_secs())]
    Silent { after: Duration },
    #[error("the agent went away before it answered")]
    Lost { source: hyper::Error },
    #[error("the agent went away during the operation")]
    Cut { source: Option<Box<dyn std::error::Error + Send + Sync>> },
    #[error("the agent's answer is longer than {bytes_max} bytes")]
    TooLong { bytes_max: usize },
    #[error("cannot understand the agent's answer ({what})")]
    NotUnderstood { what: String, source: serde_json::Error },
    #[error("{}", .0.message)]
    Problem(Box<Problem>),
}

impl From<Problem> for ClientError {
    fn from(problem: Problem) -> Self {
        Self::Problem(Box::new(problem))
    }
}

/// A request of the control API.
pub(crate) struct Call {
    method: Method,
    path: String,
    body: Vec<u8>,
}

impl Call {
    pub(crate) fn get(path: impl Into<String>) -> Self {
        Self { method: Method::GET, path: path.into(), body: Vec::new() }
    }

    pub(crate) fn delete(path: impl Into<String>) -> Self {
        Self { method: Method::DELETE, path: path.into(), body: Vec::new() }
    }

    pub(crate) fn post(path: impl Into<String>) -> Self {
        Self { method: Method::POST, path: path.into(), body: Vec::new() }
    }

    pub(crate) fn with(mut self, body: &impl Serialize) -> Self {
        self.body = serde_json::to_vec(body).expect("wire shapes have text keys and cannot fail to print");
        self
    }
}

/// A document as the agent wrote it, and what it says.
pub(crate) struct Document<T> {
    pub(crate) text: String,
    pub(crate) value: T,
}

pub(crate) struct Client {
    socket: PathBuf,
    reply_timeout: Duration,
}

impl Client {
    pub(crate) fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), reply_timeout: REPLY_TIMEOUT }
    }

    /// Asks for one document.
    pub(crate) async fn document<T: DeserializeOwned>(&self, call: Call) -> Result<Document<T>, ClientError> {
        let reply = self.send(call).await?;
        // The driver of the connection must live until the body has been read.
        let Reply { response, driver } = reply;
        let bytes = timeout(self.reply_timeout, collect(response.into_body())).await;
        drop(driver);
        let bytes = bytes.map_err(|_| ClientError::NoReply { after: self.reply_timeout })??;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        match serde_json::from_str(&text) {
            Ok(value) => Ok(Document { text, value }),
            Err(source) => {
                Err(ClientError::NotUnderstood { what: "not the document asked for".into(), source })
            }
        }
    }

    /// Asks for lines, which come as things happen.
    pub(crate) async fn lines(&self, call: Call) -> Result<Lines, ClientError> {
        let Reply { response, driver } = self.send(call).await?;
        Ok(Lines {
            body: response.into_body(),
            pending: Vec::new(),
            scanned: 0,
            heard: Instant::now(),
            _driver: driver,
        })
    }

    async fn send(&self, call: Call) -> Result<Reply, ClientError> {
        let exchange = timeout(self.reply_timeout, self.exchange(call)).await;
        let reply = exchange.map_err(|_| ClientError::NoReply { after: self.reply_timeout })??;
        if reply.response.status().as_u16() < 400 {
            return Ok(reply);
        }
        let what = format!("HTTP status {}", reply.response.status());
        let bytes = timeout(self.reply_timeout, collect(reply.response.into_body())).await;
        let bytes = bytes.map_err(|_| ClientError::NoReply { after: self.reply_timeout })??;
        match serde_json::from_slice(&bytes) {
            Ok(problem) => Err(ClientError::Problem(problem)),
            Err(source) => Err(ClientError::NotUnderstood { what, source }),
        }
    }

    async fn exchange(&self, call: Call) -> Result<Reply, ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(error))?;
        let lost = |source| ClientError::Lost { source };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
        let mut driver = JoinSet::new();
        // How the connection ended is also told to whoever reads the response.
        driver.spawn(async move { drop(connection.await) });
        let mut request = Request::builder()
            .method(call.method)
            .uri(call.path)
            .header("host", "portcullis")
            .header("content-type", "application/json");
        if let Some(origin) = ssh_connection() {
            request = request.header(SSH_CONNECTION_HEADER, origin);
        }
        let request = request
            .body(Full::new(Bytes::from(call.body)))
            .expect("paths are made of valid names, and header values were checked");
        let response = sender.send_request(request).await.map_err(lost)?;
        Ok(Reply { response, driver })
    }

    fn unreachable(&self, source: io::Error) -> ClientError {
        let path = self.socket.clone();
        match source.kind() {
            io::ErrorKind::NotFound => ClientError::Missing { path },
            io::ErrorKind::ConnectionRefused => ClientError::Refused { path },
            io::ErrorKind::PermissionDenied => ClientError::NoRights { path },
            _ => ClientError::Connect { path, source },
        }
    }
}

/// Where the operator logged in from, for the audit log; the agent treats it as a claim.
fn ssh_connection() -> Option<String> {
    let sane = |text: &String| text.len() <= 200 && text.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
    std::env::var("SSH_CONNECTION").ok().filter(sane)
}

/// A response and the task that moves its bytes.
struct Reply {
    response: Response<Incoming>,
    driver: JoinSet<()>,
}

async fn collect(body: Incoming) -> Result<Bytes, ClientError> {
    match Limited::new(body, DOCUMENT_BYTES_MAX).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            Err(ClientError::TooLong { bytes_max: DOCUMENT_BYTES_MAX })
        }
        Err(error) => Err(ClientError::Cut { source: Some(error) }),
    }
}

/// An answer that comes line by line.
#[derive(Debug)]
pub(crate) struct Lines {
    body: Incoming,
    pending: Vec<u8>,
    /// Bytes of `pending` that are known to hold no line end.
    scanned: usize,
    /// When the last bytes came. Kept here because callers drop the future of `next` while they wait.
    heard: Instant,
    _driver: JoinSet<()>,
}

impl Lines {
    /// The next line that is not blank; `None` after the last. Cancel safe: a line half read stays pending.
    pub(crate) async fn next(&mut self) -> Result<Option<String>, ClientError> {
        loop {
            if let Some(line) = self.take_line() {
                if line.trim().is_empty() {
                    continue;
                }
                return Ok(Some(line));
            }
            if self.pending.len() > LINE_BYTES_MAX {
                return Err(ClientError::TooLong { bytes_max: LINE_BYTES_MAX });
            }
            let frame = timeout_at(self.heard + SILENCE_MAX, self.body.frame()).await;
            let frame = frame.map_err(|_| ClientError::Silent { after: SILENCE_MAX })?;
            self.heard = Instant::now();
            match frame {
                Some(Ok(frame)) => self.pending.extend_from_slice(frame.data_ref().map_or(&[], |data| data)),
                Some(Err(source)) => return Err(ClientError::Cut { source: Some(source.into()) }),
                None => return Ok(self.take_rest()),
            }
        }
    }

    fn take_line(&mut self) -> Option<String> {
        let Some(end) = self.pending[self.scanned..].iter().position(|b| *b == b'\n') else {
            self.scanned = self.pending.len();
            return None;
        };
        let rest = self.pending.split_off(self.scanned + end + 1);
        let mut line = std::mem::replace(&mut self.pending, rest);
        line.pop();
        self.scanned = 0;
        Some(String::from_utf8_lossy(&line).into_owned())
    }

    fn take_rest(&mut self) -> Option<String> {
        self.scanned = 0;
        let rest = String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned();
        (!rest.trim().is_empty()).then_some(rest)
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
