//! What the documents claim is there: every test that the comparison with kamal-proxy names exists, and no statement of
//! it is left out.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use harness::workspace_root;

const DOCUMENT: &str = "docs/kamal-proxy-parity.md";
/// The statements about what a proxy does; the rows of what one types have names.
const STATEMENTS: std::ops::RangeInclusive<u32> = 1..=111;
const VERDICTS: [&str; 4] = ["same", "better", "not ours", "later"];
/// Where the tests of each kind live.
const KINDS: [(&str, &str); 5] = [
    ("story", "tests"),
    ("model", "model/src"),
    ("proxy", "proxy/src"),
    ("agentctl", "agentctl/src"),
    ("agentctl", "agentctl/tests"),
];

/// A line of a table whose last two cells are a verdict and tests.
#[derive(Debug)]
struct Row {
    line: usize,
    name: String,
    verdict: String,
    tests: Vec<String>,
}

#[test]
fn every_statement_has_one_row_with_a_verdict_and_tests_that_exist() {
    let text = fs::read_to_string(workspace_root().join(DOCUMENT)).expect("the document is there");
    let found = wrong(&rows(&text));
    assert!(found.is_empty(), "{DOCUMENT}:\n{}", found.join("\n"));
}

#[test]
fn a_wrong_row_would_be_noticed() {
    let head = "| | a | b | verdict | test |\n| --- | --- | --- | --- | --- |\n";
    let real = "`story documents::a_wrong_row_would_be_noticed`";
    let all = |changed: &str| {
        let rows = STATEMENTS.map(|number| format!("| {number} | a | b | same | {real} |\n"));
        let rows: String =
            rows.map(|row| if row.starts_with("| 7 |") { changed.to_owned() } else { row }).collect();
        wrong(&self::rows(&format!("{head}{rows}")))
    };
    assert_eq!(all(&format!("| 7 | a | b | better (it is) | {real} |\n")), Vec::<String>::new());
    for (changed, says) in [
        (String::new(), "statement 7 has no row"),
        (format!("| 7 | a | b | same | {real} |\n").repeat(2), "`7` is there twice"),
        (format!("| 7 | a | b | alike | {real} |\n"), "`alike` is no verdict"),
        (format!("| 7 | a | b | better | {real} |\n"), "`better` does not say how"),
        (
            format!("| 112 | a | b | same | {real} |\n| 7 | a | b | same | {real} |\n"),
            "`112` is no statement",
        ),
        ("| 7 | a | b | same | |\n".to_owned(), "names no test"),
        ("| 7 | a | b | same | `story documents::not_there` |\n".to_owned(), "there is no test"),
        (
            "| 7 | a | b | same | `story parity::a_wrong_row_would_be_noticed` |\n".to_owned(),
            "there is no test",
        ),
        ("| 7 | a | b | same | `story documents::rows` |\n".to_owned(), "there is no test"),
        ("| 7 | a | b | same | `tale documents::rows` |\n".to_owned(), "is no kind of test"),
    ] {
        let found = all(&changed);
        assert!(found.iter().any(|one| one.contains(says)), "{changed:?}: {found:?}");
    }
}

fn rows(text: &str) -> Vec<Row> {
    let mut in_table = false;
    let mut rows = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, name, .., verdict, tests, _] = cells[..] else {
            in_table = false;
            continue;
        };
        if verdict == "verdict" {
            in_table = true;
        } else if in_table && !name.starts_with("---") {
            let tests = tests.split('`').skip(1).step_by(2).map(str::to_owned).collect();
            rows.push(Row { line: index + 1, name: name.to_owned(), verdict: verdict.to_owned(), tests });
        }
    }
    rows
}

fn wrong(rows: &[Row]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for row in rows {
        let mut say = |what: String| wrong.push(format!("line {}: {what}", row.line));
        if !seen.insert(row.name.as_str()) {
            say(format!("`{}` is there twice", row.name));
        }
        if row.name.parse().is_ok_and(|number: u32| !STATEMENTS.contains(&number)) {
            say(format!("`{}` is no statement", row.name));
        }
        let (verdict, reason) = row.verdict.split_once(" (").unwrap_or((&row.verdict, ""));
        if !VERDICTS.contains(&verdict) {
            say(format!("`{verdict}` is no verdict"));
        } else if verdict != "same" && !(reason.len() > 1 && reason.ends_with(')')) {
            say(format!("`{verdict}` does not say how, why or which"));
        }
        if matches!(verdict, "same" | "better") && row.tests.is_empty() {
            say(format!("`{}` names no test", row.name));
        }
        for test in &row.tests {
            if let Err(what) = find(test) {
                say(what);
            }
        }
    }
    let missing = STATEMENTS.filter(|number| !seen.contains(number.to_string().as_str()));
    wrong.extend(missing.map(|number| format!("statement {number} has no row")));
    wrong
}

/// `story MODULE::NAME` or `CRATE MODULE::NAME`: a function with `#[test]` in the module's file.
fn find(test: &str) -> Result<(), String> {
    let (kind, path) = test.split_once(' ').unwrap_or(("", test));
    let mut roots = KINDS.iter().filter(|(name, _)| *name == kind).map(|(_, root)| root).peekable();
    if roots.peek().is_none() {
        return Err(format!("`{kind}` of `{test}` is no kind of test"));
    }
    let (module, name) = path.rsplit_once("::").ok_or_else(|| format!("`{test}` has no module"))?;
    let is_there = roots.any(|root| {
        let file = workspace_root().join(root).join(module.replace("::", "/"));
        let beside = PathBuf::from(format!("{}_tests.rs", file.display()));
        [file.with_extension("rs"), file.join("tests.rs"), beside].iter().any(|place| has_test(place, name))
    });
    if is_there { Ok(()) } else { Err(format!("there is no test `{test}`")) }
}

fn has_test(file: &Path, name: &str) -> bool {
    let text = fs::read_to_string(file).unwrap_or_default();
    let mut attributes = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.starts_with("#[") {
            attributes.push(line);
            continue;
        }
        let function = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
        let is_it =
            function.and_then(|rest| rest.strip_prefix(name)).is_some_and(|rest| rest.starts_with('('));
        if is_it
            && attributes.iter().any(|one| one.starts_with("#[test]") || one.starts_with("#[tokio::test"))
        {
            return true;
        }
        attributes.clear();
    }
    false
}
