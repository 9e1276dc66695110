//! A WebSocket client that tells a proper close from a cut.

use std::net::SocketAddr;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http_body_util::Empty;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Error, Message, http};
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::runtime::runtime;
use crate::wait::PATIENCE;

pub struct Socket {
    stream: WebSocketStream<Box<dyn Stream>>,
    /// The answer's head: 101, or 200 over HTTP/2.
    pub response: http::Response<()>,
    /// Drives the HTTP/2 connection below the stream.
    _connection: JoinSet<()>,
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

const CABLE: [(&str, &str); 2] =
    [("sec-websocket-protocol", "actioncable-v1-json"), ("origin", "http://shop.test")];

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SocketEvent {
    Text(String),
    /// The close frame's code, if there was one.
    Closed(Option<u16>),
    /// The connection ended without a close.
    Cut(String),
}

impl Socket {
    /// Opens `path` on `host` with further request headers.
    pub fn open(
        address: SocketAddr,
        host: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Self, String> {
        let mut request = format!("ws://{host}{path}").into_client_request().map_err(|e| e.to_string())?;
        for (name, value) in headers {
            let name: http::HeaderName = name.parse().expect("a header name");
            request.headers_mut().append(name, value.parse().expect("a header value"));
        }
        runtime().block_on(async {
            let open = async {
                let tcp: Box<dyn Stream> =
                    Box::new(TcpStream::connect(address).await.map_err(|e| e.to_string())?);
                client_async(request, tcp).await.map_err(|error| match error {
                    Error::Http(response) => format!("answered {}", response.status()),
                    other => other.to_string(),
                })
            };
            let (stream, response) = timeout(PATIENCE, open).await.map_err(|_| "no answer".to_owned())??;
            Ok(Self { stream, response: response.map(|_| ()), _connection: JoinSet::new() })
        })
    }

    /// Opens `path` on a stream of HTTP/2 (RFC 8441).
    #[track_caller]
    pub fn open_over_http2(address: SocketAddr, host: &str, path: &str, headers: &[(&str, &str)]) -> Self {
        let url = |path: &str| format!("http://{host}{path}");
        let mut connect = http::Request::connect(url(path))
            .extension(hyper::ext::Protocol::from_static("websocket"))
            .header("sec-websocket-version", "13");
        for (name, value) in headers {
            connect = connect.header(*name, *value);
        }
        let connect = connect.body(Empty::<Bytes>::new()).expect("a request");
        let open = async {
            let tcp = TcpStream::connect(address).await.expect("the proxy listens");
            let (mut sender, connection) =
                http2::handshake(TokioExecutor::new(), TokioIo::new(tcp)).await.expect("HTTP/2");
            let mut driver = JoinSet::new();
            driver.spawn(async move {
                // Its end is seen on the stream.
                let _ = connection.await;
            });
            // The proxy's settings must have come before a client may connect.
            let first = http::Request::get(url("/up")).body(Empty::new()).expect("a request");
            sender.send_request(first).await.expect("an answer");
            let mut response = sender.send_request(connect).await.expect("an answer");
            assert_eq!(response.status(), 200, "{response:?}");
            let upgraded = hyper::upgrade::on(&mut response).await.expect("an upgrade");
            let stream: Box<dyn Stream> = Box::new(TokioIo::new(upgraded));
            let stream = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
            Self { stream, response: response.map(|_| ()), _connection: driver }
        };
        runtime().block_on(async { timeout(PATIENCE, open).await.expect("it opens in time") })
    }

    /// ActionCable's echo channel of `apps/rails.ru`, subscribed.
    #[track_caller]
    pub fn open_cable(address: SocketAddr, host: &str) -> Self {
        Self::open(address, host, "/cable", &CABLE).expect("the cable opens").subscribed()
    }

    #[track_caller]
    pub fn open_cable_over_http2(address: SocketAddr, host: &str) -> Self {
        Self::open_over_http2(address, host, "/cable", &CABLE).subscribed()
    }

    #[track_caller]
    fn subscribed(mut self) -> Self {
        self.wait_for("welcome");
        self.say(r#"{"command":"subscribe","identifier":"{\"channel\":\"EchoChannel\"}"}"#);
        self.wait_for("confirm_subscription");
        self
    }

    /// Says `text` on the cable and returns the release that echoed it.
    #[track_caller]
    pub fn cable_echo(&mut self, text: &str) -> String {
        let data = format!(r#"{{\"action\":\"say\",\"text\":\"{text}\"}}"#);
        self.say(&format!(
            r#"{{"command":"message","identifier":"{{\"channel\":\"EchoChannel\"}}","data":"{data}"}}"#
        ));
        let answer = self.wait_for(&format!("\"text\":\"{text}\""));
        let answer: serde_json::Value = serde_json::from_str(&answer).expect("ActionCable speaks JSON");
        answer["message"]["release"].as_str().expect("the echo names its release").to_owned()
    }

    #[track_caller]
    pub fn say(&mut self, text: &str) {
        let sent = runtime().block_on(self.stream.send(Message::text(text)));
        sent.unwrap_or_else(|error| panic!("cannot say {text:?}: {error}"));
    }

    /// The next text, close or cut; pings are answered and passed over.
    #[track_caller]
    pub fn next_event(&mut self) -> SocketEvent {
        runtime().block_on(async {
            loop {
                let next = timeout(PATIENCE, self.stream.next()).await.expect("something comes in time");
                match next {
                    Some(Ok(Message::Text(text))) => return SocketEvent::Text(text.to_string()),
                    Some(Ok(Message::Close(frame))) => {
                        return SocketEvent::Closed(frame.map(|frame| frame.code.into()));
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return SocketEvent::Cut(error.to_string()),
                    None => return SocketEvent::Cut("end of stream".to_owned()),
                }
            }
        })
    }

    /// Passes over everything before a text that contains `part`.
    #[track_caller]
    pub fn wait_for(&mut self, part: &str) -> String {
        loop {
            match self.next_event() {
                SocketEvent::Text(text) if text.contains(part) => return text,
                SocketEvent::Text(_) => {}
                other => panic!("waited for {part:?}, got {other:?}"),
            }
        }
    }

    /// Passes over texts until the socket ends.
    #[track_caller]
    pub fn wait_for_the_end(&mut self) -> SocketEvent {
        loop {
            match self.next_event() {
                SocketEvent::Text(_) => {}
                end => return end,
            }
        }
    }
}
