//! From the state file to services at work: optimistically, because what served before a restart serves after it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use model::canary::Cohort;
use model::name::ServiceName;
use model::service::{Release as Record, Service};
use tokio_util::sync::CancellationToken;

use super::activations::{Activation, Factory, Live};
use super::files::Files;
use super::gate;
use super::registry::{Command, Registry, View};
use crate::adapters::state_file::{Loaded, State};
use crate::release::Endpoint;

/// Between two tries to look a restored name up.
const LOOKUP_PAUSE: Duration = Duration::from_secs(5);

/// A restored release of which some name has no address yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unlocated {
    service: ServiceName,
    record: Record,
}

/// Says loudly what was wrong with the state file.
pub fn report(loaded: &Loaded) {
    let Some(recovery) = &loaded.recovered else { return };
    let cause = recovery.cause.as_ref().map(ToString::to_string);
    let kept = recovery.put_aside.as_ref().map(|path| path.display().to_string());
    tracing::error!(
        cause,
        kept,
        generation = loaded.state.generation,
        "the state file was missing or damaged; its backup is used, which may lack the last change"
    );
}

pub async fn view(state: State, factory: &Factory, dir: &Path) -> (View, Vec<Unlocated>) {
    let mut view = View { state: Arc::new(state), ..View::default() };
    let services = view.state.services.values().map(|service| restore(service, factory, dir));
    let mut unlocated = Vec::new();
    for (name, live, missing) in join_all(services).await {
        view.live.insert(name, live);
        unlocated.extend(missing);
    }
    (view, unlocated)
}

async fn restore(service: &Service, factory: &Factory, dir: &Path) -> (ServiceName, Live, Vec<Unlocated>) {
    let mut unlocated = Vec::new();
    let (stable, missing) = activate(service, Cohort::Stable, &service.stable, factory, dir).await;
    unlocated.extend(missing);
    let mut canary = None;
    if let Some(one) = &service.canary {
        let (activation, missing) = activate(service, Cohort::Canary, &one.release, factory, dir).await;
        canary = Some(activation);
        unlocated.extend(missing);
    }
    let mut held = None;
    if let Some(record) = &service.held {
        let (activation, missing) = activate(service, Cohort::Stable, record, factory, dir).await;
        activation.release.close();
        held = Some(activation);
        unlocated.extend(missing);
    }
    let nothing = Files::default();
    let Files { certificate, pages, client_auth } =
        Files::current(service, nothing.clone(), nothing, dir).await;
    let halt = Live::halt(None, service.halt.as_ref());
    (service.name.clone(), Live { stable, canary, held, certificate, pages, halt, client_auth }, unlocated)
}

async fn activate(
    service: &Service,
    cohort: Cohort,
    record: &Record,
    factory: &Factory,
    dir: &Path,
) -> (Activation, Option<Unlocated>) {
    let found = join_all(record.all_targets().map(gate::resolve)).await;
    let missing = found.iter().any(Result::is_err);
    let endpoints = found.into_iter().map(|endpoint| {
        endpoint.unwrap_or_else(|error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::error!(service = %service.name, release = %record.id, cause, "{error}; trying on");
            // Nobody listens there, so requests fail fast with a gateway error until the name is found.
            Endpoint::Unix(dir.join("name-without-address"))
        })
    });
    let activation = factory.activate(&service.name, cohort, record, endpoints.collect());
    let unlocated = Unlocated { service: service.name.clone(), record: record.clone() };
    (activation, missing.then_some(unlocated))
}

/// Tries on until every restored name has an address.
pub async fn locate(mut unlocated: Vec<Unlocated>, registry: Registry, shutdown: CancellationToken) {
    while !unlocated.is_empty() {
        if shutdown.run_until_cancelled(tokio::time::sleep(LOOKUP_PAUSE)).await.is_none() {
            return;
        }
        let mut missing = Vec::new();
        for one in unlocated {
            let found = join_all(one.record.all_targets().map(gate::resolve)).await;
            match found.into_iter().collect::<Result<Vec<_>, _>>() {
                Ok(endpoints) => {
                    let located = Command::Located(one.service, one.record, endpoints);
                    if registry.send(located).await.is_err() {
                        return;
                    }
                }
                Err(_) => missing.push(one),
            }
        }
        unlocated = missing;
    }
}
