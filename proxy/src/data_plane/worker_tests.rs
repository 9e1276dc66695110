//! A worker with a hand-made snapshot and real sockets on both sides.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::canary::Cohort;
use model::halt::HaltKind;
use model::name::PathPrefix;
use model::networks::Networks;
use model::route::RouteTable;
use model::service::{Policy, Timeouts};
use tokio_util::sync::CancellationToken;

use super::admission::Admission;
use super::buffering::room::Room;
use super::listener::{Listening, listen};
use super::worker::{self, Setup};
use crate::certificate_asks::CertificateAsks;
use crate::config::{Config, Flags, Listen};
use crate::halt::Halt;
use crate::release::{Endpoint, Release, Target};
use crate::snapshot::{LogFields, Published, Service, Slot, Snapshot};
use crate::telemetry::access_log::{self, Destination};
use crate::telemetry::metrics::{Metrics, TargetStats};

struct Proxy {
    address: SocketAddr,
    release: Arc<Release>,
    published: Published,
    shutdown: CancellationToken,
    thread: Option<std::thread::JoinHandle<std::io::Result<()>>>,
}

impl Proxy {
    fn to(target: SocketAddr) -> Self {
        Self::with_timeouts(target, Timeouts::default())
    }

    fn with_timeouts(target: SocketAddr, timeouts: Timeouts) -> Self {
        let release = release(target);
        let published = Published::default();
        publish(&published, &release, timeouts, None);

        let flags = Flags {
            http: Some(Listen::On(([127, 0, 0, 1], 0).into())),
            https: Some(Listen::Off),
            shutdown_timeout: Some(Duration::from_secs(20)),
            ..Flags::default()
        };
        let metrics = Metrics::new(1);
        let shutdown = CancellationToken::new();
        let (_, log) = access_log::open(&Destination::Off, Arc::clone(&metrics)).unwrap();
        let config = Arc::new(Config::load(flags).unwrap());
        let room = Room::new(config.buffers.clone(), Arc::clone(&metrics));
        let admission = Admission::new(&config.limits, 1, Arc::clone(&metrics));
        let setup = Setup {
            config,
            published: published.clone(),
            metrics,
            log,
            shutdown: shutdown.clone(),
            https_port: None,
            asks: CertificateAsks::new().0,
            admission,
            room,
        };
        let (address, mut sockets) = listen(([127, 0, 0, 1], 0).into(), 1).unwrap();
        let socket = Listening { socket: sockets.remove(0), tls: false, balancers: Networks::default() };
        let thread = Some(std::thread::spawn(move || worker::run(0, setup, vec![socket])));
        Self { address, release, published, shutdown, thread }
    }

    /// The client may have its answer before the worker has let go of the request.
    fn waits_until_idle(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.release.in_flight().total() > 0 {
            assert!(Instant::now() < deadline, "something is still counted as in flight");
            std::thread::yield_now();
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }
}

fn release(target: SocketAddr) -> Arc<Release> {
    let stats = Arc::new(TargetStats::new(1));
    Release::new("r1", vec![Target::new(&target.to_string(), Endpoint::Tcp(target), stats, 1)])
}

/// From now on `release` is the whole of the service `shop`.
fn publish(published: &Published, release: &Arc<Release>, timeouts: Timeouts, halt: Option<&Arc<Halt>>) {
    let targets = release.targets.clone();
    let service = Arc::new(Service {
        name: "shop".into(),
        policy: Policy { timeouts, ..Policy::default() },
        redirect_to_https: false,
        stable: Slot {
            cohort: Cohort::Stable,
            release: Arc::clone(release),
            targets,
            readers: Box::default(),
        },
        canary: None,
        halt: halt.cloned(),
        pages: None,
        log_fields: LogFields::default(),
    });
    let mut routes = RouteTable::default();
    assert!(routes.bind(&[], &[PathPrefix::root()], &service).is_ok());
    let services = [(Arc::clone(&service.name), service)].into();
    published.publish(Snapshot { generation: 1, routes, services, ..Snapshot::default() });
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shutdown.cancel();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap().unwrap();
        }
    }
}

/// A target that answers each connection's requests with what `answer` makes of the head.
fn target(answer: impl Fn(&str) -> Vec<u8> + Send + Clone + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let answer = answer.clone();
            std::thread::spawn(move || {
                let mut stream = stream.unwrap();
                while let Some(head) = read_head(&mut stream) {
                    stream.write_all(&answer(&head)).unwrap();
                }
            });
        }
    });
    address
}

fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    Some(String::from_utf8(head).unwrap())
}

fn read_answer(stream: &mut TcpStream, body_len: usize) -> (String, String) {
    let head = read_head(stream).expect("an answer");
    let mut body = vec![0; body_len];
    stream.read_exact(&mut body).unwrap();
    (head, String::from_utf8(body).unwrap())
}

#[test]
fn requests_reach_the_target_and_answers_the_client_on_one_connection() {
    let proxy = Proxy::to(target(|head| {
        let body = format!("saw {}", head.lines().next().unwrap());
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
    }));
    let mut client = proxy.connect();
    for n in 0..3 {
        write!(client, "GET /{n} HTTP/1.1\r\nHost: shop.test\r\n\r\n").unwrap();
        let (head, body) = read_answer(&mut client, 19);
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert_eq!(body, format!("saw GET /{n} HTTP/1.1"));
    }
    proxy.waits_until_idle();
}

#[test]
fn interim_responses_pass() {
    let proxy = Proxy::to(target(|_| {
        b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
            .to_vec()
    }));
    let mut client = proxy.connect();
    write!(client, "GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n").unwrap();
    let interim = read_head(&mut client).unwrap();
    assert!(interim.starts_with("HTTP/1.1 103 Early Hints\r\nlink: </a.css>"), "{interim}");
    let (head, body) = read_answer(&mut client, 2);
    assert!(head.starts_with("HTTP/1.1 200 OK") && body == "ok", "{head}");
}

#[test]
fn a_half_closed_client_gets_its_answer_and_a_bare_line_feed_is_refused() {
    let proxy = Proxy::to(target(|_| b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec()));
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n", "200"),
        ("GET / HTTP/1.1\nHost: shop.test\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: shop.test\r\nX: a\n\r\n", "400"),
    ] {
        let mut client = proxy.connect();
        client.write_all(request.as_bytes()).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request:?}: {answer}");
    }
}

#[test]
fn a_refused_target_is_a_502_with_its_reason() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let proxy = Proxy::to(closed);
    let mut client = proxy.connect();
    write!(client, "GET / HTTP/1.1\r\nHost: shop.test\r\nAccept: application/json\r\n\r\n").unwrap();
    let head = read_head(&mut client).unwrap();
    assert!(head.starts_with("HTTP/1.1 502"), "{head}");
    assert!(head.contains("x-portcullis-reason: connect_failed"), "{head}");
}

/// A listener that takes no connection, and those that fill its backlog.
fn unreachable_target() -> (SocketAddr, Vec<TcpStream>, socket2::Socket) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let mut waiting = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        waiting.push(stream);
    }
    (address, waiting, socket)
}

#[test]
fn a_request_that_finds_no_target_does_not_slip_into_a_pause() {
    let (address, _waiting, _socket) = unreachable_target();
    let timeouts = Timeouts { connect: Duration::from_millis(500), ..Timeouts::default() };
    let proxy = Proxy::with_timeouts(address, timeouts.clone());
    let mut client = proxy.connect();
    write!(client, "GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n").unwrap();
    until(|| proxy.release.in_flight().requests == 1);

    let halt = Halt::new(model::halt::Halt {
        kind: HaltKind::Paused { max_pause: Duration::from_secs(60), waiting_max: None },
        bypass: model::canary::Overrides::default(),
        actor: "ann".into(),
        since_ms: 0,
    });
    let next = release(target(|_| b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec()));
    publish(&proxy.published, &next, timeouts.clone(), Some(&halt));
    proxy.release.close();
    proxy.waits_until_idle();
    until(|| halt.waiting() == 1);
    assert_eq!(next.in_flight().total(), 0, "the app is left alone");

    publish(&proxy.published, &next, timeouts, None);
    halt.lift();
    let (head, body) = read_answer(&mut client, 2);
    assert!(head.starts_with("HTTP/1.1 200") && body == "ok", "{head}");
}

fn until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "it does not come true");
        std::thread::yield_now();
    }
}

#[test]
fn a_tunnel_carries_both_ways_and_ends_with_its_release() {
    let proxy = Proxy::to(target(|_| {
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x02hi"
            .to_vec()
    }));
    let mut client = proxy.connect();
    write!(
        client,
        "GET /cable HTTP/1.1\r\nHost: shop.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    )
    .unwrap();
    let head = read_head(&mut client).unwrap();
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    let mut frame = [0; 4];
    client.read_exact(&mut frame).unwrap();
    assert_eq!(&frame, b"\x81\x02hi");
    assert_eq!(proxy.release.in_flight().sockets, 1);
    proxy.release.close();
    proxy.release.drain_sockets(Duration::ZERO);
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, [0x88, 0x02, 0x03, 0xf4], "1012, then the end");
}

/// A target that reads the first `n` bytes of a connection, answers, and then only holds it.
fn silent_target(reads: usize, answer: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            stream.read_exact(&mut vec![0; reads]).unwrap();
            stream.write_all(answer).unwrap();
            held.push(stream);
        }
    });
    address
}

fn short() -> Timeouts {
    let short = Duration::from_millis(300);
    Timeouts { response_head: short, body_idle: short, ..Timeouts::default() }
}

#[test]
fn a_target_that_takes_a_body_and_says_nothing_is_a_504() {
    let proxy = Proxy::with_timeouts(silent_target(1, b""), short());
    for body in
        ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"]
    {
        let mut client = proxy.connect();
        write!(client, "POST / HTTP/1.1\r\nHost: shop.test\r\n{body}").unwrap();
        let head = read_head(&mut client).unwrap();
        assert!(head.starts_with("HTTP/1.1 504"), "{body:?}: {head}");
    }
    proxy.waits_until_idle();
}

#[test]
fn a_target_that_does_not_read_an_upload_does_not_hold_it_for_ever() {
    let proxy = Proxy::with_timeouts(silent_target(1, b""), short());
    let mut client = proxy.connect();
    let size = 64 << 20;
    write!(client, "POST / HTTP/1.1\r\nHost: shop.test\r\nContent-Length: {size}\r\n\r\n").unwrap();
    let mut sending = client.try_clone().unwrap();
    // It breaks off when the connection closes.
    let sender = std::thread::spawn(move || sending.write_all(&vec![7; size]));
    let head = read_head(&mut client).unwrap();
    assert!(head.starts_with("HTTP/1.1 504"), "{head}");
    drop(client);
    let _ = sender.join().unwrap();
    proxy.waits_until_idle();
}

#[test]
fn an_upload_that_outlives_its_answer_arrives_unchanged() {
    let (seen, received) = std::sync::mpsc::sync_channel(1);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        read_head(&mut stream).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
        let mut body = [0; 11];
        stream.read_exact(&mut body).unwrap();
        seen.send(body).unwrap();
    });
    let proxy = Proxy::to(address);
    let mut client = proxy.connect();
    write!(client, "POST / HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 11\r\n\r\nline").unwrap();
    read_answer(&mut client, 2);
    proxy.waits_until_idle();
    client.write_all(b"\nfeeds\n").unwrap();
    assert_eq!(&received.recv_timeout(Duration::from_secs(20)).unwrap(), b"line\nfeeds\n");
}

#[test]
fn a_target_that_answers_early_and_then_freezes_does_not_hold_the_upload_for_ever() {
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let proxy = Proxy::with_timeouts(silent_target(1, answer), short());
    let mut client = proxy.connect();
    let size = 64 << 20;
    write!(client, "POST / HTTP/1.1\r\nHost: shop.test\r\nContent-Length: {size}\r\n\r\n").unwrap();
    let mut sending = client.try_clone().unwrap();
    let sender = std::thread::spawn(move || sending.write_all(&vec![7; size]));
    let (head, body) = read_answer(&mut client, 2);
    assert!(head.starts_with("HTTP/1.1 200") && body == "ok", "{head}");
    // It breaks off when the upload is given up, and with it the connection.
    assert!(sender.join().unwrap().is_err());
}

#[test]
fn a_cut_counts_out_an_answer_whose_client_does_not_read() {
    let answer: &[u8] = Box::leak(
        [b"HTTP/1.1 200 OK\r\nContent-Length: 67108864\r\n\r\n", &[7; 1 << 20][..]].concat().into(),
    );
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        read_head(&mut stream).unwrap();
        // It ends when the proxy lets go.
        while stream.write_all(answer).is_ok() {}
    });
    let proxy = Proxy::to(address);
    let mut client = proxy.connect();
    write!(client, "GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n").unwrap();
    read_head(&mut client).unwrap();
    assert_eq!(proxy.release.in_flight().requests, 1);
    proxy.release.close();
    proxy.release.cut();
    proxy.waits_until_idle();
    drop(client);
}

#[test]
fn a_request_that_is_refused_before_its_chunks_are_read_ends_the_connection() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let proxy = Proxy::to(closed);
    let mut client = proxy.connect();
    let swallowed = "0\r\nX: y\n\nGET /next HTTP/1.1\r\nHost: shop.test\r\n\r\n";
    write!(client, "POST / HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n{swallowed}")
        .unwrap();
    let mut answers = String::new();
    client.read_to_string(&mut answers).unwrap();
    assert!(answers.starts_with("HTTP/1.1 502"), "{answers}");
    assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{answers}");
}

#[test]
fn the_client_of_an_event_stream_may_leave() {
    let head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n";
    let proxy = Proxy::to(silent_target(1, head));
    let mut client = proxy.connect();
    write!(client, "GET /events HTTP/1.1\r\nHost: shop.test\r\n\r\n").unwrap();
    read_head(&mut client).unwrap();
    assert_eq!(proxy.release.in_flight().sockets, 1);
    drop(client);
    proxy.waits_until_idle();
}

#[test]
fn a_body_that_an_old_target_breaks_off_looks_broken() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        read_head(&mut stream).unwrap();
        stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 10\r\n\r\nhello").unwrap();
    });
    let proxy = Proxy::to(address);
    let mut client = proxy.connect();
    write!(client, "GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n").unwrap();
    let (head, body) = read_answer(&mut client, 5);
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("content-length: 10"), "{head}");
    assert_eq!((body.as_str(), client.read(&mut [0; 1]).unwrap()), ("hello", 0));
}

#[test]
fn a_refused_upload_is_answered_before_the_connection_ends() {
    let proxy = Proxy::to(silent_target(1, b""));
    let mut client = proxy.connect();
    let size: u64 = (1 << 30) + 1;
    write!(client, "POST / HTTP/1.1\r\nHost: shop.test\r\nContent-Length: {size}\r\n\r\n").unwrap();
    client.write_all(&[7; 65_536]).unwrap();
    let head = read_head(&mut client).unwrap();
    assert!(head.starts_with("HTTP/1.1 413"), "{head}");
}
