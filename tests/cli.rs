//! `agentctl` says clearly what is wrong, with the exit code that scripts expect.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use harness::{Agentctl, App, Puma, World, workspace_root};

fn valid(schema: &serde_json::Value, document: &serde_json::Value) {
    let validator = jsonschema::validator_for(schema).expect("a JSON Schema");
    let problems: Vec<_> = validator.iter_errors(document).map(|error| error.to_string()).collect();
    assert!(problems.is_empty(), "{problems:#?}\n{document:#}");
}

fn status_schema() -> serde_json::Value {
    let path = workspace_root().join("docs/schema/status.schema.json");
    let text = std::fs::read(&path).expect("the schema is shipped");
    serde_json::from_slice(&text).expect("the schema is JSON")
}

#[test]
fn status_as_json_fits_the_shipped_schema() {
    let world = World::start();
    let schema = status_schema();
    valid(&schema, &world.agentctl(["status", "--json"]).succeeds().json());
    let pumas = ["v1", "v2", "v3"].map(|name| Puma::start(App::Rack, name));
    world.deploy(&pumas[0].target());
    world.deploy(&pumas[1].target());
    let target = pumas[2].target();
    world.agentctl(["canary", "start", "shop", "--target", &target, "--weight", "5%"]).succeeds();
    let status = world.agentctl(["status", "--json"]).succeeds().json();
    valid(&schema, &status);
    let shop = &status["services"][0];
    assert!(shop["held"].is_object() && shop["canary"]["weight"] == "5%", "{status:#}");
}

#[test]
fn the_schema_would_notice() {
    let world = World::start();
    let mut status = world.agentctl(["status", "--json"]).succeeds().json();
    status["generation"] = "many".into();
    assert!(!jsonschema::is_valid(&status_schema(), &status));
}

#[test]
fn wrong_usage_is_refused_with_its_own_code() {
    let world = World::start();
    let puma = Puma::start(App::Rack, "v1");
    let target = puma.target();
    world.deploy(&target);
    let deploy = |more: &[&'static str]| [&["deploy", "shop", "--target", "127.0.0.1:3000"], more].concat();
    for (args, code, says) in [
        (deploy(&["--no-such-flag"]), 2, "--no-such-flag"),
        (deploy(&["--deploy-timeout", "30"]), 2, "30s"),
        (deploy(&["--deploy-timeout", "soon"]), 2, "soon"),
        (deploy(&["--health-check-interval", "0s"]), 2, "0s"),
        (deploy(&["--host", "two words.test"]), 2, "host name"),
        (deploy(&["--host", "*.*.test"]), 2, "host name"),
        (deploy(&["--path-prefix", "/a b"]), 2, "path prefix"),
        (deploy(&["--tls-certificate-path", "/x.pem"]), 2, "--tls-private-key-path"),
        (vec!["deploy", "shop"], 2, "--target"),
        (vec!["deploy", "no spaces", "--target", "127.0.0.1:3000"], 2, "no spaces"),
        (vec!["deploy", "shop", "--target", "127.0.0.1:99999"], 2, "99999"),
        (vec!["canary", "set", "shop", "101%"], 2, "weight"),
        (vec!["canary", "set", "shop", "5%"], 1, "canary"),
        (vec!["status", "no-such-service"], 1, "no-such-service"),
        (vec!["rollback", "no-such-service"], 1, "no-such-service"),
        (vec!["remove", "no-such-service"], 1, "no-such-service"),
        (vec!["no-such-verb"], 2, "no-such-verb"),
        (vec![], 2, "Usage"),
    ] {
        let ran = world.operator().run(&args).fails_with(code);
        assert!(ran.stderr().contains(says), "{args:?} does not say {says:?}: {ran}");
        assert_eq!(ran.stdout(), "", "{args:?}: data only on stdout");
    }
    assert_eq!(world.daemon.status().generation, 1, "nothing of it changed anything");
}

#[test]
fn a_route_that_belongs_to_another_service_is_a_conflict() {
    let world = World::start();
    let puma = Puma::start(App::Rack, "v1");
    let target = puma.target();
    world.deploy(&target);
    let refused =
        world.agentctl(["deploy", "blog", "--target", &target, "--host", "shop.test"]).fails_with(4);
    assert!(refused.stderr().contains("shop"), "{refused}");
}

#[test]
fn one_deploy_at_a_time() {
    let world = World::start();
    let puma = Puma::start(App::Rack, "v1");
    let target = puma.target();
    world.deploy(&target);
    let waiting = harness::Rogue::mute();
    let slow = waiting.target();
    let first = world.operator().start(["deploy", "shop", "--target", &slow, "--deploy-timeout", "4s"]);
    harness::eventually("the first deploy runs", || {
        match world.daemon.status().services[0].operation.clone() {
            Some(_) => Ok(()),
            None => Err("no operation".to_owned()),
        }
    });
    let second = Puma::start(App::Rack, "v2");
    let target = second.target();
    let refused = world.agentctl(["deploy", "shop", "--target", &target]).fails_with(4);
    assert!(refused.stderr().contains("deploy"), "it says who holds it: {refused}");
    harness::Ran::of(first).fails_with(5);
}

#[test]
fn repeating_a_deploy_succeeds_at_once() {
    let world = World::start();
    let puma = Puma::start(App::Rack, "v1");
    let target = puma.target();
    let deploy =
        ["deploy", "shop", "--target", &target, "--host", "shop.test", "--bake", "0s", "--release", "abc"];
    world.agentctl(deploy).succeeds();
    let generation = world.daemon.status().generation;
    world.agentctl(deploy).succeeds();
    assert_eq!(world.daemon.status().generation, generation, "nothing had to change");
}

#[test]
fn a_missing_agent_is_said_to_be_missing() {
    let dir = tempfile::tempdir().unwrap();
    let nowhere = dir.path().join("control.sock");
    let ran = Agentctl::new(&nowhere).run(["status"]).fails_with(3);
    assert!(ran.stderr().contains(nowhere.to_str().unwrap()) && ran.stderr().contains("hint:"), "{ran}");
    // A socket that nobody listens on any more.
    drop(std::os::unix::net::UnixListener::bind(&nowhere).unwrap());
    Agentctl::new(&nowhere).run(["status"]).fails_with(3);
}

#[test]
fn a_user_without_rights_is_denied() {
    let world = World::start();
    // Let the user reach the socket, so that it is the agent that refuses.
    for path in [world.dir().to_owned(), world.daemon.control()] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    let agentctl = harness::binary_for_everybody("agentctl", world.dir());
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(agentctl);
    command.arg("--control").arg(world.daemon.control()).arg("status");
    let output = command.output().unwrap();
    if String::from_utf8_lossy(&output.stderr).contains("setpriv: ") {
        eprintln!("SKIPPED: needs the right to become another user (run the tests as root)");
        return;
    }
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(8), "{said}");
    assert!(said.contains("error:") && said.contains("hint:"), "{said}");
}

#[test]
fn everything_an_operator_reads_has_a_json_form() {
    let world = World::start();
    let puma = Puma::start(App::Rack, "v1");
    world.deploy(&puma.target());
    for args in [&["status"][..], &["status", "shop"], &["list"], &["history", "shop"], &["targets"]] {
        world.operator().run(args.iter().chain(&["--json"])).succeeds().json();
        assert!(!world.operator().run(args).succeeds().stdout().is_empty(), "{args:?}");
    }
    let events = world.agentctl(["events", "--json"]).succeeds();
    assert!(events.stdout().lines().any(|line| line.contains("\"deploy\"")), "{events}");
}

#[test]
fn a_removed_service_is_gone() {
    let world = World::start();
    let puma = Puma::start(App::Rack, "v1");
    world.deploy(&puma.target());
    world.agentctl(["remove", "shop"]).succeeds();
    assert_eq!(world.get("/").status, 404);
    assert_eq!(world.daemon.status().services, []);
}
