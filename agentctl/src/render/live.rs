//! An operation under way on a terminal: a few lines, drawn over again and again.

use std::time::Duration;

use super::clean;
use super::paint::{Paint, Tone};
use super::words::{phase_text, target_state};
use crate::output::Size;
use crate::progress::Progress;

/// The block to show: at most `size.rows - 1` lines, none wider than the terminal, since a line that wraps
/// would shift the next drawing.
pub(crate) fn lines(progress: &Progress, running: Duration, size: Size, paint: Paint) -> Vec<String> {
    let mut lines = vec![head(progress, running)];
    let tail = [
        progress.drain.as_ref().map(|drain| format!("  {}", drain.text())),
        progress.bake.as_ref().map(|bake| format!("  {}", bake.text())),
    ];
    let certificates = progress.certificates.iter().map(|one| format!("  {}", one.text()));
    let tail: Vec<String> = tail.into_iter().flatten().chain(certificates).collect();
    let room = size.rows.saturating_sub(2 + tail.len());
    let targets = target_lines(progress);
    let left_out = targets.len().saturating_sub(room);
    if left_out > 0 {
        lines.extend(targets.into_iter().take(room.saturating_sub(1)));
        lines.push(format!("  … and {} more", left_out + 1));
    } else {
        lines.extend(targets);
    }
    lines.extend(tail);
    lines.truncate(size.rows.saturating_sub(1).max(1));
    let fit = |line: &String| clean::shorten(&clean::line(line), size.columns.saturating_sub(1).max(1));
    let mut lines: Vec<String> = lines.iter().map(fit).collect();
    lines[0] = paint.paint(Tone::Strong, &lines[0]);
    lines
}

fn head(progress: &Progress, running: Duration) -> String {
    let title = if progress.title.is_empty() { "waiting for the agent" } else { &progress.title };
    let phase = progress.phase.map(|phase| format!(" · {}", phase_text(phase))).unwrap_or_default();
    format!("{title}{phase} · {}s", running.as_secs())
}

fn target_lines(progress: &Progress) -> Vec<String> {
    let width = progress.targets.iter().map(|target| target.target.chars().count()).max().unwrap_or(0);
    let line = |target: &crate::progress::TargetProgress| {
        let passes = match (target.passes, target.rise) {
            (0, _) => String::new(),
            (passes, rise) => format!(" ({passes} of {rise})"),
        };
        let state = target_state(target.state);
        format!("  {:<width$}  {state:<8}  {}{passes}", target.target, target.outcome)
    };
    progress.targets.iter().map(line).collect()
}

/// The bytes that replace a block of `drawn` lines by `lines`.
///
/// The cursor is never hidden and always rests below the block: whatever ends us, the terminal is in order.
pub(crate) fn redraw(drawn: usize, lines: &[String]) -> String {
    let mut text = String::new();
    if drawn > 0 {
        text.push_str(&format!("\x1b[{drawn}A\r"));
    }
    for line in lines {
        text.push_str(&format!("\x1b[2K{line}\n"));
    }
    // What is left of a longer block.
    text.push_str("\x1b[J");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::tests::deploy;

    fn shown(events: usize, columns: usize, rows: usize) -> String {
        let mut progress = Progress::default();
        for event in deploy().iter().take(events) {
            progress.apply(event);
        }
        let size = Size { columns, rows };
        lines(&progress, Duration::from_millis(4_200), size, Paint::new(false)).join("\n")
    }

    #[test]
    fn a_deploy_from_end_to_end() {
        insta::assert_snapshot!(shown(0, 80, 24), @"waiting for the agent · 4s");
        insta::assert_snapshot!(shown(9, 80, 24), @r"
        deploy shop r2 · gating · 4s
          127.0.0.1:3001  ready     200 in 3ms (2 of 2)
          127.0.0.1:3002  booting   503 in 9ms
        ");
        insta::assert_snapshot!(shown(17, 80, 24), @r"
        deploy shop r2 · draining · 4s
          127.0.0.1:3001  ready     200 in 3ms (2 of 2)
          127.0.0.1:3002  ready     200 in 6ms (2 of 2)
          draining r1: 1 request and 1 socket to finish
        ");
        insta::assert_snapshot!(shown(99, 80, 24), @r"
        deploy shop r2 · committed · 4s
          127.0.0.1:3001  ready     200 in 3ms (2 of 2)
          127.0.0.1:3002  ready     200 in 6ms (2 of 2)
          drained r1: 1 cut at the deadline
          baking: 58s to go, 80 requests, 2 gateway errors
        ");
    }

    #[test]
    fn small_terminals() {
        insta::assert_snapshot!(shown(9, 30, 3), @r"
        deploy shop r2 · gating · 4s
          … and 2 more
        ");
        for rows in 0..8 {
            for columns in 0..40 {
                let text = shown(99, columns, rows);
                assert!(text.lines().count() <= rows.saturating_sub(1).max(1), "{rows} rows");
                assert!(text.lines().all(|line| line.chars().count() < columns.max(2)), "{columns} columns");
            }
        }
    }

    #[test]
    fn a_block_replaces_the_last_one() {
        assert_eq!(redraw(0, &["a".into()]), "\x1b[2Ka\n\x1b[J");
        assert_eq!(redraw(2, &["b".into()]), "\x1b[2A\r\x1b[2Kb\n\x1b[J");
    }
}
