//! The audit log, one line for each event.

use model::protocol::LoggedEvent;

use super::clean;

/// `TIME KIND SERVICE RELEASE TARGET: MESSAGE (ACTOR)`. Times are in UTC: lines of `--follow` stay true for
/// longer than an age would.
pub(crate) fn line(event: &LoggedEvent) -> String {
    let what = [Some(&event.kind), event.service.as_ref(), event.release.as_ref(), event.target.as_ref()];
    let what: Vec<&str> = what.into_iter().flatten().map(String::as_str).collect();
    let text = format!("{} {}: {} ({})", time(event.at_ms), what.join(" "), event.message, event.actor);
    format!("{}\n", clean::line(&text))
}

fn time(at_ms: u64) -> String {
    utc(at_ms, 3)
}

/// UTC, to the second.
pub(crate) fn second(at_ms: u64) -> String {
    utc(at_ms - at_ms % 1_000, 0)
}

fn utc(at_ms: u64, places: usize) -> String {
    let time = i64::try_from(at_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    time.map_or_else(|| format!("{at_ms} ms"), |time| format!("{time:.places$}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let mut event = LoggedEvent {
            at_ms: 1_795_000_000_007,
            generation: 7,
            kind: "target ejected".into(),
            service: Some("shop".into()),
            release: Some("r2".into()),
            target: Some("127.0.0.1:3001".into()),
            actor: "portcullis".into(),
            message: "3 probes failed\nin a row".into(),
        };
        assert_eq!(
            line(&event),
            "2026-11-18T11:06:40.007Z target ejected shop r2 127.0.0.1:3001: 3 probes failed in a row (portcullis)\n"
        );
        event.at_ms = u64::MAX;
        assert!(line(&event).starts_with("18446744073709551615 ms "));
    }
}
