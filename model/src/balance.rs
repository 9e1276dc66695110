//! Which target gets the next request: the cheaper one of two picked at random, where the cost is the latency
//! seen of late times the requests in flight.
//!
//! Two random choices spread almost as well as looking at all (Mitzenmacher 2001), and herd nobody onto the
//! one that happens to be best. The latency is a *peak* average (Finagle's): a slow answer counts at once and
//! in full, a fast one only little by little, so that a target in trouble is left alone before it hurts many.

use std::time::Duration;

/// After this time an observation counts for a third.
pub const DECAY: Duration = Duration::from_secs(10);
/// What a failed request counts as, if it did not take even longer: a target that refuses fast must not look fast.
pub const FAILURE: Duration = Duration::from_secs(1);

/// How long a target took to begin its answers, of late.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Latency {
    micros: f64,
    /// When it was seen last: the time since any fixed moment.
    at: Duration,
}

impl Latency {
    /// `parts` of another one.
    pub fn from_parts(micros: f64, at: Duration) -> Self {
        Self { micros, at }
    }

    pub fn parts(self) -> (f64, Duration) {
        (self.micros, self.at)
    }

    /// `before` with one more observation.
    pub fn after(before: Option<Self>, seen: Duration, now: Duration) -> Self {
        let seen = seen.as_secs_f64() * 1e6;
        let micros = match before {
            Some(before) if seen < before.micros => {
                let weight = weight(before.at, now);
                before.micros * weight + seen * (1.0 - weight)
            }
            _ => seen,
        };
        Self { micros, at: now }
    }

    /// `before`, knowing that an answer had not begun after `seen`: news only if that is longer.
    pub fn after_at_least(before: Option<Self>, seen: Duration, now: Duration) -> Option<Self> {
        match before {
            Some(known) if known.micros_at(now) >= seen.as_secs_f64() * 1e6 => Some(known),
            _ => Some(Self::after(None, seen, now)),
        }
    }

    /// In µs. It fades while nothing is seen, so that a target which was left alone is tried again.
    pub fn micros_at(self, now: Duration) -> f64 {
        self.micros * weight(self.at, now)
    }
}

fn weight(then: Duration, now: Duration) -> f64 {
    (-(now.saturating_sub(then).as_secs_f64() / DECAY.as_secs_f64())).exp()
}

/// What speaks for and against a target at this moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// In µs; `None` before the first answer.
    pub latency: Option<f64>,
    pub in_flight: u32,
    /// Of `slow_start::share`.
    pub share: f64,
}

/// Whether `one` is to be asked rather than `other`. A tie goes to `one`, which is why the caller picks both
/// at random.
///
/// A target that has not answered yet is taken to be as fast as the other: believing in no latency at all
/// would send it everything until its first answer.
pub fn is_cheaper(one: &Load, other: &Load) -> bool {
    let guess = |latency: Option<f64>, instead: Option<f64>| latency.or(instead).unwrap_or(1.0).max(1.0);
    let cost = |load: &Load, latency: f64| latency * (f64::from(load.in_flight) + 1.0) / load.share;
    cost(one, guess(one.latency, other.latency)) <= cost(other, guess(other.latency, one.latency))
}

/// Random enough to spread load, and cheap: xorshift64* (Vigna 2016). Nothing secret may hang on it.
#[derive(Debug, Clone, Copy)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        // Zero would stay zero.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Evenly from 0 to `bound` − 1; `bound` is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let bits = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        ((bits * bound as u64) >> 32) as usize
    }

    /// Two different ones of `count`, which is at least 2.
    pub fn two_of(&mut self, count: usize) -> (usize, usize) {
        let first = self.below(count);
        let second = self.below(count - 1);
        (first, if second < first { second } else { second + 1 })
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;

    use proptest::prelude::*;

    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn a_slow_answer_counts_at_once_and_a_fast_one_little_by_little() {
        let first = Latency::after(None, MS(10), MS(0));
        assert_eq!(first.micros_at(MS(0)), 10_000.0);
        let peak = Latency::after(Some(first), MS(500), MS(100));
        assert_eq!(peak.micros_at(MS(100)), 500_000.0);
        let soon = Latency::after(Some(peak), MS(10), MS(200)).micros_at(MS(200));
        assert!((490_000.0..500_000.0).contains(&soon), "{soon}");
        let later = Latency::after(Some(peak), MS(10), MS(10_100)).micros_at(MS(10_100));
        assert!((190_000.0..191_000.0).contains(&later), "a third and a bit: {later}");
    }

    #[test]
    fn what_is_not_seen_fades() {
        let latency = Latency::after(None, MS(100), MS(0));
        for (at, want) in [(0, 100_000.0), (10_000, 36_788.0), (60_000, 248.0)] {
            let faded = latency.micros_at(MS(at));
            assert!((faded - want).abs() < 1.0, "after {at} ms: {faded}");
        }
    }

    #[test]
    fn a_client_that_left_tells_how_long_it_took_at_least() {
        let known = Some(Latency::after(None, MS(100), MS(0)));
        assert_eq!(Latency::after_at_least(known, MS(50), MS(1)), known);
        let longer = Latency::after_at_least(known, MS(300), MS(1)).unwrap();
        assert_eq!(longer.micros_at(MS(1)), 300_000.0);
        assert_eq!(Latency::after_at_least(None, MS(3), MS(1)).unwrap().micros_at(MS(1)), 3000.0);
    }

    #[test]
    fn the_cheaper_one_is_asked() {
        let load = |latency, in_flight, share| Load { latency, in_flight, share };
        for (one, other, want) in [
            (load(Some(10.0), 0, 1.0), load(Some(20.0), 0, 1.0), true),
            (load(Some(20.0), 0, 1.0), load(Some(10.0), 0, 1.0), false),
            (load(Some(10.0), 3, 1.0), load(Some(20.0), 0, 1.0), false),
            (load(Some(10.0), 1, 1.0), load(Some(20.0), 0, 1.0), true),
            // Unknown ones are as fast as the other, so only what is in flight counts.
            (load(None, 0, 1.0), load(Some(10.0), 0, 1.0), true),
            (load(None, 1, 1.0), load(Some(10.0), 0, 1.0), false),
            (load(None, 5, 1.0), load(None, 4, 1.0), false),
            // One that has just joined costs four times as much.
            (load(Some(10.0), 0, 0.25), load(Some(30.0), 0, 1.0), false),
            (load(Some(10.0), 0, 0.25), load(Some(50.0), 0, 1.0), true),
        ] {
            assert_eq!(is_cheaper(&one, &other), want, "{one:?} {other:?}");
        }
    }

    /// A target of the simulation: answers in `service`, or fails after it.
    #[derive(Clone, Copy)]
    struct Simulated {
        service: Duration,
        fails: bool,
        share: f64,
    }

    const fn serving(ms: u64) -> Simulated {
        Simulated { service: Duration::from_millis(ms), fails: false, share: 1.0 }
    }

    /// `per_second` requests at random moments for a minute; the share that each target got.
    fn shares(targets: &[Simulated], per_second: u64) -> Vec<f64> {
        let mut random = Random::new(7);
        let mut known: Vec<Option<Latency>> = vec![None; targets.len()];
        let mut in_flight = vec![0u32; targets.len()];
        let mut got = vec![0u32; targets.len()];
        let mut ends: BinaryHeap<Reverse<(Duration, usize, Duration)>> = BinaryHeap::new();
        let mut now = Duration::ZERO;
        let mean_us = 1_000_000 / per_second as usize;
        while now < Duration::from_secs(60) {
            now += Duration::from_micros(random.below(2 * mean_us) as u64 + 1);
            while ends.peek().is_some_and(|Reverse((at, ..))| *at <= now) {
                let Reverse((at, index, took)) = ends.pop().unwrap();
                in_flight[index] -= 1;
                let seen = if targets[index].fails { took.max(FAILURE) } else { took };
                known[index] = Some(Latency::after(known[index], seen, at));
            }
            let load = |index: usize| Load {
                latency: known[index].map(|latency| latency.micros_at(now)),
                in_flight: in_flight[index],
                share: targets[index].share,
            };
            let (one, other) = random.two_of(targets.len());
            let chosen = if is_cheaper(&load(one), &load(other)) { one } else { other };
            got[chosen] += 1;
            in_flight[chosen] += 1;
            // Half to one and a half times the service time.
            let spread = random.below(1000) as u32 + 500;
            let took = targets[chosen].service * spread / 1000;
            ends.push(Reverse((now + took, chosen, took)));
        }
        let all: u32 = got.iter().sum();
        got.iter().map(|one| f64::from(*one) / f64::from(all)).collect()
    }

    #[test]
    fn equal_targets_get_equal_shares() {
        for (count, per_second) in [(2, 200), (3, 600), (5, 1000)] {
            for share in shares(&vec![serving(50); count], per_second) {
                let fair = 1.0 / count as f64;
                assert!((share / fair - 1.0).abs() < 0.08, "{count} targets: {share}");
            }
        }
    }

    #[test]
    fn a_target_ten_times_slower_gets_little() {
        let slow = shares(&[serving(20), serving(200)], 400)[1];
        assert!((0.01..0.15).contains(&slow), "{slow}");
        let slow = shares(&[serving(20), serving(20), serving(200)], 400)[2];
        assert!((0.001..0.10).contains(&slow), "{slow}");
    }

    #[test]
    fn a_target_that_fails_fast_attracts_nobody() {
        let failing = Simulated { fails: true, ..serving(1) };
        let share = shares(&[serving(50), failing], 200)[1];
        assert!(share < 0.05, "{share}");
        let share = shares(&[serving(50), serving(50), failing], 200)[2];
        assert!(share < 0.05, "{share}");
    }

    #[test]
    fn a_target_that_has_just_joined_gets_less() {
        let joined = Simulated { share: 0.25, ..serving(50) };
        let share = shares(&[serving(50), joined], 400)[1];
        assert!((0.1..0.35).contains(&share), "{share}");
    }

    proptest! {
        #[test]
        fn two_of_are_two(seed in any::<u64>(), count in 2usize..20) {
            let mut random = Random::new(seed);
            for _ in 0..50 {
                let (one, other) = random.two_of(count);
                prop_assert!(one != other && one < count && other < count);
            }
        }

        #[test]
        fn every_target_is_picked(seed in any::<u64>(), count in 2usize..8) {
            let mut random = Random::new(seed);
            let mut seen = vec![0; count];
            for _ in 0..1000 {
                seen[random.below(count)] += 1;
            }
            prop_assert!(seen.iter().all(|times| *times > 1000 / count / 2), "{seen:?}");
        }
    }
}
