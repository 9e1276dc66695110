//! What operators ask the manager for.

use model::certificate::CertificateName;
use model::protocol::{Problem, ProblemCode, RevocationReason};
use tokio::sync::oneshot;

use super::super::document::Document;
use super::super::handle::Request;
use super::super::report::no_certificate;
use super::super::shelf::Shelf;
use super::Manager;
use super::jobs::Job;
use crate::adapters::acme::{AccountKey, Client};
use crate::config::Authority;

type Answer = oneshot::Sender<Result<(), Problem>>;

impl Manager {
    pub fn obey(&mut self, request: Request) {
        match request {
            Request::Renew(name, answer) => {
                // Whoever asked may be gone.
                let _ = answer.send(self.renew(&name));
            }
            Request::Revoke(name, reason, answer) => self.revoke(name, reason, answer),
            Request::Look => self.look(),
        }
    }

    fn renew(&mut self, name: &CertificateName) -> Result<(), Problem> {
        self.check_on()?;
        let entry = self.entries.get_mut(name).ok_or_else(|| no_certificate(name))?;
        if entry.wanted.is_none() {
            let message = format!("no service wants certificate `{name}` any more");
            return Err(Problem::new(ProblemCode::Conflict, message));
        }
        if !entry.is_under_way {
            (entry.is_forced, entry.not_before_ms) = (true, 0);
        }
        Ok(())
    }

    fn revoke(&mut self, name: CertificateName, reason: RevocationReason, answer: Answer) {
        let prepared = self.prepare_revocation(&name);
        let (authority, account, document) = match prepared {
            Ok(prepared) => prepared,
            Err(problem) => {
                let _ = answer.send(Err(problem));
                return;
            }
        };
        if let Some(entry) = self.entries.get_mut(&name) {
            entry.is_under_way = true;
        }
        self.attempts += 1;
        let (shelf, owner) = (self.parts.shelf.clone(), std::sync::Arc::clone(&self.parts.owner));
        self.jobs.spawn(async move {
            let revoked = revoke(&shelf, &owner, &name, &authority, &account, document, reason).await;
            let (result, document) = match revoked {
                Ok(document) => (Ok(()), Some(Box::new(document))),
                Err(problem) => (Err(problem), None),
            };
            let _ = answer.send(result);
            Job::Revoked(name, document)
        });
    }

    fn prepare_revocation(
        &self,
        name: &CertificateName,
    ) -> Result<(Authority, std::sync::Arc<AccountKey>, Document), Problem> {
        self.check_on()?;
        let conflict = |message: String| Problem::new(ProblemCode::Conflict, message);
        let entry = self.entries.get(name).ok_or_else(|| no_certificate(name))?;
        if entry.is_under_way {
            return Err(conflict(format!("certificate `{name}` is being issued at the moment"))
                .hint("try again once that has ended"));
        }
        let issued = entry.issued().ok_or_else(|| {
            conflict(format!("there is nothing to revoke: `{name}` has no certificate yet"))
        })?;
        let authority = self.parts.authorities.as_ref().and_then(|all| all.find(&issued.directory));
        let authority = authority.cloned().ok_or_else(|| {
            conflict(format!("{} issued it, and is no authority of this agent any more", issued.directory))
        })?;
        let account = self.account.clone();
        let account =
            account.ok_or_else(|| conflict("the account is not at hand: the store is away".to_owned()))?;
        Ok((authority, account, entry.document.clone()))
    }

    fn check_on(&self) -> Result<(), Problem> {
        if self.is_on() {
            return Ok(());
        }
        Err(Problem::new(ProblemCode::Invalid, "automatic certificates are off")
            .hint("set `directory` in `[acme]` of the agent's configuration"))
    }
}

async fn revoke(
    shelf: &Shelf,
    owner: &str,
    name: &CertificateName,
    authority: &Authority,
    account: &AccountKey,
    mut document: Document,
    reason: RevocationReason,
) -> Result<Document, Problem> {
    let failed = |error: &dyn std::error::Error| {
        let problem = Problem::from_error(ProblemCode::Certificate, error);
        problem.hint("nothing was changed; it goes on serving")
    };
    let store = shelf.store();
    let lease = store.acquire(name.as_str(), owner, super::super::attempt::LEASE).await;
    let Some(lease) = lease.map_err(|error| failed(&error))? else {
        let message = format!("another VM is at work on certificate `{name}`");
        return Err(Problem::new(ProblemCode::Conflict, message).hint("try again once it is done"));
    };
    let told = async {
        let issued = document.issued.as_mut().ok_or_else(|| no_certificate(name))?;
        let client = Client::open(authority, account).await.map_err(|error| failed(&error))?;
        let compromised = reason == RevocationReason::KeyCompromise;
        client.revoke(&issued.chain_pem, compromised).await.map_err(|error| failed(&error))?;
        issued.revoked = true;
        document.pending = None;
        if let Err(error) = shelf.write(&lease, name, &document).await {
            // It is revoked; this VM knows it, and tells the store with the next certificate.
            tracing::warn!(%name, "the store does not know that it is revoked: {error}");
        }
        shelf.keep(name, &document).await;
        Ok(document)
    };
    let result = told.await;
    let _ = store.release(lease).await;
    result
}
