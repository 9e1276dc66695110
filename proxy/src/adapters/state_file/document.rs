//! The JSON of the state file. Its structs are its own, so that refactoring the model never changes a file.

use std::num::NonZeroU32;

use model::duration;
use model::halt::{self, Halt, HaltKind, Order};
use model::name::{ReleaseId, ServiceName, TargetAddress};
use model::policy_patch;
use model::protocol::{BypassBody, OverridesBody, PauseRequest, PolicyPatch, Problem, StopRequest};
use model::provenance::{HandMade, Mark, Provenance};
use model::service::{Canary, Declared, HISTORY_MAX, HistoryEntry, Outcome, Policy, Release, Service};
use serde::{Deserialize, Serialize};

use super::State;

const VERSION: u32 = 1;

#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    #[error("it has version {found}, but this build reads at most {known}")]
    TooNew { found: u32, known: u32 },
    #[error("it is not the JSON of a state file")]
    Json(#[from] serde_json::Error),
    #[error("{place} is wrong: {message}")]
    Value { place: String, message: String },
}

/// Read first and alone: what else a newer version holds is unknown.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    generation: u64,
    services: Vec<ServiceDocument>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    declared: Vec<DeclaredDocument>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeclaredDocument {
    name: String,
    policy: PolicyPatch,
    #[serde(default, skip_serializing_if = "ProvenanceDocument::is_empty")]
    provenance: ProvenanceDocument,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceDocument {
    name: String,
    policy: PolicyPatch,
    stable: ReleaseDocument,
    canary: Option<CanaryDocument>,
    held: Option<ReleaseDocument>,
    /// Newest first.
    history: Vec<HistoryDocument>,
    next_number: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    halt: Option<HaltDocument>,
    #[serde(default, skip_serializing_if = "ProvenanceDocument::is_empty")]
    provenance: ProvenanceDocument,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ProvenanceDocument {
    #[serde(skip_serializing_if = "Option::is_none")]
    applied: Option<MarkDocument>,
    /// Newest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    by_hand: Vec<HandMadeDocument>,
}

impl ProvenanceDocument {
    fn is_empty(&self) -> bool {
        self.applied.is_none() && self.by_hand.is_empty()
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MarkDocument {
    actor: String,
    at_ms: u64,
    by: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HandMadeDocument {
    mark: MarkDocument,
    settings: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReleaseDocument {
    id: String,
    targets: Vec<String>,
    created_ms: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    readers: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CanaryDocument {
    release: ReleaseDocument,
    weight: String,
    rollout: String,
    overrides: OverridesBody,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HistoryDocument {
    release: ReleaseDocument,
    outcome: OutcomeDocument,
    at_ms: u64,
    actor: String,
    reason: Option<String>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum OutcomeDocument {
    Deployed,
    RolledBack,
    Refused,
    Reverted,
    Aborted,
    Promoted,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HaltDocument {
    kind: HaltKindDocument,
    bypass: BypassBody,
    actor: String,
    since_ms: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum HaltKindDocument {
    Paused { max_pause: String, waiting_max: Option<u32> },
    Stopped { message: Option<String> },
}

pub(super) fn print(state: &State) -> String {
    let services = state.services.values().map(print_service).collect();
    let declared = state.declared.iter().map(|(name, declared)| DeclaredDocument {
        name: name.to_string(),
        policy: policy_patch::from_policy(&declared.policy),
        provenance: print_provenance(&declared.provenance),
    });
    let document =
        Document { version: VERSION, generation: state.generation, services, declared: declared.collect() };
    let mut text =
        serde_json::to_string_pretty(&document).expect("the document has only text keys, so it is JSON");
    text.push('\n');
    text
}

pub(super) fn parse(bytes: &[u8]) -> Result<State, DocumentError> {
    let Versioned { version } = serde_json::from_slice(bytes)?;
    if version > VERSION {
        return Err(DocumentError::TooNew { found: version, known: VERSION });
    }
    let document: Document = serde_json::from_slice(bytes)?;
    let mut state = State { generation: document.generation, ..State::default() };
    for service in document.services {
        let service = parse_service(service)?;
        if let Some(twin) = state.services.insert(service.name.clone(), service) {
            let message = "there is another service of this name".to_owned();
            return Err(DocumentError::Value { place: format!("service `{}`", twin.name), message });
        }
    }
    for declared in document.declared {
        let (name, declared) = parse_declared(declared)?;
        state.declared.insert(name, declared);
    }
    // A service that has a release has its policy there.
    state.declared.retain(|name, _| !state.services.contains_key(name));
    Ok(state)
}

fn print_service(service: &Service) -> ServiceDocument {
    let canary = service.canary.as_ref().map(|canary| CanaryDocument {
        release: print_release(&canary.release),
        weight: canary.weight.to_string(),
        rollout: canary.rollout.clone(),
        overrides: policy_patch::print_overrides(&canary.overrides),
    });
    let history = service.history.iter().map(|entry| HistoryDocument {
        release: print_release(&entry.release),
        outcome: entry.outcome.into(),
        at_ms: entry.at_ms,
        actor: entry.actor.clone(),
        reason: entry.reason.clone(),
    });
    ServiceDocument {
        name: service.name.to_string(),
        policy: policy_patch::from_policy(&service.policy),
        stable: print_release(&service.stable),
        canary,
        held: service.held.as_ref().map(print_release),
        history: history.collect(),
        next_number: service.next_number,
        halt: service.halt.as_ref().map(print_halt),
        provenance: print_provenance(&service.provenance),
    }
}

fn print_halt(halt: &Halt) -> HaltDocument {
    let kind = match &halt.kind {
        HaltKind::Paused { max_pause, waiting_max } => HaltKindDocument::Paused {
            max_pause: duration::print(*max_pause),
            waiting_max: waiting_max.map(NonZeroU32::get),
        },
        HaltKind::Stopped { message } => HaltKindDocument::Stopped { message: message.clone() },
    };
    let bypass = policy_patch::print_bypass(&halt.bypass);
    HaltDocument { kind, bypass, actor: halt.actor.clone(), since_ms: halt.since_ms }
}

/// As an order of the same content is parsed.
fn parse_halt(document: HaltDocument) -> Result<Halt, Problem> {
    let HaltDocument { kind, bypass, actor, since_ms } = document;
    let Order { kind, bypass, .. } = match kind {
        HaltKindDocument::Paused { max_pause, waiting_max } => {
            let max_pause = Some(max_pause);
            halt::parse_pause(&PauseRequest { max_pause, waiting_max, bypass, drain_timeout: None })?
        }
        HaltKindDocument::Stopped { message } => {
            halt::parse_stop(&StopRequest { message, bypass, drain_timeout: None })?
        }
    };
    Ok(Halt { kind, bypass, actor, since_ms })
}

fn print_provenance(provenance: &Provenance) -> ProvenanceDocument {
    let mark =
        |mark: &Mark| MarkDocument { actor: mark.actor.clone(), at_ms: mark.at_ms, by: mark.by.clone() };
    let by_hand = provenance
        .by_hand
        .iter()
        .map(|change| HandMadeDocument { mark: mark(&change.mark), settings: change.settings.clone() });
    ProvenanceDocument { applied: provenance.applied.as_ref().map(mark), by_hand: by_hand.collect() }
}

fn print_release(release: &Release) -> ReleaseDocument {
    ReleaseDocument {
        id: release.id.to_string(),
        targets: release.targets.iter().map(ToString::to_string).collect(),
        created_ms: release.created_ms,
        readers: release.readers.iter().map(ToString::to_string).collect(),
    }
}

fn parse_service(document: ServiceDocument) -> Result<Service, DocumentError> {
    let place = format!("service `{}`", document.name);
    let wrong = |message: String| DocumentError::Value { place: place.clone(), message };
    let problem = |problem: Problem| wrong(problem.message);
    let name: ServiceName = document.name.parse().map_err(|error| wrong(format!("{error}")))?;
    let policy = policy_patch::apply(&document.policy, Policy::default()).map_err(problem)?;
    let release = |document| parse_release(document).map_err(wrong);
    let canary = document.canary.map(|canary| -> Result<Canary, DocumentError> {
        Ok(Canary {
            release: release(canary.release)?,
            weight: canary.weight.parse().map_err(|error| wrong(format!("{error}")))?,
            rollout: canary.rollout,
            overrides: policy_patch::parse_overrides(&canary.overrides).map_err(problem)?,
        })
    });
    let history = document.history.into_iter().take(HISTORY_MAX).map(|entry| {
        Ok(HistoryEntry {
            release: release(entry.release)?,
            outcome: entry.outcome.into(),
            at_ms: entry.at_ms,
            actor: entry.actor,
            reason: entry.reason,
        })
    });
    Ok(Service {
        name,
        policy,
        stable: release(document.stable)?,
        canary: canary.transpose()?,
        held: document.held.map(release).transpose()?,
        history: history.collect::<Result<_, DocumentError>>()?,
        next_number: document.next_number,
        halt: document.halt.map(parse_halt).transpose().map_err(problem)?,
        provenance: parse_provenance(document.provenance),
    })
}

fn parse_declared(document: DeclaredDocument) -> Result<(ServiceName, Declared), DocumentError> {
    let wrong = |message: String| DocumentError::Value {
        place: format!("the declared service `{}`", document.name),
        message,
    };
    let name = document.name.parse().map_err(|error| wrong(format!("{error}")))?;
    let policy = policy_patch::apply(&document.policy, Policy::default()).map_err(|p| wrong(p.message))?;
    Ok((name, Declared { policy, provenance: parse_provenance(document.provenance) }))
}

fn parse_provenance(document: ProvenanceDocument) -> Provenance {
    let mark = |mark: MarkDocument| Mark { actor: mark.actor, at_ms: mark.at_ms, by: mark.by };
    let by_hand = document.by_hand.into_iter();
    let by_hand = by_hand.map(|change| HandMade { mark: mark(change.mark), settings: change.settings });
    Provenance { applied: document.applied.map(mark), by_hand: by_hand.collect() }
}

fn parse_release(document: ReleaseDocument) -> Result<Release, String> {
    let id: ReleaseId = document.id.parse().map_err(|error| format!("{error}"))?;
    let parse_all = |texts: &[String]| -> Result<Vec<TargetAddress>, String> {
        texts.iter().map(|text| text.parse().map_err(|error| format!("{error}"))).collect()
    };
    let (targets, readers) = (parse_all(&document.targets)?, parse_all(&document.readers)?);
    if targets.is_empty() {
        return Err(format!("release `{id}` has no targets"));
    }
    Ok(Release { id, targets, created_ms: document.created_ms, readers })
}

impl From<Outcome> for OutcomeDocument {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Deployed => Self::Deployed,
            Outcome::RolledBack => Self::RolledBack,
            Outcome::Refused => Self::Refused,
            Outcome::Reverted => Self::Reverted,
            Outcome::Aborted => Self::Aborted,
            Outcome::Promoted => Self::Promoted,
        }
    }
}

impl From<OutcomeDocument> for Outcome {
    fn from(outcome: OutcomeDocument) -> Self {
        match outcome {
            OutcomeDocument::Deployed => Self::Deployed,
            OutcomeDocument::RolledBack => Self::RolledBack,
            OutcomeDocument::Refused => Self::Refused,
            OutcomeDocument::Reverted => Self::Reverted,
            OutcomeDocument::Aborted => Self::Aborted,
            OutcomeDocument::Promoted => Self::Promoted,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    prop_compose! {
        fn releases()(
            number in 1u64..100,
            ports in proptest::collection::vec(1u16.., 1..4),
            readers in proptest::collection::vec(1u16.., 0..3),
            created_ms in any::<u64>(),
        ) -> Release {
            let at = |ports: &[u16], ip: &str| {
                ports.iter().map(|port| format!("{ip}:{port}").parse().unwrap()).collect()
            };
            let (targets, readers) = (at(&ports, "127.0.0.1"), at(&readers, "127.0.0.2"));
            Release { id: ReleaseId::numbered(number), targets, created_ms, readers }
        }
    }

    prop_compose! {
        fn canaries()(release in releases(), weight in 0u16..=10_000, rollout in "\\PC{0,8}") -> Canary {
            let overrides = OverridesBody { cookies: vec!["canary=1".into()], ..OverridesBody::default() };
            Canary {
                release,
                weight: model::weight::Weight::from_basis_points(weight).unwrap(),
                rollout,
                overrides: policy_patch::parse_overrides(&overrides).unwrap(),
            }
        }
    }

    prop_compose! {
        fn halts()(
            is_pause in any::<bool>(),
            seconds in 1u64..=86_400,
            waiting_max in proptest::option::of(1u32..=100_000),
            message in proptest::option::of("[a-z]([a-z\n]{0,8}[a-z])?"),
            actor in "\\PC{0,12}",
            since_ms in any::<u64>(),
        ) -> Halt {
            let kind = match is_pause {
                true => HaltKind::Paused {
                    max_pause: std::time::Duration::from_secs(seconds),
                    waiting_max: waiting_max.and_then(NonZeroU32::new),
                },
                false => HaltKind::Stopped { message },
            };
            let networks = vec!["10.0.0.0/8".into()];
            let bypass = policy_patch::parse_bypass(&BypassBody { networks, ..BypassBody::default() });
            Halt { kind, bypass: bypass.unwrap(), actor, since_ms }
        }
    }

    prop_compose! {
        fn entries()(
            release in releases(),
            outcome in 0usize..6,
            at_ms in any::<u64>(),
            actor in "\\PC{0,12}",
            reason in proptest::option::of("\\PC{0,12}"),
        ) -> HistoryEntry {
            use Outcome::{Aborted, Deployed, Promoted, Refused, Reverted, RolledBack};
            let outcome = [Deployed, RolledBack, Refused, Reverted, Aborted, Promoted][outcome];
            HistoryEntry { release, outcome, at_ms, actor, reason }
        }
    }

    prop_compose! {
        fn provenances()(
            marks in proptest::collection::vec(("\\PC{0,8}", any::<u64>(), "[a-z ]{1,8}"), 0..4),
            is_applied in any::<bool>(),
        ) -> Provenance {
            let mut marks = marks.into_iter().map(|(actor, at_ms, by)| Mark { actor, at_ms, by });
            let applied = if is_applied { marks.next() } else { None };
            let by_hand = marks.map(|mark| HandMade { settings: vec![mark.by.clone(), "bake".into()], mark });
            Provenance { applied, by_hand: by_hand.collect() }
        }
    }

    prop_compose! {
        fn states()(
            generation in any::<u64>(),
            services in proptest::collection::btree_map(
                "[a-z]{1,4}",
                (
                    releases(),
                    proptest::option::of(canaries()),
                    proptest::option::of(releases()),
                    proptest::collection::vec(entries(), 0..4),
                    proptest::option::of(halts()),
                    provenances(),
                ),
                0..4,
            ),
            declared in proptest::collection::btree_map("[A-Z]{1,4}", provenances(), 0..3),
        ) -> State {
            let services =
                services.into_iter().map(|(name, (stable, canary, held, history, halt, provenance))| {
                    let name: ServiceName = name.parse().unwrap();
                    let service = Service::new(name.clone(), Policy::default(), stable);
                    (name, Service { canary, held, history, halt, provenance, ..service })
            });
            let declared = declared.into_iter().map(|(name, provenance)| {
                (name.parse().unwrap(), Declared { policy: Policy::default(), provenance })
            });
            State { generation, services: services.collect(), declared: declared.collect() }
        }
    }

    #[test]
    fn a_file_from_before_there_were_halts_is_read() {
        let name: ServiceName = "shop".parse().unwrap();
        let targets = vec!["127.0.0.1:3000".parse().unwrap()];
        let stable = Release { id: ReleaseId::numbered(1), targets, created_ms: 0, readers: Vec::new() };
        let service = Service::new(name.clone(), Policy::default(), stable);
        let state = State { generation: 1, services: [(name, service)].into(), ..State::default() };
        let text = print(&state);
        assert!(!text.contains("halt"), "and the other way round, as long as nothing is halted: {text}");
        assert_eq!(parse(text.as_bytes()).unwrap(), state);
    }

    proptest! {
        #[test]
        fn a_state_becomes_text_and_the_same_state_again(state in states()) {
            prop_assert_eq!(parse(print(&state).as_bytes()).unwrap(), state);
        }

        #[test]
        fn a_file_of_an_older_build_loads(state in states()) {
            let mut document: serde_json::Value = serde_json::from_str(&print(&state)).unwrap();
            document.as_object_mut().unwrap().remove("declared");
            for service in document["services"].as_array_mut().unwrap() {
                service.as_object_mut().unwrap().remove("provenance");
            }
            let mut want = State { declared: Default::default(), ..state };
            want.services.values_mut().for_each(|service| service.provenance = Provenance::default());
            prop_assert_eq!(parse(document.to_string().as_bytes()).unwrap(), want);
        }

        #[test]
        fn damage_never_panics(state in states(), at in any::<prop::sample::Index>(), bit in 0u8..8, cut in any::<bool>()) {
            let mut bytes = print(&state).into_bytes();
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
            let _ = parse(&bytes);
        }
    }
}
