//! The releases that a service has seen.

use model::protocol::{History, HistoryItem, OutcomeName, Slot};

use super::age::age;
use super::paint::{Paint, Tone};
use super::table::{Cell, table};
use super::words;

/// One row for each entry, the newest first.
pub(crate) fn table_of(history: &History, now_ms: u64, paint: Paint) -> String {
    let rows: Vec<_> = history.entries.iter().map(|entry| row(entry, now_ms)).collect();
    table(["RELEASE", "SLOT", "OUTCOME", "AGE", "BY", "TARGETS", "REASON"], &rows, paint)
}

fn row(entry: &HistoryItem, now_ms: u64) -> [Cell; 7] {
    [
        Cell::toned(Tone::Strong, &entry.release),
        entry.slot.map_or("", slot).into(),
        outcome(entry.outcome),
        age(now_ms, entry.at_ms).into(),
        entry.actor.as_str().into(),
        targets(entry).into(),
        entry.reason.as_deref().unwrap_or_default().into(),
    ]
}

fn targets(entry: &HistoryItem) -> String {
    let readers = entry.readers.iter().map(|target| words::reader(target));
    entry.targets.iter().cloned().chain(readers).collect::<Vec<_>>().join(",")
}

fn slot(slot: Slot) -> &'static str {
    match slot {
        Slot::Stable => "stable",
        Slot::Canary => "canary",
        Slot::Held => "held",
    }
}

fn outcome(outcome: OutcomeName) -> Cell {
    match outcome {
        OutcomeName::Deployed => Cell::toned(Tone::Good, "deployed"),
        OutcomeName::RolledBack => Cell::toned(Tone::Good, "rolled back to"),
        OutcomeName::Promoted => Cell::toned(Tone::Good, "promoted"),
        OutcomeName::Refused => Cell::toned(Tone::Bad, "refused"),
        OutcomeName::Reverted => Cell::toned(Tone::Bad, "reverted"),
        OutcomeName::Aborted => Cell::toned(Tone::Warning, "aborted"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples::NOW_MS;

    #[test]
    fn entries() {
        let entry = |release: &str, outcome, slot, reason: Option<&str>| HistoryItem {
            release: release.into(),
            targets: vec!["127.0.0.1:3001".into(), "127.0.0.1:3002".into()],
            outcome,
            at_ms: NOW_MS - 90_000,
            actor: "root (uid 0)".into(),
            reason: reason.map(str::to_owned),
            slot,
            readers: if slot == Some(Slot::Held) { vec!["127.0.0.1:3003".into()] } else { Vec::new() },
        };
        let history = History {
            service: "shop".into(),
            entries: vec![
                entry("r1", OutcomeName::RolledBack, Some(Slot::Stable), None),
                entry("r3", OutcomeName::Refused, None, Some("connection refused")),
                entry("r2", OutcomeName::Deployed, Some(Slot::Held), None),
            ],
        };
        insta::assert_snapshot!(table_of(&history, NOW_MS, Paint::new(false)), @r"
        RELEASE  SLOT    OUTCOME         AGE  BY            TARGETS                                               REASON
        r1       stable  rolled back to  1m   root (uid 0)  127.0.0.1:3001,127.0.0.1:3002                         -
        r3       -       refused         1m   root (uid 0)  127.0.0.1:3001,127.0.0.1:3002                         connection refused
        r2       held    deployed        1m   root (uid 0)  127.0.0.1:3001,127.0.0.1:3002,127.0.0.1:3003 (reads)  -
        ");
    }
}
