//! A halt at work: who waits for its end, and how they hear of it.
//!
//! Requests wait, the control plane lifts. A halt is lifted after the snapshot that leads elsewhere is published: whoever
//! is woken finds what is to become of them there.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use model::halt::Halt as Rule;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Requests that may be on their way to the app at a time out of those that waited: half of what Puma lets stand in its
/// socket's backlog. Thousands at once would overflow it, and connections would be refused for want of nothing but a moment.
const GOING_MAX: usize = 512;
/// After so long a request has left the backlog, and the next one goes although this one has no answer yet: a slow upload
/// or a slow app must not keep the others waiting.
const GOING_FOR: Duration = Duration::from_secs(2);

/// One order to pause or stop, until another one takes its place.
pub struct Halt {
    pub rule: Rule,
    waiting: AtomicUsize,
    lifted: CancellationToken,
    going: Arc<Semaphore>,
}

/// Held by a request that waited, from when it goes on until its answer begins.
pub type Going = DropGuard;

impl Halt {
    pub fn new(rule: Rule) -> Arc<Self> {
        Arc::new(Self {
            rule,
            waiting: AtomicUsize::new(0),
            lifted: CancellationToken::new(),
            going: Arc::new(Semaphore::new(GOING_MAX)),
        })
    }

    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Counts a request that waits. `None` if `max` do already.
    pub fn join(self: &Arc<Self>, max: usize) -> Option<Waiter> {
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let waiter = Waiter(Arc::clone(self));
        (before < max).then_some(waiter)
    }

    /// The service goes on, or another order is in force.
    pub fn lift(&self) {
        self.lifted.cancel();
    }

    pub fn is_lifted(&self) -> bool {
        self.lifted.is_cancelled()
    }

    pub async fn lifted(&self) {
        self.lifted.cancelled().await;
    }

    /// When it is lifted, in the order of those who wait: at once for the first, and then one for each that has its answer,
    /// or has been waiting for it long enough. Run the future beside the request: it gives the turn to the next one.
    pub async fn go(&self) -> Option<(Going, impl Future<Output = ()> + use<>)> {
        self.lifted().await;
        // It is never closed.
        let turn = Arc::clone(&self.going).acquire_owned().await.ok()?;
        let answered = CancellationToken::new();
        let going = answered.clone().drop_guard();
        Some((going, async move {
            // Either way the turn is over.
            let _ = timeout(GOING_FOR, answered.cancelled()).await;
            drop(turn);
        }))
    }
}

/// A request that waits; dropped, it gives up its place.
pub struct Waiter(Arc<Halt>);

impl Waiter {
    pub fn halt(&self) -> &Arc<Halt> {
        &self.0
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use model::canary::Overrides;
    use model::halt::HaltKind;
    use tokio::task::JoinSet;
    use tokio::time::Instant;

    use super::*;

    fn halt() -> Arc<Halt> {
        Halt::new(Rule {
            kind: HaltKind::Paused { max_pause: Duration::from_secs(30), waiting_max: None },
            bypass: Overrides::default(),
            actor: "ann".into(),
            since_ms: 0,
        })
    }

    #[test]
    fn so_many_may_wait_and_places_come_back() {
        let halt = halt();
        let waiters: Vec<Waiter> = (0..3).filter_map(|_| halt.join(2)).collect();
        assert_eq!((waiters.len(), halt.waiting()), (2, 2));
        drop(waiters);
        assert_eq!(halt.waiting(), 0);
        assert!(halt.join(0).is_none());
        assert_eq!(halt.waiting(), 0);
    }

    #[tokio::test]
    async fn who_waits_hears_of_the_end_and_who_comes_later_does_too() {
        let halt = halt();
        let lifted = halt.lifted();
        tokio::pin!(lifted);
        assert!(futures_util::poll!(lifted.as_mut()).is_pending());
        halt.lift();
        lifted.await;
        halt.lifted().await;
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_go_on_do_not_all_go_at_once() {
        let (halt, mut turns) = (halt(), JoinSet::new());
        halt.lift();
        let mut going = Vec::new();
        for _ in 0..GOING_MAX {
            let (one, turn) = halt.go().await.unwrap();
            going.push(one);
            turns.spawn(turn);
        }
        let began = Instant::now();
        // One has its answer.
        going.pop();
        let (_next, turn) = halt.go().await.unwrap();
        turns.spawn(turn);
        assert_eq!(began.elapsed(), Duration::ZERO);
        // Nobody else gets one, and that holds up nobody for long.
        let (_last, _turn) = halt.go().await.unwrap();
        assert_eq!(began.elapsed().as_secs(), GOING_FOR.as_secs());
    }
}
