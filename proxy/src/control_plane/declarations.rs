//! Declared policies beside the state: what differs, whether they can be had, and the state with them. Pure.

use std::collections::BTreeMap;

use model::declared::{self, Difference};
use model::name::ServiceName;
use model::protocol::{
    DeclareRequest, DeclaredState, DifferenceBody, MarkBody, PolicyPatch, Problem, ProblemCode, ServicePlan,
};
use model::provenance::{Mark, Provenance};
use model::service::{Declared, Policy};
use serde_json::Value;

use super::changes;
use crate::adapters::state_file::State;

/// Of a service that the agent has never heard of.
const SERVICE: &str = "service";

pub type Policies = BTreeMap<ServiceName, Policy>;

/// The policies that a request declares; what is wrong is said of all of them.
pub fn parse(request: &DeclareRequest) -> Result<Policies, Problem> {
    let mut policies = Policies::new();
    let mut wrong = Vec::new();
    for (text, patch) in &request.services {
        let policy = parse_policy(patch);
        match text.parse::<ServiceName>() {
            Ok(name) => match policy {
                Ok(policy) => drop(policies.insert(name, policy)),
                Err(found) => wrong.extend(found.into_iter().map(|one| format!("service `{name}`: {one}"))),
            },
            Err(error) => wrong.push(error.to_string()),
        }
    }
    if !wrong.is_empty() {
        let mut problem =
            Problem::new(ProblemCode::Invalid, "what is declared is wrong; nothing was changed");
        problem.causes = wrong;
        return Err(problem);
    }
    if policies.is_empty() {
        return Err(Problem::new(ProblemCode::Invalid, "no service is declared"));
    }
    Ok(policies)
}

fn parse_policy(patch: &PolicyPatch) -> Result<Policy, Vec<String>> {
    declared::policy(patch).map_err(|_| {
        let text = |one: declared::Wrong| match one.setting {
            Some(setting) => format!("{setting}: {}", one.message),
            None => one.message,
        };
        declared::check(patch).into_iter().map(text).collect()
    })
}

/// Each service that is declared beside what runs.
pub fn plan(state: &State, policies: &Policies) -> Vec<ServicePlan> {
    policies.iter().map(|(name, policy)| plan_one(state, name, policy)).collect()
}

fn plan_one(state: &State, name: &ServiceName, policy: &Policy) -> ServicePlan {
    let (default, nobody) = (Policy::default(), Provenance::default());
    let waiting = state.declared.get(name);
    let service = state.services.get(name);
    let (found, running, provenance) = match (service, waiting) {
        (Some(service), _) => (DeclaredState::Deployed, &service.policy, &service.provenance),
        (None, Some(waiting)) => (DeclaredState::Declared, &waiting.policy, &waiting.provenance),
        (None, None) => (DeclaredState::Absent, &default, &nobody),
    };
    let body = |Difference { setting, declared, running }| {
        // The default that it is compared with runs nowhere.
        let running = if found == DeclaredState::Absent { Value::Null } else { running };
        let by_hand = provenance.hand_of(&setting).map(mark_body);
        DifferenceBody { setting, declared, running, by_hand }
    };
    let undeclared = service.map(declared::undeclared).unwrap_or_default().into_iter();
    let undeclared = undeclared.map(|(thing, what)| Difference {
        setting: thing.into(),
        declared: Value::Null,
        running: what.into(),
    });
    let absent = Difference { setting: SERVICE.into(), declared: "declared".into(), running: Value::Null };
    let absent = (found == DeclaredState::Absent).then_some(absent);
    ServicePlan {
        service: name.to_string(),
        state: found,
        applied: provenance.applied.as_ref().map(mark_body),
        differences: absent.into_iter().chain(declared::differences(policy, running)).map(body).collect(),
        undeclared: undeclared.map(body).collect(),
    }
}

fn mark_body(mark: &Mark) -> MarkBody {
    let Mark { actor, at_ms, by } = mark.clone();
    MarkBody { actor, at_ms, by }
}

/// Whether all of `policies` can be had at once, beside the services that they do not name.
pub fn check_routes(state: &State, policies: &Policies) -> Result<(), Problem> {
    let next = with_policies(state, policies);
    policies.iter().try_for_each(|(name, policy)| changes::check_routes(&next, name, policy))
}

/// Whether the state is still the one that was looked at.
pub fn check_generation(state: &State, expected: Option<u64>) -> Result<(), Problem> {
    match expected {
        Some(expected) if expected != state.generation => {
            let message = format!(
                "the agent is at generation {} and not at {expected}: something has changed since then",
                state.generation
            );
            Err(Problem::new(ProblemCode::Conflict, message).hint(
                "nothing was applied; `agentctl events` shows what changed, `agentctl plan FILE` what `apply` \
                 would do now",
            ))
        }
        _ => Ok(()),
    }
}

/// `state` with the policies, one generation later; `None` if every one is there, and known as declared.
pub fn declare(state: &State, policies: &Policies, mark: &Mark) -> Result<Option<State>, Problem> {
    check_routes(state, policies)?;
    if undeclared(state, policies).is_empty() {
        return Ok(None);
    }
    let mut next = with_policies(state, policies);
    next.generation += 1;
    for name in policies.keys() {
        let deployed = next.services.get_mut(name).map(|service| &mut service.provenance);
        let provenance = deployed.or(next.declared.get_mut(name).map(|waiting| &mut waiting.provenance));
        if let Some(provenance) = provenance {
            provenance.declare(mark.clone());
        }
    }
    Ok(Some(next))
}

/// The services for which `declare` would change something.
pub fn undeclared<'p>(state: &State, policies: &'p Policies) -> Vec<&'p ServiceName> {
    policies.iter().filter(|(name, policy)| !is_declared(state, name, policy)).map(|(name, _)| name).collect()
}

fn is_declared(state: &State, name: &ServiceName, policy: &Policy) -> bool {
    let deployed = state.services.get(name).map(|service| (&service.policy, &service.provenance));
    let waiting = state.declared.get(name).map(|waiting| (&waiting.policy, &waiting.provenance));
    deployed.or(waiting).is_some_and(|(found, provenance)| found == policy && provenance.is_declared())
}

fn with_policies(state: &State, policies: &Policies) -> State {
    let mut next = state.clone();
    for (name, policy) in policies {
        match next.services.get_mut(name) {
            Some(service) => service.policy.clone_from(policy),
            None => {
                let provenance = next.declared.remove(name).map(|waiting| waiting.provenance);
                let waiting = Declared { policy: policy.clone(), provenance: provenance.unwrap_or_default() };
                next.declared.insert(name.clone(), waiting);
            }
        }
    }
    next
}

#[cfg(test)]
mod tests {
    use model::service::Release;
    use serde_json::json;

    use model::policy_patch;
    use model::service::Canary;

    use super::super::changes::{Change, Origin};
    use super::*;

    fn policies(json: Value) -> Result<Policies, Problem> {
        parse(&DeclareRequest { services: serde_json::from_value(json).unwrap(), generation: None })
    }

    fn mark(at_ms: u64) -> Mark {
        Mark { actor: "ann".into(), at_ms, by: "apply".into() }
    }

    fn declared(state: &State, json: Value) -> State {
        declare(state, &policies(json).unwrap(), &mark(state.generation)).unwrap().expect("something is new")
    }

    fn deployed(state: &State, name: &str, by: &'static str, patch: Value) -> State {
        let name = name.parse().unwrap();
        let running = state.policies().find(|(other, _)| **other == name);
        let running = running.map(|(_, policy)| policy.clone()).unwrap_or_default();
        let policy = policy_patch::apply(&serde_json::from_value(patch).unwrap(), running).unwrap();
        let targets = vec!["127.0.0.1:1".parse().unwrap()];
        let release = Release { id: "r1".parse().unwrap(), targets, created_ms: 0, readers: Vec::new() };
        change(state, &name, by, Change::CutOver { release, policy: Box::new(policy) })
    }

    fn change(state: &State, name: &ServiceName, by: &'static str, change: Change) -> State {
        let origin = Origin { actor: "bob".into(), at_ms: 100 + state.generation, by };
        changes::apply(state, name, &change, &origin).unwrap()
    }

    /// Such as `shop.bake=deploy`, for each difference.
    fn drift(state: &State, json: Value) -> String {
        let one = |service: &str, one: &DifferenceBody| {
            let by = one.by_hand.as_ref().map_or("-", |mark| mark.by.as_str());
            format!("{service}.{}={by}", one.setting)
        };
        let plans = plan(state, &policies(json).unwrap());
        let all = plans.iter().flat_map(|plan| {
            plan.differences.iter().chain(&plan.undeclared).map(|found| one(&plan.service, found))
        });
        all.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn all_that_is_wrong_is_said() {
        let wrong =
            policies(json!({ "shop": { "bake": "soon", "queue_max": 100_001 }, "b c": {} })).unwrap_err();
        assert_eq!((wrong.code, wrong.causes.len()), (ProblemCode::Invalid, 3), "{wrong:?}");
        assert!(
            wrong.causes.iter().any(|cause| cause.starts_with("service `shop`: bake: `soon`")),
            "{wrong:?}"
        );
        assert_eq!(policies(json!({})).unwrap_err().code, ProblemCode::Invalid);
    }

    #[test]
    fn a_service_waits_declared_for_its_first_release() {
        let file = json!({ "shop": { "hosts": ["shop.test"], "bake": "0s" } });
        assert_eq!(drift(&State::default(), file.clone()), "shop.service=- shop.bake=- shop.hosts=-");
        let state = declared(&State::default(), file.clone());
        assert_eq!(
            (state.generation, state.services.len(), drift(&state, file.clone())),
            (1, 0, String::new())
        );
        assert!(
            declare(&state, &policies(file.clone()).unwrap(), &mark(9)).unwrap().is_none(),
            "it is there"
        );

        let state = deployed(&state, "shop", "deploy", json!({}));
        assert_eq!((state.declared.len(), drift(&state, file.clone())), (0, String::new()));
        let state = change(&state, &"shop".parse().unwrap(), "remove", Change::Remove);
        assert_eq!(drift(&state, file), "shop.service=- shop.bake=- shop.hosts=-");

        let waiting = declared(&State::default(), json!({ "shop": {} }));
        let removed = change(&waiting, &"shop".parse().unwrap(), "remove", Change::Remove);
        assert!(removed.declared.is_empty());
    }

    #[test]
    fn what_a_hand_did_is_told_from_what_the_file_says_anew() {
        let file = json!({ "shop": { "hosts": ["shop.test"] } });
        let state = declared(&State::default(), file.clone());
        let state = deployed(&state, "shop", "deploy", json!({ "drain_timeout": "5s" }));
        assert_eq!(drift(&state, file.clone()), "shop.drain_timeout=deploy");
        let newer = json!({ "shop": { "hosts": ["shop.test"], "bake": "5m" } });
        assert_eq!(drift(&state, newer.clone()), "shop.bake=- shop.drain_timeout=deploy");

        let state = declared(&state, newer.clone());
        assert_eq!(drift(&state, newer), "");
        assert_eq!(drift(&state, file), "shop.bake=-", "an apply is no hand");
    }

    #[test]
    fn what_a_hand_set_as_declared_becomes_the_files() {
        let file = json!({ "shop": { "bake": "0s" } });
        let state = deployed(&State::default(), "shop", "deploy", json!({ "bake": "0s" }));
        assert_eq!(drift(&state, file.clone()), "");
        let state = declared(&state, file.clone());
        assert!(declare(&state, &policies(file.clone()).unwrap(), &mark(9)).unwrap().is_none());
        assert_eq!(drift(&state, json!({ "shop": {} })), "shop.bake=-");
    }

    #[test]
    fn a_canary_is_never_declared() {
        let (file, shop) = (json!({ "shop": {} }), "shop".parse().unwrap());
        let state = deployed(&declared(&State::default(), file.clone()), "shop", "deploy", json!({}));
        let release = Release { id: "c".parse().unwrap(), ..state.services[&shop].stable.clone() };
        let weight = model::weight::Weight::NONE;
        let overrides = model::canary::Overrides::default();
        let canary = Canary { release, weight, rollout: "c".into(), overrides };
        let state = change(&state, &shop, "canary start", Change::StartCanary { canary });
        assert_eq!(drift(&state, file.clone()), "shop.canary=canary start");
        let weight = model::weight::Weight::ALL;
        let state = change(&state, &shop, "canary set", Change::SetWeight { weight });
        assert_eq!(drift(&state, file.clone()), "shop.canary=canary set");
        assert_eq!(
            plan(&state, &policies(file.clone()).unwrap())[0].undeclared[0].running,
            "release c at 100%"
        );
        assert!(declare(&state, &policies(file.clone()).unwrap(), &mark(9)).unwrap().is_none());

        let state = declared(&state, json!({ "shop": { "bake": "0s" } }));
        assert_eq!(drift(&state, json!({ "shop": { "bake": "0s" } })), "shop.canary=canary set");
        let state = change(&state, &shop, "canary abort", Change::AbortCanary { reason: String::new() });
        assert_eq!(drift(&state, json!({ "shop": { "bake": "0s" } })), "");
        assert!(state.services[&shop].provenance.by_hand.is_empty());
    }

    #[test]
    fn a_revert_gives_the_marks_back_too() {
        let (file, shop) = (json!({ "shop": {} }), "shop".parse().unwrap());
        let before = deployed(&declared(&State::default(), file.clone()), "shop", "deploy", json!({}));
        let bad = deployed(&before, "shop", "deploy", json!({ "bake": "5s" }));
        assert_eq!(drift(&bad, file.clone()), "shop.bake=deploy");
        let revert =
            Change::Revert { before: Box::new(before.services[&shop].clone()), reason: "502".into() };
        let state = change(&bad, &shop, "revert", revert);
        assert_eq!(state.services[&shop].provenance, before.services[&shop].provenance);
    }

    #[test]
    fn routes_are_compared_after_the_whole_file() {
        let state = declared(
            &State::default(),
            json!({ "a": { "hosts": ["a.test"] }, "b": { "hosts": ["b.test"] } }),
        );
        for (file, want) in [
            // They change places.
            (json!({ "a": { "hosts": ["b.test"] }, "b": { "hosts": ["a.test"] } }), None),
            (json!({ "a": { "hosts": ["b.test"] } }), Some(ProblemCode::Conflict)),
            (json!({ "c": { "hosts": ["b.test"] } }), Some(ProblemCode::Conflict)),
            (
                json!({ "c": { "hosts": ["c.test"] }, "d": { "hosts": ["c.test"] } }),
                Some(ProblemCode::Conflict),
            ),
            (json!({ "c": { "hosts": ["b.test"], "path_prefixes": ["/c"] } }), None),
        ] {
            let result = check_routes(&state, &policies(file.clone()).unwrap());
            assert_eq!(result.err().map(|problem| problem.code), want, "{file}");
        }
        // A deploy cannot have what another service waits with.
        let policy =
            declared::policy(&serde_json::from_value(json!({ "hosts": ["a.test"] })).unwrap()).unwrap();
        assert!(changes::check_routes(&state, &"c".parse().unwrap(), &policy).is_err());
    }

    #[test]
    fn a_state_that_went_on_is_a_conflict() {
        let state = State { generation: 7, ..State::default() };
        assert!(check_generation(&state, None).is_ok() && check_generation(&state, Some(7)).is_ok());
        assert_eq!(check_generation(&state, Some(6)).unwrap_err().code, ProblemCode::Conflict);
    }
}
