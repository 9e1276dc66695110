//! Declared policy: whoever declares a service says all of its policy, and what they leave out is the default.
//!
//! Which settings there are is read off `PolicyPatch`, so that a new one is declared, compared and exported
//! without another line here.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::canary::Overrides;
use crate::halt::HaltKind;
use crate::policy_patch;
use crate::protocol::{PolicyPatch, Problem};
use crate::service::{Canary, Policy, Service};

/// A setting of which two policies say different things; `Null` where one says nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub setting: String,
    pub declared: Value,
    pub running: Value,
}

/// Something wrong with a declared policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// `None`: no single one.
    pub setting: Option<String>,
    pub message: String,
}

/// The names of all settings.
pub fn names() -> Vec<String> {
    let schema = schemars::schema_for!(PolicyPatch);
    let properties = schema.get("properties").and_then(Value::as_object);
    properties.into_iter().flat_map(Map::keys).cloned().collect()
}

/// What a policy says, by name, as the protocol writes it.
pub fn settings(policy: &Policy) -> Map<String, Value> {
    map_of(&policy_patch::from_policy(policy))
}

/// The policy that `patch` declares.
pub fn policy(patch: &PolicyPatch) -> Result<Policy, Problem> {
    policy_patch::apply(patch, Policy::default())
}

/// By name.
pub fn differences(declared: &Policy, running: &Policy) -> Vec<Difference> {
    if declared == running {
        return Vec::new();
    }
    let (declared, running) = (settings(declared), settings(running));
    let compared = names().into_iter().map(|setting| {
        let side = |policy: &Map<String, Value>| policy.get(&setting).cloned().unwrap_or_default();
        Difference { declared: side(&declared), running: side(&running), setting }
    });
    compared.filter(|one| one.declared != one.running).collect()
}

/// What a setting says, for people; empty where it says nothing.
pub fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(text).collect::<Vec<_>>().join(","),
        Value::Object(fields) => fields.values().map(text).collect::<Vec<_>>().join("+"),
        other => other.to_string(),
    }
}

/// What was done to a service by hand, goes on, and is not for files to declare: its name, and what it is now.
pub fn undeclared(service: &Service) -> BTreeMap<&'static str, String> {
    let canary = service.canary.as_ref().map(|canary| ("canary", describe(canary)));
    let halt = service.halt.as_ref().map(|halt| match &halt.kind {
        HaltKind::Paused { .. } => "paused",
        HaltKind::Stopped { .. } => "stopped",
    });
    canary.into_iter().chain(halt.map(|state| ("state", state.to_owned()))).collect()
}

/// Such as `release r2 at 5%, 2 overrides`.
fn describe(canary: &Canary) -> String {
    let Overrides { headers, cookies, networks, visitors } = &canary.overrides;
    let overrides = match headers.len() + cookies.len() + networks.len() + visitors.len() {
        0 => String::new(),
        1 => ", 1 override".to_owned(),
        count => format!(", {count} overrides"),
    };
    format!("release {} at {}{overrides}", canary.release.id, canary.weight)
}

/// Everything that is wrong with what `patch` declares, where one thing does not hide another.
pub fn check(patch: &PolicyPatch) -> Vec<Wrong> {
    let mut rest = map_of(patch);
    let (mut found, mut left_out): (Vec<Wrong>, Vec<String>) = (Vec::new(), Vec::new());
    while let Err(Problem { message, hint, .. }) = policy(&patch_of(rest.clone())) {
        let hint = hint.map(|hint| format!("; {hint}")).unwrap_or_default();
        // A problem of a setting begins with its name. Without that setting, the next one shows.
        let named = message.split_once(": ").filter(|(name, _)| rest.contains_key(*name));
        let Some((setting, message)) = named else {
            found.push(Wrong { setting: None, message: format!("{message}{hint}") });
            break;
        };
        rest.remove(setting);
        // Whoever misses what was left out only here would be content with it.
        if !left_out.iter().any(|name| message.contains(&format!("`{name}`"))) {
            found.push(Wrong { setting: Some(setting.to_owned()), message: format!("{message}{hint}") });
        }
        left_out.push(setting.to_owned());
    }
    found
}

/// The shortest patch that declares `policy`: what may be left out is.
pub fn shortest(policy: &Policy) -> PolicyPatch {
    let mut shortest = settings(policy);
    for name in names() {
        let Some(said) = shortest.remove(&name) else { continue };
        if self::policy(&patch_of(shortest.clone())).as_ref() != Ok(policy) {
            shortest.insert(name, said);
        }
    }
    patch_of(shortest)
}

fn map_of(patch: &PolicyPatch) -> Map<String, Value> {
    match serde_json::to_value(patch) {
        Ok(Value::Object(settings)) => settings,
        other => unreachable!("a patch is a JSON object: {other:?}"),
    }
}

/// Of a map that came from a patch, with some settings taken out.
fn patch_of(settings: Map<String, Value>) -> PolicyPatch {
    serde_json::from_value(Value::Object(settings)).expect("a part of a patch is a patch")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn patch(json: Value) -> PolicyPatch {
        serde_json::from_value(json).unwrap()
    }

    fn declared(json: Value) -> Policy {
        policy(&patch(json)).unwrap()
    }

    fn certified() -> Value {
        json!({ "hosts": ["b.test", "a.test"], "tls": true,
            "tls_certificate_path": "/c.pem", "tls_private_key_path": "/k.pem", "drain_timeout": "1h",
            "tls_client_ca_path": "/ca.pem" })
    }

    fn certified_twice() -> Value {
        json!({ "hosts": ["b.test"], "tls": true, "tls_certificates": [
            { "certificate": "/c.pem", "private_key": "/k.pem" },
            { "certificate": "/d.pem", "private_key": "/l.pem" },
        ] })
    }

    #[test]
    fn every_setting_is_known() {
        let names = names();
        for name in settings(&declared(certified())).keys() {
            assert!(names.contains(name), "{name} is not among {names:?}");
        }
        let mut printed = settings(&declared(certified()));
        printed.extend(settings(&declared(certified_twice())));
        assert!(names.iter().all(|name| printed.contains_key(name)), "{names:?} are not all in {printed:?}");
    }

    #[test]
    fn differences_are_named() {
        for (one, other, want) in [
            (json!({}), json!({}), vec![]),
            (json!({ "bake": "60s", "hosts": [] }), json!({}), vec![]),
            (json!({ "hosts": ["A.test."] }), json!({ "hosts": ["a.test"] }), vec![]),
            (json!({}), json!({ "bake": "0s" }), vec![("bake", json!("1m"), json!("0s"))]),
            (
                json!({ "hosts": ["a.test"], "max_in_flight": 5 }),
                json!({ "hosts": ["b.test"] }),
                vec![("hosts", json!(["a.test"]), json!(["b.test"])), ("max_in_flight", json!(5), json!(0))],
            ),
            (
                json!({ "tls": true, "tls_redirect": false }),
                json!({}),
                vec![("tls", json!(true), json!(false)), ("tls_redirect", json!(false), Value::Null)],
            ),
        ] {
            let found = differences(&declared(one.clone()), &declared(other.clone()));
            let found: Vec<_> =
                found.iter().map(|d| (d.setting.as_str(), d.declared.clone(), d.running.clone())).collect();
            assert_eq!(found, want, "{one} {other}");
        }
    }

    #[test]
    fn values_for_people() {
        for (value, want) in [
            (Value::Null, ""),
            (json!(""), ""),
            (json!("1m"), "1m"),
            (json!(5), "5"),
            (json!(false), "false"),
            (json!([]), ""),
            (json!(["a.test", "b.test"]), "a.test,b.test"),
            (json!([{ "certificate": "/c.pem", "private_key": "/c.key" }]), "/c.pem+/c.key"),
        ] {
            assert_eq!(text(&value), want, "{value}");
        }
    }

    #[test]
    fn a_canary_is_for_no_file() {
        let release = |id: &str| crate::service::Release {
            id: id.parse().unwrap(),
            targets: vec!["127.0.0.1:1".parse().unwrap()],
            created_ms: 0,
            readers: Vec::new(),
        };
        let mut service = Service::new("shop".parse().unwrap(), Policy::default(), release("r1"));
        assert_eq!(undeclared(&service), BTreeMap::new());
        for (visitors, want) in [
            (&[][..], "release r2 at 0.5%"),
            (&["ann"], "release r2 at 0.5%, 1 override"),
            (&["ann", "bob"], "release r2 at 0.5%, 2 overrides"),
        ] {
            let visitors = visitors.iter().map(ToString::to_string).collect();
            service.canary = Some(Canary {
                release: release("r2"),
                weight: "0.5%".parse().unwrap(),
                rollout: "r2".into(),
                overrides: Overrides { visitors, ..Overrides::default() },
            });
            assert_eq!(undeclared(&service), BTreeMap::from([("canary", want.to_owned())]));
        }
    }

    #[test]
    fn one_wrong_thing_does_not_hide_another() {
        for (json, want) in [
            (json!({ "bake": "1m" }), &[][..]),
            (json!({ "bake": "soon", "deploy_timeout": "0s" }), &["bake", "deploy_timeout"]),
            (
                json!({ "hosts": ["a b"], "bake": "soon", "queue_max": 100_001 }),
                &["bake", "hosts", "queue_max"],
            ),
            (
                json!({ "hosts": ["a.test"], "canonical_host": "b.test", "queue_timeout": "0s" }),
                &["canonical_host", "queue_timeout"],
            ),
            (
                json!({ "tls_certificate_path": "/c.pem", "tls_private_key_path": "/k.pem", "bake": "soon" }),
                &["bake", "tls_certificate_path"],
            ),
            (
                json!({ "tls_certificate_path": "/c.pem", "tls_redirect": true }),
                &["tls_certificate_path", "tls_redirect"],
            ),
            (
                json!({ "tls": true, "tls_certificate_path": "c.pem", "tls_private_key_path": "/k.pem" }),
                &["tls_certificate_path"],
            ),
        ] {
            let mut found: Vec<_> =
                check(&patch(json.clone())).into_iter().filter_map(|one| one.setting).collect();
            found.sort();
            assert_eq!(found, want, "{json}");
        }
        let wrong = check(&patch(json!({ "hosts": ["a.test"], "canonical_host": "b.test" })));
        let want =
            "`b.test` is not one of the service's hosts, so the redirect would lead nowhere; add `b.test`";
        assert!(wrong[0].message.starts_with(want), "{wrong:?}");
    }

    #[test]
    fn what_is_default_is_left_out() {
        for (json, want) in [
            (json!({}), json!({})),
            (json!({ "bake": "60s", "path_prefixes": ["/"], "tls": false, "max_in_flight": 0 }), json!({})),
            (json!({ "tls": true, "tls_redirect": true }), json!({ "tls": true })),
            (json!({ "tls": true, "tls_redirect": false }), json!({ "tls": true, "tls_redirect": false })),
            (json!({ "max_request_body_bytes": 0 }), json!({ "max_request_body_bytes": 0 })),
            (certified(), certified()),
            (certified_twice(), certified_twice()),
        ] {
            let policy = declared(json.clone());
            assert_eq!(shortest(&policy), patch(want), "{json}");
            assert_eq!(declared(serde_json::to_value(shortest(&policy)).unwrap()), policy, "{json}");
        }
    }
}
