//! What a log shows of operations.

use super::*;

fn probed(target: &str, state: TargetStateName, outcome: &str, passes: u32) -> Event {
    let (target, outcome) = (target.to_owned(), outcome.to_owned());
    Event::Probed { target, state, outcome, passes, rise: 2, elapsed_ms: 1 }
}

fn draining(requests: u64, sockets: u64) -> Event {
    Event::Draining { release: "r1".into(), requests, sockets }
}

fn baking(seconds: u64, requests: u64, gateway_errors: u64) -> Event {
    Event::Baking { remaining_ms: seconds * 1_000, requests, gateway_errors }
}

/// A deploy onto two targets, with a probe and a count more often than anything changes.
pub(crate) fn deploy() -> Vec<Event> {
    use TargetStateName::{Booting, Probing, Ready};
    let [one, two] = ["127.0.0.1:3001", "127.0.0.1:3002"];
    let targets = vec![one.to_owned(), two.to_owned()];
    let phase = |phase| Event::Phase { phase };
    vec![
        Event::Accepted { service: "shop".into(), verb: "deploy".into(), release: "r2".into(), targets },
        phase(DeploymentPhase::Gating),
        phase(DeploymentPhase::Gating),
        probed(one, Booting, "connection refused", 0),
        probed(two, Booting, "connection refused", 0),
        probed(one, Booting, "connection refused", 0),
        probed(one, Probing, "200 in 812ms", 1),
        probed(one, Ready, "200 in 3ms", 2),
        probed(two, Booting, "503 in 9ms", 0),
        probed(two, Booting, "503 in 8ms", 0),
        probed(two, Probing, "200 in 7ms", 1),
        probed(two, Ready, "200 in 6ms", 2),
        phase(DeploymentPhase::Switching),
        Event::Switched { release: "r2".into(), generation: 8, at_ms: 1 },
        phase(DeploymentPhase::Draining),
        draining(3, 1),
        draining(1, 1),
        Event::Drained { release: "r1".into(), cut: 1 },
        phase(DeploymentPhase::Baking),
        baking(60, 0, 0),
        baking(59, 40, 0),
        baking(58, 80, 2),
        phase(DeploymentPhase::Committed),
    ]
}

#[test]
fn a_log_has_one_line_for_each_change() {
    let mut progress = Progress::default();
    let lines: Vec<String> = deploy().iter().filter_map(|event| progress.apply(event)).collect();
    insta::assert_snapshot!(lines.join("\n"), @r"
    deploy shop r2 (127.0.0.1:3001, 127.0.0.1:3002)
    phase: gating
    target 127.0.0.1:3001 is booting: connection refused
    target 127.0.0.1:3002 is booting: connection refused
    target 127.0.0.1:3001 is probing: 200 in 812ms (1 of 2)
    target 127.0.0.1:3001 is ready: 200 in 3ms (2 of 2)
    target 127.0.0.1:3002 is booting: 503 in 9ms
    target 127.0.0.1:3002 is probing: 200 in 7ms (1 of 2)
    target 127.0.0.1:3002 is ready: 200 in 6ms (2 of 2)
    switched: new requests go to r2 (generation 8)
    draining r1: 3 requests and 1 socket to finish
    drained r1: 1 cut at the deadline
    baking: 1m to go, 0 requests, 0 gateway errors
    baking: 58s to go, 80 requests, 2 gateway errors
    ");
}

#[test]
fn a_target_that_was_not_announced_is_shown_all_the_same() {
    let mut progress = Progress::default();
    let line = progress.apply(&probed("unix:/run/a.sock", TargetStateName::Failed, "reset", 0));
    assert_eq!(line.as_deref(), Some("target unix:/run/a.sock is failed: reset"));
    assert_eq!(progress.targets.len(), 1);
}

#[test]
fn a_pause_says_that_requests_wait_before_it_drains() {
    let targets = vec!["127.0.0.1:3001".to_owned()];
    let events = [
        Event::Accepted { service: "shop".into(), verb: "pause".into(), release: "r1".into(), targets },
        Event::Halted { state: ServiceState::Paused, generation: 9, at_ms: 1 },
        draining(2, 1),
        draining(1, 0),
        Event::Drained { release: "r1".into(), cut: 0 },
    ];
    let mut progress = Progress::default();
    let lines: Vec<String> = events.iter().filter_map(|event| progress.apply(event)).collect();
    insta::assert_snapshot!(lines.join("\n"), @r"
    pause shop r1 (127.0.0.1:3001)
    paused: new requests wait (generation 9)
    draining r1: 2 requests and 1 socket to finish
    drained r1: nothing was cut
    ");
}
