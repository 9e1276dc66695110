//! A deployment: `planned → gating → warming → switching → draining → baking → committed | aborted | reverted`,
//! and the rules around it: what is refused before it begins, how the old release drains, when a bake fails.
//!
//! An event and `now` go in, a new phase and an action come out; the daemon's `control_plane` carries it out.
//! Traffic moves at one place only: the action `Switch`, and back by `Revert`.

use std::time::Duration;

pub use crate::protocol::DeploymentPhase as Phase;
use crate::service::Timeouts;

/// Fewer requests than this prove nothing.
const BAKE_REQUESTS_MIN: u64 = 20;
/// More gateway errors than one in five: reverted at once.
const BAKE_ERRORS_ONE_IN: u64 = 5;
/// Sockets are closed at least so far apart, on average: each comes back as a new connection.
const SOCKET_SPACING: Duration = Duration::from_millis(100);
/// Of the time for sockets: the part in which they are asked to close. The rest is for their farewells.
const SOCKET_SHARE: (u32, u32) = (19, 20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// How many must pass; at least one.
    pub targets: usize,
    /// A release serves already, drains after the switch, and is what a revert goes back to.
    pub replaces: bool,
    pub deploy_timeout: Duration,
    pub drain: Duration,
    /// Zero: none.
    pub bake: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Nothing forbids it.
    Accepted,
    /// The target has passed the gate.
    TargetOpen(usize),
    /// It had passed, and fails now.
    TargetFell(usize),
    /// Some target will not pass.
    GateClosed,
    /// The caller gave up.
    Cancelled,
    /// Every target has had its warm-up requests.
    Warmed,
    /// The new state is on disk and published.
    Switched,
    /// It could not be stored; the old one stands.
    SwitchFailed,
    /// Nothing is in flight on the old release any more.
    Drained,
    /// What the new release did since the switch.
    Traffic(Totals),
    /// Another operation wants the service.
    Superseded,
    /// Time has passed.
    Tick,
}

/// Since the switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    pub requests: u64,
    /// Answers that we had to make in place of the target (502, 504, cut off ones).
    pub gateway_errors: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Nothing,
    /// Probe every target.
    Gate,
    /// Send the warm-up requests.
    Warm,
    /// Store and publish the state in which the new release serves.
    Switch,
    /// Close the old release and let those in flight finish.
    Drain,
    /// The deadline: end what the old release still holds.
    CutOld,
    /// Watch the new release.
    Bake,
    /// Done: the old release is held.
    Commit,
    /// Done: nothing has changed; the new release is forgotten.
    Abort,
    /// Done: traffic goes back to the old release.
    Revert,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cutover {
    plan: Plan,
    phase: Phase,
    /// By target.
    open: Vec<bool>,
    /// Of the gate, then of the drain, then of the bake.
    deadline: Duration,
    bake_until: Duration,
    cut: bool,
}

impl Cutover {
    pub fn planned(plan: Plan) -> Self {
        Self {
            plan,
            phase: Phase::Planned,
            open: vec![false; plan.targets.max(1)],
            deadline: Duration::MAX,
            bake_until: Duration::MAX,
            cut: false,
        }
    }

    pub fn phase(&self) -> Phase {
        self.phase
    }

    pub fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Committed | Phase::Aborted | Phase::Reverted)
    }

    pub fn step(&mut self, event: Event, now: Duration) -> Action {
        match (self.phase, event) {
            (Phase::Planned, Event::Accepted) => {
                self.deadline = now.saturating_add(self.plan.deploy_timeout);
                self.go(Phase::Gating, Action::Gate)
            }
            (Phase::Planned | Phase::Gating | Phase::Warming, Event::GateClosed | Event::Cancelled) => {
                self.go(Phase::Aborted, Action::Abort)
            }
            (Phase::Gating | Phase::Warming, Event::Tick) if now >= self.deadline => {
                self.go(Phase::Aborted, Action::Abort)
            }
            (Phase::Gating | Phase::Warming, Event::TargetOpen(index)) => self.opened(index),
            (Phase::Gating | Phase::Warming, Event::TargetFell(index)) => {
                if let Some(open) = self.open.get_mut(index) {
                    *open = false;
                    self.phase = Phase::Gating;
                }
                Action::Nothing
            }
            (Phase::Warming, Event::Warmed) => self.go(Phase::Switching, Action::Switch),
            (Phase::Switching, Event::SwitchFailed) => self.go(Phase::Aborted, Action::Abort),
            (Phase::Switching, Event::Switched) => self.switched(now),
            (Phase::Draining | Phase::Baking, Event::Traffic(totals)) if bake_fails(totals) => {
                self.go(Phase::Reverted, Action::Revert)
            }
            // Whoever comes next finds the new release in place, and decides.
            (Phase::Draining | Phase::Baking, Event::Superseded) => self.go(Phase::Committed, Action::Commit),
            (Phase::Draining, Event::Drained) => self.drained(now),
            (Phase::Draining, Event::Tick | Event::Traffic(_)) if now >= self.deadline => {
                if std::mem::replace(&mut self.cut, true) { self.drained(now) } else { Action::CutOld }
            }
            (Phase::Baking, Event::Tick | Event::Traffic(_)) if now >= self.bake_until => {
                self.go(Phase::Committed, Action::Commit)
            }
            // A caller who gives up while the state is written or after it has changed is too late: from here
            // on only the bake takes it back.
            _ => Action::Nothing,
        }
    }

    fn go(&mut self, phase: Phase, action: Action) -> Action {
        self.phase = phase;
        action
    }

    fn opened(&mut self, index: usize) -> Action {
        if let Some(open) = self.open.get_mut(index) {
            *open = true;
        }
        let all = self.open.iter().all(|open| *open);
        if all && self.phase == Phase::Gating {
            self.go(Phase::Warming, Action::Warm)
        } else {
            Action::Nothing
        }
    }

    fn switched(&mut self, now: Duration) -> Action {
        self.deadline = now.saturating_add(self.plan.drain);
        self.bake_until = now.saturating_add(self.plan.bake);
        if self.plan.replaces {
            self.go(Phase::Draining, Action::Drain)
        } else {
            // Nothing drains, and there is nothing to go back to.
            self.go(Phase::Committed, Action::Commit)
        }
    }

    fn drained(&mut self, now: Duration) -> Action {
        if now >= self.bake_until {
            self.go(Phase::Committed, Action::Commit)
        } else {
            self.go(Phase::Baking, Action::Bake)
        }
    }
}

/// Whether the new release must be taken back at once.
pub fn bake_fails(totals: Totals) -> bool {
    totals.requests >= BAKE_REQUESTS_MIN
        && totals.gateway_errors.saturating_mul(BAKE_ERRORS_ONE_IN) > totals.requests
}

/// How a release that was replaced comes to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainPlan {
    /// Requests that are in flight after this are cut.
    pub deadline: Duration,
    /// WebSockets and event streams are closed one by one within this.
    pub socket_window: Duration,
    /// Whatever is left after this is cut. Never before `deadline`.
    pub socket_deadline: Duration,
}

impl DrainPlan {
    /// How long a drain may take at most, however many sockets there are.
    pub fn longest(timeouts: &Timeouts) -> Duration {
        drain_plan(timeouts, u64::MAX).socket_deadline
    }
}

/// A handful of sockets is closed at once, thousands are spread out: they all come back. With the default of a minute,
/// 1.8 % of them go in a second. A drain of no time at all leaves none for sockets either.
pub fn drain_plan(timeouts: &Timeouts, sockets: u64) -> DrainPlan {
    let (part, whole) = SOCKET_SHARE;
    let spread = SOCKET_SPACING.saturating_mul(u32::try_from(sockets).unwrap_or(u32::MAX));
    let socket_window = match timeouts.drain {
        Duration::ZERO => Duration::ZERO,
        _ => spread.min(timeouts.socket_drain / whole * part),
    };
    DrainPlan {
        deadline: timeouts.drain,
        socket_window,
        socket_deadline: timeouts.drain.max(socket_window / part * whole),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLAN: Plan = Plan {
        targets: 2,
        replaces: true,
        deploy_timeout: Duration::from_secs(60),
        drain: Duration::from_secs(30),
        bake: Duration::from_secs(60),
    };
    const BAD: Totals = Totals { requests: 100, gateway_errors: 21 };
    const LATE: Duration = Duration::from_secs(1_000);

    const PHASES: [Phase; 9] = [
        Phase::Planned,
        Phase::Gating,
        Phase::Warming,
        Phase::Switching,
        Phase::Draining,
        Phase::Baking,
        Phase::Committed,
        Phase::Aborted,
        Phase::Reverted,
    ];
    const EVENTS: [Event; 14] = [
        Event::Accepted,
        Event::TargetOpen(0),
        Event::TargetOpen(1),
        Event::TargetFell(1),
        Event::GateClosed,
        Event::Cancelled,
        Event::Warmed,
        Event::Switched,
        Event::SwitchFailed,
        Event::Drained,
        Event::Traffic(BAD),
        Event::Traffic(Totals { requests: 100, gateway_errors: 20 }),
        Event::Superseded,
        Event::Tick,
    ];

    /// As it stands after a straight way to `phase`.
    fn at(phase: Phase) -> Cutover {
        let mut cutover = Cutover::planned(PLAN);
        let way: &[Event] = match phase {
            Phase::Planned => &[],
            Phase::Gating => &[Event::Accepted, Event::TargetOpen(0)],
            Phase::Warming => &[Event::Accepted, Event::TargetOpen(0), Event::TargetOpen(1)],
            Phase::Aborted => &[Event::Cancelled],
            Phase::Switching | Phase::Draining | Phase::Baking | Phase::Committed | Phase::Reverted => {
                &[Event::Accepted, Event::TargetOpen(0), Event::TargetOpen(1), Event::Warmed]
            }
        };
        let rest: &[Event] = match phase {
            Phase::Draining => &[Event::Switched],
            Phase::Baking => &[Event::Switched, Event::Drained],
            Phase::Committed => &[Event::Switched, Event::Superseded],
            Phase::Reverted => &[Event::Switched, Event::Traffic(BAD)],
            _ => &[],
        };
        for event in way.iter().chain(rest) {
            cutover.step(*event, Duration::ZERO);
        }
        assert_eq!(cutover.phase(), phase);
        cutover
    }

    fn letter(phase: Phase) -> &'static str {
        match phase {
            Phase::Planned => "pl",
            Phase::Gating => "ga",
            Phase::Warming => "wa",
            Phase::Switching => "sw",
            Phase::Draining => "dr",
            Phase::Baking => "ba",
            Phase::Committed => "CC",
            Phase::Aborted => "AA",
            Phase::Reverted => "RR",
        }
    }

    /// Every phase × every event, in time and with all deadlines past.
    #[test]
    #[rustfmt::skip]
    fn every_phase_meets_every_event() {
        for (now, rows) in [
            //                   Acc O(0) O(1) F(1) Closed Canc Warm Sw SwF Drained Bad Good Sup Tick
            (Duration::ZERO, [
                /* planned   */ "ga pl pl pl AA AA pl pl pl pl pl pl pl pl",
                /* gating    */ "ga ga wa ga AA AA ga ga ga ga ga ga ga ga",
                /* warming   */ "wa wa wa ga AA AA sw wa wa wa wa wa wa wa",
                /* switching */ "sw sw sw sw sw sw sw dr AA sw sw sw sw sw",
                /* draining  */ "dr dr dr dr dr dr dr dr dr ba RR dr CC dr",
                /* baking    */ "ba ba ba ba ba ba ba ba ba ba RR ba CC ba",
                /* committed */ "CC CC CC CC CC CC CC CC CC CC CC CC CC CC",
                /* aborted   */ "AA AA AA AA AA AA AA AA AA AA AA AA AA AA",
                /* reverted  */ "RR RR RR RR RR RR RR RR RR RR RR RR RR RR",
            ]),
            (LATE, [
                /* planned   */ "ga pl pl pl AA AA pl pl pl pl pl pl pl pl",
                /* gating    */ "ga ga wa ga AA AA ga ga ga ga ga ga ga AA",
                /* warming   */ "wa wa wa ga AA AA sw wa wa wa wa wa wa AA",
                /* switching */ "sw sw sw sw sw sw sw dr AA sw sw sw sw sw",
                /* draining  */ "dr dr dr dr dr dr dr dr dr CC RR dr CC dr",
                /* baking    */ "ba ba ba ba ba ba ba ba ba ba RR CC CC CC",
                /* committed */ "CC CC CC CC CC CC CC CC CC CC CC CC CC CC",
                /* aborted   */ "AA AA AA AA AA AA AA AA AA AA AA AA AA AA",
                /* reverted  */ "RR RR RR RR RR RR RR RR RR RR RR RR RR RR",
            ]),
        ] {
            for (phase, row) in PHASES.iter().zip(rows) {
                let wants: Vec<&str> = row.split(' ').collect();
                assert_eq!(wants.len(), EVENTS.len());
                for (event, want) in EVENTS.iter().zip(wants) {
                    let mut cutover = at(*phase);
                    cutover.step(*event, now);
                    assert_eq!(letter(cutover.phase()), want, "{phase:?} × {event:?} at {now:?}");
                }
            }
        }
    }

    #[test]
    fn a_straight_deploy_in_actions() {
        let mut cutover = Cutover::planned(PLAN);
        let s = Duration::from_secs;
        for (event, now, want) in [
            (Event::Accepted, s(0), Action::Gate),
            (Event::TargetOpen(1), s(3), Action::Nothing),
            (Event::TargetOpen(0), s(4), Action::Warm),
            (Event::Warmed, s(5), Action::Switch),
            (Event::Switched, s(5), Action::Drain),
            (Event::Tick, s(34), Action::Nothing),
            (Event::Tick, s(35), Action::CutOld),
            (Event::Drained, s(35), Action::Bake),
            (Event::Traffic(Totals::default()), s(64), Action::Nothing),
            (Event::Tick, s(65), Action::Commit),
        ] {
            assert_eq!(cutover.step(event, now), want, "{event:?} at {now:?}");
        }
    }

    #[test]
    fn variants_end_early() {
        for (name, plan, events, want) in [
            ("first deploy", Plan { replaces: false, ..PLAN }, &[Event::Switched][..], Phase::Committed),
            (
                "no bake",
                Plan { bake: Duration::ZERO, ..PLAN },
                &[Event::Switched, Event::Drained],
                Phase::Committed,
            ),
            ("not stored", PLAN, &[Event::SwitchFailed], Phase::Aborted),
        ] {
            let mut cutover = Cutover::planned(plan);
            let way = [Event::Accepted, Event::TargetOpen(0), Event::TargetOpen(1), Event::Warmed];
            for event in way.iter().chain(events) {
                cutover.step(*event, Duration::ZERO);
            }
            assert_eq!(cutover.phase(), want, "{name}");
        }
    }

    #[test]
    fn bakes() {
        for (requests, gateway_errors, fails) in [
            (0, 0, false),
            (19, 19, false),
            (20, 4, false),
            (20, 5, true),
            (1_000, 200, false),
            (1_000, 201, true),
            (u64::MAX, u64::MAX, false),
        ] {
            assert_eq!(
                bake_fails(Totals { requests, gateway_errors }),
                fails,
                "{gateway_errors} of {requests}"
            );
        }
    }

    #[test]
    fn drains() {
        let s = Duration::from_secs;
        for (drain, socket_drain, sockets, window, socket_deadline) in [
            (s(30), s(60), 0, Duration::ZERO, s(30)),
            (s(30), s(60), 3, Duration::from_millis(300), s(30)),
            (s(30), s(60), 290, s(29), Duration::from_nanos(30_526_315_780)),
            (s(30), s(60), 100_000, s(57), s(60)),
            (s(90), s(60), 100_000, s(57), s(90)),
            (s(30), s(0), 100_000, s(0), s(30)),
            (s(0), s(60), 100_000, s(0), s(0)),
            (s(30), s(60), u64::MAX, s(57), s(60)),
            (Duration::MAX, Duration::MAX, 10, s(1), Duration::MAX),
        ] {
            let timeouts = Timeouts { drain, socket_drain, ..Timeouts::default() };
            let plan = drain_plan(&timeouts, sockets);
            let want = DrainPlan { deadline: drain, socket_window: window, socket_deadline };
            assert_eq!(plan, want, "{sockets} sockets");
            assert!(DrainPlan::longest(&timeouts) >= plan.socket_deadline, "{sockets} sockets");
        }
    }

    fn any_event() -> impl Strategy<Value = Event> {
        prop_oneof![
            proptest::sample::select(EVENTS.as_slice()),
            (0u64..60, 0u64..60).prop_map(|(requests, errors)| {
                Event::Traffic(Totals { requests, gateway_errors: errors.min(requests) })
            }),
            (0usize..3).prop_map(Event::TargetOpen),
        ]
    }

    proptest! {
        /// Two releases and the traffic between them, as the actions leave them.
        #[test]
        fn traffic_always_has_a_healthy_home(
            replaces in any::<bool>(),
            events in proptest::collection::vec((any_event(), 0u64..20), 0..80),
        ) {
            let mut cutover = Cutover::planned(Plan { replaces, ..PLAN });
            let (mut on_new, mut switches, mut old_retired, mut new_retired) = (false, 0, false, false);
            let mut open = [false; 2];
            let mut now = Duration::ZERO;
            for (event, seconds) in events {
                now += Duration::from_secs(seconds);
                let gated = matches!(cutover.phase(), Phase::Gating | Phase::Warming);
                match event {
                    Event::TargetOpen(index) if gated && index < 2 => open[index] = true,
                    Event::TargetFell(index) if gated && index < 2 => open[index] = false,
                    _ => {}
                }
                let before = cutover.clone();
                match cutover.step(event, now) {
                    Action::Switch => {
                        prop_assert!(open == [true; 2], "switched to targets that had not passed");
                        switches += 1;
                    }
                    // Only now does traffic move.
                    Action::Drain => on_new = true,
                    Action::Commit => (on_new, old_retired) = (true, !replaces),
                    Action::Abort => {
                        prop_assert!(!on_new, "aborted after the switch");
                        new_retired = true;
                    }
                    Action::Revert => {
                        prop_assert!(replaces, "nothing to go back to");
                        (on_new, new_retired) = (false, true);
                    }
                    _ => {}
                }
                prop_assert!(switches <= 1);
                prop_assert!(if on_new { !new_retired } else { !old_retired }, "traffic without a home");
                if before.is_over() { prop_assert_eq!(&before, &cutover) }
            }
        }

        #[test]
        fn each_deployment_ends(events in proptest::collection::vec((any_event(), 0u64..20), 0..40)) {
            let mut cutover = Cutover::planned(PLAN);
            cutover.step(Event::Accepted, Duration::ZERO);
            let mut now = Duration::ZERO;
            for (event, seconds) in events {
                now += Duration::from_secs(seconds);
                cutover.step(event, now);
            }
            // The store always answers; from then on time alone must do.
            if cutover.phase() == Phase::Switching {
                cutover.step(Event::Switched, now);
            }
            for _ in 0..4 {
                now += LATE;
                cutover.step(Event::Tick, now);
            }
            prop_assert!(cutover.is_over(), "{:?}", cutover);
        }
    }
}
