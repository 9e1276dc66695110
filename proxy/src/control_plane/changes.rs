//! The changes that operations make to the state: pure, on a copy, before anything is written or served.

use model::declared;
use model::halt::Halt;
use model::name::{ReleaseId, ServiceName};
use model::protocol::{Problem, ProblemCode};
use model::provenance::Mark;
use model::route::RouteTable;
use model::service::{Canary, HistoryEntry, Outcome, Policy, Release, Service};
use model::weight::Weight;

use crate::adapters::state_file::State;

/// What is to become of one service.
#[derive(Debug, Clone)]
pub enum Change {
    /// `release` becomes stable under `policy`; makes the service if there is none.
    CutOver {
        release: Release,
        policy: Box<Policy>,
    },
    /// The stable release failed its bake: everything is as in `before`, but for the history.
    Revert {
        before: Box<Service>,
        reason: String,
    },
    /// `release`, which is held or was gated again, becomes stable.
    RollBack {
        release: Release,
    },
    StartCanary {
        canary: Canary,
    },
    SetWeight {
        weight: Weight,
    },
    Promote,
    AbortCanary {
        reason: String,
    },
    Remove,
    /// Pauses or stops; takes the place of the order in force.
    Halt {
        halt: Halt,
    },
    /// Ends the pause or stop.
    Resume,
    /// Only an entry in the history; `None` where the service never came to be.
    Refused {
        release: Release,
        reason: String,
    },
}

/// By whom and when.
#[derive(Debug, Clone)]
pub struct Origin {
    pub actor: String,
    /// Unix time in ms.
    pub at_ms: u64,
    /// The command, such as `canary set`.
    pub by: &'static str,
}

/// `state` with the change made, one generation later.
pub fn apply(state: &State, name: &ServiceName, change: &Change, origin: &Origin) -> Result<State, Problem> {
    let mut next = state.clone();
    next.generation += 1;
    let entry = |release: &Release, outcome, reason: Option<&String>| HistoryEntry {
        release: release.clone(),
        outcome,
        at_ms: origin.at_ms,
        actor: origin.actor.clone(),
        reason: reason.cloned(),
    };
    match change {
        Change::CutOver { release, policy } => {
            check_routes(state, name, policy)?;
            let policy = policy.as_ref();
            let is_new = !next.services.contains_key(name);
            let declared = next.declared.remove(name);
            let service = next
                .services
                .entry(name.clone())
                .or_insert_with(|| Service::new(name.clone(), policy.clone(), release.clone()));
            if let Some(declared) = declared {
                service.provenance = declared.provenance;
            }
            end_canary(service, &entry, "replaced by a deploy");
            service.policy = policy.clone();
            service.next_number = next_number(service.next_number, &release.id);
            // Where only the policy changes, the release has its place and its entry already.
            if is_new || service.stable != *release {
                service.remember(entry(release, Outcome::Deployed, None));
            }
            if service.stable != *release {
                service.cut_over(release.clone());
            }
        }
        Change::Revert { before, reason } => {
            let service = existing(&mut next, name)?;
            let failed = std::mem::replace(&mut service.stable, before.stable.clone());
            service.held.clone_from(&before.held);
            // Another service may have taken a route that this deploy gave up.
            if check_routes(state, name, &before.policy).is_ok() {
                service.policy.clone_from(&before.policy);
                service.provenance.clone_from(&before.provenance);
            }
            // Where only the settings were new, the release goes on, and its entry tells the truth.
            if failed != before.stable {
                service.forget_held_if_replaced_by(&failed);
                let began =
                    |entry: &HistoryEntry| entry.release == failed && entry.outcome == Outcome::Deployed;
                service.history.retain(|entry| !began(entry));
                service.remember(entry(&failed, Outcome::Reverted, Some(reason)));
            }
        }
        Change::RollBack { release } => {
            let service = existing(&mut next, name)?;
            end_canary(service, &entry, "ended by a rollback");
            service.cut_over(release.clone());
            service.remember(entry(release, Outcome::RolledBack, None));
        }
        Change::StartCanary { canary } => {
            let service = existing(&mut next, name)?;
            if let Some(running) = &service.canary {
                return Err(canary_runs(name, &running.release.id));
            }
            service.next_number = next_number(service.next_number, &canary.release.id);
            service.forget_held_if_replaced_by(&canary.release);
            service.canary = Some(canary.clone());
        }
        Change::SetWeight { weight } => {
            let service = existing(&mut next, name)?;
            service.canary.as_mut().ok_or_else(|| no_canary(name))?.weight = *weight;
        }
        Change::Promote => {
            let service = existing(&mut next, name)?;
            let release = service.promote().ok_or_else(|| no_canary(name))?;
            service.remember(entry(&release, Outcome::Promoted, None));
        }
        Change::AbortCanary { reason } => {
            let service = existing(&mut next, name)?;
            let canary = service.canary.take().ok_or_else(|| no_canary(name))?;
            service.remember(entry(&canary.release, Outcome::Aborted, Some(reason)));
        }
        Change::Remove => {
            let declared = next.declared.remove(name);
            let service = next.services.remove(name);
            service.map(drop).or(declared.map(drop)).ok_or_else(|| no_service(name))?;
        }
        Change::Halt { halt } => {
            let service = existing(&mut next, name)?;
            service.halt = Some(halt.clone().after(service.halt.as_ref()));
        }
        Change::Resume => existing(&mut next, name)?.halt = None,
        Change::Refused { release, reason } => {
            let service = existing(&mut next, name)?;
            service.next_number = next_number(service.next_number, &release.id);
            service.forget_held_if_replaced_by(release);
            service.remember(entry(release, Outcome::Refused, Some(reason)));
        }
    }
    note_hand(state, &mut next, name, change, origin);
    Ok(next)
}

/// What a service says now and did not say before, a hand has said. A revert brings back who had.
fn note_hand(state: &State, next: &mut State, name: &ServiceName, change: &Change, origin: &Origin) {
    let Some(service) = next.services.get_mut(name) else { return };
    let undeclared = declared::undeclared(service);
    if !matches!(change, Change::Revert { .. }) {
        let before = state.services.get(name);
        let waiting = state.declared.get(name).map(|declared| &declared.policy);
        let policy = before.map(|before| &before.policy).or(waiting).cloned().unwrap_or_default();
        let differences = declared::differences(&policy, &service.policy).into_iter().map(|one| one.setting);
        let known = before.map(declared::undeclared).unwrap_or_default();
        let new = undeclared.iter().filter(|(thing, what)| known.get(*thing) != Some(*what));
        let settings = differences.chain(new.map(|(thing, _)| (*thing).to_owned())).collect();
        let mark = Mark { actor: origin.actor.clone(), at_ms: origin.at_ms, by: origin.by.to_owned() };
        service.provenance.note(mark, settings);
    }
    let settings = declared::names();
    service
        .provenance
        .forget(|one| !undeclared.contains_key(one) && !settings.iter().any(|name| name == one));
}

fn end_canary(
    service: &mut Service,
    entry: &impl Fn(&Release, Outcome, Option<&String>) -> HistoryEntry,
    reason: &str,
) {
    if let Some(canary) = service.canary.take() {
        service.remember(entry(&canary.release, Outcome::Aborted, Some(&reason.to_owned())));
    }
}

/// Numbers are not given twice, whether we or the operator named the release, and whether it ever served.
fn next_number(next: u64, given: &ReleaseId) -> u64 {
    let number = given.as_str().strip_prefix('r').and_then(|digits| digits.parse::<u64>().ok());
    number.map_or(next, |number| next.max(number.saturating_add(1)))
}

fn existing<'s>(state: &'s mut State, name: &ServiceName) -> Result<&'s mut Service, Problem> {
    state.services.get_mut(name).ok_or_else(|| no_service(name))
}

/// Whether `name` could have the routes of `policy` beside the other services.
pub fn check_routes(state: &State, name: &ServiceName, policy: &Policy) -> Result<(), Problem> {
    let mut table = RouteTable::default();
    for (other, policy) in state.policies().filter(|(other, _)| *other != name) {
        // What is in the state was checked when it got there.
        let _ = table.bind(&policy.hosts, &policy.path_prefixes, other);
    }
    table.bind(&policy.hosts, &policy.path_prefixes, name).map_err(|conflict| {
        let host = conflict.host.map_or("any host".to_owned(), |host| format!("host `{host}`"));
        let message = format!(
            "service `{name}` cannot have {host} with path `{}`: service `{}` has it",
            conflict.prefix, conflict.owner
        );
        Problem::new(ProblemCode::Conflict, message)
            .hint("choose another host or path prefix (`--host`, `--path-prefix`), or remove the other service first")
    })
}

/// A service that was declared and has no release yet.
pub fn no_release(name: &ServiceName) -> Problem {
    Problem::new(ProblemCode::NotFound, format!("service `{name}` is declared, but has no release yet"))
        .hint(format!("`agentctl deploy {name} --target HOST:PORT` brings the first one under its policy"))
}

pub fn no_service(name: &ServiceName) -> Problem {
    Problem::new(ProblemCode::NotFound, format!("there is no service `{name}`"))
        .hint("`agentctl list` shows the services; `agentctl deploy` makes one")
}

pub fn no_canary(name: &ServiceName) -> Problem {
    Problem::new(ProblemCode::NotFound, format!("service `{name}` has no canary"))
        .hint(format!("start one with `agentctl canary start {name} --target HOST:PORT --weight 5%`"))
}

pub fn canary_runs(name: &ServiceName, release: &ReleaseId) -> Problem {
    let message = format!("service `{name}` has a canary running: release `{release}`");
    Problem::new(ProblemCode::Conflict, message).hint(format!(
        "end it with `agentctl canary promote {name}` or `agentctl canary abort {name}`; a deploy can also \
         take its place with `--replace-canary`"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(id: &str, port: u16) -> Release {
        let target = format!("127.0.0.1:{port}").parse().unwrap();
        Release {
            id: id.parse().unwrap(),
            targets: vec![target],
            created_ms: u64::from(port),
            readers: Vec::new(),
        }
    }

    fn policy(host: &str) -> Policy {
        Policy { hosts: vec![host.parse().unwrap()], ..Policy::default() }
    }

    fn after(changes: Vec<Change>) -> Result<State, Problem> {
        let origin = Origin { actor: "test".into(), at_ms: 7, by: "deploy" };
        let shop = "shop".parse().unwrap();
        changes.iter().try_fold(State::default(), |state, change| apply(&state, &shop, change, &origin))
    }

    fn deploy(id: &str, port: u16) -> Change {
        Change::CutOver { release: release(id, port), policy: Box::new(policy("shop.test")) }
    }

    fn canary(id: &str, port: u16) -> Change {
        let canary = Canary {
            release: release(id, port),
            weight: Weight::NONE,
            rollout: id.into(),
            overrides: model::canary::Overrides::default(),
        };
        Change::StartCanary { canary }
    }

    /// `stable/held/canary`, then the history's outcomes, newest first.
    fn picture(state: &State) -> String {
        let Some(shop) = state.services.values().next() else { return "nothing".into() };
        let id = |release: Option<&Release>| release.map_or("-".to_owned(), |r| r.id.to_string());
        let canary = id(shop.canary.as_ref().map(|canary| &canary.release));
        let history = shop.history.iter().map(|entry| format!(" {}:{:?}", entry.release.id, entry.outcome));
        let slots = format!("{}/{}/{canary}", shop.stable.id, id(shop.held.as_ref()));
        slots + &history.collect::<String>()
    }

    #[test]
    fn what_becomes_of_a_service() {
        let reason = || "because".to_owned();
        for (changes, want) in [
            (vec![deploy("r1", 1)], "r1/-/- r1:Deployed"),
            (vec![deploy("r1", 1), deploy("r2", 2)], "r2/r1/- r2:Deployed r1:Deployed"),
            (vec![deploy("r1", 1), deploy("r2", 1)], "r2/-/- r2:Deployed r1:Deployed"),
            (
                vec![deploy("r1", 1), deploy("r2", 2), Change::RollBack { release: release("r1", 1) }],
                "r1/r2/- r1:RolledBack r2:Deployed r1:Deployed",
            ),
            (vec![deploy("r1", 1), canary("c", 9), Change::Promote], "c/r1/- c:Promoted r1:Deployed"),
            (
                vec![deploy("r1", 1), canary("c", 9), Change::AbortCanary { reason: reason() }],
                "r1/-/- c:Aborted r1:Deployed",
            ),
            (
                vec![deploy("r1", 1), canary("c", 9), deploy("r2", 2)],
                "r2/r1/- r2:Deployed c:Aborted r1:Deployed",
            ),
            (
                vec![deploy("r1", 1), Change::Refused { release: release("r2", 2), reason: reason() }],
                "r1/-/- r2:Refused r1:Deployed",
            ),
            // Whoever answers on the address of what was held is somebody else now.
            (
                vec![
                    deploy("r1", 1),
                    deploy("r2", 2),
                    Change::Refused { release: release("r3", 1), reason: reason() },
                ],
                "r2/-/- r3:Refused r2:Deployed r1:Deployed",
            ),
            (
                vec![
                    deploy("r1", 1),
                    deploy("r2", 2),
                    Change::Refused { release: release("r1", 1), reason: reason() },
                ],
                "r2/r1/- r1:Refused r2:Deployed r1:Deployed",
            ),
            (vec![deploy("r1", 1), deploy("r2", 2), canary("c", 1)], "r2/-/c r2:Deployed r1:Deployed"),
            (vec![deploy("r1", 1), Change::Remove], "nothing"),
        ] {
            let state = after(changes.clone()).unwrap();
            assert_eq!(picture(&state), want, "{changes:?}");
            assert_eq!(state.generation, changes.len() as u64);
        }
    }

    #[test]
    fn a_halt_outlives_everything_but_its_own_end() {
        let halt = |actor: &str| {
            let kind = model::halt::HaltKind::Stopped { message: None };
            let bypass = model::canary::Overrides::default();
            Change::Halt { halt: Halt { kind, bypass, actor: actor.into(), since_ms: 7 } }
        };
        let begun_by = |changes: Vec<Change>| {
            let state = after(changes).unwrap();
            state.services.values().next().and_then(|shop| shop.halt.clone()).map(|halt| halt.actor)
        };
        let ann = || Some("ann".to_owned());
        let before = after(vec![deploy("r1", 1)]).unwrap().services.into_values().next().unwrap();
        let revert = Change::Revert { before: Box::new(before), reason: "502".into() };
        let back = Change::RollBack { release: release("r1", 1) };
        for (changes, want) in [
            (vec![halt("ann"), deploy("r2", 2), back], ann()),
            (vec![halt("ann"), deploy("r2", 2), revert], ann()),
            (vec![halt("ann"), canary("c", 9), Change::Promote], ann()),
            (vec![halt("ann"), halt("bob")], ann()),
            (vec![halt("ann"), Change::Resume], None),
            (vec![halt("ann"), Change::Resume, halt("bob")], Some("bob".to_owned())),
            (vec![Change::Resume], None),
            (vec![halt("ann"), Change::Remove, deploy("r2", 2)], None),
        ] {
            let all = [vec![deploy("r1", 1)], changes.clone()].concat();
            assert_eq!(begun_by(all), want, "{changes:?}");
        }
        assert_eq!(after(vec![halt("ann")]).unwrap_err().code, ProblemCode::NotFound);
        assert_eq!(after(vec![Change::Resume]).unwrap_err().code, ProblemCode::NotFound);
    }

    #[test]
    fn a_revert_brings_back_what_was_before() {
        let before = after(vec![deploy("r1", 1), deploy("r2", 2)]).unwrap();
        let shop = before.services.values().next().unwrap().clone();
        let bad = Change::CutOver { release: release("r3", 3), policy: Box::new(policy("other.test")) };
        let revert = Change::Revert { before: Box::new(shop.clone()), reason: "502".into() };
        let state = after(vec![deploy("r1", 1), deploy("r2", 2), bad, revert]).unwrap();
        assert_eq!(picture(&state), "r2/r1/- r3:Reverted r2:Deployed r1:Deployed");
        assert_eq!(state.services.values().next().unwrap().policy, shop.policy);
    }

    #[test]
    fn a_revert_does_not_lead_to_an_address_that_the_failed_release_had() {
        let before = after(vec![deploy("r1", 1), deploy("r2", 2)]).unwrap();
        let shop = before.services.values().next().unwrap().clone();
        let revert = Change::Revert { before: Box::new(shop), reason: "502".into() };
        let state = after(vec![deploy("r1", 1), deploy("r2", 2), deploy("r3", 1), revert]).unwrap();
        assert_eq!(picture(&state), "r2/-/- r3:Reverted r2:Deployed r1:Deployed");
    }

    #[test]
    fn settings_that_are_taken_back_leave_no_mark_on_the_release() {
        let before = after(vec![deploy("r1", 1)]).unwrap();
        let shop = before.services.values().next().unwrap().clone();
        let bad = Change::CutOver { release: release("r1", 1), policy: Box::new(policy("other.test")) };
        let revert = Change::Revert { before: Box::new(shop.clone()), reason: "502".into() };
        let state = after(vec![deploy("r1", 1), bad, revert]).unwrap();
        assert_eq!(picture(&state), "r1/-/- r1:Deployed");
        assert_eq!(state.services.values().next().unwrap().policy, shop.policy);
    }

    #[test]
    fn what_is_refused() {
        use ProblemCode::{Conflict, NotFound};
        for (changes, want) in [
            (vec![Change::Remove], NotFound),
            (vec![deploy("r1", 1), Change::Promote], NotFound),
            (vec![deploy("r1", 1), Change::SetWeight { weight: Weight::ALL }], NotFound),
            (vec![deploy("r1", 1), canary("c", 9), canary("d", 8)], Conflict),
        ] {
            assert_eq!(after(changes.clone()).unwrap_err().code, want, "{changes:?}");
        }
        let state = after(vec![deploy("r1", 1)]).unwrap();
        let refused = check_routes(&state, &"blog".parse().unwrap(), &policy("shop.test")).unwrap_err();
        assert!(refused.message.contains("host `shop.test` with path `/`: service `shop`"), "{refused:?}");
        assert!(check_routes(&state, &"shop".parse().unwrap(), &policy("shop.test")).is_ok());
    }

    #[test]
    fn numbers_are_given_once() {
        let number = |state: State| state.services.values().next().unwrap().next_number;
        assert_eq!(number(after(vec![deploy("r1", 1)]).unwrap()), 2);
        assert_eq!(number(after(vec![deploy("abc", 1)]).unwrap()), 1);
        assert_eq!(number(after(vec![deploy("r7", 1), deploy("r1", 2)]).unwrap()), 8);
        let refused = Change::Refused { release: release("r2", 2), reason: String::new() };
        assert_eq!(number(after(vec![deploy("r1", 1), refused]).unwrap()), 3);
    }
}
