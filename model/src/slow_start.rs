//! A target that joins others which already serve begins with a quarter of its share and grows: a Ruby process
//! that has just booted, or was just in trouble, has cold caches and must not meet its full load at once.
//!
//! Where a whole release is new there is nobody else to take the load, so nobody is spared.

use std::num::NonZeroU32;
use std::time::Duration;

/// What a target begins with.
const FIRST: f64 = 0.25;

/// The share of its load that a target should get, `ago` after it joined: from a quarter to 1. `over` is the
/// length of the slow start; zero means none.
pub fn share(ago: Duration, over: Duration) -> f64 {
    if ago >= over {
        return 1.0;
    }
    FIRST + (1.0 - FIRST) * ago.as_secs_f64() / over.as_secs_f64()
}

/// How many requests a target may hold while it has `share`; at least one.
pub fn limit(max: NonZeroU32, share: f64) -> u32 {
    // At most `max`, so the conversion loses nothing.
    ((f64::from(max.get()) * share) as u32).clamp(1, max.get())
}

/// Which of the targets `now` have joined others: they were not there before, and some that were still are.
pub fn joining<T: PartialEq>(before: &[T], now: &[T]) -> Vec<bool> {
    let somebody_stayed = now.iter().any(|one| before.contains(one));
    now.iter().map(|one| somebody_stayed && !before.contains(one)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn the_share_grows_evenly() {
        for (ago, over, want) in
            [(0, 16, 0.25), (4, 16, 0.4375), (8, 16, 0.625), (16, 16, 1.0), (99, 16, 1.0), (0, 0, 1.0)]
        {
            assert_eq!(share(S(ago), S(over)), want, "{ago} of {over}");
        }
    }

    #[test]
    fn limits_are_rounded_down_but_never_to_nothing() {
        for (max, share, want) in [
            (1, 0.25, 1),
            (2, 0.25, 1),
            (4, 0.26, 1),
            (5, 0.39, 1),
            (5, 0.4, 2),
            (5, 0.99, 4),
            (5, 1.0, 5),
            (100, 0.255, 25),
        ] {
            assert_eq!(limit(NonZeroU32::new(max).unwrap(), share), want, "{max} × {share}");
        }
    }

    #[test]
    fn those_who_join_others_start_slowly() {
        for (before, now, want) in [
            // Back from ejection, or added by a deploy.
            (&["a"][..], &["a", "b"][..], &[false, true][..]),
            (&["a", "b"], &["b", "c"], &[false, true]),
            // A whole new release, the first one of all, and what was there all the time.
            (&["a", "b"], &["c", "d"], &[false, false]),
            (&[], &["a", "b"], &[false, false]),
            (&["a", "b"], &["a"], &[false]),
        ] {
            assert_eq!(joining(before, now), want, "{before:?} {now:?}");
        }
    }
}
