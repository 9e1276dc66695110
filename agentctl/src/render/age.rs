//! Times as people tell them: how long ago, in one unit.

/// How long before `now_ms` something was; what lies ahead (clocks differ) counts as now.
pub(crate) fn age(now_ms: u64, at_ms: u64) -> String {
    span(now_ms.saturating_sub(at_ms))
}

/// A span in its largest unit, rounded down.
pub(crate) fn span(ms: u64) -> String {
    let seconds = ms / 1_000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..86_400 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages() {
        let now = 1_000_000_000;
        for (ms_ago, want) in [
            (0, "0s"),
            (59_999, "59s"),
            (60_000, "1m"),
            (3_599_999, "59m"),
            (3_600_000, "1h"),
            (86_399_999, "23h"),
            (86_400_000 * 9, "9d"),
        ] {
            assert_eq!(age(now, now - ms_ago), want, "{ms_ago}");
        }
        assert_eq!(age(now, now + 5_000), "0s");
    }
}
