use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use model::diagnosis::ProbeOutcome;
use model::health::State;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::*;

/// Answers 200 while it is well, else 500.
struct App {
    endpoint: Endpoint,
    well: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

async fn app(well: bool) -> App {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Endpoint::Tcp(listener.local_addr().unwrap());
    let well = Arc::new(AtomicBool::new(well));
    let asked = Arc::new(AtomicUsize::new(0));
    let (is_well, count) = (Arc::clone(&well), Arc::clone(&asked));
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 2048]).await;
            count.fetch_add(1, Ordering::SeqCst);
            let status = if is_well.load(Ordering::SeqCst) { "200 OK" } else { "500 Oh" };
            let _ = stream.write_all(format!("HTTP/1.1 {status}\r\n\r\n").as_bytes()).await;
        }
    });
    App { endpoint, well, asked, _tasks: tasks }
}

fn watched(id: u64, app: &App, role: Role) -> Watched {
    Watched {
        id,
        group: 1,
        dispensable: false,
        endpoint: app.endpoint.clone(),
        gate: GatePolicy::default(),
        probe_host: "shop.test".into(),
        role,
    }
}

/// The next change that `wanted` is true of.
async fn next(
    changes: &mut mpsc::Receiver<HealthChange>,
    wanted: impl Fn(&HealthChange) -> bool,
) -> HealthChange {
    loop {
        let change = changes.recv().await.expect("the monitor runs");
        if wanted(&change) {
            return change;
        }
    }
}

#[tokio::test]
async fn a_sick_target_is_ejected_and_the_last_one_never() {
    let (sender, mut changes) = mpsc::channel(16);
    let mut monitor = Monitor::new(sender);
    let (well, sick) = (app(true).await, app(false).await);
    monitor.watch(vec![watched(1, &well, Role::Serving), watched(2, &sick, Role::Serving)]);
    let readings = monitor.readings();
    // Believed in until probes say otherwise.
    assert_eq!(
        readings.get(1).unwrap(),
        Reading { state: State::Serving, eligible: true, fallen: false, last_probe: None }
    );
    let change = next(&mut changes, |change| change.state == State::Ejected).await;
    assert_eq!((change.target_id, change.eligible), (2, false));
    assert!(change.last_probe.starts_with("500 in "), "{}", change.last_probe);

    well.well.store(false, Ordering::SeqCst);
    let change = next(&mut changes, |change| change.target_id == 1).await;
    assert_eq!((change.state, change.eligible), (State::Suspect, true));
    // Well past `fall` failures it is still the one to try.
    well.asked_again(6).await;
    let reading = readings.get(1).unwrap();
    assert_eq!((reading.state, reading.eligible, reading.fallen), (State::Suspect, true, true));
    next(&mut changes, |change| change.target_id == 1 && change.fallen).await;
    well.well.store(true, Ordering::SeqCst);
    let change = next(&mut changes, |change| change.target_id == 1 && change.state == State::Serving).await;
    assert!(!change.fallen);
    monitor.stop().await;
}

impl App {
    /// Waits until it has been asked so many times more.
    async fn asked_again(&self, times: usize) {
        let wanted = self.asked.load(Ordering::SeqCst) + times;
        while self.asked.load(Ordering::SeqCst) < wanted {
            sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn nobody_waits_out_a_back_off_while_the_whole_slot_is_down() {
    let (sender, mut changes) = mpsc::channel(16);
    let mut monitor = Monitor::new(sender);
    let (first, second) = (app(false).await, app(true).await);
    monitor.watch(vec![watched(1, &first, Role::Serving), watched(2, &second, Role::Serving)]);
    next(&mut changes, |change| change.target_id == 1 && change.state == State::Ejected).await;
    // Its back-off has grown past what one probe shortens.
    let readings = monitor.readings();
    let known = watched(1, &first, Role::Serving);
    for _ in 0..4 {
        readings.record(&known, &ProbeOutcome::Refused);
    }
    // A changed policy lets the task look, fail, and wait for as long.
    let gate = GatePolicy { timeout: Duration::from_secs(3), ..GatePolicy::default() };
    monitor.watch(vec![Watched { gate, ..known.clone() }, watched(2, &second, Role::Serving)]);
    while !readings.get(1).unwrap().last_probe.unwrap().starts_with("500") {
        sleep(Duration::from_millis(10)).await;
    }
    assert!(readings.next_probe(&known).unwrap().0 > Duration::from_secs(30));
    first.well.store(true, Ordering::SeqCst);
    second.well.store(false, Ordering::SeqCst);
    let back = next(&mut changes, |change| change.target_id == 1 && change.state == State::Serving);
    tokio::time::timeout(Duration::from_secs(25), back).await.expect("long before its back-off ends");
    // With another one to try, it is ejected as any.
    next(&mut changes, |change| change.target_id == 2 && change.state == State::Ejected).await;
    monitor.stop().await;
}

#[tokio::test]
async fn the_set_may_change_at_any_time() {
    let (sender, mut changes) = mpsc::channel(16);
    let mut monitor = Monitor::new(sender);
    let (well, sick) = (app(true).await, app(false).await);
    monitor.watch(vec![watched(1, &well, Role::Serving), watched(2, &sick, Role::Held)]);
    monitor.watch(vec![watched(2, &sick, Role::Serving)]);
    assert_eq!(monitor.readings().get(1), None);
    let change = next(&mut changes, |change| change.target_id == 2).await;
    assert_eq!(change.state, State::Suspect);
    // The same process at another address, and well.
    monitor.watch(vec![Watched { endpoint: well.endpoint.clone(), ..watched(2, &sick, Role::Serving) }]);
    next(&mut changes, |change| change.target_id == 2 && change.state == State::Serving).await;
    monitor.watch(vec![watched(2, &well, Role::Held)]);
    assert_eq!(monitor.readings().get(2).unwrap().state, State::Held);
    monitor.watch(Vec::new());
    assert_eq!(monitor.readings().get(2), None);
    monitor.stop().await;
    assert!(changes.recv().await.is_none());
}

#[tokio::test]
async fn a_full_channel_and_a_gone_owner_do_no_harm() {
    let (sender, changes) = mpsc::channel(1);
    let mut monitor = Monitor::new(sender);
    let sick = app(false).await;
    monitor.watch((1..=5).map(|id| watched(id, &sick, Role::Serving)).collect());
    let readings = monitor.readings();
    while !(1..=5).all(|id| readings.get(id).is_some_and(|reading| reading.last_probe.is_some())) {
        sleep(Duration::from_millis(10)).await;
    }
    drop(changes);
    monitor.stop().await;
}
