//! At which authority a certificate is ordered next, and not before when.
//!
//! Authorities count our failures, and after some they will not listen for an hour. So we count before they do: waits
//! grow, a failure is first repeated where it costs nothing (the staging area), and what fails on is asked elsewhere.
//! All of it is plain data that is kept with the certificate, so that neither a restart nor another VM forgets it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::renewal::{Life, part, seed_of};

/// After the first failure, the second, …; the last one for all further ones.
const WAIT_MINUTES: [u64; 10] = [1, 2, 5, 10, 20, 30, 60, 120, 240, 360];
/// Added to a wait, at most, in per mille of it: many certificates may have failed for one reason.
const JITTER_PER_MILLE: u64 = 100;
/// However long an authority asks to be left alone. The longest limit of Let's Encrypt is a week.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// How often an authority may fail us before the next one is asked.
const FAILURES_EACH: u32 = 3;

/// So many in any such time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    pub most: usize,
    pub within: Duration,
}

/// Validations that may fail, for one name. Let's Encrypt allows five.
pub const FAILURES: Allowance = Allowance { most: 3, within: Duration::from_secs(3600) };
/// New orders of one account. Let's Encrypt allows three hundred.
pub const ORDERS: Allowance = Allowance { most: 200, within: Duration::from_secs(3 * 3600) };
/// Certificates that strangers may cause by a handshake.
pub const ON_DEMAND: [Allowance; 2] = [
    Allowance { most: 10, within: Duration::from_secs(60) },
    Allowance { most: 200, within: Duration::from_secs(24 * 3600) },
];

/// What was spent of some allowances, as the moments when.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Budget {
    spent_ms: Vec<u64>,
}

impl Budget {
    /// When one more can be spent; `now_ms` or earlier means now.
    pub fn free_ms(&self, allowances: &[Allowance], now_ms: u64) -> u64 {
        let free = allowances.iter().map(|allowance| {
            let recent: Vec<u64> = self.within(allowance.within, now_ms).collect();
            let Some(over) = (recent.len() + 1).checked_sub(allowance.most) else { return 0 };
            // The `over`th oldest must have left the window.
            let oldest = over.checked_sub(1).and_then(|n| recent.get(n));
            oldest.map_or(0, |at| at.saturating_add(ms(allowance.within)))
        });
        free.max().unwrap_or(0)
    }

    /// Spends one, whether it was free or not. What no allowance looks at any more is forgotten.
    pub fn spend(&mut self, allowances: &[Allowance], now_ms: u64) {
        let longest = allowances.iter().map(|allowance| allowance.within).max().unwrap_or_default();
        let mut spent: Vec<u64> = self.within(longest, now_ms).chain([now_ms]).collect();
        spent.sort_unstable();
        self.spent_ms = spent;
    }

    /// Spends one if it is free; otherwise says when it will be.
    pub fn try_spend(&mut self, allowances: &[Allowance], now_ms: u64) -> Result<(), u64> {
        let free_ms = self.free_ms(allowances, now_ms);
        if free_ms > now_ms {
            return Err(free_ms);
        }
        self.spend(allowances, now_ms);
        Ok(())
    }

    /// A clock that was set back must not make the past endless: what lies ahead counts as now.
    fn within(&self, time: Duration, now_ms: u64) -> impl Iterator<Item = u64> {
        let since_ms = (now_ms + 1).saturating_sub(ms(time));
        self.spent_ms.iter().map(move |at| (*at).min(now_ms)).filter(move |at| *at >= since_ms)
    }
}

/// Whom to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Authority {
    Production,
    /// What it issues is for nobody; passing there means that production may be tried again.
    Staging,
    /// The nth of the further ones.
    Fallback(usize),
}

/// Which authorities there are besides production.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Authorities {
    pub staging: bool,
    pub fallbacks: usize,
}

/// What kind of failure it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The authority does not answer, or not in time.
    Away,
    /// It answers that we ask too much.
    Limited,
    /// It looked and did not like what it saw; this it counts.
    Rejected,
    /// It was our own, before anything was asked.
    Ours,
}

/// What was tried for one certificate since it last came to something.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attempts {
    /// In a row.
    pub failures: u32,
    /// No authority is asked before.
    pub not_before_ms: u64,
    /// Before production is asked again, staging must pass.
    pub must_rehearse: bool,
    /// Those who asked to be left alone, by their place: 0 is production.
    left_alone: Vec<LeftAlone>,
    rejected: Budget,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct LeftAlone {
    place: usize,
    until_ms: u64,
}

/// The next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Next {
    pub authority: Authority,
    /// In the past where it may be now.
    pub at_ms: u64,
}

impl Attempts {
    /// `life` is that of the certificate that serves meanwhile, if there is one.
    pub fn next(&self, known: Authorities, life: Option<Life>, now_ms: u64) -> Next {
        let places = known.fallbacks + 1;
        let is_urgent = life.is_some_and(|life| life.is_nearly_over(now_ms));
        let turns = if is_urgent { self.failures } else { self.failures / FAILURES_EACH };
        let first = turns as usize % places;
        let in_turn = (0..places).map(|n| self.at((first + n) % places, known, now_ms));
        // Whose turn it is, unless another one can be asked sooner.
        in_turn
            .min_by_key(|next| next.at_ms.max(now_ms))
            .unwrap_or(Next { authority: Authority::Production, at_ms: self.not_before_ms })
    }

    fn at(&self, place: usize, known: Authorities, now_ms: u64) -> Next {
        if place == 0 && self.must_rehearse && known.staging {
            return Next { authority: Authority::Staging, at_ms: self.not_before_ms };
        }
        let left_alone = self.left_alone.iter().find(|one| one.place == place);
        let until_ms = left_alone.map_or(0, |one| one.until_ms);
        let budget_ms = self.rejected.free_ms(&[FAILURES], now_ms);
        let authority = place.checked_sub(1).map_or(Authority::Production, Authority::Fallback);
        Next { authority, at_ms: self.not_before_ms.max(until_ms).max(budget_ms) }
    }

    /// `name` is the certificate's, so that not all certificates are tried again at one moment.
    pub fn failed(
        &mut self,
        name: &str,
        at: Authority,
        failure: Failure,
        retry_after: Option<Duration>,
        now_ms: u64,
    ) {
        self.failures = self.failures.saturating_add(1);
        let wait = back_off(name, self.failures);
        self.not_before_ms = now_ms.saturating_add(ms(wait));
        let until_ms = retry_after.map(|wait| now_ms.saturating_add(ms(wait.min(RETRY_AFTER_MAX))));
        match at {
            Authority::Production => self.leave_alone(0, until_ms),
            Authority::Fallback(n) => self.leave_alone(n + 1, until_ms),
            // A rehearsal that cannot be had must not hold up what can.
            Authority::Staging => self.must_rehearse = failure == Failure::Rejected,
        }
        if failure == Failure::Rejected && at != Authority::Staging {
            self.rejected.spend(&[FAILURES], now_ms);
            self.must_rehearse |= at == Authority::Production;
        }
    }

    /// Staging has passed: production may be asked at once.
    pub fn rehearsed(&mut self, now_ms: u64) {
        self.must_rehearse = false;
        self.not_before_ms = now_ms;
    }

    /// There is a certificate. What the authorities have counted, they have counted.
    pub fn succeeded(&mut self) {
        *self = Self { rejected: std::mem::take(&mut self.rejected), ..Self::default() };
    }

    /// An operator wants it now. What others have asked for and what they count stays.
    pub fn hurry(&mut self) {
        self.not_before_ms = 0;
    }

    fn leave_alone(&mut self, place: usize, until_ms: Option<u64>) {
        self.left_alone.retain(|one| one.place != place);
        self.left_alone.extend(until_ms.map(|until_ms| LeftAlone { place, until_ms }));
    }
}

/// How long to wait after so many failures in a row.
fn back_off(name: &str, failures: u32) -> Duration {
    let n = (failures.max(1) as usize - 1).min(WAIT_MINUTES.len() - 1);
    let wait_ms = WAIT_MINUTES[n] * 60_000;
    let jitter = part(wait_ms / 1000 * JITTER_PER_MILLE, seed_of(&format!("{name} {failures}")));
    Duration::from_millis(wait_ms + jitter)
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000;
    const HOUR: u64 = 60 * MINUTE;
    const NOW: u64 = 1_000_000 * HOUR;

    use Authority::{Fallback, Production, Staging};

    const ALONE: Authorities = Authorities { staging: false, fallbacks: 0 };
    const WITH_STAGING: Authorities = Authorities { staging: true, fallbacks: 0 };
    const WITH_BOTH: Authorities = Authorities { staging: true, fallbacks: 1 };

    /// What happens in turn, each as soon as it may: whom it asks, and how that ends (`None`: well).
    fn run(known: Authorities, ends: &[Option<Failure>]) -> Vec<(Authority, u64)> {
        let (mut attempts, mut now_ms, mut seen) = (Attempts::default(), NOW, Vec::new());
        for end in ends {
            let next = attempts.next(known, None, now_ms);
            now_ms = now_ms.max(next.at_ms);
            seen.push((next.authority, (now_ms - NOW) / MINUTE));
            match (end, next.authority) {
                (Some(failure), at) => attempts.failed("shop.test", at, *failure, None, now_ms),
                (None, Staging) => attempts.rehearsed(now_ms),
                (None, _) => attempts.succeeded(),
            }
        }
        seen
    }

    #[test]
    fn waits_grow_up_to_six_hours() {
        for (failures, minutes) in [
            (1, 1),
            (2, 2),
            (3, 5),
            (4, 10),
            (5, 20),
            (6, 30),
            (7, 60),
            (8, 120),
            (9, 240),
            (10, 360),
            (99, 360),
        ] {
            for name in ["a.test", "b.test", "c.test"] {
                let wait = ms(back_off(name, failures));
                let (least, most) = (minutes * MINUTE, minutes * MINUTE * 11 / 10);
                assert!((least..=most).contains(&wait), "{name} after {failures}: {wait} ms");
            }
        }
        assert_ne!(back_off("a.test", 1), back_off("b.test", 1));
    }

    #[test]
    fn whom_to_ask() {
        use Failure::{Away, Limited, Ours, Rejected};
        let names = |known, ends: &[Option<Failure>]| -> Vec<Authority> {
            run(known, ends).into_iter().map(|(authority, _)| authority).collect()
        };
        let no = Some(Rejected);
        for (label, known, ends, want) in [
            ("well", WITH_BOTH, &[None, None][..], &[Production, Production][..]),
            ("alone", ALONE, &[no, no, no, no], &[Production; 4]),
            (
                "rehearsed until it passes",
                WITH_STAGING,
                &[no, no, no, None, None, None],
                &[Production, Staging, Staging, Staging, Production, Production],
            ),
            (
                "a rehearsal that passes by chance",
                WITH_STAGING,
                &[no, None, no, None],
                &[Production, Staging, Production, Staging],
            ),
            (
                "nothing to rehearse",
                WITH_STAGING,
                &[Some(Away), Some(Limited), Some(Ours), None],
                &[Production; 4],
            ),
            (
                "no rehearsal to be had",
                WITH_STAGING,
                &[no, Some(Away), None],
                &[Production, Staging, Production],
            ),
            (
                "another one after three",
                WITH_BOTH,
                &[no, no, no, no, no, no, no],
                &[Production, Staging, Staging, Fallback(0), Fallback(0), Staging, Staging],
            ),
            (
                "away",
                WITH_BOTH,
                &[Some(Away), Some(Away), Some(Away), None, None],
                &[Production, Production, Production, Fallback(0), Production],
            ),
        ] {
            assert_eq!(names(known, ends), want, "{label}");
        }
    }

    #[test]
    fn no_name_is_rejected_more_than_three_times_an_hour() {
        let seen = run(ALONE, &[Some(Failure::Rejected); 8]);
        let minutes: Vec<u64> = seen.iter().map(|(_, minute)| *minute).collect();
        assert!(minutes[2] < 5, "the first three come fast: {minutes:?}");
        for window in minutes.windows(4) {
            assert!(window[3] - window[0] >= 60, "four within an hour: {minutes:?}");
        }
        // Where nothing is counted, nothing but the waits slows us.
        let seen = run(ALONE, &[Some(Failure::Away); 6]);
        assert!(seen[5].1 <= 42, "{seen:?}");
    }

    #[test]
    fn near_the_end_of_a_life_all_authorities_are_asked_in_turn() {
        let mut attempts = Attempts::default();
        let life = Life { not_before_ms: NOW - 80 * HOUR, not_after_ms: NOW + 20 * HOUR };
        assert_eq!(attempts.next(WITH_BOTH, Some(life), NOW).authority, Production);
        attempts.failed("shop.test", Production, Failure::Away, None, NOW);
        assert_eq!(attempts.next(WITH_BOTH, Some(life), NOW).authority, Fallback(0));
        attempts.failed("shop.test", Fallback(0), Failure::Away, None, NOW);
        assert_eq!(attempts.next(WITH_BOTH, Some(life), NOW).authority, Production);
        let long = Life { not_after_ms: NOW + 2000 * HOUR, ..life };
        assert_eq!(attempts.next(WITH_BOTH, Some(long), NOW).authority, Production);
    }

    #[test]
    fn who_asks_to_be_left_alone_is() {
        let day = Duration::from_secs(24 * 3600);
        for (label, known, retry_after, want, wait_ms) in [
            ("as long as it says", ALONE, Some(day), Production, 24 * HOUR),
            ("or another one meanwhile", WITH_BOTH, Some(day), Fallback(0), MINUTE),
            ("but no longer than a week", ALONE, Some(400 * day), Production, 7 * 24 * HOUR),
            ("and our own wait if that is longer", ALONE, Some(Duration::from_secs(1)), Production, MINUTE),
            ("or if nothing is said", ALONE, None, Production, MINUTE),
        ] {
            let mut attempts = Attempts::default();
            attempts.failed("shop.test", Production, Failure::Limited, retry_after, NOW);
            let next = attempts.next(known, None, NOW);
            assert_eq!(next.authority, want, "{label}");
            let wait = next.at_ms - NOW;
            assert!((wait_ms..=wait_ms + MINUTE / 10).contains(&wait), "{label}: {wait} ms");
            attempts.hurry();
            let next = attempts.next(known, None, NOW);
            assert!(
                known == WITH_BOTH
                    || next.at_ms.saturating_sub(NOW) == retry_after.map_or(0, |d| ms(d.min(7 * day))),
                "{label}"
            );
        }
    }

    #[test]
    fn what_was_tried_survives_a_restart() {
        let mut attempts = Attempts::default();
        attempts.failed("shop.test", Production, Failure::Rejected, Some(Duration::from_secs(9)), NOW);
        let text = serde_json::to_string(&attempts).unwrap();
        assert_eq!(serde_json::from_str::<Attempts>(&text).unwrap(), attempts, "{text}");
        assert_eq!(serde_json::from_str::<Attempts>("{}").unwrap(), Attempts::default());
    }

    #[test]
    fn budgets() {
        let allowance = [
            Allowance { most: 2, within: Duration::from_secs(60) },
            Allowance { most: 3, within: Duration::from_secs(3600) },
        ];
        let mut budget = Budget::default();
        for (at_s, want) in [
            (0, Ok(())),
            (1, Ok(())),
            (2, Err(60)),
            (59, Err(60)),
            (60, Ok(())),
            (61, Err(3600)),
            (3599, Err(3600)),
            (3600, Ok(())),
            (3601, Ok(())),
            (3602, Err(3660)),
            // The clock is set back: no credit, and no lock for ever.
            (100, Err(3660)),
            (3700, Ok(())),
        ] {
            let done = budget.try_spend(&allowance, NOW + at_s * 1000);
            assert_eq!(done.map_err(|at| (at - NOW) / 1000), want, "at {at_s} s");
        }
        assert!(budget.spent_ms.len() <= 4, "{budget:?}");
    }

    proptest::proptest! {
        #[test]
        fn no_window_ever_holds_more_than_the_allowance(pauses in proptest::collection::vec(0u64..100, 1..200)) {
            let allowance = [Allowance { most: 5, within: Duration::from_millis(200) }];
            let (mut budget, mut now, mut spent) = (Budget::default(), NOW, Vec::new());
            for pause in pauses {
                now += pause;
                if budget.try_spend(&allowance, now).is_ok() {
                    spent.push(now);
                }
                let recent = spent.iter().filter(|at| **at + 200 > now).count();
                proptest::prop_assert!(recent <= 5);
            }
        }
    }
}
