//! The certificates that an operator brings for a service, read from the files that its policy names.
//!
//! A deploy takes all of them or none. What is in use is kept where its files become worse, and a start makes do with
//! those that can be read.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use model::certificate::CertificateName;
use model::name::{HostPattern, ServiceName};
use model::own_certificates::{self as rules, Facts, Flaw};
use model::protocol::{CertificateFailure, CertificateState, CertificateStatus, Problem, ProblemCode};
use model::service::{CertificateFiles, Policy};
use rustls::sign::CertifiedKey;

use super::now_ms;
use crate::adapters::certificate::{self, CertificateError, Pair};

/// How many names of a certificate a message lists.
const NAMES_LISTED: usize = 5;

/// The pairs of a service, in the order of its policy. At least one is in use.
#[derive(Debug, Clone)]
pub struct OwnCertificates {
    pub places: Vec<Place>,
}

/// One pair of files.
#[derive(Debug, Clone)]
pub struct Place {
    pub files: CertificateFiles,
    /// `None`: its files could never be used since the start.
    pub pair: Option<Arc<Pair>>,
    /// Why what the files hold now is not in use.
    pub trouble: Option<Trouble>,
}

#[derive(Debug, Clone)]
pub struct Trouble {
    pub message: Arc<str>,
    /// When it was noticed, Unix time in ms.
    pub at_ms: u64,
}

impl Trouble {
    pub fn new(message: &str) -> Self {
        Self { message: message.into(), at_ms: now_ms() }
    }
}

/// What a name is shown.
pub struct Shown {
    pub name: Option<HostPattern>,
    pub first: Arc<CertifiedKey>,
    pub rsa: Option<Arc<CertifiedKey>>,
}

impl OwnCertificates {
    /// Reads all files of a policy that is not accepted yet, and refuses what would not do for its hosts. Blocks.
    pub fn load(policy: &Policy) -> Result<Option<Self>, Problem> {
        let pairs = files(policy).iter().map(certificate::load).collect::<Result<Vec<_>, _>>();
        let pairs =
            pairs.map_err(|error| Problem::from_error(ProblemCode::Certificate, &error)).map_err(hinted)?;
        if pairs.is_empty() {
            return Ok(None);
        }
        let facts: Vec<&Facts> = pairs.iter().map(|pair| &pair.facts).collect();
        rules::check(&facts, &policy.hosts, now_ms()).map_err(|flaw| {
            let named: Vec<_> = pairs.iter().map(|pair| (&pair.files, &pair.facts)).collect();
            hinted(Problem::new(ProblemCode::Certificate, describe(&flaw, &named, &policy.hosts)))
        })?;
        let place =
            |pair: Pair| Place { files: pair.files.clone(), pair: Some(Arc::new(pair)), trouble: None };
        Ok(Some(Self { places: pairs.into_iter().map(place).collect() }))
    }

    /// Whatever can be read of what was accepted before. Blocks.
    pub fn load_what_can_be(policy: &Policy) -> Self {
        let place = |files: &CertificateFiles| match certificate::load(files) {
            Ok(pair) => Place { files: files.clone(), pair: Some(Arc::new(pair)), trouble: None },
            Err(error) => {
                Place { files: files.clone(), pair: None, trouble: Some(Trouble::new(&with_causes(&error))) }
            }
        };
        Self { places: files(policy).iter().map(place).collect() }
    }

    pub fn is_empty(&self) -> bool {
        self.pairs().next().is_none()
    }

    pub fn fits(&self, policy: &Policy) -> bool {
        self.places.iter().map(|place| &place.files).eq(files(policy))
    }

    /// Those in use.
    pub fn pairs(&self) -> impl Iterator<Item = &Arc<Pair>> {
        self.places.iter().filter_map(|place| place.pair.as_ref())
    }

    /// For the hosts of the service, and for names below them that have a certificate of their own.
    pub fn shown(&self, hosts: &[HostPattern]) -> Vec<Shown> {
        let pairs: Vec<_> = self.pairs().collect();
        let facts: Vec<_> = pairs.iter().map(|pair| &pair.facts).collect();
        let certified = |index: usize| Arc::clone(&pairs[index].certified);
        let shown = rules::shown_names(&facts, hosts).into_iter().filter_map(|name| {
            let choice = rules::choose(&facts, name.as_ref())?;
            Some(Shown { name, first: certified(choice.first), rsa: choice.rsa.map(certified) })
        });
        shown.collect()
    }

    /// Why `next` may not take the place `index`, for people.
    pub fn check_next(&self, index: usize, next: &Pair, hosts: &[HostPattern]) -> Result<(), String> {
        let in_use: Vec<_> =
            self.places.iter().map(|place| place.pair.as_ref().map(|pair| &pair.facts)).collect();
        rules::check_next(&in_use, index, &next.facts, hosts, now_ms()).map_err(|flaw| {
            let named = self.places.iter().enumerate().map(|(place, one)| {
                let facts =
                    one.pair.as_ref().filter(|_| place != index).map_or(&next.facts, |pair| &pair.facts);
                (&one.files, facts)
            });
            describe(&flaw, &named.collect::<Vec<_>>(), hosts)
        })
    }

    /// For the status of a service.
    pub fn statuses(&self, service: &ServiceName) -> Vec<CertificateStatus> {
        let one = |Place { files, pair, trouble }: &Place| {
            let facts = pair.as_ref().map(|pair| &pair.facts);
            let path = files.certificate.display().to_string();
            let name = pair.as_ref().map_or_else(|| path.clone(), |pair| name(pair));
            let hosts = facts.iter().flat_map(|facts| &facts.names).map(ToString::to_string);
            CertificateStatus {
                state: if pair.is_some() { CertificateState::Own } else { CertificateState::Placeholder },
                source: Some(path),
                not_before_ms: facts.map(|facts| facts.not_before_ms),
                not_after_ms: facts.map(|facts| facts.not_after_ms),
                failure: trouble.as_ref().map(|trouble| CertificateFailure {
                    at_ms: trouble.at_ms,
                    message: trouble.message.to_string(),
                    attempts: 1,
                }),
                ..CertificateStatus::placeholder(name, hosts.collect(), vec![service.to_string()])
            }
        };
        self.places.iter().map(one).collect()
    }

    /// What the last line of a deploy says of them.
    pub fn remark(&self) -> String {
        let paths: Vec<_> =
            self.places.iter().map(|place| place.files.certificate.display().to_string()).collect();
        let what = if paths.len() == 1 { "certificate" } else { "certificates" };
        let mut said = format!("; HTTPS shows the {what} in {}", paths.join(", "));
        for Place { files, pair, trouble } in &self.places {
            let path = files.certificate.display();
            if let Some(trouble) = trouble {
                said += &format!("; what is in {path} now is not used: {}", trouble.message);
            }
            let Some(pair) = pair else { continue };
            if pair.facts.expires_soon(now_ms()) {
                said += &format!("; {path} {}", expiry(&pair.facts));
            }
            pair.remarks.iter().for_each(|remark| said += &format!("; {path}: {remark}"));
        }
        said
    }
}

/// Its first name, as the names of automatic certificates are written; where it has none, the path of its file.
pub fn name(pair: &Pair) -> String {
    let path = || pair.files.certificate.display().to_string();
    pair.facts.names.first().map_or_else(path, |name| CertificateName::of(name).to_string())
}

/// Such as `expires on 2026-12-01 10:00 UTC`.
pub fn expiry(facts: &Facts) -> String {
    let verb = if facts.has_expired(now_ms()) { "expired" } else { "expires" };
    format!("{verb} on {}", moment(facts.not_after_ms))
}

fn files(policy: &Policy) -> &[CertificateFiles] {
    policy.tls.as_ref().map_or(&[], |tls| &tls.files)
}

fn hinted(problem: Problem) -> Problem {
    problem.hint("traffic is unchanged; correct the files, their permissions or the hosts and try again")
}

/// With all causes, for places where only one line is to be had.
pub fn with_causes(error: &CertificateError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

fn describe(flaw: &Flaw, certificates: &[(&CertificateFiles, &Facts)], hosts: &[HostPattern]) -> String {
    let path = |index: usize| certificates[index].0.certificate.display();
    let facts = |index: usize| certificates[index].1;
    match flaw {
        Flaw::Expired(index) => {
            format!("the certificate in {} expired on {}", path(*index), moment(facts(*index).not_after_ms))
        }
        Flaw::NotYetValid(index) => {
            let from = moment(facts(*index).not_before_ms);
            format!("the certificate in {} is not valid before {from}", path(*index))
        }
        Flaw::Foreign(index) => format!(
            "the certificate in {} names none of the service's hosts: it names {}, and the hosts are {}",
            path(*index),
            list(&facts(*index).names),
            list(hosts)
        ),
        Flaw::Uncovered(missing) => {
            let mut seen = HashMap::new();
            let told = certificates.iter().filter(|(files, _)| seen.insert(&files.certificate, ()).is_none());
            let told: Vec<_> = told
                .map(|(files, facts)| format!("{} names {}", files.certificate.display(), list(&facts.names)))
                .collect();
            format!("no certificate names {}: {}", list(missing), told.join("; "))
        }
    }
}

fn list(names: &[HostPattern]) -> String {
    let listed: Vec<_> = names.iter().take(NAMES_LISTED).map(|name| format!("`{name}`")).collect();
    match names.len() {
        0 => "nothing".to_owned(),
        count if count > NAMES_LISTED => format!("{} and {} more", listed.join(", "), count - NAMES_LISTED),
        _ => listed.join(", "),
    }
}

pub fn moment(unix_ms: u64) -> String {
    let time = i64::try_from(unix_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    time.map_or_else(
        || "a day beyond the calendar".to_owned(),
        |time| time.strftime("%Y-%m-%d %H:%M UTC").to_string(),
    )
}
