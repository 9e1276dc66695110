//! What a target that does not pass looks like, what that means and what to do: data, no code.
//!
//! The first that matches wins, so the particular stand before the general. How they are matched and filled
//! in (`{target}`, `{host}`, …) lives in `diagnosis`.

use std::time::Duration;

use crate::diagnosis::{Body, Location, Patience, Pattern, Signature};

/// What listens there is no app that boots: waiting will not change it.
const SOON: Option<Patience> = Some(Patience { probes: 3, lasting: Duration::from_secs(1) });
/// A proxy or file server in front of an app that still boots may answer like this for a while.
const SETTLED: Option<Patience> = Some(Patience { probes: 3, lasting: Duration::from_secs(5) });

pub const SIGNATURES: &[Signature] = &[
    Signature {
        id: "crashed",
        pattern: Pattern::WentAway,
        verdict: "the app on {target} answered and then stopped listening",
        hint: "it started and crashed or was stopped: read the end of its log (`docker logs`, `journalctl -u`), \
               and look for an out-of-memory kill (`docker inspect -f '{{.State.OOMKilled}}' CONTAINER`)",
        hopeless_after: None,
    },
    Signature {
        id: "slow_boot",
        pattern: Pattern::StartedLate,
        verdict: "the app on {target} began to answer only shortly before the deploy timeout of {deploy_timeout} ran out",
        hint: "allow a longer boot, such as `--deploy-timeout {longer_timeout}`; bootsnap (`require \"bootsnap/setup\"` \
               in config/boot.rb) and an image with precompiled assets make it shorter",
        hopeless_after: None,
    },
    Signature {
        id: "refused",
        pattern: Pattern::Refused,
        verdict: "nothing listens on {target}",
        hint: "see whether the app runs, on which port (`ss -ltnp`, `docker ps`), and whether it has exited (its log); \
               in a container Puma must not listen on 127.0.0.1 only: `bind \"tcp://0.0.0.0:{port}\"` in config/puma.rb, \
               or `bin/rails server -b 0.0.0.0 -p {port}`",
        hopeless_after: None,
    },
    Signature {
        id: "reset",
        pattern: Pattern::Reset,
        verdict: "{target} takes connections and resets them without an answer",
        hint: "behind a port that Docker publishes this means that nothing listens inside the container: let Puma listen \
               on all its addresses (`bind \"tcp://0.0.0.0:PORT\"` in config/puma.rb) and publish that very port",
        hopeless_after: None,
    },
    Signature {
        id: "closed",
        pattern: Pattern::Closed,
        verdict: "{target} takes connections and closes them without an answer",
        hint: "look whether {target} really is the app's port and not that of another program (`ss -ltnp`), and in \
               the app's log for workers that die while they boot",
        hopeless_after: None,
    },
    Signature {
        id: "connect_timeout",
        pattern: Pattern::ConnectTimeout,
        verdict: "{target} did not take a connection in time",
        hint: "a firewall drops the packets, the address belongs to another network (`docker network inspect`), or the \
               process is stopped with its backlog full: try `curl -v http://{target}{path}` on this machine",
        hopeless_after: None,
    },
    Signature {
        id: "no_answer",
        pattern: Pattern::Silent,
        verdict: "{target} takes connections, but `GET {path}` got no answer within {waited}",
        hint: "the app hangs while it boots or while it answers (a database or lock that it waits for), or all its Puma \
               threads are busy; let `{path}` depend on nothing slow, and give it longer with `--health-check-timeout` \
               if it needs that",
        hopeless_after: None,
    },
    Signature {
        id: "tls_on_port",
        pattern: Pattern::Tls,
        verdict: "{target} speaks TLS, and Portcullis speaks plain HTTP to targets",
        hint: "TLS ends at Portcullis: let Puma listen with `bind \"tcp://0.0.0.0:3000\"` instead of `ssl://…` or \
               `ssl_bind`, and deploy with that port in `--target`",
        hopeless_after: SOON,
    },
    Signature {
        id: "http2_only",
        pattern: Pattern::Http2,
        verdict: "{target} speaks only HTTP/2",
        hint: "targets are spoken to in HTTP/1.1: turn that on in the app's server (Puma speaks it by itself), or name \
               the port that speaks it in `--target`",
        hopeless_after: SOON,
    },
    Signature {
        id: "wrong_protocol",
        pattern: Pattern::NotHttp,
        verdict: "{target} does not speak HTTP but {protocol}",
        hint: "that is not the app's port: `ss -ltnp` shows who listens where; name Puma's port in `--target`, and in \
               `--health-check-port` if you set one",
        hopeless_after: SOON,
    },
    Signature {
        id: "unreachable",
        pattern: Pattern::Unreachable,
        verdict: "{target} cannot be reached: {detail}",
        hint: "check the address, the container's network (`docker network inspect`) and, for a socket, that Portcullis's \
               user may write to it",
        hopeless_after: None,
    },
    Signature {
        id: "pending_migration",
        pattern: Pattern::Answer {
            status: (500, 599),
            location: Location::Any,
            body: Body::Has(&["ActiveRecord::PendingMigrationError", "Migrations are pending"]),
        },
        verdict: "the database lacks migrations of this release (`GET {path}` answered {status}: {headline})",
        hint: "run `bin/rails db:migrate` with the new release's code before it is deployed (Kamal's images do it in \
               bin/docker-entrypoint with `bin/rails db:prepare`); write migrations so that the release that serves now \
               still works with them",
        // Another process may be migrating just now, so this one gets longer.
        hopeless_after: Some(Patience { probes: 5, lasting: Duration::from_secs(15) }),
    },
    Signature {
        id: "blocked_host",
        pattern: Pattern::Answer {
            status: (403, 403),
            location: Location::Any,
            body: Body::Has(&["Blocked host", "blocked host"]),
        },
        verdict: "Rails's host authorization blocks `Host: {host}`, which the probe sends",
        hint: BLOCKED_HOST_HINT,
        hopeless_after: SETTLED,
    },
    Signature {
        id: "blocked_host",
        pattern: Pattern::Answer { status: (403, 403), location: Location::Any, body: Body::Empty },
        verdict: "`GET {path}` with `Host: {host}` answered an empty 403, which is how Rails's host authorization blocks \
                  a host in production",
        hint: BLOCKED_HOST_HINT,
        hopeless_after: SETTLED,
    },
    Signature {
        id: "redirect_to_https",
        pattern: Pattern::Answer { status: (300, 399), location: Location::SameOverHttps, body: Body::Any },
        verdict: "`GET {path}` is redirected to {location}, although the probe says `X-Forwarded-Proto: https`",
        hint: "let the app trust the proxy in front of it with `config.assume_ssl = true` in \
               config/environments/production.rs (Rails 7.1 and later), or leave the path out of `force_ssl`: \
               `config.ssl_options = { redirect: { exclude: ->(request) { request.path == \"{path}\" } } }`",
        hopeless_after: SETTLED,
    },
    Signature {
        id: "redirect",
        pattern: Pattern::Answer { status: (300, 399), location: Location::Any, body: Body::Any },
        verdict: "`GET {path}` with `Host: {host}` is redirected to {location}, and redirects are not followed",
        hint: "let `{path}` answer 200 by itself, before any sign-in or change of host: \
               `get \"up\" => \"rails/health#show\", as: :rails_health_check` in config/routes.rs, or name another path \
               with `--health-check-path`, or the app's own host with `--health-check-host`",
        hopeless_after: SETTLED,
    },
    Signature {
        id: "not_found",
        pattern: Pattern::Answer { status: (404, 404), location: Location::Any, body: Body::Any },
        verdict: "`GET {path}` answered 404: the app has no such route",
        hint: "Rails 7.1 and later: `get \"up\" => \"rails/health#show\", as: :rails_health_check` in config/routes.rs; \
               before: `get \"up\", to: ->(_env) { [200, {}, [\"up\"]] }`; or name a path that answers 200 with \
               `--health-check-path`",
        hopeless_after: SETTLED,
    },
    Signature {
        id: "auth_required",
        pattern: Pattern::Answer { status: (401, 401), location: Location::Any, body: Body::Any },
        verdict: "`GET {path}` answered 401: the health path wants a sign-in",
        hint: AUTH_HINT,
        hopeless_after: SETTLED,
    },
    Signature {
        id: "auth_required",
        pattern: Pattern::Answer { status: (403, 403), location: Location::Any, body: Body::Any },
        verdict: "`GET {path}` with `Host: {host}` answered 403: {headline}",
        hint: AUTH_HINT,
        hopeless_after: SETTLED,
    },
    Signature {
        id: "slow_boot",
        pattern: Pattern::Answer { status: (503, 503), location: Location::Any, body: Body::Any },
        verdict: "the app on {target} listens, but still answered 503 when the deploy timeout of {deploy_timeout} ran out",
        hint: "it says itself that it is not ready: allow a longer boot, such as `--deploy-timeout {longer_timeout}`, or \
               look in its log for what it waits for",
        hopeless_after: None,
    },
    Signature {
        id: "inner_proxy",
        pattern: Pattern::Answer { status: (502, 504), location: Location::Any, body: Body::Any },
        verdict: "`GET {path}` answered {status}: a proxy on {target} (such as Thruster or nginx) is up, the app behind \
                  it is not",
        hint: "read the log of the app inside the container, and check the port on which that proxy expects it (Thruster: \
               `TARGET_PORT`)",
        hopeless_after: None,
    },
    Signature {
        id: "server_error",
        pattern: Pattern::Answer { status: (500, 599), location: Location::Any, body: Body::Any },
        verdict: "`GET {path}` answered {status}: {headline}",
        hint: "the app boots and then fails: the exception stands in its log (`docker logs`, log/production.log); common \
               causes are a missing RAILS_MASTER_KEY or SECRET_KEY_BASE, and a database that cannot be reached",
        hopeless_after: None,
    },
    Signature {
        id: "unexpected_status",
        pattern: Pattern::Answer { status: (0, 999), location: Location::Any, body: Body::Any },
        verdict: "`GET {path}` with `Host: {host}` answered {status}, and only 200 to 299 pass",
        hint: "try it on this machine: `curl -i -H 'Host: {host}' -H 'X-Forwarded-Proto: https' http://{target}{path}`; \
               another path can be named with `--health-check-path`",
        hopeless_after: None,
    },
];

/// For a target that no probe has reached the end of.
pub const NEVER_PROBED: Signature = Signature {
    id: "never_probed",
    pattern: Pattern::Never,
    verdict: "no probe of {target} ended within the deploy timeout of {deploy_timeout}",
    hint: "allow more time with `--deploy-timeout {longer_timeout}`",
    hopeless_after: None,
};

const BLOCKED_HOST_HINT: &str = "add `config.hosts << \"{host_name}\"` to config/environments/production.rs, or let the \
    path through: `config.host_authorization = { exclude: ->(request) { request.path == \"{path}\" } }`, or probe with a \
    host that the app knows: `--health-check-host NAME`";

const AUTH_HINT: &str = "let `{path}` answer without signing in (Rails: `skip_before_action` in its controller, or \
    `get \"up\" => \"rails/health#show\"`, which knows no sign-in), keep basic auth and IP filters of the middleware away \
    from it, or name an open path with `--health-check-path`";
