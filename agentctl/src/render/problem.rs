//! A failure: what happened, why, what the gate found out, and what to do next.

use model::protocol::DiagnosisBody;

use super::clean;
use super::paint::{Paint, Tone};
use crate::failure::Report;

const EXCERPT_LINES_MAX: usize = 12;
const EXCERPT_COLUMNS_MAX: usize = 160;

pub(crate) fn text(report: &Report, paint: Paint) -> String {
    let mut text = String::new();
    let mut add = |tone: Tone, head: &str, body: &str| {
        text.push_str(&format!("{} {}\n", paint.paint(tone, head), clean::line(body)));
    };
    add(Tone::Bad, "error:", &report.message);
    for cause in causes(report) {
        add(Tone::Strong, "cause:", &cause);
    }
    text.extend(report.diagnosis.as_ref().map(evidence));
    for hint in hints(report) {
        text.push_str(&format!("{}  {}\n", paint.paint(Tone::Good, "hint:"), clean::line(hint)));
    }
    text
}

/// The hints, each once: the problem's own and the diagnosis's are often the same.
pub(crate) fn hints(report: &Report) -> impl Iterator<Item = &str> {
    let own = report.hint.as_deref();
    let found = report.diagnosis.as_ref().map(|diagnosis| diagnosis.hint.as_str());
    [found, own.filter(|hint| Some(*hint) != found)].into_iter().flatten().filter(|hint| !hint.is_empty())
}

/// The causes, what the gate found out first. The problem's own that says the same is left out.
pub(crate) fn causes(report: &Report) -> Vec<String> {
    let found = report.diagnosis.as_ref();
    let says_it = |cause: &&String| found.is_some_and(|diagnosis| cause.contains(&diagnosis.verdict));
    let diagnosed = found.map(|found| format!("target `{}`: {} ({})", found.target, found.verdict, found.id));
    diagnosed.into_iter().chain(report.causes.iter().filter(|cause| !says_it(cause)).cloned()).collect()
}

/// What the probes saw, and how the last answer began. The bar keeps an app's text from looking like ours.
fn evidence(diagnosis: &DiagnosisBody) -> String {
    let mut text = String::new();
    for (at, seen) in diagnosis.timeline.iter().enumerate() {
        let head = if at == 0 { "probes:" } else { "" };
        text.push_str(&format!("  {head:<8}{}\n", clean::line(seen)));
    }
    let (lines, left_out) =
        clean::excerpt(diagnosis.excerpt.as_deref().unwrap_or(""), EXCERPT_LINES_MAX, EXCERPT_COLUMNS_MAX);
    if !lines.is_empty() {
        text.push_str("  last answer:\n");
    }
    text.extend(lines.iter().map(|line| format!("  | {line}\n")));
    if left_out > 0 {
        text.push_str(&format!("  | … {left_out} more\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(report: &Report) -> String {
        text(report, Paint::new(false))
    }

    #[test]
    fn a_problem_with_its_cause_and_hint() {
        let report = Report {
            message: "service `shop` was not cut over: target `shop-v2` failed 3 of 3 probes".into(),
            causes: vec!["GET http://172.18.0.4:8080/up answered 503".into()],
            hint: Some("`shop-v1` still serves all traffic".into()),
            diagnosis: None,
        };
        insta::assert_snapshot!(plain(&report), @r"
        error: service `shop` was not cut over: target `shop-v2` failed 3 of 3 probes
        cause: GET http://172.18.0.4:8080/up answered 503
        hint:  `shop-v1` still serves all traffic
        ");
    }

    #[test]
    fn a_diagnosis_shows_its_evidence_and_no_escape_sequence() {
        let diagnosis = DiagnosisBody {
            id: "pending_migration".into(),
            target: "127.0.0.1:3001".into(),
            verdict: "the app waits for a migration".into(),
            hint: "run `bin/rails db:migrate`, then deploy again".into(),
            timeline: vec!["connection refused ×12".into(), "503 ×3".into()],
            excerpt: Some("<h1>\x1b]0;owned\x07Pending</h1>\n::error::not ours\n".into()),
        };
        let report = Report {
            message: "release `r2` of `shop` did not pass the gate".into(),
            hint: Some(diagnosis.hint.clone()),
            diagnosis: Some(diagnosis),
            ..Report::default()
        };
        insta::assert_snapshot!(plain(&report), @r"
        error: release `r2` of `shop` did not pass the gate
        cause: target `127.0.0.1:3001`: the app waits for a migration (pending_migration)
          probes: connection refused ×12
                  503 ×3
          last answer:
          | <h1>\u{1b}]0;owned\u{7}Pending</h1>
          | ::error::not ours
        hint:  run `bin/rails db:migrate`, then deploy again
        ");
    }
}
