use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};

use super::*;

const OK: &str = "200 OK";

/// An app whose nth answer is the nth status, and then always the last.
struct App {
    target: (TargetAddress, Endpoint),
    asked: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

async fn app(statuses: &'static [&'static str]) -> App {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 2048]).await;
            let nth = count.fetch_add(1, Ordering::SeqCst);
            let status = statuses[nth.min(statuses.len() - 1)];
            let _ = stream.write_all(format!("HTTP/1.1 {status}\r\n\r\n").as_bytes()).await;
        }
    });
    App { target: target(address), asked, _tasks: tasks }
}

fn target(address: std::net::SocketAddr) -> (TargetAddress, Endpoint) {
    (TargetAddress::Ip(address.ip(), address.port()), Endpoint::Tcp(address))
}

/// A port on which nobody listens; nobody else can either, while the socket lives.
fn nobody() -> ((TargetAddress, Endpoint), TcpSocket) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    (target(socket.local_addr().unwrap()), socket)
}

fn policy(deploy_timeout: Duration) -> Policy {
    let gate = GatePolicy { deploy_timeout, interval: Duration::from_millis(20), ..GatePolicy::default() };
    Policy { gate, ..Policy::default() }
}

/// No test waits for this: what ends before it, ends for another reason.
const HOUR: Duration = Duration::from_secs(3600);

async fn gated(
    targets: &[(TargetAddress, Endpoint)],
    deploy_timeout: Duration,
) -> (Result<(), GateFailure>, Vec<Event>) {
    let (sender, mut receiver) = mpsc::channel(1000);
    let result = run(targets, &policy(deploy_timeout), &sender, &CancellationToken::new()).await;
    drop(sender);
    let mut events = Vec::new();
    while let Some(event) = receiver.recv().await {
        events.push(event);
    }
    (result, events)
}

fn diagnosis(result: Result<(), GateFailure>) -> Diagnosis {
    match result {
        Err(GateFailure::Closed(diagnosis)) => *diagnosis,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_gate_opens_after_rise_passes_of_every_target() {
    let apps = [app(&[OK]).await, app(&["503 Not Yet", "503 Not Yet", OK, "500 Oh", OK]).await];
    let targets = apps.each_ref().map(|app| app.target.clone());
    let (result, events) = gated(&targets, HOUR).await;
    result.unwrap();
    // A pass before a failure does not count.
    assert_eq!(apps[1].asked.load(Ordering::SeqCst), 6);
    let second = targets[1].0.to_string();
    let seen: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::Probed { target, state, passes, rise, .. } if *target == second => {
                Some((*state, *passes, *rise))
            }
            _ => None,
        })
        .collect();
    let probing = |passes| (State::Probing, passes, 2);
    assert_eq!(seen, [probing(0), probing(0), probing(1), probing(0), probing(1), (State::Ready, 2, 2)]);
}

#[tokio::test]
async fn the_gate_closes_at_the_deadline_and_says_why() {
    let (target, _socket) = nobody();
    let diagnosis = diagnosis(gated(&[target], Duration::from_millis(300)).await.0);
    assert_eq!((diagnosis.id, diagnosis.hopeless), ("refused", false));
    assert!(diagnosis.timeline[0].starts_with("connection refused"), "{:?}", diagnosis.timeline);
}

#[tokio::test]
async fn a_deadline_in_the_midst_of_a_boot_is_a_slow_boot() {
    let app = app(&["503 Not Yet"]).await;
    let diagnosis = diagnosis(gated(std::slice::from_ref(&app.target), Duration::from_millis(200)).await.0);
    assert_eq!(diagnosis.id, "slow_boot");
}

#[tokio::test]
async fn the_hopeless_do_not_wait_for_the_deadline() {
    let good = app(&[OK]).await;
    let rows: [(&[&str], &str); 3] = [
        (&["404 Not Found"], "not_found"),
        (&["301 Moved\r\nLocation: https://shop.test/login"], "redirect"),
        (&["403 Forbidden"], "blocked_host"),
    ];
    futures_util::future::join_all(rows.map(async |(status, id)| {
        let bad = app(status).await;
        let diagnosis = diagnosis(gated(&[good.target.clone(), bad.target.clone()], HOUR).await.0);
        assert_eq!((diagnosis.id, diagnosis.hopeless), (id, true), "{status:?}");
        assert_eq!(diagnosis.target, bad.target.0.to_string());
    }))
    .await;
}

#[tokio::test]
async fn a_web_server_in_front_of_an_app_that_boots_is_waited_for() {
    // At 20 ms apart these are more than half a second of a static page's 404.
    const BOOT: [&str; 31] = {
        let mut statuses = ["404 Not Found"; 31];
        statuses[30] = OK;
        statuses
    };
    let app = app(&BOOT).await;
    gated(std::slice::from_ref(&app.target), HOUR).await.0.unwrap();
}

#[tokio::test]
async fn one_that_falls_while_others_boot_must_pass_again() {
    let falls = app(&[OK, OK, "500 Oh", "500 Oh", "500 Oh", "404 Not Found"]).await;
    let (sender, _receiver) = mpsc::channel(1);
    let policy = policy(HOUR);
    let candidate = Candidate {
        index: 0,
        target: "t".into(),
        host: "h".into(),
        endpoint: falls.target.1.clone(),
        gate: policy.gate.clone(),
        started: Instant::now(),
        events: sender,
        reports: mpsc::channel(1).0,
    };
    let (mut health, mut timeline) = (Health::pending(Duration::ZERO), Timeline::default());
    health.step(health::Event::Started, Duration::ZERO, &policy.gate, true);
    let mut states = Vec::new();
    for _ in 0..5 {
        candidate.probe_once(&mut health, &mut timeline).await;
        states.push(health.state());
    }
    let (ready, probing) = (State::Ready, State::Probing);
    assert_eq!(states, [probing, ready, ready, ready, probing]);
}

#[tokio::test]
async fn giving_up_ends_the_gate() {
    let cancel = CancellationToken::new();
    let (sender, mut receiver) = mpsc::channel(1);
    let (target, _socket) = nobody();
    let targets = [target];
    let policy = policy(HOUR);
    let (result, _) = tokio::join!(run(&targets, &policy, &sender, &cancel), async {
        receiver.recv().await.unwrap();
        cancel.cancel();
    });
    assert!(matches!(result, Err(GateFailure::Cancelled)), "{result:?}");
}

#[tokio::test]
async fn nobody_listening_to_the_progress_does_not_hold_the_gate() {
    let app = app(&["503 Not Yet", "503 Not Yet", "503 Not Yet", OK]).await;
    let (sender, _receiver) = mpsc::channel(1);
    run(std::slice::from_ref(&app.target), &policy(HOUR), &sender, &CancellationToken::new()).await.unwrap();
}

#[test]
fn probes_ask_for_a_host_that_the_app_knows() {
    let target = "127.0.0.1:3000".parse().unwrap();
    let socket = "unix:/run/app.sock".parse().unwrap();
    for (host, hosts, target, want) in [
        (Some("up.test"), &["shop.test"][..], &target, "up.test"),
        (None, &["shop.test", "b.test"], &target, "shop.test"),
        (None, &["*.shop.test"], &target, "www.shop.test"),
        (None, &[], &target, "127.0.0.1:3000"),
        (None, &[], &socket, "localhost"),
    ] {
        let hosts = hosts.iter().map(|host| host.parse().unwrap()).collect();
        let gate = GatePolicy { host: host.map(|host| host.parse().unwrap()), ..GatePolicy::default() };
        assert_eq!(probe_host(&Policy { hosts, gate, ..Policy::default() }, target), want);
    }
}

#[test]
fn jitter_stays_within_a_tenth() {
    for _ in 0..1000 {
        let got = jittered(Duration::from_secs(10));
        assert!(got >= Duration::from_secs(9) && got <= Duration::from_secs(11), "{got:?}");
    }
}
