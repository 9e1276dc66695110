//! Declared policies beside what runs.

use model::declared::text;
use model::protocol::{DifferenceBody, MarkBody, ServicePlan};

use super::events;
use super::paint::{Paint, Tone};
use super::table::{Cell, table};

/// One row for each difference, also of what no file declares. Empty where there is none.
pub(crate) fn drift(services: &[ServicePlan], paint: Paint) -> String {
    let all = |service: &ServicePlan| [&service.differences[..], &service.undeclared].concat();
    let rows = rows(services, all, |one| [text(&one.declared), text(&one.running)]);
    unless_empty(["SERVICE", "SETTING", "DECLARED", "RUNNING", "CHANGED BY HAND"], &rows, paint)
}

/// One row for each setting that `apply` changes. Empty where there is none.
pub(crate) fn changes(services: &[ServicePlan], paint: Paint) -> String {
    let all = |service: &ServicePlan| service.differences.clone();
    let rows = rows(services, all, |one| [text(&one.running), text(&one.declared)]);
    unless_empty(["SERVICE", "SETTING", "OLD", "NEW", "OLD SET BY HAND"], &rows, paint)
}

fn unless_empty(heads: [&str; 5], rows: &[[Cell; 5]], paint: Paint) -> String {
    if rows.is_empty() { String::new() } else { table(heads, rows, paint) }
}

fn rows(
    services: &[ServicePlan],
    of: impl Fn(&ServicePlan) -> Vec<DifferenceBody>,
    values: impl Fn(&DifferenceBody) -> [String; 2],
) -> Vec<[Cell; 5]> {
    let all = services.iter().flat_map(|service| of(service).into_iter().map(move |one| (service, one)));
    all.map(|(service, one)| {
        let [first, second] = values(&one).map(Cell::from);
        let by = one.by_hand.as_ref().map(|mark| hand(mark, &one)).unwrap_or_default();
        [
            Cell::toned(Tone::Strong, &service.service),
            one.setting.as_str().into(),
            first,
            second,
            Cell::toned(Tone::Warning, by),
        ]
    })
    .collect()
}

/// Such as `root (uid 0), 2026-11-18T11:06:40Z: deploy --bake`.
fn hand(mark: &MarkBody, one: &DifferenceBody) -> String {
    let is_list = one.declared.is_array() || one.running.is_array();
    let flag =
        if mark.by == "deploy" { format!(" --{}", flag(&one.setting, is_list)) } else { String::new() };
    format!("{}, {}: {}{flag}", mark.actor, events::second(mark.at_ms), mark.by)
}

/// The flag of `deploy` that sets it: lists are given one by one, and the flag's placeholder names the unit.
pub(crate) fn flag(setting: &str, is_list: bool) -> String {
    // Pairs, which flags name one file at a time.
    if setting == "tls_certificates" {
        return "tls-certificate-path".to_owned();
    }
    let name = setting.strip_suffix("_bytes").unwrap_or(setting);
    let plural = if name.ends_with("xes") { "es" } else { "s" };
    let name = if is_list { name.strip_suffix(plural).unwrap_or(name) } else { name };
    name.replace('_', "-")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use model::declared;
    use model::protocol::DeclaredState;
    use model::service::Policy;
    use serde_json::{Value, json};

    use super::*;
    use crate::cli::Cli;
    use crate::render::samples::NOW_MS;

    fn one(setting: &str, declared: Value, running: Value, by: Option<&str>) -> DifferenceBody {
        let by_hand = by.map(|by| MarkBody { actor: "ann (uid 1001)".into(), at_ms: NOW_MS, by: by.into() });
        DifferenceBody { setting: setting.into(), declared, running, by_hand }
    }

    fn services() -> Vec<ServicePlan> {
        let shop = vec![
            one("bake", json!("5m"), json!("0s"), Some("deploy")),
            one("hosts", json!(["a.test", "b.test"]), json!([]), None),
            one("tls_redirect", Value::Null, json!(true), Some("deploy")),
            one("max_request_body_bytes", json!(0), json!(5), Some("deploy")),
        ];
        let canary = one("canary", Value::Null, json!("release r2 at 25%"), Some("canary set"));
        let plan = |service: &str, state, differences, undeclared| ServicePlan {
            service: service.into(),
            state,
            applied: None,
            differences,
            undeclared,
        };
        vec![
            plan(
                "blog",
                DeclaredState::Absent,
                vec![one("service", json!("declared"), Value::Null, None)],
                vec![],
            ),
            plan("shop", DeclaredState::Deployed, shop, vec![canary]),
            plan("wiki", DeclaredState::Declared, vec![], vec![]),
        ]
    }

    #[test]
    fn declared_and_running() {
        insta::assert_snapshot!(drift(&services(), Paint::new(false)), @r"
        SERVICE  SETTING                 DECLARED       RUNNING            CHANGED BY HAND
        blog     service                 declared       -                  -
        shop     bake                    5m             0s                 ann (uid 1001), 2026-11-18T11:06:40Z: deploy --bake
        shop     hosts                   a.test,b.test  -                  -
        shop     tls_redirect            -              true               ann (uid 1001), 2026-11-18T11:06:40Z: deploy --tls-redirect
        shop     max_request_body_bytes  0              5                  ann (uid 1001), 2026-11-18T11:06:40Z: deploy --max-request-body
        shop     canary                  -              release r2 at 25%  ann (uid 1001), 2026-11-18T11:06:40Z: canary set
        ");
    }

    #[test]
    fn old_and_new() {
        insta::assert_snapshot!(changes(&services(), Paint::new(false)), @r"
        SERVICE  SETTING                 OLD   NEW            OLD SET BY HAND
        blog     service                 -     declared       -
        shop     bake                    0s    5m             ann (uid 1001), 2026-11-18T11:06:40Z: deploy --bake
        shop     hosts                   -     a.test,b.test  -
        shop     tls_redirect            true  -              ann (uid 1001), 2026-11-18T11:06:40Z: deploy --tls-redirect
        shop     max_request_body_bytes  5     0              ann (uid 1001), 2026-11-18T11:06:40Z: deploy --max-request-body
        ");
    }

    #[test]
    fn every_setting_is_a_flag_of_deploy() {
        let command = Cli::command();
        let deploy = command.find_subcommand("deploy").unwrap();
        let flags: Vec<&str> = deploy.get_arguments().filter_map(|argument| argument.get_long()).collect();
        let defaults = declared::settings(&Policy::default());
        for setting in declared::names() {
            let flag = flag(&setting, defaults.get(&setting).is_some_and(Value::is_array));
            assert!(flags.contains(&flag.as_str()), "{setting}: there is no --{flag}");
        }
    }

    #[test]
    fn no_difference_is_no_text() {
        let none = &services()[2..];
        assert_eq!(
            (drift(none, Paint::new(false)), changes(none, Paint::new(false))),
            (String::new(), String::new())
        );
    }
}
