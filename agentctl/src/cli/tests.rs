//! The command line as people meet it: its help, what it takes, and what it says to what it does not.

use clap::CommandFactory;
use model::duration;
use model::policy_patch;
use model::protocol::PolicyPatch;
use model::service::Policy;

use super::*;
use crate::commands::{canary, deploy as deploying};

fn command() -> clap::Command {
    Cli::command().term_width(100)
}

fn help(words: &[&str]) -> String {
    let words = ["agentctl"].iter().chain(words).chain(&["--help"]);
    command().try_get_matches_from(words).unwrap_err().to_string()
}

fn refusal(line: &str) -> String {
    let words: Vec<&str> = std::iter::once("agentctl").chain(line.split(' ')).collect();
    match Cli::try_parse_from(words) {
        Ok(_) => panic!("`{line}` was taken"),
        Err(error) => {
            assert_eq!((error.exit_code(), error.use_stderr()), (2, true), "{line}");
            error.to_string()
        }
    }
}

#[test]
fn the_tree_is_sound() {
    command().debug_assert();
}

#[test]
fn help_of_the_whole() {
    insta::assert_snapshot!("help", help(&[]));
}

#[test]
fn help_of_deploy() {
    insta::assert_snapshot!("help_deploy", help(&["deploy"]));
}

#[test]
fn help_of_other_verbs() {
    insta::assert_snapshot!("help_rollback", help(&["rollback"]));
    insta::assert_snapshot!("help_canary", help(&["canary"]));
    insta::assert_snapshot!("help_canary_start", help(&["canary", "start"]));
    insta::assert_snapshot!("help_events", help(&["events"]));
    insta::assert_snapshot!("help_pause", help(&["pause"]));
    insta::assert_snapshot!("help_stop", help(&["stop"]));
    insta::assert_snapshot!("help_apply", help(&["apply"]));
    insta::assert_snapshot!("help_certs", help(&["certs"]));
}

#[test]
fn every_verb_has_examples() {
    fn check(command: &clap::Command, path: &str) {
        for verb in command.get_subcommands().filter(|verb| verb.get_name() != "help") {
            let path = format!("{path} {}", verb.get_name());
            let after = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(after.contains(&format!("\n  {path}")), "`{path}` has no example of itself: {after}");
            assert!(verb.get_about().is_some(), "{path}");
            check(verb, &path);
        }
    }
    let command = command();
    for verb in command.get_subcommands().filter(|verb| !matches!(verb.get_name(), "canary" | "certs")) {
        assert!(verb.get_after_help().is_some(), "{}", verb.get_name());
    }
    check(command.find_subcommand("canary").unwrap(), "agentctl canary");
    check(command.find_subcommand("certs").unwrap(), "agentctl certs");
}

#[test]
fn the_reference_has_every_flag_and_verb() {
    fn check(command: &clap::Command, reference: &str) {
        let flags = command.get_arguments().filter_map(|argument| argument.get_long());
        for flag in flags.filter(|flag| !matches!(*flag, "help" | "version")) {
            assert!(reference.contains(&format!("`--{flag}")), "docs/agentctl.md lacks --{flag}");
        }
        for verb in command.get_subcommands() {
            assert!(reference.contains(verb.get_name()), "docs/agentctl.md lacks {}", verb.get_name());
            check(verb, reference);
        }
    }
    check(&command(), include_str!("../../../docs/agentctl.md"));
}

/// The help repeats the defaults of the model; here they are held together.
#[test]
fn defaults_in_the_help_are_true() {
    let policy = Policy::default();
    // Settings have 0 for no limit.
    let response_body = policy_patch::from_policy(&policy).max_response_body_bytes.unwrap();
    let Policy {
        gate,
        timeouts,
        concurrency,
        request_body_bytes_max,
        strip_path_prefix,
        visitor,
        buffering,
        readers,
        ..
    } = policy;
    let command = command();
    let deploy = command.find_subcommand("deploy").unwrap();
    for (flag, default) in [
        ("health-check-path", gate.path),
        ("health-check-interval", duration::print(gate.interval)),
        ("health-check-timeout", duration::print(gate.timeout)),
        ("deploy-timeout", duration::print(gate.deploy_timeout)),
        ("drain-timeout", duration::print(timeouts.drain)),
        ("socket-drain-timeout", duration::print(timeouts.socket_drain)),
        ("bake", duration::print(timeouts.bake)),
        ("connect-timeout", duration::print(timeouts.connect)),
        ("target-timeout", duration::print(timeouts.response_head)),
        ("body-idle-timeout", duration::print(timeouts.body_idle)),
        ("max-in-flight", concurrency.max_in_flight.map_or(0, |max| max.get()).to_string()),
        ("queue-max", concurrency.queue_max.to_string()),
        ("queue-timeout", duration::print(concurrency.queue_timeout)),
        ("slow-start", duration::print(concurrency.slow_start)),
        ("max-request-body", request_body_bytes_max.to_string()),
        ("strip-path-prefix", strip_path_prefix.to_string()),
        ("visitor-set-cookie", visitor.set_cookie.to_string()),
        ("buffer-requests", buffering.requests.to_string()),
        ("buffer-responses", buffering.responses.to_string()),
        ("buffer-memory", buffering.memory_bytes_max.to_string()),
        ("max-response-body", response_body.to_string()),
        ("writer-affinity-timeout", duration::print(readers.writer_affinity)),
        ("read-target-websockets", readers.websockets.to_string()),
    ] {
        let argument = deploy.get_arguments().find(|argument| argument.get_long() == Some(flag)).unwrap();
        let help = argument.get_help().unwrap().to_string();
        assert!(help.ends_with(&format!("[at first: {default}]")), "--{flag}: {help}, but it is {default}");
    }
}

#[test]
fn what_is_wrong_is_said_with_what_to_do() {
    for (line, want) in [
        ("deploy shop", "--target <TARGET>"),
        ("deploy --target 127.0.0.1:3000", "<SERVICE>"),
        ("deploy no/slash --target 127.0.0.1:3000", "is not a service name: write up to 64 letters"),
        ("deploy shop --target 127.0.0.1", "names no port: write `host:port`"),
        ("deploy shop --target http://127.0.0.1:3000", "is a URL: write only `host:port`"),
        ("deploy shop --target 127.0.0.1:3000,", "`` is not a target"),
        ("deploy shop --target 127.0.0.1:3000 --host bad_host!", "is not a host name: write letters"),
        ("deploy shop --target a:1 --host shop.test:80", "`shop.test:80` is not a host name"),
        ("deploy shop --target a:1 --path-prefix /a?b", "is not a path prefix: write a path"),
        ("deploy shop --target a:1 --drain-timeout 30", "`30` is not a duration: write a number with a unit"),
        ("deploy shop --target a:1 --drain-timeout 30h", "longer than a day"),
        ("deploy shop --target a:1 --health-check-interval 0s", "no time at all: write more than zero"),
        ("deploy shop --target a:1 --health-check-path up", "is not a path to probe: write it as in a URL"),
        ("deploy shop --target a:1 --health-check-port 70000", "70000 is not in 0..=65535"),
        ("deploy shop --target a:1 --tls=maybe", "[possible values: true, false]"),
        ("deploy shop --target a:1 --tls-certificate-path a.pem", "--tls-private-key-path <FILE>"),
        ("deploy shop --target a:1 --tls-private-key-path a.pem", "--tls-certificate-path <FILE>"),
        ("deploy shop --target a:1 --release -x", "unexpected argument '-x'"),
        ("deploy shop --target a:1 --release=a/b", "is not a release: write up to 128 letters"),
        ("deploy shop --target a:1 --max-request-body 1GB", "invalid digit"),
        ("deploy shop --target a:1 --max-in-flight five", "invalid digit"),
        ("deploy shop --target a:1 --buffer-memory 1MB", "invalid digit"),
        ("deploy shop --target a:1 --buffer-requests=maybe", "[possible values: true, false]"),
        ("deploy shop --target a:1 --queue-timeout 0", "no time at all: write more than zero"),
        ("deploy shop --target a:1 --slow-start 15", "`15` is not a duration: write a number with a unit"),
        ("deploy shop --target a:1 --read-target a", "names no port: write `host:port`"),
        (
            "deploy shop --target a:1 --writer-affinity-timeout 1",
            "`1` is not a duration: write a number with a unit",
        ),
        ("deploy shop --read-target a:1", "--target <TARGET>"),
        ("deploy shop --target a:1 --visitor-header user:id", "is not a header or cookie name"),
        (
            "deploy shop --target a:1 --healthcheck-path /up",
            "a similar argument exists: '--health-check-path'",
        ),
        ("canary start shop --target a:1", "--weight <PERCENT>"),
        ("canary start shop --target a:1 --weight 101%", "is not a weight: write a percentage"),
        ("canary start shop --target a:1 --weight 5 --header x-canary", "is not NAME=VALUE"),
        ("canary start shop --target a:1 --weight 5 --network 10.0.0.0/40", "is not a network"),
        ("canary set shop 0.001%", "in steps of 0.01%"),
        ("canary set shop", "<WEIGHT>"),
        ("canary grow shop", "unrecognized subcommand 'grow'"),
        ("deplyo shop", "similar subcommands exist: 'apply', 'deploy'"),
        ("status a b", "unexpected argument 'b'"),
        ("completions cmd", "[possible values: bash"),
        ("pause", "<SERVICE>"),
        ("pause shop --max-pause 0s", "no time at all: write more than zero"),
        ("pause shop --max-pause 30", "`30` is not a duration: write a number with a unit"),
        ("pause shop --max-waiting 0", "0 is not in 1..=100000"),
        ("pause shop --message x", "unexpected argument '--message'"),
        ("stop shop --drain-timeout 25h", "longer than a day"),
        ("stop shop --bypass-cookie team", "is not NAME=VALUE"),
        ("stop shop --bypass-network office", "is not a network"),
        ("unpause shop", "unrecognized subcommand 'unpause'"),
    ] {
        let said = refusal(line);
        assert!(said.starts_with("error: ") && said.contains(want), "`{line}`: {said}");
    }
}

fn deploy(line: &str) -> model::protocol::DeployRequest {
    let words = ["agentctl", "deploy", "shop", "--target", "a:1"].into_iter().chain(line.split_whitespace());
    match Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}")).verb {
        Verb::Deploy(arguments) => deploying::request(&arguments),
        other => panic!("{other:?}"),
    }
}

#[test]
fn flags_become_settings_and_no_flag_becomes_none() {
    let text = |text: &str| Some(text.to_owned());
    let list = |texts: &[&str]| Some(texts.iter().map(ToString::to_string).collect());
    let none = PolicyPatch::default;
    for (line, want) in [
        ("", none()),
        (
            "--host A.test. --host *.b.test,c.test",
            PolicyPatch { hosts: list(&["a.test", "*.b.test", "c.test"]), ..none() },
        ),
        ("--host=", PolicyPatch { hosts: list(&[]), ..none() }),
        ("--path-prefix /a/,/b", PolicyPatch { path_prefixes: list(&["/a", "/b"]), ..none() }),
        ("--strip-path-prefix=false", PolicyPatch { strip_path_prefix: Some(false), ..none() }),
        ("--canonical-host a.test", PolicyPatch { canonical_host: text("a.test"), ..none() }),
        ("--canonical-host=", PolicyPatch { canonical_host: text(""), ..none() }),
        ("--tls --tls-redirect=false", PolicyPatch { tls: Some(true), tls_redirect: Some(false), ..none() }),
        (
            "--tls-certificate-path /c.pem --tls-private-key-path /k.pem",
            PolicyPatch {
                tls_certificate_path: text("/c.pem"),
                tls_private_key_path: text("/k.pem"),
                ..none()
            },
        ),
        (
            "--health-check-path /up?x --health-check-port 0 --health-check-host=",
            PolicyPatch {
                health_check_path: text("/up?x"),
                health_check_port: Some(0),
                health_check_host: text(""),
                ..none()
            },
        ),
        (
            "--health-check-interval 500ms --health-check-timeout 3s --deploy-timeout 90s",
            PolicyPatch {
                health_check_interval: text("500ms"),
                health_check_timeout: text("3s"),
                deploy_timeout: text("1m30s"),
                ..none()
            },
        ),
        (
            "--drain-timeout 0 --socket-drain-timeout 5s --bake 0s",
            PolicyPatch {
                drain_timeout: text("0s"),
                socket_drain_timeout: text("5s"),
                bake: text("0s"),
                ..none()
            },
        ),
        (
            "--connect-timeout 1s --target-timeout 2m --body-idle-timeout 3s --max-request-body 5",
            PolicyPatch {
                connect_timeout: text("1s"),
                target_timeout: text("2m"),
                body_idle_timeout: text("3s"),
                max_request_body_bytes: Some(5),
                ..none()
            },
        ),
        (
            "--max-in-flight 5 --queue-max 0 --queue-timeout 500ms --slow-start 0",
            PolicyPatch {
                max_in_flight: Some(5),
                queue_max: Some(0),
                queue_timeout: text("500ms"),
                slow_start: text("0s"),
                ..none()
            },
        ),
        (
            "--visitor-header X-User --visitor-cookie= --visitor-set-cookie=false",
            PolicyPatch {
                visitor_header: text("X-User"),
                visitor_cookie: text(""),
                visitor_set_cookie: Some(false),
                ..none()
            },
        ),
        (
            "--forward-headers --client-ip-header CF-Connecting-IP",
            PolicyPatch { forward_headers: Some(true), client_ip_header: text("cf-connecting-ip"), ..none() },
        ),
        (
            "--writer-affinity-timeout 1500ms --read-target-websockets",
            PolicyPatch {
                writer_affinity_timeout: text("1s500ms"),
                read_target_websockets: Some(true),
                ..none()
            },
        ),
        ("--client-ip-header=", PolicyPatch { client_ip_header: text(""), ..none() }),
        (
            "--buffer-requests --buffer-responses=false --buffer-memory 0 --max-response-body 7",
            PolicyPatch {
                buffer_requests: Some(true),
                buffer_responses: Some(false),
                buffer_memory_bytes: Some(0),
                max_response_body_bytes: Some(7),
                ..none()
            },
        ),
    ] {
        assert_eq!(deploy(line).policy, want, "{line}");
    }
}

#[test]
fn targets_and_labels() {
    let request = deploy("--target [::1]:2,unix:/run/a.sock --release 3f9c2ab --replace-canary");
    assert_eq!(request.targets, ["a:1", "[::1]:2", "unix:/run/a.sock"]);
    assert_eq!((request.release.as_deref(), request.replace_canary), (Some("3f9c2ab"), true));
}

#[test]
fn a_canary_with_everything() {
    let line = "agentctl canary start shop --target a:1 --weight 0.5 --release r9 --rollout spring \
                --header X-Canary=1,2 --cookie beta=yes --network 10.0.0.1,fd00::/8 --visitor 42 --visitor a,b";
    let verb = Cli::try_parse_from(line.split_whitespace()).unwrap().verb;
    let Verb::Canary(CanaryVerb::Start(arguments)) = verb else { panic!("{verb:?}") };
    let request = canary::start_request(&arguments);
    assert_eq!((request.weight.as_str(), request.rollout.as_deref()), ("0.5%", Some("spring")));
    let overrides = request.overrides;
    assert_eq!(
        (overrides.headers, overrides.cookies),
        (vec!["X-Canary=1,2".into()], vec!["beta=yes".into()])
    );
    assert_eq!(overrides.networks, ["10.0.0.1/32", "fd00::/8"]);
    assert_eq!(overrides.visitors, ["42", "a,b"]);
}

#[test]
fn read_targets_are_those_of_a_release() {
    let request = deploy("--read-target b:1,c:1 --read-target d:1 --force");
    assert_eq!(
        (request.targets, request.read_targets),
        (vec!["a:1".into()], ["b:1", "c:1", "d:1"].map(String::from).to_vec())
    );
    assert!(request.force && !deploy("").force && deploy("").read_targets.is_empty());
    let line = "agentctl canary start shop --target a:1 --read-target b:1 --weight 5";
    let verb = Cli::try_parse_from(line.split_whitespace()).unwrap().verb;
    let Verb::Canary(CanaryVerb::Start(arguments)) = verb else { panic!("{verb:?}") };
    assert_eq!(canary::start_request(&arguments).read_targets, ["b:1"]);
}

#[test]
fn global_flags_stand_anywhere() {
    for line in ["--json --control /x.sock status", "status --json --control /x.sock"] {
        let cli = Cli::try_parse_from(std::iter::once("agentctl").chain(line.split(' '))).unwrap();
        assert_eq!((cli.json, cli.control.to_str()), (true, Some("/x.sock")), "{line}");
    }
}
