//! A WebSocket client that tells a proper close from a cut.

use std::net::SocketAddr;

use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message, http};
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::runtime::runtime;
use crate::wait::PATIENCE;

pub struct Socket {
    stream: WebSocketStream<TcpStream>,
    /// The answer's head, `101`.
    pub response: http::Response<Option<Vec<u8>>>,
}

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
                let tcp = TcpStream::connect(address).await.map_err(|e| e.to_string())?;
                client_async(request, tcp).await.map_err(|error| match error {
                    Error::Http(response) => format!("answered {}", response.status()),
                    other => other.to_string(),
                })
            };
            let (stream, response) = timeout(PATIENCE, open).await.map_err(|_| "no answer".to_owned())??;
            Ok(Self { stream, response })
        })
    }

    /// ActionCable's echo channel of `apps/rails.ru`, subscribed.
    #[track_caller]
    pub fn open_cable(address: SocketAddr, host: &str) -> Self {
        let protocol = [("sec-websocket-protocol", "actioncable-v1-json"), ("origin", "http://shop.test")];
        let mut socket = Self::open(address, host, "/cable", &protocol).expect("the cable opens");
        socket.wait_for("welcome");
        socket.say(r#"{"command":"subscribe","identifier":"{\"channel\":\"EchoChannel\"}"}"#);
        socket.wait_for("confirm_subscription");
        socket
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
