//! When a certificate is due.
//!
//! Where its authority tells when (ARI, RFC 9773), at a point in that window; otherwise when two thirds of its life
//! are over, or half of it if that is short. A fleet renews together what it holds together, so the point depends on
//! the certificate alone and is the same on every VM and after every restart.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A life shorter than this is half over when a certificate is due, and not two thirds.
const SHORT_MS: u64 = 10 * 24 * 3_600_000;
/// How far certificates with equal lives are spread, in per mille of their age, to either side.
const JITTER_PER_MILLE: u64 = 50;
/// How often an authority may be asked for its window, and must be (RFC 9773 §4.3.2).
const ASK_AGAIN_MIN: Duration = Duration::from_secs(60);
const ASK_AGAIN_MAX: Duration = Duration::from_secs(24 * 3600);

/// What an authority calls a certificate (RFC 9773 §4.1): who signed it, and its number.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CertificateId(String);

impl CertificateId {
    pub fn new(text: String) -> Self {
        Self(text)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// When the authority would like a certificate to be renewed; never empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    start_ms: u64,
    end_ms: u64,
}

impl Window {
    /// `None` where it ends before it starts.
    pub fn new(start_ms: u64, end_ms: u64) -> Option<Self> {
        (start_ms < end_ms).then_some(Self { start_ms, end_ms })
    }
}

/// From when to when a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    pub not_before_ms: u64,
    pub not_after_ms: u64,
}

impl Life {
    fn length_ms(self) -> u64 {
        self.not_after_ms.saturating_sub(self.not_before_ms)
    }

    /// Less than a quarter of it is left: whatever can still give a certificate is good enough.
    pub fn is_nearly_over(self, now_ms: u64) -> bool {
        self.not_after_ms.saturating_sub(now_ms) < self.length_ms() / 4
    }

    /// The last tenth is for failures, whatever the authority suggests.
    fn latest_ms(self) -> u64 {
        self.not_after_ms - self.length_ms() / 10
    }
}

/// When a certificate is due. `seed` is its own, such as its number: the same on every VM and after every restart.
pub fn due_ms(life: Life, window: Option<Window>, seed: &str) -> u64 {
    let random = seed_of(seed);
    let Some(window) = window else {
        let length = life.length_ms();
        let age = if length < SHORT_MS { length / 2 } else { length / 3 * 2 };
        let spread = age / 1000 * (2 * JITTER_PER_MILLE);
        return life.not_before_ms + age - spread / 2 + part(spread, random);
    };
    (window.start_ms + part(window.end_ms - window.start_ms, random)).min(life.latest_ms())
}

/// When an authority that has told its window is asked again.
pub fn ask_again_ms(asked_ms: u64, retry_after: Duration) -> u64 {
    let wait = retry_after.clamp(ASK_AGAIN_MIN, ASK_AGAIN_MAX);
    asked_ms.saturating_add(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX))
}

/// Evenly spread over all numbers.
pub(crate) fn seed_of(text: &str) -> u64 {
    let hash = blake3::hash(text.as_bytes());
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("eight of its bytes"))
}

/// `random` as a part of `whole`.
pub(crate) fn part(whole: u64, random: u64) -> u64 {
    // Both are below 2^64, so the product fits, and its upper half is below `whole`.
    ((u128::from(whole) * u128::from(random)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 3_600_000;

    fn life(days: u64) -> Life {
        Life { not_before_ms: 1000 * DAY, not_after_ms: (1000 + days) * DAY }
    }

    #[test]
    fn without_a_window_the_length_of_the_life_decides() {
        for (label, life, at_age) in [
            ("ninety days", life(90), 60 * DAY),
            ("forty-five days", life(45), 30 * DAY),
            ("ten days", life(10), 10 * DAY / 3 * 2),
            ("just under", life(9), 9 * DAY / 2),
            (
                "six days and sixteen hours",
                Life { not_after_ms: 1000 * DAY + 160 * DAY / 24, ..life(0) },
                80 * DAY / 24,
            ),
            ("two minutes", Life { not_after_ms: 1000 * DAY + 120_000, ..life(0) }, 60_000),
        ] {
            for seed in ["a", "b", "c", "d", "e", "f"] {
                let age = due_ms(life, None, seed) - life.not_before_ms;
                let off = age.abs_diff(at_age);
                assert!(off <= at_age / 20 + 1, "{label}, {seed}: {age} instead of about {at_age}");
            }
        }
    }

    #[test]
    fn a_window_decides_where_there_is_one() {
        for (label, from_day, to_day) in [
            ("ordinary", 1058, 1060),
            ("early, as for a mass revocation", 1001, 1002),
            ("over already", 900, 901),
            ("before the certificate", 1, 2),
        ] {
            let window = Window::new(from_day * DAY, to_day * DAY).unwrap();
            let points: Vec<u64> = (0..200).map(|n| due_ms(life(90), Some(window), &n.to_string())).collect();
            let inside = points.iter().all(|at| (from_day * DAY..to_day * DAY).contains(at));
            assert!(inside, "{label}: {points:?}");
            let middle = (from_day + to_day) * DAY / 2;
            let early = points.iter().filter(|at| **at < middle).count();
            assert!((70..130).contains(&early), "{label}: {early} of 200 in the first half");
        }
    }

    #[test]
    fn the_last_tenth_is_not_given_away() {
        let window = Window::new(1089 * DAY, 1200 * DAY).unwrap();
        assert_eq!(due_ms(life(90), Some(window), "a"), 1081 * DAY);
    }

    #[test]
    fn windows_that_are_none() {
        assert_eq!(Window::new(5, 5), None);
        assert_eq!(Window::new(6, 5), None);
    }

    #[test]
    fn the_point_is_the_certificates_own() {
        let window = Window::new(1058 * DAY, 1060 * DAY);
        for window in [None, window] {
            assert_eq!(due_ms(life(90), window, "a"), due_ms(life(90), window, "a"));
            assert_ne!(due_ms(life(90), window, "a"), due_ms(life(90), window, "b"));
        }
    }

    #[test]
    fn an_authority_is_asked_neither_too_often_nor_never_again() {
        for (seconds, want) in [(0, 60), (59, 60), (21_600, 21_600), (86_400, 86_400), (u64::MAX, 86_400)] {
            assert_eq!(ask_again_ms(5, Duration::from_secs(seconds)), 5 + want * 1000, "{seconds} s");
        }
    }

    #[test]
    fn a_life_is_nearly_over_in_its_last_quarter() {
        for (day, want) in [(1000, false), (1067, false), (1068, true), (1090, true), (2000, true)] {
            assert_eq!(life(90).is_nearly_over(day * DAY), want, "day {day}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_certificate_is_due_while_it_is_valid(
            start in 0u64..1 << 50, length in 1u64..1 << 40, window in proptest::option::of((0u64..1 << 60, 1u64..1 << 60)),
            seed in ".*"
        ) {
            let life = Life { not_before_ms: start, not_after_ms: start + length };
            let window = window.and_then(|(at, length)| Window::new(at, at + length));
            proptest::prop_assert!(due_ms(life, window, &seed) <= life.not_after_ms);
        }
    }
}
