//! One order, from what is wanted to what is issued (RFC 8555 §7.4).

use std::fmt::Display;
use std::time::Duration;

use instant_acme::{
    AuthorizationStatus, ChallengeStatus, ChallengeType, Error, Identifier, NewOrder, Order, OrderStatus,
    RetryPolicy,
};
use model::name::{HostName, HostPattern};
use model::own_certificates::{KeyKind, uncovered};
use model::renewal::CertificateId;
use serde::{Deserialize, Serialize};

use super::error::words;
use super::{AcmeError, Client, Issued, Refusal, SecretPem, certified, identifier, issued, patiently};
use crate::adapters::certificate::chain;
use crate::config::ChallengeKind;

/// For the authority's look at all hosts, and again for its signature.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);
/// For all of it.
const ORDER_TIMEOUT: Duration = Duration::from_secs(600);

const POLLING: RetryPolicy =
    RetryPolicy::new().initial_delay(Duration::from_millis(200)).backoff(1.4).timeout(PATIENCE);

/// What the certificate shall be like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub hosts: Vec<HostName>,
    /// The certificate that it will take the place of (RFC 9773 §5).
    pub replaces: Option<CertificateId>,
    pub challenge: ChallengeKind,
}

/// An order that the authority knows. Whoever has it can finish it, so it belongs into the vault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    pub url: String,
    /// Of the certificate to be.
    pub key_pem: SecretPem,
}

/// What must be answered before the authority looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    pub host: HostName,
    pub kind: ChallengeKind,
    pub token: String,
    pub key_authorization: String,
}

impl Client {
    /// Begins and finishes an order. `ready` is called for each challenge and returns when it can be answered.
    pub async fn order<F, E>(
        &self,
        wanted: &Wanted,
        ready: impl FnMut(Challenge) -> F,
    ) -> Result<Issued, AcmeError>
    where
        F: Future<Output = Result<(), E>>,
        E: Display,
    {
        let begun = self.begin(wanted).await?;
        self.finish(wanted, &begun, ready).await
    }

    /// Makes an order at the authority.
    pub async fn begin(&self, wanted: &Wanted) -> Result<Begun, AcmeError> {
        let key = rcgen::KeyPair::generate().map_err(unusable)?;
        let identifiers: Vec<Identifier> = wanted.hosts.iter().map(to_identifier).collect();
        let mut order = NewOrder::new(&identifiers);
        if let Some(profile) = self.profile()? {
            order = order.profile(profile);
        }
        if let Some((authority_key, serial)) =
            wanted.replaces.as_ref().and_then(|id| id.as_str().split_once('.'))
        {
            let id = instant_acme::CertificateIdentifier {
                authority_key_identifier: authority_key.into(),
                serial: serial.into(),
            };
            let mut replacing = NewOrder::new(&identifiers).replaces(id);
            if let Some(profile) = self.profile()? {
                replacing = replacing.profile(profile);
            }
            match patiently!(self.account.new_order(&replacing).await) {
                Ok(order) => return Ok(begun(&order, &key)),
                // It may be replaced already, or of another authority or account. A plain order is as good.
                Err(AcmeError::Refused(_) | AcmeError::Malformed(_)) => {}
                Err(error) => return Err(error),
            }
        }
        match patiently!(self.account.new_order(&order).await) {
            Ok(order) => Ok(begun(&order, &key)),
            // What is not ours to order has a problem type of its own.
            Err(AcmeError::Refused(refusal)) if refusal.is("unauthorized") => {
                Err(AcmeError::Account(refusal))
            }
            Err(error) => Err(error),
        }
    }

    /// Goes on with an order wherever it stands. [`AcmeError::ends_the_order`] tells whether trying again later can
    /// help.
    pub async fn finish<F, E>(
        &self,
        wanted: &Wanted,
        begun: &Begun,
        ready: impl FnMut(Challenge) -> F,
    ) -> Result<Issued, AcmeError>
    where
        F: Future<Output = Result<(), E>>,
        E: Display,
    {
        let finished = Box::pin(self.go_on(wanted, begun, ready));
        let slow = |_| AcmeError::TooSlow { what: "the order", within: ORDER_TIMEOUT, retry_after: None };
        tokio::time::timeout(ORDER_TIMEOUT, finished).await.map_err(slow)?
    }

    async fn go_on<F, E>(
        &self,
        wanted: &Wanted,
        begun: &Begun,
        mut ready: impl FnMut(Challenge) -> F,
    ) -> Result<Issued, AcmeError>
    where
        F: Future<Output = Result<(), E>>,
        E: Display,
    {
        let known = patiently!(self.account.order(begun.url.clone()).await);
        let mut order = known.map_err(|error| match error {
            AcmeError::Refused(refusal) if refusal.status == 404 => AcmeError::Gone(refusal.to_string()),
            other => other,
        })?;
        if order.state().status == OrderStatus::Pending {
            authorize(&mut order, wanted.challenge, &mut ready).await?;
            match patiently!(order.poll_ready(&POLLING).await) {
                Ok(OrderStatus::Invalid) => return Err(explain(&mut order).await),
                Ok(_) => {}
                // The order's own words are few. Those about the host that failed are better.
                Err(AcmeError::Refused(refusal)) => {
                    return Err(match explain(&mut order).await {
                        AcmeError::Gone(_) => AcmeError::Refused(refusal),
                        better => better,
                    });
                }
                Err(error) => return Err(error),
            }
        }
        if order.state().status == OrderStatus::Ready {
            let request = signing_request(wanted, &begun.key_pem)?;
            patiently!(order.finalize_csr(&request).await)?;
        }
        if order.state().status == OrderStatus::Invalid {
            return Err(explain(&mut order).await);
        }
        let chain_pem = patiently!(order.poll_certificate(&POLLING).await)?;
        check(wanted, chain_pem, &begun.key_pem)
    }

    /// The profile to ask for. An authority without profiles is not asked for one.
    fn profile(&self) -> Result<Option<&str>, AcmeError> {
        let Some(wanted) = self.authority.profile.as_deref() else { return Ok(None) };
        let mut known: Vec<&str> = self.account.profiles().map(|profile| profile.name).collect();
        if known.is_empty() {
            return Ok(None);
        }
        if known.contains(&wanted) {
            return Ok(Some(wanted));
        }
        known.sort_unstable();
        Err(AcmeError::Profile { wanted: wanted.to_owned(), known: words(&known.join(", ")) })
    }
}

fn begun(order: &Order, key: &rcgen::KeyPair) -> Begun {
    Begun { url: order.url().to_owned(), key_pem: SecretPem::new(key.serialize_pem()) }
}

/// Makes each open challenge ready and tells the authority to look.
async fn authorize<F, E>(
    order: &mut Order,
    kind: ChallengeKind,
    ready: &mut impl FnMut(Challenge) -> F,
) -> Result<(), AcmeError>
where
    F: Future<Output = Result<(), E>>,
    E: Display,
{
    patiently!(fetch(order).await)?;
    let mut authorizations = order.authorizations();
    while let Some(next) = authorizations.next().await {
        let mut authorization = next?;
        let host = authorization.identifier().to_string();
        match authorization.status {
            AuthorizationStatus::Valid => continue,
            AuthorizationStatus::Pending => {}
            // The order is invalid then, and is asked why.
            _ => return Ok(()),
        }
        let offered: Vec<&str> = authorization.challenges.iter().map(|one| name(&one.r#type)).collect();
        let offered = words(&offered.join(", "));
        let wanted = challenge_type(kind);
        let kind_name = name(&wanted).to_owned();
        let Some(mut challenge) = authorization.challenge(wanted) else {
            return Err(AcmeError::NoChallenge { host, kind: kind_name, offered });
        };
        let bracketed = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        let malformed = |_| AcmeError::Malformed(format!("an authorization for `{}`", words(&host)));
        let task = Challenge {
            host: bracketed.parse().map_err(malformed)?,
            kind,
            token: challenge.token.clone(),
            key_authorization: challenge.key_authorization().as_str().to_owned(),
        };
        ready(task).await.map_err(|error| AcmeError::NotReady { host, why: error.to_string() })?;
        if challenge.status == ChallengeStatus::Pending {
            patiently!(challenge.set_ready().await)?;
        }
    }
    Ok(())
}

/// So that going through them asks nothing any more. What a try has fetched, the next one need not.
async fn fetch(order: &mut Order) -> Result<(), Error> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        authorization?;
    }
    Ok(())
}

/// Why an order is invalid: what the authority found at the hosts.
async fn explain(order: &mut Order) -> AcmeError {
    match find_failures(order).await {
        Ok(mut failures) if !failures.is_empty() => {
            let (host, first) = failures.remove(0);
            let others = failures.iter().map(|(host, one)| format!("; {host}: {}", one.detail));
            let detail = std::iter::once(first.detail.clone()).chain(others).collect();
            AcmeError::Invalid { host, problem_type: first.problem_type, detail }
        }
        Ok(_) => match order.state().error.clone() {
            Some(problem) => Refusal::from(problem).into_error(),
            None => AcmeError::Gone("it is invalid, and the authority does not say why".to_owned()),
        },
        Err(error) => error,
    }
}

async fn find_failures(order: &mut Order) -> Result<Vec<(String, Refusal)>, AcmeError> {
    let mut failures = Vec::new();
    patiently!(fetch(order).await)?;
    let mut authorizations = order.authorizations();
    while let Some(next) = authorizations.next().await {
        let mut authorization = next?;
        patiently!(authorization.refresh().await.map(drop))?;
        let problems = authorization.challenges.iter().filter_map(|challenge| challenge.error.clone());
        let host = words(&authorization.identifier().to_string());
        failures.extend(problems.map(|problem| (host.clone(), Refusal::from(problem))));
    }
    Ok(failures)
}

fn signing_request(wanted: &Wanted, key: &SecretPem) -> Result<Vec<u8>, AcmeError> {
    let names: Vec<String> = wanted.hosts.iter().map(|host| identifier(host).to_owned()).collect();
    let mut params = rcgen::CertificateParams::new(names).map_err(unusable)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    let key = rcgen::KeyPair::from_pem(key.expose());
    let key = key.map_err(|_| AcmeError::Unusable("the key of the order is no key".to_owned()))?;
    Ok(params.serialize_request(&key).map_err(unusable)?.der().to_vec())
}

/// Nothing is published that would not serve.
fn check(wanted: &Wanted, chain_pem: String, key_pem: &SecretPem) -> Result<Issued, AcmeError> {
    let certified = certified(&chain_pem, key_pem).map_err(unusable)?;
    // Its key is our own.
    let facts = chain::facts(&certified.cert, KeyKind::Ecdsa).map_err(unusable)?;
    let hosts: Vec<HostPattern> = wanted.hosts.iter().cloned().map(HostPattern::Exact).collect();
    if let Some(host) = uncovered(&[&facts], &hosts).first() {
        return Err(AcmeError::Unusable(format!("it does not name {host}")));
    }
    Ok(Issued {
        chain_pem,
        key_pem: key_pem.clone(),
        not_before_ms: facts.not_before_ms,
        not_after_ms: facts.not_after_ms,
        id: issued::id(&certified),
    })
}

fn unusable(error: impl Display) -> AcmeError {
    AcmeError::Unusable(error.to_string())
}

fn to_identifier(host: &HostName) -> Identifier {
    let name = identifier(host);
    name.parse().map_or_else(|_| Identifier::Dns(name.to_owned()), Identifier::Ip)
}

fn challenge_type(kind: ChallengeKind) -> ChallengeType {
    match kind {
        ChallengeKind::Http01 => ChallengeType::Http01,
        ChallengeKind::TlsAlpn01 => ChallengeType::TlsAlpn01,
    }
}

fn name(kind: &ChallengeType) -> &str {
    match kind {
        ChallengeType::Http01 => "http-01",
        ChallengeType::TlsAlpn01 => "tls-alpn-01",
        ChallengeType::Dns01 => "dns-01",
        ChallengeType::Unknown(other) => other,
        _ => "another",
    }
}
