//! Looks whether the files of own certificates have changed, and takes what they hold now.
//!
//! Contents are compared, not times: that way it does not matter whether a file is written anew, a link leads elsewhere
//! (certbot, Kubernetes), or the directory lies on another machine. When files are taken is decided in `model::reload`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use model::name::ServiceName;
use model::reload::{self, Look, Verdict, Watched};
use model::service::Service;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::now_ms;
use super::own_certificates::{OwnCertificates, Place, Trouble, expiry, moment, with_causes};
use super::registry::{Command, Registry, Reloaded, View};
use crate::adapters::certificate::{Pair, PairFiles};

const WARN_AGAIN_MS: u64 = 24 * 60 * 60 * 1000;

/// One pair of files of one service.
type Key = (ServiceName, PathBuf);

/// What one look at a pair of files found.
struct Seen {
    service: ServiceName,
    index: usize,
    /// As it is in use.
    place: Place,
    look: Look,
    /// What would be taken.
    next: Option<Pair>,
}

/// Looks every `interval`, and at once on SIGHUP, until `shutdown`.
pub async fn run(registry: Registry, interval: Duration, shutdown: CancellationToken) {
    let mut hang_up = match signal(SignalKind::hangup()) {
        Ok(hang_up) => hang_up,
        Err(error) => {
            tracing::error!(%error, "cannot listen for signals; files of certificates are not looked at again");
            return;
        }
    };
    let started = Instant::now();
    let (mut watched, mut warned) = (BTreeMap::new(), BTreeMap::new());
    let mut pause = interval;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
            Some(()) = hang_up.recv() => {}
        }
        let view = registry.view();
        let Ok(seen) = tokio::task::spawn_blocking(move || look(&view)).await else { return };
        let (changes, restless) = weigh(seen, &mut watched, &mut warned, started.elapsed());
        if !changes.is_empty() && registry.send(Command::Reloaded(changes)).await.is_err() {
            return;
        }
        pause = if restless { reload::SETTLE.min(interval) } else { interval };
    }
}

fn look(view: &View) -> Vec<Seen> {
    let own =
        view.services().filter_map(|(service, live)| Some((service, live.certificate.as_ref()?.own()?)));
    own.flat_map(|(service, own)| (0..own.places.len()).map(|index| look_at(service, own, index))).collect()
}

fn look_at(service: &Service, own: &OwnCertificates, index: usize) -> Seen {
    let place = own.places[index].clone();
    let files = PairFiles::read(&place.files);
    let content = files.content();
    let (look, next) = match &place.pair {
        Some(pair) if pair.content == content => (Look::Same, None),
        _ => match files.parse() {
            Err(error) => (Look::Other { content, flaw: Some(with_causes(&error)) }, None),
            Ok(next) => {
                let flaw = own.check_next(index, &next, &service.policy.hosts).err();
                (Look::Other { content, flaw }, Some(next))
            }
        },
    };
    Seen { service: service.name.clone(), index, place, look, next }
}

/// What is to be done, and whether some files are not at rest.
fn weigh(
    seen: Vec<Seen>,
    watched: &mut BTreeMap<Key, Watched>,
    warned: &mut BTreeMap<Key, u64>,
    now: Duration,
) -> (Vec<Reloaded>, bool) {
    let mut known = std::mem::take(watched);
    let mut known_warnings = std::mem::take(warned);
    let (mut changes, mut restless) = (Vec::new(), false);
    for Seen { service, index, place, look, next } in seen {
        let path = place.files.certificate.clone();
        let key = (service.clone(), path.clone());
        let mut state = known.remove(&key).unwrap_or_default();
        let verdict = state.step(look, now);
        watched.insert(key.clone(), state);
        if let Some(warning) = warning(&place, known_warnings.remove(&key)) {
            if let Some(message) = warning.message {
                tracing::warn!(%service, "{message}");
                changes.push(Reloaded {
                    service: service.clone(),
                    index,
                    place: place.clone(),
                    kind: "certificate expiring",
                    message,
                });
            }
            warned.insert(key, warning.at_ms);
        }
        let path = path.display();
        let (place, kind, message) = match verdict {
            Verdict::Rest => continue,
            Verdict::LookAgain => {
                restless = true;
                continue;
            }
            Verdict::Take => {
                let Some(next) = next.map(Arc::new) else { continue };
                let until = moment(next.facts.not_after_ms);
                let mut message =
                    format!("{path} has changed and is shown from now on; it is valid until {until}");
                next.remarks.iter().for_each(|remark| message += &format!("; {remark}"));
                (Place { pair: Some(next), trouble: None, ..place }, "certificate reloaded", message)
            }
            Verdict::Report(flaw) => {
                let serves = match &place.pair {
                    Some(_) => "the one from before is shown on",
                    None => "it is not shown",
                };
                let message = format!("what is in {path} now is not used, and {serves}: {flaw}");
                tracing::warn!(%service, "{message}");
                (Place { trouble: Some(Trouble::new(&flaw)), ..place }, "certificate refused", message)
            }
            Verdict::Recovered => {
                let message = format!("{path} holds again what is shown");
                (Place { trouble: None, ..place }, "certificate reloaded", message)
            }
        };
        changes.push(Reloaded { service, index, place, kind, message });
    }
    (changes, restless)
}

/// That a certificate ends soon.
struct Warning {
    /// When it was last said, Unix time in ms.
    at_ms: u64,
    /// `None`: it was said lately.
    message: Option<String>,
}

fn warning(place: &Place, last_ms: Option<u64>) -> Option<Warning> {
    let (pair, now_ms) = (place.pair.as_ref()?, now_ms());
    if !pair.facts.expires_soon(now_ms) {
        return None;
    }
    match last_ms {
        Some(at_ms) if now_ms.saturating_sub(at_ms) < WARN_AGAIN_MS => Some(Warning { at_ms, message: None }),
        _ => {
            let path = place.files.certificate.display();
            let message = format!("the certificate in {path} {}; nobody has renewed it", expiry(&pair.facts));
            Some(Warning { at_ms: now_ms, message: Some(message) })
        }
    }
}
