//! Who is changing which service: one operation per service at a time.
//!
//! A claim is taken before anything is looked at and given back when it is dropped, so that an operation
//! that ends in any way, even by panic, never blocks its service.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::name::ServiceName;
use model::protocol::{DeploymentPhase, Operation, Problem, ProblemCode};
use tokio_util::sync::CancellationToken;

#[derive(Clone, Default)]
pub struct Operations(Arc<Mutex<BTreeMap<ServiceName, Running>>>);

struct Running {
    operation: Operation,
    give_way: CancellationToken,
    ended: CancellationToken,
}

/// The right to change a service, until it is dropped.
pub struct Claim {
    operations: Operations,
    service: ServiceName,
    give_way: CancellationToken,
}

impl Operations {
    /// Refused while another operation has the service.
    pub fn claim(&self, service: &ServiceName, verb: &str, actor: &str) -> Result<Claim, Problem> {
        let mut running = self.lock();
        if let Some(other) = running.get(service) {
            return Err(busy(service, &other.operation));
        }
        let operation = Operation {
            verb: verb.to_owned(),
            release: String::new(),
            phase: DeploymentPhase::Planned,
            actor: actor.to_owned(),
            since_ms: super::now_ms(),
        };
        let (give_way, ended) = (CancellationToken::new(), CancellationToken::new());
        running.insert(service.clone(), Running { operation, give_way: give_way.clone(), ended });
        Ok(Claim { operations: self.clone(), service: service.clone(), give_way })
    }

    /// Like `claim`, but an operation that only waits for the end of a drain or bake gives way: those are
    /// the minutes in which a bad release shows, so nobody must have to wait for them to roll it back.
    /// `spared` is the verb of operations that need not.
    pub async fn claim_from_waiting(
        &self,
        service: &ServiceName,
        verb: &str,
        actor: &str,
        spared: Option<&str>,
    ) -> Result<Claim, Problem> {
        loop {
            let refused = match self.claim(service, verb, actor) {
                Ok(claim) => return Ok(claim),
                Err(refused) => refused,
            };
            match self.ask_to_give_way(service, spared) {
                Asked::Nobody => {}
                Asked::Waiting(ended) => ended.cancelled().await,
                Asked::Busy => return Err(refused),
            }
        }
    }

    fn ask_to_give_way(&self, service: &ServiceName, spared: Option<&str>) -> Asked {
        match self.lock().get(service) {
            None => Asked::Nobody,
            Some(running) if spared == Some(running.operation.verb.as_str()) => Asked::Busy,
            Some(running) => match running.operation.phase {
                DeploymentPhase::Draining | DeploymentPhase::Baking => {
                    running.give_way.cancel();
                    Asked::Waiting(running.ended.clone())
                }
                _ => Asked::Busy,
            },
        }
    }

    pub fn running(&self, service: &ServiceName) -> Option<Operation> {
        self.lock().get(service).map(|running| running.operation.clone())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ServiceName, Running>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Asked {
    Nobody,
    Waiting(CancellationToken),
    Busy,
}

impl Claim {
    pub fn service(&self) -> &ServiceName {
        &self.service
    }

    pub fn set_release(&self, release: &str) {
        self.change(|operation| operation.release = release.to_owned());
    }

    pub fn set_phase(&self, phase: DeploymentPhase) {
        self.change(|operation| operation.phase = phase);
    }

    /// Cancelled when another operation wants the service while this one only waits.
    pub fn give_way(&self) -> &CancellationToken {
        &self.give_way
    }

    fn change(&self, change: impl FnOnce(&mut Operation)) {
        if let Some(running) = self.operations.lock().get_mut(&self.service) {
            change(&mut running.operation);
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let ended = self.operations.lock().remove(&self.service);
        if let Some(running) = ended {
            running.ended.cancel();
        }
    }
}

fn busy(service: &ServiceName, operation: &Operation) -> Problem {
    let Operation { verb, release, actor, since_ms, .. } = operation;
    let release = if release.is_empty() { String::new() } else { format!(" of release `{release}`") };
    let seconds = super::now_ms().saturating_sub(*since_ms) / 1_000;
    let message =
        format!("service `{service}` is being changed: {actor} began a {verb}{release} {seconds}s ago");
    Problem::new(ProblemCode::Conflict, message)
        .hint(format!("wait for it to end; `agentctl status {service}` shows how far it is"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_holds_the_first() {
        let operations = Operations::default();
        let shop = "shop".parse().unwrap();
        let claim = operations.claim(&shop, "deploy", "ann (uid 1001)").unwrap();
        claim.set_release("r2");
        let refused = operations.claim(&shop, "rollback", "bob (uid 1002)").err().unwrap();
        assert_eq!(refused.code, ProblemCode::Conflict);
        assert!(refused.message.contains("ann (uid 1001) began a deploy of release `r2`"), "{refused:?}");
        assert!(operations.claim(&"blog".parse().unwrap(), "deploy", "bob").is_ok(), "another service");
        drop(claim);
        assert!(operations.claim(&shop, "rollback", "bob").is_ok());
    }

    #[tokio::test]
    async fn who_only_waits_gives_way() {
        let operations = Operations::default();
        let shop = "shop".parse().unwrap();
        let claim = operations.claim(&shop, "deploy", "ann").unwrap();
        claim.set_phase(DeploymentPhase::Gating);
        assert!(operations.claim_from_waiting(&shop, "rollback", "bob", None).await.is_err());
        claim.set_phase(DeploymentPhase::Reverted);
        assert!(operations.claim_from_waiting(&shop, "rollback", "bob", None).await.is_err());

        claim.set_phase(DeploymentPhase::Baking);
        assert!(operations.claim_from_waiting(&shop, "rollback", "bob", Some("deploy")).await.is_err());
        let deploy = async {
            claim.give_way().cancelled().await;
            drop(claim);
        };
        let rollback = operations.claim_from_waiting(&shop, "rollback", "bob", Some("rollback"));
        let ((), taken) = tokio::join!(deploy, rollback);
        assert!(taken.is_ok());
        assert_eq!(operations.running(&shop).unwrap().actor, "bob");
    }
}
