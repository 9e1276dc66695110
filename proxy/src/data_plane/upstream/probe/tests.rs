//! Every outcome, against small listeners that behave in that way.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::*;

const SOON: Duration = Duration::from_millis(200);
/// Far more than any of these needs.
const AMPLE: Duration = Duration::from_secs(30);

/// What a listener does with each connection.
#[derive(Clone, Copy)]
enum Way {
    /// Reads the request, writes this, closes.
    Answers(&'static str),
    /// Writes this at once, then waits.
    Greets(&'static str),
    /// Reads and never answers.
    Silent,
    Resets,
    /// Writes the first, then the second again and again.
    Endless(&'static str, &'static str),
    /// As `Endless`, with a pause between.
    Drips(&'static str, &'static str),
}

struct Server {
    endpoint: Endpoint,
    /// The heads of requests.
    heads: mpsc::Receiver<String>,
    _tasks: JoinSet<()>,
}

async fn server(way: Way) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Endpoint::Tcp(listener.local_addr().unwrap());
    let (sender, heads) = mpsc::channel(16);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(behave(stream, way, sender.clone()));
        }
    });
    Server { endpoint, heads, _tasks: tasks }
}

async fn behave(mut stream: TcpStream, way: Way, heads: mpsc::Sender<String>) {
    if let Way::Greets(text) = way {
        let _ = stream.write_all(text.as_bytes()).await;
    }
    if let Way::Resets = way {
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        return;
    }
    let mut head = vec![0; 4096];
    let read = stream.read(&mut head).await.unwrap_or(0);
    let _ = heads.try_send(String::from_utf8_lossy(&head[..read]).into_owned());
    match way {
        Way::Answers(text) => {
            let _ = stream.write_all(text.as_bytes()).await;
        }
        Way::Endless(head, chunk) | Way::Drips(head, chunk) => {
            let _ = stream.write_all(head.as_bytes()).await;
            while stream.write_all(chunk.as_bytes()).await.is_ok() {
                if let Way::Drips(..) = way {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
        _ => std::future::pending().await,
    }
}

async fn ask(endpoint: &Endpoint, timeout: Duration) -> ProbeOutcome {
    probe(endpoint, &GatePolicy::default(), "shop.test", timeout, Look::Closer).await
}

#[tokio::test]
async fn answers_and_what_is_none() {
    let drip = Way::Drips("HTTP/1.1 200 OK\r\n", "X-Slow: 1\r\n");
    let unknown = |text: &str| ProbeOutcome::NotHttp(Protocol::Unknown(text.to_owned()));
    for (way, timeout, want) in [
        (Way::Silent, SOON, ProbeOutcome::Timeout { after: SOON }),
        (drip, SOON, ProbeOutcome::Timeout { after: SOON }),
        (Way::Resets, AMPLE, ProbeOutcome::Reset),
        (Way::Answers(""), AMPLE, ProbeOutcome::Closed),
        (Way::Answers("HTTP/1.1 200"), AMPLE, ProbeOutcome::Closed),
        (Way::Answers("HTTP/1.1 banana\r\n\r\n"), AMPLE, unknown("HTTP/1.1 banana\r\n\r\n")),
        (Way::Answers("hello"), AMPLE, unknown("hello")),
        (Way::Greets("SSH-2.0-OpenSSH_9.2\r\n"), AMPLE, ProbeOutcome::NotHttp(Protocol::Named("SSH"))),
        (Way::Answers("-ERR unknown command"), AMPLE, ProbeOutcome::NotHttp(Protocol::Named("Redis"))),
        (Way::Answers("\u{15}\u{3}\u{3}\0\u{2}\u{2}F"), AMPLE, ProbeOutcome::Tls),
    ] {
        let server = server(way).await;
        assert_eq!(ask(&server.endpoint, timeout).await, want);
    }
}

#[tokio::test]
async fn answers_with_what_they_say() {
    for (text, status, location, body) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nup", 200, None, ""),
        ("HTTP/1.0 204 No Content\r\n\r\n", 204, None, ""),
        ("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", 200, None, ""),
        ("HTTP/1.1 404 Not Found\r\n\r\n<style>x</style>gone", 404, None, "gone"),
        ("HTTP/1.1 302 Found\r\nLocation: https://a.test/up\r\n\r\n", 302, Some("https://a.test/up"), ""),
        ("HTTP/1.1 500 Oh\r\nContent-Length: 99\r\n\r\nbroke off", 500, None, "broke off"),
        (
            "HTTP/1.1 400 Bad Request\r\n\r\nThe plain HTTP request was sent to HTTPS port",
            400,
            None,
            "The plain HTTP request was sent to HTTPS port",
        ),
    ] {
        let server = server(Way::Answers(text)).await;
        let ProbeOutcome::Answer(answer) = ask(&server.endpoint, AMPLE).await else { panic!("{text:?}") };
        let got = (answer.status, answer.location.as_deref(), answer.body_head.as_str());
        assert_eq!(got, (status, location, body), "{text:?}");
    }
}

/// None of these may hold a probe: the test would never end.
#[tokio::test]
async fn endless_bodies_are_cut() {
    for (way, status) in [
        (Way::Endless("HTTP/1.1 200 OK\r\n\r\n", "0123456789"), 200),
        (Way::Drips("HTTP/1.1 200 OK\r\n\r\n", "x"), 200),
        (Way::Endless("HTTP/1.1 500 Oh\r\n\r\n", "0123456789\n"), 500),
        (Way::Drips("HTTP/1.1 500 Oh\r\nContent-Length: 1000000000\r\n\r\n", "x"), 500),
    ] {
        let server = server(way).await;
        let ProbeOutcome::Answer(answer) = ask(&server.endpoint, AMPLE).await else { panic!("{status}") };
        assert_eq!(answer.status, status);
        assert_eq!(answer.body_head.is_empty(), status == 200);
        assert!(answer.body_head.len() <= probe::BODY_HEAD_BYTES_MAX);
    }
}

#[tokio::test]
async fn the_request_says_who_asks_and_for_whom() {
    let mut server = server(Way::Answers("HTTP/1.1 200 OK\r\n\r\n")).await;
    assert!(ask(&server.endpoint, AMPLE).await.passed());
    let head = server.heads.recv().await.unwrap().to_ascii_lowercase();
    let agent = AGENT.to_ascii_lowercase();
    for line in [
        "get /up http/1.1",
        "host: shop.test",
        "x-forwarded-proto: https",
        "x-forwarded-for: 127.0.0.1",
        &format!("user-agent: {agent}"),
        "connection: close",
        "accept: */*",
    ] {
        assert!(head.lines().any(|got| got == line), "{line:?} is not in {head:?}");
    }
}

#[tokio::test]
async fn nobody_there() {
    // Bound, so that no other test gets the port, but not listening.
    let closed = TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = closed.local_addr().unwrap();
    assert_eq!(ask(&Endpoint::Tcp(address), AMPLE).await, ProbeOutcome::Refused);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.sock");
    let endpoint = Endpoint::Unix(path.clone());
    assert_eq!(ask(&endpoint, AMPLE).await, ProbeOutcome::Refused);
    drop(UnixListener::bind(&path).unwrap());
    assert_eq!(ask(&endpoint, AMPLE).await, ProbeOutcome::Refused);
}

#[tokio::test]
async fn a_full_backlog_is_no_connection() {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let mut waiting = Vec::new();
    // The kernel takes a connection or two beyond the backlog.
    while let Ok(Ok(stream)) = tokio::time::timeout(SOON, TcpStream::connect(address)).await {
        waiting.push(stream);
    }
    assert_eq!(ask(&Endpoint::Tcp(address), SOON).await, ProbeOutcome::ConnectTimeout);
}

#[tokio::test]
async fn unix_sockets_and_another_port() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
    });
    assert!(ask(&Endpoint::Unix(path), AMPLE).await.passed());

    let server = server(Way::Answers("HTTP/1.1 200 OK\r\n\r\n")).await;
    let Endpoint::Tcp(address) = server.endpoint else { unreachable!() };
    let gate = GatePolicy { port: Some(address.port()), ..GatePolicy::default() };
    let elsewhere = Endpoint::Tcp(([127, 0, 0, 1], 1).into());
    assert!(probe(&elsewhere, &gate, "shop.test", AMPLE, Look::Quick).await.passed());
}

#[tokio::test]
async fn tls_on_the_port_is_told_apart() {
    let key = rcgen::generate_simple_self_signed(["shop.test".to_owned()]).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![key.cert.der().clone()], key.signing_key.serialize_der().try_into().unwrap())
        .unwrap();
    // To a plain request the first answers with an alert, the second closes, the third waits for more, as Puma.
    for way in ["alert", "close", "wait"] {
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config.clone()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Endpoint::Tcp(listener.local_addr().unwrap());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut waiting = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                let mut first = [0];
                stream.peek(&mut first).await.unwrap();
                match way {
                    _ if way == "alert" || first[0] == 0x16 => drop(acceptor.accept(stream).await),
                    "close" => {}
                    _ => waiting.push(stream),
                }
            }
        });
        assert_eq!(ask(&endpoint, AMPLE).await, ProbeOutcome::Tls, "{way}");
    }
}

#[tokio::test]
async fn http2_alone_is_told_apart() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Endpoint::Tcp(listener.local_addr().unwrap());
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let service = hyper::service::service_fn(|_| async {
                Ok::<_, std::convert::Infallible>(Response::new(Empty::<Bytes>::new()))
            });
            let server = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
            connections.spawn(async move {
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    assert_eq!(ask(&endpoint, AMPLE).await, ProbeOutcome::NotHttp(Protocol::Http2));
}

#[tokio::test]
async fn a_request_that_cannot_be_made_says_so() {
    let endpoint = Endpoint::Tcp(([127, 0, 0, 1], 1).into());
    let gate = GatePolicy { path: "/a b".into(), ..GatePolicy::default() };
    for (gate, host) in [(gate, "shop.test"), (GatePolicy::default(), "a\r\nb")] {
        let outcome = probe(&endpoint, &gate, host, AMPLE, Look::Closer).await;
        assert!(matches!(outcome, ProbeOutcome::Unreachable(_)), "{outcome:?}");
    }
}
