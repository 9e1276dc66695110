//! The audit log: what changed, by whom. Every line goes to `tracing` (target `audit`) and stays readable
//! through the control API for a while.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use model::protocol::LoggedEvent;
use tokio::sync::broadcast;

/// How many lines `agentctl events` can look back.
const KEPT: usize = 1_000;
/// How far a follower may fall behind before it loses lines.
const FOLLOWER_LAG_MAX: usize = 256;

/// They stay for as long as they like, so they may take up only a part of the control socket's connections.
pub const FOLLOWERS_MAX: usize = 16;

/// The actor of what the daemon does by itself.
pub const OURSELVES: &str = "portcullis";

#[derive(Clone)]
pub struct Audit(Arc<Inner>);

struct Inner {
    kept: Mutex<VecDeque<LoggedEvent>>,
    followers: broadcast::Sender<LoggedEvent>,
}

impl Default for Audit {
    fn default() -> Self {
        let followers = broadcast::channel(FOLLOWER_LAG_MAX).0;
        Self(Arc::new(Inner { kept: Mutex::default(), followers }))
    }
}

impl Audit {
    pub fn record(&self, event: LoggedEvent) {
        tracing::info!(
            target: "audit",
            kind = event.kind,
            service = event.service,
            release = event.release,
            // `target` is a word of tracing's own.
            instance = event.target,
            actor = event.actor,
            generation = event.generation,
            "{}",
            event.message
        );
        let mut kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(event.clone());
        // Under the lock, so that a new follower sees each line once. Nobody listening is no error.
        let _ = self.0.followers.send(event);
    }

    /// Oldest first.
    pub fn recent(&self) -> Vec<LoggedEvent> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// What is kept, and everything after it; `None` when there are too many followers.
    pub fn follow(&self) -> Option<(Vec<LoggedEvent>, Follower)> {
        // Under the lock, so that no two take the last place.
        let kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = self.0.followers.receiver_count() >= FOLLOWERS_MAX;
        (!is_full).then(|| (kept.iter().cloned().collect(), Follower(self.0.followers.subscribe())))
    }
}

pub struct Follower(broadcast::Receiver<LoggedEvent>);

impl Follower {
    /// The next line; one that says how many were lost if the reader was too slow. Cancel safe.
    pub async fn next(&mut self) -> Option<LoggedEvent> {
        match self.0.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Closed) => None,
            Err(broadcast::error::RecvError::Lagged(lost)) => Some(LoggedEvent {
                at_ms: super::now_ms(),
                generation: 0,
                kind: "events dropped".to_owned(),
                service: None,
                release: None,
                target: None,
                actor: OURSELVES.to_owned(),
                message: format!("{lost} events were dropped because this reader was too slow"),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(number: u64) -> LoggedEvent {
        LoggedEvent {
            at_ms: number,
            generation: number,
            kind: "deploy".into(),
            service: None,
            release: None,
            target: None,
            actor: OURSELVES.into(),
            message: String::new(),
        }
    }

    #[test]
    fn only_the_last_thousand_are_kept() {
        let audit = Audit::default();
        (0..1_500).for_each(|number| audit.record(event(number)));
        let recent = audit.recent();
        assert_eq!((recent.len(), recent[0].at_ms, recent[999].at_ms), (1_000, 500, 1_499));
    }

    #[tokio::test]
    async fn a_slow_follower_is_told_what_it_lost() {
        let audit = Audit::default();
        audit.record(event(0));
        let (past, mut follower) = audit.follow().unwrap();
        assert_eq!(past.len(), 1);
        (1..=300).for_each(|number| audit.record(event(number)));
        let lost = follower.next().await.unwrap();
        assert_eq!(lost.kind, "events dropped");
        assert!(lost.message.starts_with("44 "), "{}", lost.message);
        assert_eq!(follower.next().await.unwrap().at_ms, 45);
    }
}
