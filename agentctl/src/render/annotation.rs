//! Failures as annotations of a GitHub workflow run, so that they show on the run's own page.

use super::clean;
use super::problem;
use crate::failure::Report;

/// A line `::error title=…::…`; `%0A` are the line ends that GitHub shows.
pub(crate) fn error(title: &str, report: &Report) -> String {
    let mut lines = vec![report.message.clone()];
    lines.extend(problem::causes(report).iter().map(|cause| format!("cause: {cause}")));
    lines.extend(problem::hints(report).map(|hint| format!("hint: {hint}")));
    let lines: Vec<String> = lines.iter().map(|line| escape_data(&clean::line(line))).collect();
    format!("::error title={}::{}\n", escape_property(&clean::line(title)), lines.join("%0A"))
}

fn escape_data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// Properties also end at `,` and `:`.
fn escape_property(text: &str) -> String {
    escape_data(text).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_ends_the_annotation_early() {
        let report = Report {
            message: "50% of `shop`\n::set-env name=X::y".into(),
            causes: vec!["a: b".into()],
            hint: Some("look at the log".into()),
            diagnosis: None,
        };
        assert_eq!(
            error("agentctl: deploy, shop", &report),
            "::error title=agentctl%3A deploy%2C shop::50%25 of `shop` ::set-env name=X::y\
             %0Acause: a: b%0Ahint: look at the log\n"
        );
    }
}
