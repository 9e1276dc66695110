//! One request, one answer, over whatever connects: TCP, TLS, a unix socket; HTTP/1.1 or HTTP/2.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::runtime::runtime;
use crate::tls;
use crate::wait::PATIENCE;

/// A request that has not been sent yet.
#[derive(Clone)]
pub struct Ask {
    host: String,
    path: String,
    method: Method,
    headers: Vec<(String, String)>,
    body: Bytes,
    version: Version,
    tls: bool,
    /// The name in the handshake, if it is not the host.
    server_name: Option<String>,
    from: Option<IpAddr>,
    preamble: Bytes,
    /// What HTTP/2 claims, if it is not the truth.
    scheme: Option<&'static str>,
}

/// A request under way, which can be given up.
pub struct Begun {
    request: JoinSet<Result<Answer, String>>,
    connection: JoinSet<()>,
}

impl Begun {
    /// Waits for the whole answer.
    pub fn finish(mut self) -> Result<Answer, String> {
        let answer = runtime().block_on(within(PATIENCE, async { Ok(self.request.join_next().await) }))?;
        answer.expect("there is one request").map_err(say)?
    }

    /// Gives the request up but not its connection: over HTTP/2 the stream is reset.
    pub fn reset(&mut self) {
        runtime().block_on(self.request.shutdown());
    }

    /// Leaves without a word.
    pub fn leave(mut self) {
        runtime().block_on(self.connection.shutdown());
    }
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub version: Version,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: HeaderMap,
}

impl Ask {
    pub fn get(host: &str, path: &str) -> Self {
        Self {
            host: host.to_owned(),
            path: path.to_owned(),
            method: Method::GET,
            headers: Vec::new(),
            body: Bytes::new(),
            version: Version::HTTP_11,
            tls: false,
            server_name: None,
            from: None,
            preamble: Bytes::new(),
            scheme: None,
        }
    }

    /// Over HTTP/2, with this `:scheme`.
    pub fn claiming(mut self, scheme: &'static str) -> Self {
        self.scheme = Some(scheme);
        self.h2()
    }

    /// From this address of loopback.
    pub fn from(mut self, address: IpAddr) -> Self {
        self.from = Some(address);
        self
    }

    /// Begins the connection with these bytes, before TLS.
    pub fn preceded_by(mut self, bytes: impl Into<Bytes>) -> Self {
        self.preamble = bytes.into();
        self
    }

    /// With a body that is no form: Rack would parse a form on its own.
    pub fn post(host: &str, path: &str, body: impl Into<Bytes>) -> Self {
        let headers = vec![("content-type".to_owned(), "application/octet-stream".to_owned())];
        Self { method: Method::POST, headers, body: body.into(), ..Self::get(host, path) }
    }

    pub fn method(mut self, method: &str) -> Self {
        self.method = method.parse().expect("a method");
        self
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// HTTP/2, by ALPN over TLS and by prior knowledge otherwise.
    pub fn h2(mut self) -> Self {
        self.version = Version::HTTP_2;
        self
    }

    /// Over TLS, whoever signed the certificate.
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Shakes hands for another name than it asks for.
    pub fn under(mut self, name: &str) -> Self {
        self.server_name = Some(name.to_owned());
        self
    }

    #[track_caller]
    pub fn at(&self, address: SocketAddr) -> Answer {
        self.try_at(address).unwrap_or_else(|why| panic!("{} {}{}: {why}", self.method, self.host, self.path))
    }

    pub fn try_at(&self, address: SocketAddr) -> Result<Answer, String> {
        runtime().block_on(within(PATIENCE, async {
            let mut tcp = self.connect(address).await.map_err(say)?;
            tcp.set_nodelay(true).map_err(say)?;
            tcp.write_all(&self.preamble).await.map_err(say)?;
            if self.tls {
                let h2 = self.version == Version::HTTP_2;
                let name = self.server_name.as_ref().unwrap_or(&self.host);
                let tls = tls::connect(tcp, name, if h2 { &["h2"] } else { &["http/1.1"] }).await?;
                self.over(tls).await
            } else {
                self.over(tcp).await
            }
        }))
    }

    async fn connect(&self, address: SocketAddr) -> std::io::Result<TcpStream> {
        let Some(from) = self.from else { return TcpStream::connect(address).await };
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.bind(SocketAddr::new(from, 0))?;
        socket.connect(address).await
    }

    /// Sends the request and returns at once.
    pub fn begin(&self, address: SocketAddr) -> Begun {
        runtime().block_on(async {
            let tcp = TcpStream::connect(address).await.expect("the listener accepts");
            tcp.set_nodelay(true).expect("a fresh socket takes options");
            if self.tls {
                let h2 = self.version == Version::HTTP_2;
                let tls = tls::connect(tcp, &self.host, if h2 { &["h2"] } else { &["http/1.1"] }).await;
                self.begin_over(tls.expect("a handshake")).await
            } else {
                self.begin_over(tcp).await
            }
        })
    }

    async fn begin_over<Io>(&self, io: Io) -> Begun
    where
        Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let io = TokioIo::new(io);
        let (mut request, mut driver) = (JoinSet::new(), JoinSet::new());
        let h2 = self.version == Version::HTTP_2;
        let asked = self.request(h2).expect("a request");
        // How a connection ends, its request tells.
        if h2 {
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.expect("HTTP/2");
            // The connection ends with its last sender, so the driver holds one too.
            let keep_open = sender.clone();
            driver.spawn(async move { drop((connection.await, keep_open)) });
            request.spawn(async move { collect(sender.send_request(asked).await.map_err(say)?).await });
        } else {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.expect("HTTP/1.1");
            driver.spawn(async move { drop(connection.await) });
            request.spawn(async move { collect(sender.send_request(asked).await.map_err(say)?).await });
        }
        Begun { request, connection: driver }
    }

    pub fn try_at_socket(&self, path: &Path) -> Result<Answer, String> {
        runtime().block_on(within(PATIENCE, async {
            self.over(UnixStream::connect(path).await.map_err(say)?).await
        }))
    }

    async fn over<Io>(&self, io: Io) -> Result<Answer, String>
    where
        Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let io = TokioIo::new(io);
        // The connection is driven beside the request and ends with it.
        if self.version == Version::HTTP_2 {
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.map_err(say)?;
            let answer =
                async { collect(sender.send_request(self.request(true)?).await.map_err(say)?).await };
            tokio::select! { answer = answer => answer, Err(error) = connection => Err(say(error)) }
        } else {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.map_err(say)?;
            let answer =
                async { collect(sender.send_request(self.request(false)?).await.map_err(say)?).await };
            tokio::pin!(answer);
            tokio::select! {
                answer = &mut answer => answer,
                // Over after its last answer is fine: the answer is then in the other branch's hands.
                ended = connection => match ended {
                    Ok(()) => answer.await,
                    Err(error) => Err(say(error)),
                },
            }
        }
    }

    fn request(&self, h2: bool) -> Result<Request<Full<Bytes>>, String> {
        let scheme = self.scheme.unwrap_or(if self.tls { "https" } else { "http" });
        let mut request = Request::builder().method(self.method.clone());
        request = if h2 {
            request.uri(format!("{scheme}://{}{}", self.host, self.path))
        } else {
            request.uri(&self.path).header("host", &self.host)
        };
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        request.body(Full::new(self.body.clone())).map_err(say)
    }
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("not JSON: {error}\n{self}"))
    }

    /// The header's value, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {} {:#?}\n{}", self.version, self.status, self.headers, self.text())
    }
}

pub(crate) async fn collect(response: http::Response<hyper::body::Incoming>) -> Result<Answer, String> {
    let (head, body) = response.into_parts();
    let collected = body.collect().await.map_err(|error| format!("the body broke off: {}", say(error)))?;
    let trailers = collected.trailers().cloned().unwrap_or_default();
    let body = collected.to_bytes();
    Ok(Answer { status: head.status, version: head.version, headers: head.headers, body, trailers })
}

/// An error and what it came from, in one line.
pub(crate) fn say(error: impl std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line = format!("{line}: {cause}");
        source = cause.source();
    }
    line
}

async fn within<T>(limit: Duration, attempt: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    timeout(limit, attempt).await.unwrap_or_else(|_| Err(format!("no end within {limit:?}")))
}
