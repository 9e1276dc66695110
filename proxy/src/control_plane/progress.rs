//! Steps a deployment's state machine, `model::cutover`, and tells its phases to whoever watches.

use std::time::Duration;

use model::cutover::{Action, Cutover, Event, Plan};
use model::protocol::DeploymentPhase;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::bake::Bake;
use super::drain::Drains;
use super::operations::Claim;
use super::report::Reporter;
use super::switch::Settled;
use tokio_util::sync::CancellationToken;

const TICK: Duration = Duration::from_millis(100);
/// Ticks between two reports of a bake.
const TICKS_PER_REPORT: u32 = 10;

pub struct Progress<'o> {
    cutover: Cutover,
    bake: Duration,
    started: Instant,
    claim: &'o Claim,
    reporter: &'o Reporter,
}

impl<'o> Progress<'o> {
    pub fn new(plan: Plan, claim: &'o Claim, reporter: &'o Reporter) -> Self {
        let bake = plan.bake;
        Self { cutover: Cutover::planned(plan), bake, started: Instant::now(), claim, reporter }
    }

    pub fn step(&mut self, event: Event) -> Action {
        let before = self.cutover.phase();
        let action = self.cutover.step(event, self.started.elapsed());
        let phase = self.cutover.phase();
        if phase != before {
            self.claim.set_phase(phase);
            // That traffic goes back is told when it has: it may turn out that there is no way back.
            if phase != DeploymentPhase::Reverted {
                self.reporter.phase(phase);
            }
        }
        action
    }

    /// From the switch to the end: the old release drains and the new one bakes, both from now on.
    pub async fn settle(&mut self, drains: Drains, bake: &Bake, stop: &CancellationToken) -> Settled {
        let end = Instant::now() + self.bake;
        let mut ticks = every(TICK);
        let mut count = 0u32;
        let (cutter, finished) = drains.split();
        tokio::pin!(finished);
        let mut drained = false;
        let mut action = self.step(Event::Switched);
        loop {
            match action {
                Action::CutOld => cutter.cut(),
                Action::Revert => return Settled::Bad(bake.seen()),
                Action::Commit => break,
                _ => {}
            }
            // Each branch can be dropped: nothing of theirs is lost but a tick.
            let event = tokio::select! {
                biased;
                () = self.claim.give_way().cancelled() => {
                    self.step(Event::Superseded);
                    return Settled::GaveWay;
                }
                () = stop.cancelled() => return Settled::Stopping,
                () = &mut finished, if !drained => {
                    drained = true;
                    Event::Drained
                }
                _ = ticks.tick() => self.look(bake, end, &mut count),
            };
            action = self.step(event);
        }
        if !drained && stop.run_until_cancelled(finished).await.is_none() {
            return Settled::Stopping;
        }
        Settled::Calm
    }

    /// Without a bake, what the new release does is not looked at.
    fn look(&self, bake: &Bake, end: Instant, count: &mut u32) -> Event {
        if self.bake.is_zero() {
            return Event::Tick;
        }
        if count.is_multiple_of(TICKS_PER_REPORT) && self.cutover.phase() == DeploymentPhase::Baking {
            bake.report(end.saturating_duration_since(Instant::now()), self.reporter);
        }
        *count = count.wrapping_add(1);
        Event::Traffic(bake.seen())
    }
}

fn every(period: Duration) -> Interval {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
