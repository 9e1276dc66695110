//! A unix socket that answers as it is told, in place of the daemon's transport. It knows no rule of ours.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::UnixListener;
use tokio::task::JoinSet;

/// What the agent says to every request.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    status: u16,
    chunks: VecDeque<Bytes>,
    /// The connection ends before the body does.
    cut: bool,
    /// The body never ends.
    silent: bool,
    /// What was given so far has been flushed, so that a cut does not take it along.
    flushed: bool,
}

impl Answer {
    pub(crate) fn new(status: u16, chunks: &[&str]) -> Self {
        let chunks = chunks.iter().map(|chunk| Bytes::copy_from_slice(chunk.as_bytes())).collect();
        Self { status, chunks, cut: false, silent: false, flushed: false }
    }

    pub(crate) fn then_cut(mut self) -> Self {
        self.cut = true;
        self
    }

    pub(crate) fn then_silence(mut self) -> Self {
        self.silent = true;
        self
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.silent && self.chunks.is_empty() {
            return Poll::Pending;
        }
        self.flushed = !self.flushed;
        if self.flushed {
            // hyper flushes when the body has nothing more for now.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(match self.chunks.pop_front() {
            Some(chunk) => Some(Ok(Frame::data(chunk))),
            None if self.cut => Some(Err(io::ErrorKind::BrokenPipe.into())),
            None => None,
        })
    }
}

/// `METHOD /path body` of every request.
pub(crate) type Seen = Arc<Mutex<Vec<String>>>;

pub(crate) struct TestAgent {
    pub(crate) socket: PathBuf,
    pub(crate) seen: Seen,
    _folder: tempfile::TempDir,
    _tasks: JoinSet<()>,
}

impl TestAgent {
    pub(crate) fn answering(answer: Answer) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("control.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let seen = Seen::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, answer, Arc::clone(&seen)));
        Self { socket, seen, _folder: folder, _tasks: tasks }
    }

    pub(crate) fn requests(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

async fn serve(listener: UnixListener, answer: Answer, seen: Seen) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (answer, seen) = (answer.clone(), Arc::clone(&seen));
        let service = service_fn(move |request| reply(request, answer.clone(), Arc::clone(&seen)));
        connections.spawn(async move {
            // A cut answer ends here as an error, as it should.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn reply(
    request: Request<Incoming>,
    answer: Answer,
    seen: Seen,
) -> Result<Response<Answer>, Infallible> {
    let head = format!("{} {}", request.method(), request.uri());
    let body = request.into_body().collect().await.unwrap().to_bytes();
    seen.lock().unwrap().push(format!("{head} {}", String::from_utf8_lossy(&body)).trim_end().to_owned());
    Ok(Response::builder().status(answer.status).body(answer).unwrap())
}
