//! The life of a target: `pending → booting → probing → warming → ready → serving → (suspect → ejected) →
//! draining → held → retired | failed`, and which targets of a slot may be tried.
//!
//! An event and `now` go in, a new state and an action come out. Who sends probes, and when exactly (jitter),
//! is the daemon's business; `now` is the time since any fixed moment.

use std::time::Duration;

pub use crate::protocol::TargetStateName as State;
use crate::service::GatePolicy;

/// One lucky pass must not open the gate: 400 ms until the next one counts, jitter of a tenth included.
const PASS_SPACING: Duration = Duration::from_millis(450);
const SUSPECT_INTERVAL: Duration = Duration::from_millis(250);
const BACK_OFF_MIN: Duration = Duration::from_secs(5);
const BACK_OFF_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Its process runs.
    Started,
    ProbePassed,
    /// Something listens, and the answer was none or a wrong one.
    ProbeFailed,
    /// Nothing listens.
    NotListening,
    /// The warm-up requests are done.
    Warmed,
    /// Traffic is led to it.
    Admitted,
    /// Its requests fail.
    Troubled,
    /// Traffic is led elsewhere.
    Replaced,
    /// Nothing is in flight on it any more; it is kept warm.
    Drained,
    /// It is no longer wanted. Heeded only where no traffic is.
    Retired,
    /// The gate's time is over, or waiting is hopeless.
    GaveUp,
}

/// What the doer has to do besides telling about the new state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Nothing,
    /// Send the warm-up requests, then say `Warmed`.
    Warm,
    /// The gate has opened for it.
    OpenGate,
    /// Requests may go to it (again).
    Admit,
    /// Requests must avoid it.
    Eject,
    /// No new requests; wait for those in flight.
    Drain,
    /// Forget it.
    Stop,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    state: State,
    since: Duration,
    /// In a row.
    passes: u32,
    /// In a row.
    failures: u32,
    /// Since it was pending; the probes of a boot slow down with it.
    probes: u32,
    passed_once: bool,
    /// It failed `fall` times in a row, and has not passed `rise` times in a row since.
    fallen: bool,
    /// Without a steady minute between them.
    ejections: u32,
    /// While ejected: not to be probed before.
    retry_at: Duration,
}

impl Health {
    /// Named by a deploy.
    pub fn pending(now: Duration) -> Self {
        Self {
            state: State::Pending,
            since: now,
            passes: 0,
            failures: 0,
            probes: 0,
            passed_once: false,
            fallen: false,
            ejections: 0,
            retry_at: now,
        }
    }

    /// Believed in until probes say otherwise: what served before a restart serves after it.
    pub fn serving(now: Duration) -> Self {
        Self { state: State::Serving, passed_once: true, ..Self::pending(now) }
    }

    pub fn held(now: Duration) -> Self {
        Self { state: State::Held, passed_once: true, ..Self::pending(now) }
    }

    pub fn state(&self) -> State {
        self.state
    }

    pub fn standing(&self) -> Standing {
        Standing { state: self.state, fallen: self.fallen || self.state == State::Ejected }
    }

    /// In a row.
    pub fn passes(&self) -> u32 {
        self.passes
    }

    /// Whether requests would do well here. A held target gets none, but may be wanted for a rollback.
    pub fn is_eligible(&self, gate: &GatePolicy) -> bool {
        is_eligible(self.state) || (self.state == State::Held && self.failures < gate.fall.max(1))
    }

    /// `alone`: no other target of its slot is eligible. Then it is never ejected, only suspect.
    pub fn step(&mut self, event: Event, now: Duration, gate: &GatePolicy, alone: bool) -> Action {
        self.count(event);
        let passed = self.passes >= gate.rise.max(1);
        let fallen = self.failures >= gate.fall.max(1);
        self.fallen = !passed && (fallen || self.fallen);
        let (next, action) = match (self.state, event) {
            (State::Pending, Event::Started) => (State::Booting, Action::Nothing),
            (State::Booting | State::Probing, Event::ProbePassed) if passed => (State::Warming, Action::Warm),
            (State::Booting, Event::ProbePassed | Event::ProbeFailed) => (State::Probing, Action::Nothing),
            // It must pass anew: what was seen before it fell is no longer true.
            (State::Warming | State::Ready, Event::ProbeFailed | Event::NotListening) if fallen => {
                (State::Probing, Action::Nothing)
            }
            (State::Warming, Event::Warmed) => (State::Ready, Action::OpenGate),
            (State::Ready | State::Draining | State::Held, Event::Admitted) => {
                (State::Serving, Action::Admit)
            }
            (State::Serving | State::Suspect, Event::ProbeFailed | Event::NotListening)
                if fallen && !alone =>
            {
                self.back_off(now);
                (State::Ejected, Action::Eject)
            }
            (State::Serving, Event::ProbeFailed | Event::NotListening | Event::Troubled) => {
                (State::Suspect, Action::Nothing)
            }
            (State::Serving, Event::ProbePassed) => {
                if now.saturating_sub(self.since) >= BACK_OFF_MAX {
                    self.ejections = 0;
                }
                (State::Serving, Action::Nothing)
            }
            (State::Suspect, Event::ProbePassed) if passed || !self.fallen => {
                (State::Serving, Action::Nothing)
            }
            (State::Ejected, Event::ProbePassed) if passed => (State::Serving, Action::Admit),
            (State::Ejected, Event::ProbeFailed | Event::NotListening) => {
                self.back_off(now);
                (State::Ejected, Action::Nothing)
            }
            (State::Serving | State::Suspect | State::Ejected, Event::Replaced) => {
                (State::Draining, Action::Drain)
            }
            (State::Draining, Event::Drained) => (State::Held, Action::Nothing),
            (
                State::Pending
                | State::Booting
                | State::Probing
                | State::Warming
                | State::Ready
                | State::Draining
                | State::Held,
                Event::Retired,
            ) => (State::Retired, Action::Stop),
            (
                State::Pending | State::Booting | State::Probing | State::Warming | State::Ready,
                Event::GaveUp,
            ) => (State::Failed, Action::Stop),
            (state, _) => (state, Action::Nothing),
        };
        self.enter(next, now);
        action
    }

    fn count(&mut self, event: Event) {
        match event {
            Event::ProbePassed => {
                self.passes = self.passes.saturating_add(1);
                self.failures = 0;
                self.passed_once = true;
            }
            Event::ProbeFailed | Event::NotListening => {
                self.failures = self.failures.saturating_add(1);
                self.passes = 0;
            }
            _ => return,
        }
        self.probes = self.probes.saturating_add(1);
    }

    fn enter(&mut self, next: State, now: Duration) {
        if next == self.state {
            return;
        }
        self.state = next;
        self.since = now;
        // What it did to get here must not count again towards what gets it out.
        if !matches!(next, State::Probing | State::Suspect) {
            (self.passes, self.failures, self.fallen) = (0, 0, false);
        }
    }

    fn back_off(&mut self, now: Duration) {
        let wait = BACK_OFF_MIN.saturating_mul(1 << self.ejections.min(8)).min(BACK_OFF_MAX);
        self.ejections = self.ejections.saturating_add(1);
        self.retry_at = now.saturating_add(wait);
    }

    /// How long after `now` the next probe is due; `None` where none is. Jitter is the doer's.
    pub fn next_probe_in(&self, now: Duration, gate: &GatePolicy) -> Option<Duration> {
        match self.state {
            State::Pending | State::Retired | State::Failed => None,
            State::Booting | State::Probing if self.passes > 0 => Some(PASS_SPACING.min(gate.interval)),
            State::Booting | State::Probing | State::Warming => Some(self.boot_interval(gate)),
            State::Ready | State::Serving | State::Draining => Some(GatePolicy::STEADY_INTERVAL),
            State::Suspect | State::Ejected if self.passes > 0 => Some(PASS_SPACING),
            State::Suspect => Some(SUSPECT_INTERVAL),
            State::Ejected => Some(self.retry_at.saturating_sub(now)),
            State::Held => Some(GatePolicy::HELD_INTERVAL),
        }
    }

    /// 250 ms, then half as much again each time, up to the gate's interval.
    fn boot_interval(&self, gate: &GatePolicy) -> Duration {
        let mut interval = GatePolicy::BOOT_INTERVAL;
        for _ in 1..self.probes {
            if interval >= gate.interval {
                break;
            }
            interval = interval * 3 / 2;
        }
        interval.min(gate.interval)
    }

    /// How long a probe may take: the first request of a Rails process loads much of it.
    pub fn probe_timeout(&self, gate: &GatePolicy) -> Duration {
        if self.passed_once { gate.timeout } else { gate.timeout.max(GatePolicy::FIRST_TIMEOUT) }
    }
}

fn is_eligible(state: State) -> bool {
    matches!(state, State::Serving | State::Suspect)
}

/// What counts of a target where its whole slot is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    pub state: State,
    /// It failed `fall` probes in a row. The last one of a slot is not ejected for that, only suspect.
    pub fallen: bool,
}

impl Standing {
    /// What is not known yet is believed to serve.
    pub const BELIEVED: Self = Self { state: State::Serving, fallen: false };

    fn is_well(self) -> bool {
        is_eligible(self.state) && !self.fallen
    }
}

/// Whether no target of the slot is known to be any good.
pub fn has_fallen(slot: &[Standing]) -> bool {
    !slot.iter().any(|one| one.is_well())
}

/// The targets of a slot that requests may try, as indices: those that are well, else all that are not over.
///
/// Never empty while there are targets: trying a sick one beats answering nobody. In a slot that has fallen
/// the ejected ones are tried too, because what they were ejected for may be over.
pub fn eligible(slot: &[Standing]) -> Vec<usize> {
    let those = |wanted: fn(Standing) -> bool| -> Vec<usize> {
        (0..slot.len()).filter(|i| wanted(slot[*i])).collect()
    };
    let rules: [fn(Standing) -> bool; 3] =
        [Standing::is_well, |one| !matches!(one.state, State::Retired | State::Failed), |_| true];
    rules.into_iter().map(those).find(|found| !found.is_empty()).unwrap_or_default()
}

/// Those that are well, as indices: of targets that others can stand in for.
pub fn well(slot: &[Standing]) -> Vec<usize> {
    (0..slot.len()).filter(|i| slot[*i].is_well()).collect()
}

/// Some target is ejected, or none answers its probes and they are tried all the same.
pub fn is_degraded(states: &[State]) -> bool {
    states.contains(&State::Ejected) || !states.contains(&State::Serving)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STATES: [State; 12] = [
        State::Pending,
        State::Booting,
        State::Probing,
        State::Warming,
        State::Ready,
        State::Serving,
        State::Suspect,
        State::Ejected,
        State::Draining,
        State::Held,
        State::Retired,
        State::Failed,
    ];
    const EVENTS: [Event; 11] = [
        Event::Started,
        Event::ProbePassed,
        Event::ProbeFailed,
        Event::NotListening,
        Event::Warmed,
        Event::Admitted,
        Event::Troubled,
        Event::Replaced,
        Event::Drained,
        Event::Retired,
        Event::GaveUp,
    ];

    #[test]
    fn others_stand_in_for_those_that_are_not_well() {
        let standing = |state, fallen| Standing { state, fallen };
        let (serving, doubted) = (Standing::BELIEVED, standing(State::Suspect, false));
        let (down, ejected) = (standing(State::Suspect, true), standing(State::Ejected, true));
        for (slot, want) in [
            (&[][..], &[][..]),
            (&[serving, doubted], &[0, 1]),
            (&[ejected, serving, down], &[1]),
            (&[down, ejected], &[]),
        ] {
            assert_eq!(well(slot), want, "{slot:?}");
        }
    }

    fn in_state(state: State) -> Health {
        Health { state, ..Health::pending(Duration::ZERO) }
    }

    fn letter(state: State) -> &'static str {
        match state {
            State::Pending => "pe",
            State::Booting => "bo",
            State::Probing => "pr",
            State::Warming => "wa",
            State::Ready => "re",
            State::Serving => "se",
            State::Suspect => "su",
            State::Ejected => "ej",
            State::Draining => "dr",
            State::Held => "he",
            State::Retired => "x.",
            State::Failed => "f.",
        }
    }

    /// Every state × every event; `decided`: whether the probe at hand is the one that reaches rise or fall.
    #[rustfmt::skip]
    fn tables() -> [(bool, [&'static str; 12]); 2] {
        //             Started pass fail notl Warmed Admit Troub Repl Drained Retired GaveUp
        [(false, [
            /* pe */ "bo pe pe pe pe pe pe pe pe x. f.",
            /* bo */ "bo pr pr bo bo bo bo bo bo x. f.",
            /* pr */ "pr pr pr pr pr pr pr pr pr x. f.",
            /* wa */ "wa wa wa wa re wa wa wa wa x. f.",
            /* re */ "re re re re re se re re re x. f.",
            /* se */ "se se su su se se su dr se se se",
            /* su */ "su se su su su su su dr su su su",
            /* ej */ "ej ej ej ej ej ej ej dr ej ej ej",
            /* dr */ "dr dr dr dr dr se dr dr he x. dr",
            /* he */ "he he he he he se he he he x. he",
            /* x. */ "x. x. x. x. x. x. x. x. x. x. x.",
            /* f. */ "f. f. f. f. f. f. f. f. f. f. f.",
        ]), (true, [
            /* pe */ "bo pe pe pe pe pe pe pe pe x. f.",
            /* bo */ "bo wa pr bo bo bo bo bo bo x. f.",
            /* pr */ "pr wa pr pr pr pr pr pr pr x. f.",
            /* wa */ "wa wa pr pr re wa wa wa wa x. f.",
            /* re */ "re re pr pr re se re re re x. f.",
            /* se */ "se se ej ej se se su dr se se se",
            /* su */ "su se ej ej su su su dr su su su",
            /* ej */ "ej se ej ej ej ej ej dr ej ej ej",
            /* dr */ "dr dr dr dr dr se dr dr he x. dr",
            /* he */ "he he he he he se he he he x. he",
            /* x. */ "x. x. x. x. x. x. x. x. x. x. x.",
            /* f. */ "f. f. f. f. f. f. f. f. f. f. f.",
        ])]
    }

    #[test]
    fn every_state_meets_every_event() {
        for (decided, rows) in tables() {
            let few = if decided { 1 } else { 2 };
            let gate = GatePolicy { rise: few, fall: few, ..GatePolicy::default() };
            for (state, row) in STATES.iter().zip(rows) {
                let wants: Vec<&str> = row.split(' ').collect();
                assert_eq!(wants.len(), EVENTS.len());
                for (event, want) in EVENTS.iter().zip(wants) {
                    let mut health = in_state(*state);
                    health.step(*event, Duration::from_secs(1), &gate, false);
                    assert_eq!(letter(health.state()), want, "{state:?} × {event:?}, decided: {decided}");
                    let mut alone = in_state(*state);
                    alone.step(*event, Duration::from_secs(1), &gate, true);
                    let ejected = *state != State::Ejected && alone.state() == State::Ejected;
                    assert!(!ejected, "{state:?} × {event:?} ejected the last one");
                }
            }
        }
    }

    #[test]
    fn actions_come_with_their_states() {
        let gate = GatePolicy { rise: 1, fall: 1, ..GatePolicy::default() };
        for (state, event, want) in [
            (State::Booting, Event::ProbePassed, Action::Warm),
            (State::Warming, Event::Warmed, Action::OpenGate),
            (State::Ready, Event::Admitted, Action::Admit),
            (State::Held, Event::Admitted, Action::Admit),
            (State::Serving, Event::ProbeFailed, Action::Eject),
            (State::Ejected, Event::ProbePassed, Action::Admit),
            (State::Serving, Event::Replaced, Action::Drain),
            (State::Held, Event::Retired, Action::Stop),
            (State::Probing, Event::GaveUp, Action::Stop),
            (State::Serving, Event::Retired, Action::Nothing),
        ] {
            assert_eq!(
                in_state(state).step(event, Duration::ZERO, &gate, false),
                want,
                "{state:?} × {event:?}"
            );
        }
    }

    #[test]
    fn boot_probes_slow_down_and_a_pass_is_checked_soon() {
        let gate = GatePolicy::default();
        let mut health = Health::pending(Duration::ZERO);
        assert_eq!(health.next_probe_in(Duration::ZERO, &gate), None);
        health.step(Event::Started, Duration::ZERO, &gate, true);
        let mut waits = Vec::new();
        for _ in 0..6 {
            health.step(Event::NotListening, Duration::ZERO, &gate, true);
            waits.push(health.next_probe_in(Duration::ZERO, &gate).unwrap().as_millis());
        }
        assert_eq!(waits, [250, 375, 562, 843, 1000, 1000]);
        assert_eq!(health.probe_timeout(&gate), GatePolicy::FIRST_TIMEOUT);
        health.step(Event::ProbePassed, Duration::ZERO, &gate, true);
        assert_eq!(health.next_probe_in(Duration::ZERO, &gate), Some(PASS_SPACING));
        assert_eq!(health.probe_timeout(&gate), gate.timeout);
        health.step(Event::ProbePassed, Duration::ZERO, &gate, true);
        assert_eq!(health.state(), State::Warming);
    }

    #[test]
    fn an_ejected_target_is_tried_less_and_less() {
        let gate = GatePolicy::default();
        let mut health = Health::serving(Duration::ZERO);
        let mut now = Duration::ZERO;
        for _ in 0..gate.fall {
            health.step(Event::NotListening, now, &gate, false);
        }
        let mut waits = Vec::new();
        for _ in 0..6 {
            let wait = health.next_probe_in(now, &gate).unwrap();
            waits.push(wait.as_secs());
            now += wait;
            health.step(Event::NotListening, now, &gate, false);
        }
        assert_eq!(waits, [5, 10, 20, 40, 60, 60]);
        health.step(Event::ProbePassed, now, &gate, false);
        assert_eq!((health.state(), health.next_probe_in(now, &gate)), (State::Ejected, Some(PASS_SPACING)));
        health.step(Event::ProbePassed, now, &gate, false);
        assert_eq!(health.state(), State::Serving);
        // A steady minute makes it forgiven.
        now += BACK_OFF_MAX;
        health.step(Event::ProbePassed, now, &gate, false);
        for _ in 0..gate.fall {
            health.step(Event::ProbeFailed, now, &gate, false);
        }
        assert_eq!(health.next_probe_in(now, &gate), Some(BACK_OFF_MIN));
    }

    #[test]
    fn a_held_target_shows_its_failures_and_stays_held() {
        let gate = GatePolicy::default();
        let mut health = Health::held(Duration::ZERO);
        for eligible in [true, true, false, false] {
            health.step(Event::NotListening, Duration::ZERO, &gate, true);
            assert_eq!((health.state(), health.is_eligible(&gate)), (State::Held, eligible));
        }
        health.step(Event::ProbePassed, Duration::ZERO, &gate, true);
        assert!(health.is_eligible(&gate));
    }

    #[test]
    fn slots() {
        use State::{Ejected, Failed, Ready, Serving, Suspect};
        let well = |state| Standing { state, fallen: false };
        let fallen = |state| Standing { state, fallen: true };
        for (slot, want, down, degraded) in [
            (&[well(Serving), well(Serving)][..], &[0, 1][..], false, false),
            (&[well(Serving), well(Suspect)], &[0, 1], false, false),
            (&[fallen(Ejected), well(Serving)], &[1], false, true),
            (&[fallen(Ejected), fallen(Ejected)], &[0, 1], true, true),
            (&[well(Suspect)], &[0], false, true),
            (&[fallen(Suspect)], &[0], true, true),
            (&[fallen(Ejected), well(Suspect)], &[1], false, true),
            (&[fallen(Ejected), fallen(Suspect)], &[0, 1], true, true),
            (&[well(Serving), fallen(Suspect)], &[0], false, false),
            (&[fallen(Ejected), well(Failed)], &[0], true, true),
            (&[well(Failed)], &[0], true, true),
            (&[well(Ready)], &[0], true, true),
        ] {
            let states: Vec<State> = slot.iter().map(|one| one.state).collect();
            let got = (eligible(slot), has_fallen(slot), is_degraded(&states));
            assert_eq!((got.0.as_slice(), got.1, got.2), (want, down, degraded), "{slot:?}");
        }
    }

    #[test]
    fn the_last_one_falls_without_being_ejected_and_rises_by_passing_again() {
        let gate = GatePolicy::default();
        let mut health = Health::serving(Duration::ZERO);
        for (event, state, fallen) in [
            (Event::NotListening, State::Suspect, false),
            (Event::ProbeFailed, State::Suspect, false),
            (Event::ProbePassed, State::Serving, false),
            (Event::NotListening, State::Suspect, false),
            (Event::NotListening, State::Suspect, false),
            (Event::NotListening, State::Suspect, true),
            (Event::ProbePassed, State::Suspect, true),
            (Event::NotListening, State::Suspect, true),
            (Event::ProbePassed, State::Suspect, true),
            (Event::ProbePassed, State::Serving, false),
        ] {
            health.step(event, Duration::ZERO, &gate, true);
            assert_eq!(health.standing(), Standing { state, fallen }, "{event:?}");
        }
    }

    fn any_event() -> impl Strategy<Value = Event> {
        proptest::sample::select(EVENTS.as_slice())
    }

    proptest! {
        #[test]
        fn some_target_may_always_be_tried(slot in proptest::collection::vec((proptest::sample::select(STATES.as_slice()), any::<bool>()), 1..6)) {
            let slot: Vec<Standing> = slot.into_iter().map(|(state, fallen)| Standing { state, fallen }).collect();
            prop_assert!(!eligible(&slot).is_empty());
        }

        #[test]
        fn probes_alone_never_eject_the_last_of_a_slot(
            probes in proptest::collection::vec((0usize..3, any_event()), 0..200),
        ) {
            let gate = GatePolicy::default();
            let mut slot = vec![Health::serving(Duration::ZERO); 3];
            for (index, event) in probes {
                let probe = matches!(event, Event::ProbePassed | Event::ProbeFailed | Event::NotListening | Event::Troubled);
                if !probe { continue }
                let alone = !slot.iter().enumerate().any(|(i, health)| i != index && health.is_eligible(&gate));
                slot[index].step(event, Duration::ZERO, &gate, alone);
                prop_assert!(slot.iter().any(|health| health.is_eligible(&gate)));
            }
        }

        #[test]
        fn nobody_serves_without_passing_rise_times(events in proptest::collection::vec(any_event(), 0..60)) {
            let gate = GatePolicy { rise: 3, ..GatePolicy::default() };
            let mut health = Health::pending(Duration::ZERO);
            let mut best = 0;
            for (at, event) in events.into_iter().enumerate() {
                let before = health.clone();
                health.step(event, Duration::from_secs(at as u64), &gate, false);
                best = best.max(before.passes + u32::from(event == Event::ProbePassed));
                if matches!(health.state(), State::Ready | State::Serving) { prop_assert!(best >= gate.rise) }
                let over = matches!(before.state(), State::Retired | State::Failed);
                if over { prop_assert_eq!(health.state(), before.state()) }
                let traffic = matches!(before.state(), State::Serving | State::Suspect | State::Ejected);
                if traffic { prop_assert!(!matches!(health.state(), State::Retired | State::Failed | State::Held)) }
                let wait = health.next_probe_in(Duration::from_secs(at as u64), &gate);
                prop_assert!(wait.is_none_or(|wait| wait <= BACK_OFF_MAX));
            }
        }
    }
}
