//! The manager of automatic certificates: one task that knows them all, sleeps until one is due, and has it issued.
//!
//! It never waits for a store or an authority itself: whatever takes time is a job beside it. What serves is replaced only
//! by what is there already, so every failure leaves HTTPS as it was.

pub mod jobs;
mod requests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use model::certificate::CertificateName;
use model::issuing::{self, Budget};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::jobs::Job;
use super::super::audit::{Audit, OURSELVES};
use super::super::registry::{Command, Registry};
use super::attempt::{Attempt, Outcome};
use super::challenges::Board;
use super::document::{Document, Failure};
use super::entry::Entry;
use super::handle::{AllKnown, Desk};
use super::managed::Managed;
use super::shelf::Shelf;
use crate::adapters::acme::AccountKey;
use crate::config::Acme;
use crate::telemetry::metrics::Metrics;

/// Orders at a time.
const ATTEMPTS_MAX: usize = 4;
/// The wall clock may be set while we sleep, and a suspended machine does not count its sleep.
const SLEEP_MAX: Duration = Duration::from_secs(600);
/// After the store could not be reached.
const STORE_PAUSE_MS: u64 = 15_000;
/// While another VM has the lease; it tells when it is done.
const HELD_PAUSE_MS: u64 = 10_000;

/// What the manager works with.
pub struct Parts {
    pub shelf: Shelf,
    /// `None`: nobody is asked for certificates; those that are there are shown.
    pub authorities: Option<Arc<Acme>>,
    pub registry: Registry,
    pub desk: Desk,
    pub board: Board,
    pub audit: Audit,
    pub metrics: Arc<Metrics>,
    /// This process, and no other.
    pub owner: Arc<str>,
    pub now_ms: fn() -> u64,
}

/// What this VM had of its own when it started.
#[derive(Default)]
pub struct Found {
    pub account: Option<Arc<AccountKey>>,
    pub documents: Vec<(CertificateName, Document)>,
}

pub struct Manager {
    parts: Parts,
    entries: BTreeMap<CertificateName, Entry>,
    account: Option<Arc<AccountKey>>,
    /// When the store is to be asked for the account (Unix time in ms); `None` while it is, or when it was.
    account_at_ms: Option<u64>,
    /// When the authority refused the account, and it was made anew (Unix time in ms).
    account_replaced_ms: u64,
    jobs: JoinSet<Job>,
    attempts: usize,
    /// Orders of this VM since it started. The authority counts by account, which a fleet shares.
    orders: Budget,
    is_looking: bool,
    looks_again: bool,
    /// Why it was not at hand last.
    account_failure: Option<String>,
}

/// Names this process among all that ever had a lease: by its machine, for people, and by chance.
pub fn owner() -> Arc<str> {
    let machine = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{machine}/{}-{:016x}", std::process::id(), fastrand::u64(..)).into()
}

impl Found {
    pub async fn on(shelf: &Shelf) -> Self {
        Self { account: jobs::account_at_hand(shelf).await, documents: shelf.copies().await }
    }

    /// What can be shown before anything else is known.
    pub fn managed(&self, is_on: bool) -> Managed {
        let entries = self.entries();
        let managed = |(name, entry): (&CertificateName, &Entry)| Some((name.clone(), entry.managed()?));
        Managed {
            thumbprint: self.account.as_ref().filter(|_| is_on).map(|key| key.thumbprint().into()),
            certificates: entries.iter().filter_map(managed).collect(),
        }
    }

    fn entries(&self) -> BTreeMap<CertificateName, Entry> {
        let entry = |(name, document): &(CertificateName, Document)| {
            let mut entry = Entry::default();
            entry.take(name, document.clone());
            (name.clone(), entry)
        };
        self.documents.iter().map(entry).collect()
    }
}

impl Manager {
    pub fn new(parts: Parts, found: &Found) -> Self {
        Self {
            account_at_ms: parts.authorities.is_some().then_some(0),
            parts,
            entries: found.entries(),
            account: found.account.clone(),
            account_replaced_ms: 0,
            jobs: JoinSet::new(),
            attempts: 0,
            orders: Budget::default(),
            is_looking: false,
            looks_again: false,
            account_failure: None,
        }
    }

    /// Runs until `shutdown`. An order under way is left as it is: it is written down, and gone on with later.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut generations = self.parts.registry.generations();
        let shelf = self.parts.shelf.clone();
        let mut watch = shelf.store().watch();
        self.reconcile();
        self.look();
        loop {
            self.publish().await;
            self.begin();
            let wake = self.sleep();
            // Each branch can be dropped: what was not taken is still there at the next turn.
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = tokio::time::sleep(wake) => {}
                changed = generations.changed() => match changed {
                    Ok(()) => self.reconcile(),
                    Err(_) => break,
                },
                () = watch.changed(), if shelf.is_shared() => self.look(),
                Some(ended) = self.jobs.join_next() => match ended {
                    Ok(job) => self.end(job),
                    Err(error) => self.lose(&error),
                },
                Some(request) = self.parts.desk.requests.recv() => self.obey(request),
            }
        }
        self.jobs.shutdown().await;
    }

    fn now_ms(&self) -> u64 {
        (self.parts.now_ms)()
    }

    fn is_on(&self) -> bool {
        self.parts.authorities.is_some()
    }

    /// Looks at what the services want now.
    fn reconcile(&mut self) {
        let mut wanted = super::wanted(&self.parts.registry.view());
        let mut is_new = false;
        for (name, entry) in &mut self.entries {
            let now = wanted.remove(name);
            if now.is_some()
                && now.as_ref().map(|one| &one.hosts) != entry.wanted.as_ref().map(|one| &one.hosts)
            {
                // What kept the old ones back says nothing of these.
                entry.hindrance = None;
                entry.not_before_ms = 0;
            }
            entry.wanted = now;
        }
        for (name, wanted) in wanted {
            is_new = true;
            self.entries.insert(name, Entry { wanted: Some(wanted), ..Entry::default() });
        }
        let now_ms = self.now_ms();
        // What nobody wants stays in the store; here it is of no use once it is over.
        self.entries.retain(|_, entry| {
            entry.wanted.is_some()
                || entry.is_under_way
                || entry.issued().is_some_and(|issued| issued.not_after_ms > now_ms)
        });
        if is_new {
            self.look();
        }
    }

    /// When something is to be done next.
    fn sleep(&self) -> Duration {
        let now_ms = self.now_ms();
        let has_room = self.account.is_some() && self.attempts < ATTEMPTS_MAX;
        let attempts = self.parts.authorities.as_deref().filter(|_| has_room).and_then(|authorities| {
            self.entries.values().filter_map(|entry| entry.attempt_at_ms(authorities, now_ms)).min()
        });
        let windows = self.entries.values().filter_map(Entry::ask_at_ms).filter(|_| self.is_on()).min();
        let attempts = attempts.map(|at_ms| at_ms.max(self.orders.free_ms(&[issuing::ORDERS], now_ms)));
        let next = [attempts, windows, self.account_at_ms].into_iter().flatten().min();
        next.map_or(SLEEP_MAX, |at_ms| Duration::from_millis(at_ms.saturating_sub(now_ms)).min(SLEEP_MAX))
    }

    /// Begins what is due.
    fn begin(&mut self) {
        let now_ms = self.now_ms();
        if self.account_at_ms.is_some_and(|at_ms| at_ms <= now_ms) {
            self.account_at_ms = None;
            self.ask_for_account(None);
        }
        let (Some(authorities), Some(account)) = (self.parts.authorities.clone(), self.account.clone())
        else {
            return;
        };
        let mut due: Vec<(u64, CertificateName)> = self
            .entries
            .iter()
            .filter_map(|(name, entry)| Some((entry.attempt_at_ms(&authorities, now_ms)?, name.clone())))
            .filter(|(at_ms, _)| *at_ms <= now_ms)
            .collect();
        // Whoever has waited longest comes first.
        due.sort();
        let room = match self.orders.free_ms(&[issuing::ORDERS], now_ms) > now_ms {
            true => 0,
            false => ATTEMPTS_MAX.saturating_sub(self.attempts),
        };
        for (_, name) in due.into_iter().take(room) {
            self.attempt(&name, Arc::clone(&authorities), Arc::clone(&account));
        }
        self.ask_for_windows(&account, now_ms);
    }

    fn attempt(&mut self, name: &CertificateName, authorities: Arc<Acme>, account: Arc<AccountKey>) {
        let Some(entry) = self.entries.get_mut(name) else { return };
        let Some(wanted) = entry.wanted.clone() else { return };
        entry.is_under_way = true;
        entry.issued_by = None;
        self.attempts += 1;
        let attempt = Attempt {
            shelf: self.parts.shelf.clone(),
            authorities,
            account,
            board: self.parts.board.clone(),
            name: name.clone(),
            wanted,
            document: entry.document.clone(),
            window: entry.window,
            is_forced: entry.is_forced,
            owner: Arc::clone(&self.parts.owner),
            now_ms: self.parts.now_ms,
        };
        let name = name.clone();
        self.jobs.spawn(async move { Job::Attempted(name, Box::new(attempt.run().await)) });
    }

    /// An attempt has come to its end.
    fn ended(&mut self, name: &CertificateName, outcome: Outcome) {
        self.attempts -= 1;
        let now_ms = self.now_ms();
        if matches!(outcome, Outcome::Issued(_) | Outcome::Unsaved(..) | Outcome::Failed(..)) {
            self.orders.spend(&[issuing::ORDERS], now_ms);
            if self.orders.free_ms(&[issuing::ORDERS], now_ms) > now_ms {
                tracing::warn!(
                    most = issuing::ORDERS.most,
                    "so many certificates were asked for that further ones have to wait"
                );
            }
        }
        let Some(entry) = self.entries.get_mut(name) else { return };
        entry.is_under_way = false;
        let was_issued = entry.issued().is_some();
        let is_over = !matches!(outcome, Outcome::Held(_) | Outcome::Hindered(_));
        if is_over {
            (entry.is_forced, entry.not_before_ms, entry.hindrance) = (false, 0, None);
            entry.ended += 1;
        }
        match outcome {
            Outcome::Issued(document) => {
                entry.is_unsaved = false;
                self.issued(name, document, was_issued);
            }
            Outcome::Unsaved(document, why) => {
                entry.is_unsaved = true;
                entry.not_before_ms = now_ms + STORE_PAUSE_MS;
                tracing::warn!(%name, why, "a certificate was issued, and is on this VM alone until the store is back");
                self.issued(name, document, was_issued);
            }
            Outcome::Taken(document) => {
                entry.is_unsaved = false;
                self.take(name, document);
            }
            Outcome::Held(by) => {
                entry.issued_by = Some(by);
                entry.not_before_ms = now_ms + HELD_PAUSE_MS;
            }
            Outcome::Hindered(why) => {
                entry.not_before_ms = now_ms + STORE_PAUSE_MS;
                if entry.hindrance.as_ref().is_none_or(|known| known.message != why) {
                    tracing::warn!(%name, why, "a certificate cannot be asked for now");
                }
                entry.hindrance = Some(Failure { at_ms: now_ms, message: why });
            }
            Outcome::Failed(document, error) => {
                self.parts.metrics.process().certificates_failed.fetch_add(1, Ordering::Relaxed);
                entry.take(name, document);
                let authorities = self.parts.authorities.as_deref();
                let next_ms = authorities.and_then(|all| entry.attempt_at_ms(all, now_ms));
                let next_ms = next_ms.unwrap_or(now_ms).saturating_sub(now_ms);
                let next = model::duration::print(Duration::from_secs(next_ms.div_ceil(1000)));
                let message =
                    format!("certificate `{name}` was not issued: {error}; the next attempt is in {next}");
                self.record(name, "certificate failed", message);
                self.doubt_account(name, &error);
            }
        }
    }

    fn issued(&mut self, name: &CertificateName, document: Document, was_issued: bool) {
        self.parts.metrics.process().certificates_issued.fetch_add(1, Ordering::Relaxed);
        let (kind, verb) =
            if was_issued { ("certificate renewed", "renewed") } else { ("certificate issued", "issued") };
        if let Some(issued) = &document.issued {
            let until = super::day(issued.not_after_ms);
            let message =
                format!("certificate `{name}` was {verb} by {} and holds until {until}", issued.directory);
            self.record(name, kind, message);
        }
        if let Some(entry) = self.entries.get_mut(name) {
            entry.take(name, document);
        }
    }

    /// Takes over what another VM has put into the store.
    fn take(&mut self, name: &CertificateName, document: Document) {
        let Some(entry) = self.entries.get_mut(name) else { return };
        let chain = |document: &Document| document.issued.as_ref().map(|issued| issued.chain_pem.clone());
        if document.issued.is_some() && chain(&document) != chain(&entry.document) {
            tracing::info!(%name, "a certificate was taken over from the store");
        }
        if entry.document != document {
            let (shelf, name, copy) = (self.parts.shelf.clone(), name.clone(), document.clone());
            self.jobs.spawn(async move {
                shelf.keep(&name, &copy).await;
                Job::Kept
            });
        }
        (entry.issued_by, entry.hindrance) = (None, None);
        entry.take(name, document);
    }

    fn record(&self, name: &CertificateName, kind: &str, message: String) {
        let entry = self.entries.get(name).and_then(|entry| entry.wanted.as_ref());
        let service = entry.and_then(|wanted| wanted.services.first());
        self.parts.audit.record(model::protocol::LoggedEvent {
            at_ms: self.now_ms(),
            generation: self.parts.registry.view().state.generation,
            kind: kind.to_owned(),
            service: service.map(ToString::to_string),
            release: None,
            target: None,
            actor: OURSELVES.to_owned(),
            message,
        });
    }

    /// Shows the data plane what is there, and then everybody else.
    async fn publish(&mut self) {
        let managed = Managed {
            thumbprint: self.account.as_ref().filter(|_| self.is_on()).map(|key| key.thumbprint().into()),
            certificates: self
                .entries
                .iter()
                .filter_map(|(name, entry)| Some((name.clone(), entry.managed()?)))
                .collect(),
        };
        if !managed.is_same(&self.parts.registry.view().managed) {
            let (shown, is_shown) = oneshot::channel();
            let command = Command::Managed(Arc::new(managed), shown);
            if self.parts.registry.send(command).await.is_ok() {
                let _ = is_shown.await;
            }
        }
        let (authorities, now_ms) = (self.parts.authorities.as_deref(), self.now_ms());
        let known = |(name, entry): (&CertificateName, &Entry)| {
            (name.clone(), entry.known(name, authorities, now_ms))
        };
        let known: AllKnown = Arc::new(self.entries.iter().map(known).collect());
        self.parts.desk.known.send_if_modified(|before| {
            let is_new = *before != known;
            *before = known;
            is_new
        });
    }

    /// A job that panicked. Which one is not known, so nothing counts as under way any more.
    fn lose(&mut self, error: &tokio::task::JoinError) {
        tracing::error!(%error, "a job of the certificate manager broke");
        let running: BTreeSet<CertificateName> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.is_under_way)
            .map(|(name, _)| name.clone())
            .collect();
        self.jobs.abort_all();
        self.jobs = JoinSet::new();
        (self.attempts, self.is_looking) = (0, false);
        let now_ms = self.now_ms();
        for name in running {
            if let Some(entry) = self.entries.get_mut(&name) {
                (entry.is_under_way, entry.not_before_ms) = (false, now_ms + STORE_PAUSE_MS);
            }
        }
    }
}
