//! A bad release never serves, and the refusal says why and what to do next.
//!
//! Each story deploys one bad release over a good one under load: exit code 5, every request answered by the
//! good one, and a message that stands here in full. Counts and times are replaced before comparing.

use harness::{App, Authority, Load, LoadPlan, Puma, Ran, Rogue, World, refused_address};
use model::protocol::{DiagnosisBody, Event, Problem, ProblemCode};

/// What came of deploying a bad release.
struct Refusal {
    ran: Ran,
    problem: Problem,
    diagnosis: DiagnosisBody,
    /// Since the gate began, when the last probe ended.
    last_probe_ms: u64,
}

/// Deploys `target` over a good release with a deploy timeout of `timeout`.
fn refused(target: &str, timeout: &str) -> Refusal {
    let world = World::start();
    let good = Puma::start(App::Rack, "good");
    world.deploy(&good.target());
    let plan = LoadPlan { http1_connections: 2, http2_connections: 1, ..LoadPlan::default() };
    let load = Load::start(world.http(), plan);
    load.goes_on_for(5);

    let args = ["--json", "deploy", "shop", "--target", target, "--deploy-timeout", timeout, "--bake", "0s"];
    let ran = world.agentctl(args).fails_with(5);

    load.goes_on_for(5);
    let seen = load.finish().lost_nothing();
    assert_eq!(seen.releases(), ["good"], "{seen}");
    let status = world.daemon.status();
    assert_eq!(status.services[0].stable.targets[0].target, good.target(), "{status:#?}");
    remembered(&world, target);
    Refusal::from(ran)
}

/// The history keeps what was refused, and why.
fn remembered(world: &World, target: &str) {
    let history = world.agentctl(["--json", "history", "shop"]).succeeds().json();
    let newest = &history["entries"][0];
    assert_eq!((&newest["targets"][0], &newest["outcome"]), (&target.into(), &"refused".into()), "{history}");
    assert!(newest["reason"].is_string(), "{history}");
}

impl Refusal {
    fn from(ran: Ran) -> Self {
        let events = ran.events();
        let last_probe_ms = events.iter().rev().find_map(|event| match event {
            Event::Probed { elapsed_ms, .. } => Some(*elapsed_ms),
            _ => None,
        });
        let Some(Event::Failed { problem }) = events.last().cloned() else { panic!("{ran}") };
        assert_eq!(problem.code, ProblemCode::GateFailed, "{ran}");
        let diagnosis = problem.diagnosis.clone().unwrap_or_else(|| panic!("no diagnosis: {ran}"));
        Self { problem, diagnosis, last_probe_ms: last_probe_ms.unwrap_or_default(), ran }
    }

    fn is(self, id: &str) -> Self {
        assert_eq!(self.diagnosis.id, id, "{}", self.ran);
        assert!(!self.diagnosis.timeline.is_empty() && self.problem.message.contains("shop"), "{}", self.ran);
        self
    }

    /// The gate gave up long before the deploy timeout of a minute, by its own account of the time.
    fn ended_early(self) -> Self {
        assert!(self.last_probe_ms < 30_000, "{}", self.ran);
        self
    }

    /// What the operator reads.
    fn told(&self) -> String {
        self.ran.stderr()
    }
}

/// Compares what the operator reads with the text in the story.
macro_rules! says {
    ($refusal:expr, @$text:literal) => {
        insta::with_settings!({filters => vec![
            (r"127\.0\.0\.1:\d+", "TARGET"),
            (r"tcp://0\.0\.0\.0:\d+", "tcp://0.0.0.0:PORT"),
            (r"-p \d+", "-p PORT"),
            (r"×\d+", "×N"),
            (r"\b(\d+s)?\d+ms\b", "TIME"),
            (r"(?m)[ \t]+$", ""),
        ]}, { insta::assert_snapshot!($refusal.told(), @$text) });
    };
}

fn bad_rails(bad: &str, more: &[(&str, &str)]) -> Puma {
    Puma::misbehaving(App::Rails, "bad", &[&[("BAD", bad)], more].concat())
}

#[test]
fn nothing_listens() {
    let refusal = refused(&refused_address().to_string(), "2s").is("refused");
    says!(refusal, @"");
}

#[test]
fn connections_are_reset() {
    let rogue = Rogue::resetting();
    let refusal = refused(&rogue.target(), "2s").is("reset");
    says!(refusal, @"");
}

#[test]
fn no_answer_comes() {
    let puma = bad_rails("silent", &[]);
    let refusal = refused(&puma.target(), "4s").is("no_answer");
    says!(refusal, @"");
}

#[test]
fn force_ssl_redirects_the_probe() {
    let puma = bad_rails("redirect", &[]);
    let refusal = refused(&puma.target(), "60s").is("redirect_to_https").ended_early();
    says!(refusal, @"");
}

#[test]
fn the_host_is_blocked_as_in_production() {
    let puma = bad_rails("blocked_host", &[]);
    let refusal = refused(&puma.target(), "60s").is("blocked_host").ended_early();
    says!(refusal, @"");
}

#[test]
fn the_host_is_blocked_as_in_development() {
    let puma = bad_rails("blocked_host", &[("SHOW_ERRORS", "1")]);
    let refusal = refused(&puma.target(), "60s").is("blocked_host").ended_early();
    says!(refusal, @"");
}

#[test]
fn there_is_no_such_route() {
    let puma = bad_rails("missing_route", &[]);
    let refusal = refused(&puma.target(), "60s").is("not_found").ended_early();
    says!(refusal, @"");
}

#[test]
fn a_migration_is_pending() {
    let puma = bad_rails("pending_migration", &[]);
    let refusal = refused(&puma.target(), "60s").is("pending_migration").ended_early();
    says!(refusal, @"");
}

#[test]
fn the_app_fails() {
    let puma = bad_rails("broken", &[]);
    let refusal = refused(&puma.target(), "3s").is("server_error");
    says!(refusal, @"");
}

#[test]
fn another_protocol_lives_on_the_port() {
    let rogue = Rogue::speaking_ssh();
    let refusal = refused(&rogue.target(), "60s").is("wrong_protocol").ended_early();
    says!(refusal, @"");
}

#[test]
fn redis_lives_on_the_port() {
    let redis = harness::Redis::start();
    let refusal = refused(&redis.target(), "60s").is("wrong_protocol").ended_early();
    says!(refusal, @"");
}

#[test]
fn the_port_speaks_tls() {
    let authority = Authority::default();
    let (certificate, key) = authority.certify("shop.test");
    let puma = Puma::speaking_tls(App::Rack, "bad", &certificate, &key);
    let refusal = refused(&puma.target(), "60s").is("tls_on_port").ended_early();
    says!(refusal, @"");
}

#[test]
fn the_boot_takes_longer_than_the_deploy_may() {
    let puma = bad_rails("slow_boot", &[("SLOW_BOOT_S", "600")]);
    let refusal = refused(&puma.target(), "3s").is("slow_boot");
    says!(refusal, @"");
}

#[test]
fn a_slow_boot_within_the_deploy_timeout_is_no_failure() {
    let world = World::start();
    let good = Puma::start(App::Rack, "good");
    world.deploy(&good.target());
    let load = world.load("/");
    let puma = bad_rails("slow_boot", &[("SLOW_BOOT_S", "4")]);
    world.deploy_with(&puma.target(), &["--deploy-timeout", "60s"]);
    load.goes_on_for(5);
    let seen = load.finish().lost_nothing();
    assert_eq!(seen.last_body(), "bad", "it came up late, and well: {seen}");
}

#[test]
fn one_bad_target_of_two_refuses_the_release() {
    let (one, two) = (Puma::start(App::Rack, "new"), bad_rails("missing_route", &[]));
    let world = World::start();
    let good = Puma::start(App::Rack, "good");
    world.deploy(&good.target());
    let (one, two) = (one.target(), two.target());
    let args = ["--json", "deploy", "shop", "--target", &one, "--target", &two, "--bake", "0s"];
    let refusal = Refusal::from(world.agentctl(args).fails_with(5)).is("not_found");
    assert_eq!(refusal.diagnosis.target, two);
    assert_eq!(world.get("/").text(), "good");
}

#[test]
fn a_first_release_that_is_refused_leaves_no_service() {
    let world = World::start();
    let target = refused_address().to_string();
    world.agentctl(["deploy", "shop", "--target", &target, "--deploy-timeout", "1s"]).fails_with(5);
    assert_eq!(world.daemon.status().services, []);
    assert_eq!(world.get("/").status, 404);
}
