//! A file declares the policy of services: `plan` tells what differs and who changed it, `apply` makes it so, for
//! all services of the file or for none.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use harness::{
    Agentctl, App, Ask, Authority, DaemonOptions, Load, LoadPlan, Puma, Ran, Recorder, Rogue, World,
    binaries_dir, binary_for_everybody, eventually, handshake, now_ms, workspace_root,
};
use model::protocol::{LoggedEvent, PolicyPatch};
use serde_json::Value;

fn file(world: &World, text: &str) -> String {
    let path = world.dir().join("policy.toml");
    std::fs::write(&path, text).expect("the temp directory can be written");
    path.display().to_string()
}

fn plan(world: &World, file: &str) -> Ran {
    world.agentctl(["plan", file])
}

/// The newest audit line of this kind.
fn logged(world: &World, kind: &str) -> LoggedEvent {
    let events = world.agentctl(["events", "--json"]).succeeds();
    let lines = events.stdout();
    let all = lines.lines().map(|line| serde_json::from_str::<LoggedEvent>(line).expect("an event"));
    all.rev().find(|event| event.kind == kind).unwrap_or_else(|| panic!("no {kind} in {events}"))
}

fn policy(world: &World, service: &str) -> PolicyPatch {
    let status = world.daemon.status();
    let found = status.services.into_iter().find(|found| found.name == service);
    found.unwrap_or_else(|| panic!("no service {service}")).policy
}

const SHOP: &str = "[service.shop]\nhosts = [\"shop.test\"]\nbake = \"0s\"\ndrain_timeout = \"2s\"\n";

/// `shop`, declared by `SHOP` and deployed.
fn declared_shop(world: &World, target: &str) -> String {
    let file = file(world, SHOP);
    world.agentctl(["apply", &file]).succeeds();
    world.agentctl(["deploy", "shop", "--target", target]).succeeds();
    file
}

#[test]
fn plan_says_nothing_until_a_hand_has_changed_something() {
    let world = World::start();
    let (stable, canary) = (Puma::start(App::Rack, "stable"), Puma::start(App::Rack, "canary"));
    let file = declared_shop(&world, &stable.target());
    let quiet = plan(&world, &file).succeeds();
    assert_eq!((quiet.stdout(), quiet.stderr()), (String::new(), String::new()));

    let target = canary.target();
    world
        .agentctl(["canary", "start", "shop", "--target", &target, "--weight", "0%", "--release", "next"])
        .succeeds();
    world.agentctl(["canary", "set", "shop", "25%"]).succeeds();
    let drift = plan(&world, &file).fails_with(10);
    let hand = logged(&world, "canary set");
    let row =
        drift.stdout().lines().find(|line| line.contains("canary")).map(str::to_owned).unwrap_or_default();
    assert!(row.contains("release next at 25%") && row.contains(&hand.actor), "{drift}");
    assert!(row.ends_with(": canary set"), "{drift}");
    let shown = world.agentctl(["plan", &file, "--json"]).fails_with(10).json();
    let mark = &shown["services"][0]["undeclared"][0]["by_hand"];
    assert_eq!(
        (mark["by"].as_str(), mark["actor"].as_str()),
        (Some("canary set"), Some(hand.actor.as_str()))
    );
    let at_ms = mark["at_ms"].as_u64().expect("a time");
    assert!(at_ms <= hand.at_ms && hand.at_ms <= now_ms(), "{at_ms} {}", hand.at_ms);
    valid_plan(&shown);

    world.agentctl(["canary", "promote", "shop"]).succeeds();
    assert_eq!(plan(&world, &file).succeeds().stdout(), "", "it is over");

    world.agentctl(["stop", "shop"]).succeeds();
    let drift = plan(&world, &file).fails_with(10);
    let row = drift.stdout().lines().find(|line| line.contains("stopped")).map(str::to_owned);
    assert!(row.unwrap_or_default().ends_with(": stop"), "{drift}");
    world.agentctl(["resume", "shop"]).succeeds();
    assert_eq!(plan(&world, &file).succeeds().stdout(), "", "it is over, too");
}

fn valid_plan(plan: &Value) {
    let path = workspace_root().join("docs/schema/plan.schema.json");
    let schema =
        serde_json::from_slice(&std::fs::read(path).expect("the schema is shipped")).expect("it is JSON");
    let validator = jsonschema::validator_for(&schema).expect("a JSON Schema");
    let problems: Vec<_> = validator.iter_errors(plan).map(|error| error.to_string()).collect();
    assert!(problems.is_empty(), "{problems:#?}\n{plan:#}");
}

#[test]
fn a_hand_is_told_from_a_newer_file_also_after_a_restart() {
    let mut world = World::start();
    let puma = Puma::start(App::Rack, "v1");
    let target = puma.target();
    declared_shop(&world, &target);
    // As an operator who came over SSH.
    let mut by_hand = Command::new(binaries_dir().join("agentctl"));
    by_hand.args(["deploy", "shop", "--target", &target, "--drain-timeout", "9s"]);
    by_hand
        .env("PORTCULLIS_CONTROL", world.daemon.control())
        .env("SSH_CONNECTION", "192.0.2.7 50022 10.0.0.5 22");
    assert!(by_hand.output().expect("agentctl runs").status.success());

    let newer = file(&world, &format!("{SHOP}max_in_flight = 7\n"));
    world.daemon.kill_9();
    world.daemon.start_again();
    let drift = plan(&world, &newer).fails_with(10);
    let row = |setting: &str| drift.stdout().lines().find(|line| line.contains(setting)).map(str::to_owned);
    let drain = row("drain_timeout").unwrap_or_default();
    assert!(drain.contains("2s") && drain.contains("9s"), "{drift}");
    assert!(drain.contains(" from 192.0.2.7, ") && drain.ends_with("deploy --drain-timeout"), "{drift}");
    assert!(row("max_in_flight").is_some_and(|row| row.ends_with('-')), "no hand did that: {drift}");
    assert!(drift.stderr().contains("2 settings differ"), "{drift}");

    let applied = world.agentctl(["apply", &newer]).succeeds();
    assert!(applied.stdout().contains("OLD") && applied.stdout().contains("9s"), "{applied}");
    assert_eq!(plan(&world, &newer).succeeds().stdout(), "");
    let patch = policy(&world, "shop");
    assert_eq!((patch.drain_timeout.as_deref(), patch.max_in_flight), (Some("2s"), Some(7)));
    assert_eq!(
        logged(&world, "apply").message,
        "its policy was declared: drain_timeout 9s → 2s, max_in_flight 0 → 7"
    );
}

#[test]
fn everything_wrong_in_a_file_is_said_before_anything_is_sent() {
    let world = World::start();
    let path = file(
        &world,
        "[service.shop]\nhost = [\"shop.test\"]\nmax_inflight = 5\nbake = 30\n\n[service.blog]\ncanonical_host = \"a b\"\n",
    );
    // Nobody is asked: there is no agent at all.
    let nowhere = Agentctl::new(&world.dir().join("nowhere.sock"));
    for verb in ["plan", "apply"] {
        let refused = nowhere.run([verb, &path]).fails_with(2);
        for says in [
            format!("{path} is wrong in 4 places; nothing was sent"),
            format!("{path}:2: `host` is not a setting; did you mean `hosts`?"),
            format!("{path}:3: `max_inflight` is not a setting; did you mean `max_in_flight`?"),
            format!(
                "{path}:4: `bake`: invalid type: integer `30`, expected a string; write it as in `bake = \"1m\"`"
            ),
            format!("{path}:7: `canonical_host`: `a b` is not a host name"),
        ] {
            assert!(refused.stderr().contains(&says), "{says:?} is not in {refused}");
        }
        assert_eq!(refused.stdout(), "");
        let problem = nowhere.run([verb, &path, "--json"]).fails_with(2).json();
        assert_eq!(
            (problem["code"].as_str(), problem["causes"].as_array().map(Vec::len)),
            (Some("invalid"), Some(4))
        );
    }
    let missing = nowhere.run(["apply", "/no/such/file.toml"]).fails_with(2);
    assert!(missing.stderr().contains("/no/such/file.toml"), "{missing}");
    // The agent does not take them from others either.
    let refused = post(&world, r#"{"services":{"shop":{"bake":"soon"},"b c":{}}}"#);
    assert_eq!(
        (refused["code"].as_str(), refused["causes"].as_array().map(Vec::len)),
        (Some("invalid"), Some(2))
    );
    assert_eq!(post(&world, r#"{"services":{"shop":{"bak":"1m"}}}"#)["code"], "invalid");
    assert_eq!(world.daemon.status().generation, 0);
}

/// Sends this to `/v1/apply` without agentctl.
fn post(world: &World, body: &str) -> Value {
    let ask = Ask::post("localhost", "/v1/apply", body.to_owned());
    ask.try_at_socket(&world.daemon.control()).expect("the agent answers").json()
}

#[test]
fn apply_is_for_all_services_of_a_file_or_for_none() {
    let world = World::start();
    let recorder = Recorder::start();
    let target = recorder.target();
    for (service, host) in [("shop", "shop.test"), ("blog", "blog.test"), ("wiki", "wiki.test")] {
        world.agentctl(["deploy", service, "--target", &target, "--host", host, "--bake", "0s"]).succeeds();
    }
    let before = world.daemon.status();
    let tls = "tls = true\ntls_certificate_path = \"/no/c.pem\"\ntls_private_key_path = \"/no/k.pem\"\n";
    for (blog, code, says) in [
        (tls, 1, "/no/c.pem"),
        ("hosts = [\"wiki.test\"]\n", 4, "service `wiki` has it"),
        ("hosts = [\"new.test\"]\n", 4, "service `blog` cannot have host `new.test`"),
    ] {
        let path = file(&world, &format!("[service.shop]\nhosts = [\"new.test\"]\n[service.blog]\n{blog}"));
        for verb in ["plan", "apply"] {
            let refused = world.agentctl([verb, &path]).fails_with(code);
            assert!(refused.stderr().contains(says), "{says:?} is not in {refused}");
        }
    }
    let after = world.daemon.status();
    assert_eq!(
        (after.generation, &after.services[1].policy),
        (before.generation, &before.services[1].policy)
    );

    // Two services change places: what counts is how it is afterwards.
    let path =
        file(&world, "[service.shop]\nhosts = [\"blog.test\"]\n[service.blog]\nhosts = [\"shop.test\"]\n");
    let load = Load::start(world.http(), LoadPlan::default());
    load.goes_on_for(20);
    world.agentctl(["apply", &path]).succeeds();
    load.goes_on_for(20);
    load.finish().lost_nothing();
    assert_eq!(world.daemon.status().generation, before.generation + 1, "one change");
    assert_eq!(policy(&world, "blog").hosts, Some(vec!["shop.test".to_owned()]));
    assert_eq!(policy(&world, "wiki"), before.services[2].policy, "what no file names stays");
}

#[test]
fn a_declared_service_waits_for_its_first_release() {
    let world = World::start();
    let puma = Puma::start(App::Rack, "v1");
    let target = puma.target();
    let path = file(&world, SHOP);
    let absent = plan(&world, &path).fails_with(10);
    assert!(absent.stdout().contains("declared"), "{absent}");
    assert!(world.agentctl(["apply", &path]).succeeds().stderr().contains("agentctl deploy shop"));
    assert_eq!(plan(&world, &path).succeeds().stdout(), "");
    assert_eq!(world.get("/").status, 404, "nobody serves it yet");
    assert!(world.agentctl(["list"]).succeeds().stdout().contains("shop"));
    let status = world.agentctl(["status", "shop"]).fails_with(1);
    assert!(status.stderr().contains("agentctl deploy shop"), "{status}");

    let taken = world.agentctl(["deploy", "blog", "--target", &target, "--host", "shop.test"]).fails_with(4);
    assert!(taken.stderr().contains("service `shop` has it"), "its routes are kept for it: {taken}");
    world.agentctl(["deploy", "shop", "--target", &target]).succeeds();
    assert_eq!(world.get("/").text(), "v1");
    assert_eq!(policy(&world, "shop").drain_timeout.as_deref(), Some("2s"));
    assert_eq!(plan(&world, &path).succeeds().stdout(), "");

    world.agentctl(["remove", "shop"]).succeeds();
    plan(&world, &path).fails_with(10);
    world.agentctl(["apply", &path]).succeeds();
    world.agentctl(["remove", "shop"]).succeeds();
    assert_eq!(world.daemon.status().declared, []);
    world.agentctl(["remove", "shop"]).fails_with(1);
}

#[test]
fn what_is_exported_declares_what_runs() {
    let world = World::start();
    let authority = Authority::default();
    let (certificate, key) = authority.certify("shop.test");
    let recorder = Recorder::start();
    let target = recorder.target();
    let tls = ["--tls", "--tls-redirect=false", "--tls-certificate-path", certificate.to_str().unwrap()];
    let more = [
        "--tls-private-key-path",
        key.to_str().unwrap(),
        "--canonical-host",
        "shop.test",
        "--slow-start",
        "0",
    ];
    world.deploy_with(
        &target,
        &[&tls[..], &more, &["--max-in-flight", "9", "--visitor-header", "X-User"]].concat(),
    );
    world
        .agentctl(["deploy", "blog", "--target", &target, "--path-prefix", "/blog", "--bake", "0s"])
        .succeeds();

    let exported = world.agentctl(["export"]).succeeds().stdout();
    assert!(
        exported.starts_with("[service.blog]\n") && exported.contains("\n[service.shop]\n"),
        "{exported}"
    );
    assert!(!exported.contains("target_timeout"), "what is default is left out: {exported}");
    let path = file(&world, &exported);
    assert_eq!(plan(&world, &path).succeeds().stdout(), "");
    let only = world.agentctl(["export", "shop"]).succeeds().stdout();
    assert!(!only.contains("blog") && exported.ends_with(&only), "{only}");
    world.agentctl(["export", "nobody"]).fails_with(1);

    // On another machine it makes the same policies; from standard input as well.
    let other = World::start();
    let mut apply = other_side(&other, &["apply", "-"]);
    apply.stdin.take().expect("a pipe").write_all(exported.as_bytes()).expect("agentctl reads");
    Ran::of(apply).succeeds();
    let declared = other.daemon.status().declared;
    assert_eq!(declared[0].policy, policy(&world, "blog"));
    assert_eq!(declared[1].policy, policy(&world, "shop"));
    assert_eq!(other.agentctl(["export"]).succeeds().stdout(), exported);
}

fn other_side(world: &World, args: &[&str]) -> Child {
    let mut command = Command::new(binaries_dir().join("agentctl"));
    command.args(args).env("PORTCULLIS_CONTROL", world.daemon.control());
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("agentctl starts")
}

#[test]
fn what_came_in_between_is_not_overwritten() {
    let world = World::start();
    let recorder = Recorder::start();
    let path = declared_shop(&world, &recorder.target());
    let planned = world.daemon.status().generation;
    let newer = file(&world, &SHOP.replace("2s", "7s"));
    world.deploy_with(&recorder.target(), &["--drain-timeout", "5s"]);
    let number = planned.to_string();
    let stale = world.agentctl(["apply", &newer, "--generation", &number]).fails_with(4);
    assert!(stale.stderr().contains("agentctl events"), "{stale}");
    assert_eq!(policy(&world, "shop").drain_timeout.as_deref(), Some("5s"));

    // Also while somebody looks at the question.
    let mut asked = Terminal::start(&world, &["apply", &path]);
    asked.wait_for("Change 1 setting? [y/N]");
    world.deploy_with(&recorder.target(), &["--drain-timeout", "6s"]);
    asked.answer("y");
    assert_eq!(asked.end(), 4);
    assert_eq!(policy(&world, "shop").drain_timeout.as_deref(), Some("6s"));

    for (answer, code, want) in [("", 6, "6s"), ("n", 6, "6s"), ("y", 0, "7s")] {
        let mut asked = Terminal::start(&world, &["apply", &path]);
        asked.wait_for("Change 1 setting? [y/N]");
        asked.answer(answer);
        assert_eq!(asked.end(), code, "{answer:?}");
        assert_eq!(policy(&world, "shop").drain_timeout.as_deref(), Some(want), "{answer:?}");
    }
    let now = world.daemon.status().generation.to_string();
    world.agentctl(["apply", &path, "--generation", &now, "--yes"]).succeeds();
    assert_eq!(world.daemon.status().generation.to_string(), now, "nothing had to change");
}

/// agentctl with somebody in front of it.
struct Terminal {
    script: Child,
    seen: String,
}

impl Terminal {
    fn start(world: &World, args: &[&str]) -> Self {
        let agentctl = binaries_dir().join("agentctl");
        let line = format!("{} {}", agentctl.display(), args.join(" "));
        let mut command = Command::new("script");
        command.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
        command.env("PORTCULLIS_CONTROL", world.daemon.control()).env("SHELL", "/bin/sh");
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        Self { script: command.spawn().expect("script is installed with Debian's base"), seen: String::new() }
    }

    fn wait_for(&mut self, text: &str) {
        let stdout = self.script.stdout.as_mut().expect("a pipe");
        let mut byte = [0];
        while !self.seen.contains(text) {
            let read = stdout.read(&mut byte).expect("a pipe can be read");
            assert_eq!(read, 1, "it ended after {:?}", self.seen);
            self.seen.push(char::from(byte[0]));
        }
    }

    fn answer(&mut self, line: &str) {
        let stdin = self.script.stdin.as_mut().expect("a pipe");
        stdin.write_all(format!("{line}\n").as_bytes()).expect("somebody reads");
    }

    fn end(mut self) -> i32 {
        let mut rest = String::new();
        self.script.stdout.take().expect("a pipe").read_to_string(&mut rest).expect("text");
        self.script.wait().expect("it ends").code().expect("it was not killed")
    }
}

#[test]
fn a_deploy_under_way_is_not_overtaken() {
    let world = World::start();
    let recorder = Recorder::start();
    let path = declared_shop(&world, &recorder.target());
    let mute = Rogue::mute();
    let deploy =
        world.operator().start(["deploy", "shop", "--target", &mute.target(), "--deploy-timeout", "4s"]);
    eventually("the deploy runs", || match &world.daemon.status().services[0].operation {
        Some(_) => Ok(()),
        None => Err("no operation".to_owned()),
    });
    let other = "[service.blog]\nhosts = [\"blog.test\"]\n";
    std::fs::write(&path, format!("{SHOP}{other}")).unwrap();
    world.agentctl(["apply", &path]).succeeds();
    std::fs::write(&path, SHOP.replace("2s", "3s")).unwrap();
    let refused = world.agentctl(["apply", &path]).fails_with(4);
    assert!(refused.stderr().contains("began a deploy"), "{refused}");
    plan(&world, &path).fails_with(10);
    Ran::of(deploy).fails_with(5);
    world.agentctl(["apply", &path]).succeeds();
    assert_eq!(policy(&world, "shop").drain_timeout.as_deref(), Some("3s"));
}

#[test]
fn who_may_only_look_may_plan() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("portcullis.toml");
    // The group of the user below.
    std::fs::write(&config, "[groups]\nread = \"nogroup\"\n").unwrap();
    let args = vec!["--config".into(), config.into()];
    let world = World::with(DaemonOptions { args, ..DaemonOptions::default() });
    let recorder = Recorder::start();
    let path = declared_shop(&world, &recorder.target());
    for path in [world.dir().to_owned(), world.daemon.control(), path.clone().into()] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    let agentctl = binary_for_everybody("agentctl", world.dir());
    let reader = |args: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&agentctl).args(args);
        let command = command.env("PORTCULLIS_CONTROL", world.daemon.control()).stdin(Stdio::null());
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        Ran::of(child.expect("util-linux is installed (bin/test installs it)"))
    };
    let looked = reader(&["plan", &path]);
    if looked.stderr().contains("setpriv: ") {
        eprintln!("SKIPPED: needs the right to become another user (run the tests as root)");
        return;
    }
    assert_eq!(looked.succeeds().stdout(), "");
    reader(&["export"]).succeeds();
    let refused = reader(&["apply", &path]).fails_with(8);
    assert!(refused.stderr().contains("may not change services"), "{refused}");
}

#[test]
fn certificates_are_shown_as_declared_and_read_anew() {
    let world = World::start();
    let authority = Authority::default();
    let recorder = Recorder::start();
    let path = declared_shop(&world, &recorder.target());
    let (certificate, key) = authority.certify("shop.test");
    let (certificate, key) = (certificate.display().to_string(), key.display().to_string());
    let tls = format!(
        "{SHOP}tls = true\ntls_certificate_path = \"{certificate}\"\ntls_private_key_path = \"{key}\"\n"
    );
    std::fs::write(&path, tls).unwrap();
    world.agentctl(["apply", &path]).succeeds();
    let shown = || handshake(world.daemon.https(), "shop.test", &[]).unwrap().certificate;
    let first = shown();
    assert_eq!(Ask::get("shop.test", "/").tls().at(world.daemon.https()).text(), "recorded");
    assert_eq!(world.get("/").status, 301);

    // A renewal: other files under the same names.
    let anew = Authority::default();
    let (renewed, its_key) = anew.certify("shop.test");
    std::fs::copy(renewed, &certificate).unwrap();
    std::fs::copy(its_key, &key).unwrap();
    let generation = world.daemon.status().generation;
    world.agentctl(["apply", &path]).succeeds();
    assert_ne!(shown(), first);
    assert_eq!(world.daemon.status().generation, generation, "no decision has changed");
}

const KILLS: u64 = 40;

#[test]
fn a_kill_in_mid_apply_leaves_the_old_or_the_new() {
    let mut world = World::start();
    let recorder = Recorder::start();
    let mut dice = 7_u64;
    let declare = |round: u64| {
        let one = |name: &str| {
            format!(
                "[service.{name}]\nhosts = [\"{name}{round}.test\"]\nmax_in_flight = {round}\nbake = \"0s\"\n"
            )
        };
        ["blog", "shop", "wiki"].map(one).concat()
    };
    world.agentctl(["apply", &file(&world, &declare(1))]).succeeds();
    // One of the three has no release.
    for service in ["blog", "shop"] {
        world.agentctl(["deploy", service, "--target", &recorder.target()]).succeeds();
    }
    let (mut before, mut acknowledged) = (1, 0);
    for round in 2..2 + KILLS {
        let path = file(&world, &declare(round));
        let apply = world.operator().start(["apply", &path, "--json"]);
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Somewhere between before the first byte and after the last one.
        thread::sleep(Duration::from_millis((dice >> 33) % 40));
        world.daemon.kill_9();
        let ran = Ran::of(apply);
        world.daemon.start_again();
        let status = world.daemon.status();
        let deployed = status.services.iter().map(|service| (&service.name, &service.policy));
        let declared = status.declared.iter().map(|declared| (&declared.name, &declared.policy));
        let found: Vec<_> = deployed.chain(declared).collect();
        assert_eq!(found.len(), 3);
        let rounds: Vec<u64> =
            found.iter().map(|(_, policy)| u64::from(policy.max_in_flight.unwrap_or(0))).collect();
        let hosts = found
            .iter()
            .zip(&rounds)
            .all(|((name, policy), round)| policy.hosts.as_deref() == Some(&[format!("{name}{round}.test")]));
        let whole = rounds.iter().all(|one| *one == rounds[0]) && hosts;
        assert!(whole && (rounds[0] == round || rounds[0] == before), "{found:?}, {before} → {round}\n{ran}");
        if ran.code() == Some(0) {
            acknowledged += 1;
            assert_eq!(rounds[0], round, "lost what was acknowledged\n{ran}");
        }
        before = rounds[0];
        // Whoever was killed may repeat it.
        if before == round {
            assert_eq!(plan(&world, &path).succeeds().stdout(), "");
        }
        assert_eq!(Ask::get(&format!("shop{before}.test"), "/").at(world.http()).status, 200);
    }
    assert!(acknowledged > 0, "every kill came too early to prove anything");
}
