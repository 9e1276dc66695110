//! The numbers of a release since the traffic came to it, for the bake that `model::cutover` decides.

use std::sync::Arc;
use std::time::Duration;

use model::cutover::Totals;
use model::protocol::Event;

use super::report::Reporter;
use crate::release::Release;

/// The counters of a release when it got the traffic.
pub struct Bake {
    release: Arc<Release>,
    before: Totals,
}

impl Bake {
    /// Begins to count. Counters of a release that returns go on, so what is there already is left out.
    pub fn new(release: &Arc<Release>) -> Self {
        Self { release: Arc::clone(release), before: totals(release) }
    }

    /// Since the switch.
    pub fn seen(&self) -> Totals {
        let now = totals(&self.release);
        Totals {
            requests: now.requests.saturating_sub(self.before.requests),
            gateway_errors: now.gateway_errors.saturating_sub(self.before.gateway_errors),
        }
    }

    pub fn report(&self, remaining: Duration, reporter: &Reporter) {
        let remaining_ms = u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX);
        let Totals { requests, gateway_errors } = self.seen();
        reporter.tell(Event::Baking { remaining_ms, requests, gateway_errors });
    }
}

fn totals(release: &Release) -> Totals {
    // Those who found no place count too: a release that is too slow for its load does badly.
    let all = release.targets.iter().map(|target| &target.stats).chain([&release.unseated]);
    all.map(|stats| stats.totals()).fold(Totals::default(), |sum, one| Totals {
        requests: sum.requests + one.requests,
        gateway_errors: sum.gateway_errors + one.gateway_errors,
    })
}
