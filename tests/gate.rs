//! A bad release never serves, and the refusal says why and what to do next.
//!
//! Each story deploys one bad release over a good one under load: exit code 5, every request answered by the
//! good one, and a message that stands here in full. Counts and times are replaced before comparing.

use harness::{App, Authority, Load, LoadPlan, Puma, Ran, Rogue, World, free_address};
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
            (r"within \d+s\b", "within TIME"),
            (r"(?m)[ \t]+$", ""),
        ]}, { insta::assert_snapshot!($refusal.told(), @$text) });
    };
}

fn bad_rails(bad: &str, more: &[(&str, &str)]) -> Puma {
    Puma::misbehaving(App::Rails, "bad", &[&[("BAD", bad)], more].concat())
}

#[test]
fn nothing_listens() {
    let refusal = refused(&free_address().to_string(), "2s").is("refused");
    says!(refusal, @r#"
        error: release `r2` of `shop` did not pass its gate; traffic is unchanged
        cause: target `TARGET`: nothing listens on TARGET (refused)
          probes: connection refused ×N
        hint:  see whether the app runs, on which port (`ss -ltnp`, `docker ps`), and whether it has exited (its log); in a container Puma must not listen on 127.0.0.1 only: `bind "tcp://0.0.0.0:PORT"` in config/puma.rb, or `bin/rails server -b 0.0.0.0 -p PORT`
    "#);
}

#[test]
fn connections_are_reset() {
    let rogue = Rogue::resetting();
    let refusal = refused(&rogue.target(), "2s").is("reset");
    says!(refusal, @r#"
        error: release `r2` of `shop` did not pass its gate; traffic is unchanged
        cause: target `TARGET`: TARGET takes connections and resets them without an answer (reset)
          probes: connection reset ×N
        hint:  behind a port that Docker publishes this means that nothing listens inside the container: let Puma listen on all its addresses (`bind "tcp://0.0.0.0:PORT"` in config/puma.rb) and publish that very port
    "#);
}

#[test]
fn no_answer_comes() {
    let puma = bad_rails("silent", &[]);
    let refusal = refused(&puma.target(), "4s").is("no_answer");
    says!(refusal, @r#"
        error: release `r2` of `shop` did not pass its gate; traffic is unchanged
        cause: target `TARGET`: TARGET takes connections, but `GET /up` got no answer within TIME (no_answer)
          probes: no answer
        hint:  the app hangs while it boots or while it answers (a database or lock that it waits for), or all its Puma threads are busy; let `/up` depend on nothing slow, and give it longer with `--health-check-timeout` if it needs that
    "#);
}

#[test]
fn force_ssl_redirects_the_probe() {
    let puma = bad_rails("redirect", &[]);
    let refusal = refused(&puma.target(), "60s").is("redirect_to_https").ended_early();
    says!(refusal, @r#"
        error: release `r2` of `shop` did not pass its gate; traffic is unchanged
        cause: target `TARGET`: `GET /up` is redirected to https://shop.test/up, although the probe says `X-Forwarded-Proto: https` (redirect_to_https)
          probes: 301 to https://shop.test/up ×N
          last answer:
          | You are being redirected.
        hint:  let the app trust the proxy in front of it with `config.assume_ssl = true` in config/environments/production.rs (Rails 7.1 and later), or leave the path out of `force_ssl`: `config.ssl_options = { redirect: { exclude: ->(request) { request.path == "/up" } } }`
    "#);
}

#[test]
fn the_host_is_blocked_as_in_production() {
    let puma = bad_rails("blocked_host", &[]);
    let refusal = refused(&puma.target(), "60s").is("blocked_host").ended_early();
    says!(refusal, @r#"
        error: release `r2` of `shop` did not pass its gate; traffic is unchanged
        cause: target `TARGET`: `GET /up` with `Host: shop.test` answered an empty 403, which is how Rails's host authorization blocks a host in production (blocked_host)
          probes: 403 ×N
        hint:  add `config.hosts << "shop.test"` to config/environments/production.rs, or let the path through: `config.host_authorization = { exclude: ->(request) { request.path == "/up" } }`, or probe with a host that the app knows: `--health-check-host NAME`
    "#);
}

#[test]
fn the_host_is_blocked_as_in_development() {
    let puma = bad_rails("blocked_host", &[("SHOW_ERRORS", "1")]);
    let refusal = refused(&puma.target(), "60s").is("blocked_host").ended_early();
    says!(refusal, @r#"
        error: release `r2` of `shop` did not pass its gate; traffic is unchanged
        cause: target `TARGET`: Rails's host authorization blocks `Host: shop.test`, which the probe sends (blocked_host)
          probes: 403 ×N
          last answer:
          | Action Controller: Exception caught
          | Blocked host: shop.test
          | To allow requests to shop.test make sure it is a valid hostname (containing only numbers, letters, dashes and dots), then add the following to your environment…
          | config.hosts << "shop.test"
        hint:  add `config.hosts << "shop.test"` to config/environments/production.rs, or let the path through: `config.host_authorization = { exclude: ->(request) { request.path == "/up" } }`, or probe with a host that the app knows: `--health-check-host NAME`
    "#);
}

#[test]
fn there_is_no_such_route() {
    let puma = bad_rails("missing_route", &[]);
    let refusal = refused(&puma.target(), "60s").is("not_found").ended_early();
    says!(refusal, @r#"
        error: release `r2` of `shop` did not pass its gate; traffic is unchanged
        cause: target `TARGET`: `GET /up` answered 404: the app has no such route (not_found)
          probes: 404 ×N
        hint:  Rails 7.1 and later: `get "up" => "rails/health#show", as: :rails_health_check` in config/routes.rs; before: `get "up", to: ->(_env) { [200, {}, ["up"]] }`; or name a path that answers 200 with `--health-check-path`
    "#);
}

#[test]
fn a_migration_is_pending() {
    let puma = bad_rails("pending_migration", &[]);
    let refusal = refused(&puma.target(), "60s").is("pending_migration").ended_early();
    says!(refusal, @r#"
        error: release `r2` of `shop` did not pass its gate; traffic is unchanged
        cause: target `TARGET`: the database lacks migrations of this release (`GET /up` answered 500: ActiveRecord::PendingMigrationError) (pending_migration)
          probes: 500 ×N
          last answer:
          | Action Controller: Exception caught
          | ActiveRecord::PendingMigrationError
          | Migrations are pending. To resolve this issue, run:
          | bin/rails db:migrate RAILS_ENV=production
          | You have 1 pending migration:
          | 20260101000000_create_orders.rb
          | Extracted source (around line #625):
          | 623
          | 624
          | 625
          | 626
          | 627
          | … 7 more
        hint:  run `bin/rails db:migrate` with the new release's code before it is deployed (Kamal's images do it in bin/docker-entrypoint with `bin/rails db:prepare`); write migrations so that the release that serves now still works with them
    "#);
}

#[test]
fn the_app_fails() {
    let puma = bad_rails("broken", &[]);
    let refusal = refused(&puma.target(), "3s").is("server_error");
    says!(refusal, @r#"
        error: release `r2` of `shop` did not pass its gate; traffic is unchanged
        cause: target `TARGET`: `GET /up` answered 500: the payment provider's key is missing (server_error)
          probes: 500 ×N
          last answer:
          | the payment provider's key is missing
        hint:  the app boots and then fails: the exception stands in its log (`docker logs`, log/production.log); common causes are a missing RAILS_MASTER_KEY or SECRET_KEY_BASE, and a database that cannot be reached
    "#);
}

#[test]
fn another_protocol_lives_on_the_port() {
    let rogue = Rogue::speaking_ssh();
    let refusal = refused(&rogue.target(), "60s").is("wrong_protocol").ended_early();
    says!(refusal, @r#"
        error: release `r2` of `shop` did not pass its gate; traffic is unchanged
        cause: target `TARGET`: TARGET does not speak HTTP but SSH (wrong_protocol)
          probes: not HTTP/1.1 but SSH ×N
        hint:  that is not the app's port: `ss -ltnp` shows who listens where; name Puma's port in `--target`, and in `--health-check-port` if you set one
    "#);
}

#[test]
fn redis_lives_on_the_port() {
    let redis = harness::Redis::start();
    let refusal = refused(&redis.target(), "60s").is("wrong_protocol").ended_early();
    says!(refusal, @r#"
        error: release `r2` of `shop` did not pass its gate; traffic is unchanged
        cause: target `TARGET`: TARGET does not speak HTTP but Redis (wrong_protocol)
          probes: not HTTP/1.1 but Redis ×N
        hint:  that is not the app's port: `ss -ltnp` shows who listens where; name Puma's port in `--target`, and in `--health-check-port` if you set one
    "#);
}

#[test]
fn the_port_speaks_tls() {
    let authority = Authority::default();
    let (certificate, key) = authority.certify("shop.test");
    let puma = Puma::speaking_tls(App::Rack, "bad", &certificate, &key);
    let refusal = refused(&puma.target(), "60s").is("tls_on_port").ended_early();
    says!(refusal, @r#"
        error: release `r2` of `shop` did not pass its gate; traffic is unchanged
        cause: target `TARGET`: TARGET speaks TLS, and Portcullis speaks plain HTTP to targets (tls_on_port)
          probes: TLS on the port ×N
        hint:  TLS ends at Portcullis: let Puma listen with `bind "tcp://0.0.0.0:PORT"` instead of `ssl://…` or `ssl_bind`, and deploy with that port in `--target`
    "#);
}

#[test]
fn the_boot_takes_longer_than_the_deploy_may() {
    let puma = bad_rails("slow_boot", &[("SLOW_BOOT_S", "600")]);
    let refusal = refused(&puma.target(), "3s").is("slow_boot");
    says!(refusal, @r#"
        error: release `r2` of `shop` did not pass its gate; traffic is unchanged
        cause: target `TARGET`: the app on TARGET listens, but still answered 503 when the deploy timeout of 3s ran out (slow_boot)
          probes: 503 ×N
          last answer:
          | up
        hint:  it says itself that it is not ready: allow a longer boot, such as `--deploy-timeout 1m`, or look in its log for what it waits for
    "#);
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
    let target = free_address().to_string();
    world.agentctl(["deploy", "shop", "--target", &target, "--deploy-timeout", "1s"]).fails_with(5);
    assert_eq!(world.daemon.status().services, []);
    let events = world.agentctl(["events"]).succeeds();
    assert!(events.stdout().contains("refused"), "{events}");
    assert_eq!(world.get("/").status, 404);
}

#[test]
fn a_page_that_says_404_while_the_app_boots_is_waited_for() {
    let world = World::start();
    let puma = Puma::misbehaving(App::Rack, "bad", &[("BAD", "late_up")]);
    world.deploy_with(&puma.target(), &["--deploy-timeout", "60s"]);
    assert_eq!(world.get("/").text(), "bad");
}
