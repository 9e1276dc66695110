//! The end of a release that has lost its traffic: those in flight finish, sockets close one by one, and
//! what is left at the deadline is cut.

use std::sync::Arc;
use std::time::Duration;

use model::cutover::drain_plan;
use model::protocol::Event;
use model::service::Timeouts;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::report::Reporter;
use crate::release::{InFlightCount, Release};

const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// How long those that were cut may take to notice.
const CUT_TIMEOUT: Duration = Duration::from_secs(2);

/// Drains each of `releases`, which are closed, in tasks of `tasks`: they end by themselves, whether the
/// handles are awaited or not. `stop` ends the waiting, not those in flight.
pub fn start(
    tasks: &TaskTracker,
    releases: Vec<Arc<Release>>,
    timeouts: &Timeouts,
    reporter: &Reporter,
    stop: &CancellationToken,
) -> Drains {
    let drain = |release| {
        let (timeouts, reporter, stop) = (timeouts.clone(), reporter.clone(), stop.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = drain(release, &timeouts, &reporter) => {}
            }
        })
    };
    let handles = releases.iter().cloned().map(drain).collect();
    Drains { handles, cutter: Cutter(releases) }
}

pub struct Drains {
    handles: Vec<JoinHandle<()>>,
    cutter: Cutter,
}

/// Ends what is still in flight.
pub struct Cutter(Vec<Arc<Release>>);

impl Cutter {
    pub fn cut(&self) {
        self.0.iter().for_each(|release| release.cut());
    }
}

impl Drains {
    pub fn split(self) -> (Cutter, impl Future<Output = ()>) {
        let Self { handles, cutter } = self;
        (cutter, finished(handles))
    }

    pub async fn finished(self) {
        finished(self.handles).await;
    }
}

async fn finished(handles: Vec<JoinHandle<()>>) {
    for drain in handles {
        if let Err(error) = drain.await {
            tracing::error!(%error, "a drain ended early");
        }
    }
}

async fn drain(release: Arc<Release>, timeouts: &Timeouts, reporter: &Reporter) {
    let plan = drain_plan(timeouts, release.in_flight().sockets);
    let began = Instant::now();
    release.drain_sockets(plan.socket_window);
    let draining = async {
        let idle = release.idle();
        tokio::pin!(idle);
        let mut ticks = tokio::time::interval(REPORT_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = None;
        loop {
            tokio::select! {
                // First, so that a release with nothing in flight says nothing about draining.
                biased;
                () = &mut idle => return,
                _ = ticks.tick() => tell(&release, reporter, &mut told),
            }
        }
    };
    tokio::pin!(draining);
    if tokio::time::timeout_at(began + plan.deadline, &mut draining).await.is_err() {
        release.cut_requests();
        if tokio::time::timeout_at(began + plan.socket_deadline, draining).await.is_err() {
            release.cut();
            if tokio::time::timeout(CUT_TIMEOUT, release.idle()).await.is_err() {
                let left = release.in_flight().total();
                tracing::warn!(release = &*release.id, left, "some requests did not end when they were cut");
            }
        }
    }
    // The deployment has a clock of its own, and may have cut in the same moment.
    let cut = release.cut_short();
    reporter.tell(Event::Drained { release: release.id.to_string(), cut });
}

fn tell(release: &Release, reporter: &Reporter, told: &mut Option<InFlightCount>) {
    let count = release.in_flight();
    if *told != Some(count) {
        *told = Some(count);
        let InFlightCount { requests, sockets } = count;
        reporter.tell(Event::Draining { release: release.id.to_string(), requests, sockets });
    }
}
