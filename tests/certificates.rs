//! Certificates come by themselves: from a real authority (Pebble), before anybody asks for the first page, and in time
//! ever after.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use harness::{App, Ask, DaemonOptions, Pebble, PebbleOptions, Puma, Ran, World, eventually, handshake};
use model::protocol::{CertificateState, CertificateStatus, Certificates, Event};

/// A daemon that knows `pebble` as its authority, with these further lines of `[acme]`. It validates there.
fn world(pebble: &Pebble, more: &str) -> World {
    let file = pebble.root().with_file_name("portcullis.toml");
    let config = format!("[acme]\nroot = \"{}\"\n{more}\n", pebble.root().display());
    std::fs::write(&file, config).expect("a fresh directory can be written");
    let env = vec![("PORTCULLIS_ACME_DIRECTORY".to_owned(), pebble.directory())];
    let args = vec!["--config".into(), file.into()];
    let world = World::with(DaemonOptions { args, env, ..DaemonOptions::default() });
    pebble.validate_at(&[world.http()], &[world.daemon.https()]);
    world
}

fn deploy(world: &World, service: &str, puma: &Puma, more: &[&str]) -> Ran {
    let target = puma.target();
    let args = ["deploy", service, "--target", &target, "--bake", "0s", "--tls"];
    world.operator().run(args.iter().chain(more))
}

fn certificates(world: &World) -> Vec<CertificateStatus> {
    let listed = world.agentctl(["certs", "list", "--json"]).succeeds();
    serde_json::from_value::<Certificates>(listed.json()).expect("the list").certificates
}

#[track_caller]
fn certificate(world: &World, name: &str) -> CertificateStatus {
    let shown = world.agentctl(["certs", "show", name, "--json"]).succeeds();
    serde_json::from_value(shown.json()).expect("one certificate")
}

/// What clients are shown for `name`.
#[track_caller]
fn shown(world: &World, name: &str) -> Vec<u8> {
    handshake(world.daemon.https(), name, &[]).expect("a handshake").certificate
}

/// Such as `issuer=CN = Pebble Intermediate CA 0d5f3c`.
fn issuer(der: &[u8]) -> String {
    let mut openssl = Command::new("openssl")
        .args(["x509", "-inform", "DER", "-noout", "-issuer"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("openssl is installed (bin/test installs it)");
    openssl.stdin.take().expect("its input").write_all(der).expect("it reads");
    String::from_utf8(openssl.wait_with_output().expect("it ends").stdout).expect("text")
}

#[track_caller]
fn assert_is_of_pebble(der: &[u8]) {
    assert!(issuer(der).contains("Pebble"), "{}", issuer(der));
}

#[test]
fn a_deploy_brings_a_certificate_over_http() {
    let pebble = Pebble::start();
    let world = world(&pebble, "");
    let puma = Puma::start(App::Rack, "v1");
    let ran = deploy(&world, "shop", &puma, &["--host", "shop.test", "--wait-tls", "--json"]).succeeds();
    // It serves by the time that the command ends.
    let der = shown(&world, "shop.test");
    assert_is_of_pebble(&der);
    let seen = ran.events();
    let states = seen.iter().filter_map(|event| match event {
        Event::Certificate { name, state, .. } => Some((name.as_str(), *state)),
        _ => None,
    });
    let states: Vec<_> = states.collect();
    assert_eq!(states.last(), Some(&("shop.test", CertificateState::Valid)), "{seen:?}");

    let one = certificate(&world, "shop.test");
    assert_eq!(one.source.as_deref(), Some(pebble.directory().as_str()));
    assert!(one.renew_at_ms > one.not_before_ms && one.renew_at_ms < one.not_after_ms, "{one:?}");
    assert_eq!(world.daemon.status().services[0].certificates, [one]);
    let labels = format!(r#"name="shop.test",service="shop",source="{}""#, pebble.directory());
    assert!(world.daemon.metric(&format!("portcullis_certificate_seconds_left{{{labels}}}")) > 86_400);
    assert_eq!(world.daemon.metric("portcullis_certificate_orders_total{outcome=\"issued\"}"), 1);
    let events = world.agentctl(["events"]).succeeds().stdout();
    assert!(events.contains("certificate issued shop: certificate `shop.test` was issued by"), "{events}");
    assert_eq!((pebble.orders(), pebble.validations().1), (1, 0), "over HTTP alone");
    assert_eq!(Ask::get("shop.test", "/").tls().at(world.daemon.https()).text(), "v1");
}

#[test]
fn a_deploy_brings_a_certificate_over_tls() {
    let pebble = Pebble::start();
    let world = world(&pebble, "challenges = [\"tls-alpn-01\"]");
    let puma = Puma::start(App::Rack, "v1");
    deploy(&world, "shop", &puma, &["--host", "shop.test", "--wait-tls"]).succeeds();
    assert_is_of_pebble(&shown(&world, "shop.test"));
    assert_eq!((pebble.orders(), pebble.validations().0), (1, 0), "over TLS alone");
    assert!(handshake(world.daemon.https(), "shop.test", &["acme-tls/1"]).is_err(), "for the order alone");
}

#[test]
fn questions_of_authorities_are_answered_for_hosts_with_automatic_certificates_alone() {
    let pebble = Pebble::start();
    let world = world(&pebble, "");
    let puma = Puma::start(App::Rack, "app");
    let host = ["--host", "shop.test", "--tls-redirect", "--wait-tls"];
    deploy(&world, "shop", &puma, &host).succeeds();
    let target = puma.target();
    world.agentctl(["deploy", "blog", "--target", &target, "--host", "blog.test", "--bake", "0s"]).succeeds();
    let ask = |host: &str, path: &str| Ask::get(host, path).at(world.http());
    let path = |token: &str| format!("/.well-known/acme-challenge/{token}");

    let answer = ask("shop.test", &path("a-Token_1"));
    assert_eq!((answer.status.as_u16(), answer.header("x-portcullis-reason")), (200, "acme_challenge"));
    let text = answer.text();
    let (token, thumbprint) = text.split_once('.').unwrap();
    assert_eq!((token, thumbprint.len()), ("a-Token_1", 43));
    for token in ["", "a.b", "a/b", "a%2Fb", "%2e%2e", &"a".repeat(129)] {
        let answer = ask("shop.test", &path(token));
        let seen = (answer.status.as_u16(), answer.header("x-portcullis-reason"));
        assert_eq!(seen, (404, "unknown_challenge"), "{token}");
    }
    let posted = Ask::post("shop.test", &path("a"), "x").at(world.http());
    assert_eq!(posted.status, 404, "{posted}");
    // Whoever has no automatic certificates may ask for their own.
    assert_eq!(ask("blog.test", &path("a")).text(), "app");
    assert_eq!(ask("other.test", &path("a")).status, 404);
    // Neither a stop nor a redirect is in the way, over HTTP or HTTPS.
    world.agentctl(["stop", "shop"]).succeeds();
    assert_eq!(ask("shop.test", &path("b")).text(), format!("b.{thumbprint}"));
    let over_tls = Ask::get("shop.test", &path("c")).tls().at(world.daemon.https());
    assert_eq!(over_tls.text(), format!("c.{thumbprint}"));
}

#[test]
fn a_restart_keeps_certificates_and_asks_nobody() {
    let mut pebble = Pebble::start();
    let mut world = world(&pebble, "");
    let puma = Puma::start(App::Rack, "v1");
    deploy(&world, "shop", &puma, &["--host", "shop.test", "--wait-tls"]).succeeds();
    let before = shown(&world, "shop.test");
    pebble.stop();
    for _ in 0..2 {
        world.daemon.kill_9();
        world.daemon.start_again();
        // At the first handshake, and not a moment later.
        assert_eq!(shown(&world, "shop.test"), before);
    }
    eventually("the manager has looked at it", || {
        let one = certificate(&world, "shop.test");
        if one.state == CertificateState::Valid { Ok(()) } else { Err(format!("{one:?}")) }
    });
    assert_eq!((pebble.orders(), pebble.issued()), (1, 1));
}

#[test]
fn short_lives_are_renewed_while_requests_run() {
    let pebble = Pebble::with(PebbleOptions { validity_seconds: 16, ..PebbleOptions::default() });
    let world = world(&pebble, "");
    let puma = Puma::start(App::Rack, "v1");
    deploy(&world, "shop", &puma, &["--host", "shop.test", "--wait-tls"]).succeeds();
    let mut seen = vec![shown(&world, "shop.test")];
    let load = world.load_over_tls("/");
    eventually("it is renewed twice", || {
        let now = shown(&world, "shop.test");
        assert_is_of_pebble(&now);
        if !seen.contains(&now) {
            seen.push(now);
        }
        if seen.len() >= 3 { Ok(()) } else { Err(format!("{} so far", seen.len())) }
    });
    load.goes_on_for(20);
    load.finish().lost_nothing();
    let events = world.agentctl(["events"]).succeeds().stdout();
    assert!(events.contains("certificate renewed shop"), "{events}");
}

#[test]
fn a_refusal_is_told_in_the_authoritys_words_and_the_deploy_stands() {
    let blocked = vec!["bad.test".to_owned()];
    let pebble = Pebble::with(PebbleOptions { blocked, ..PebbleOptions::default() });
    let mut world = world(&pebble, "");
    let puma = Puma::start(App::Rack, "v1");
    let failed =
        deploy(&world, "shop", &puma, &["--host", "bad.test,good.test", "--wait-tls=30s"]).fails_with(7);
    let said = failed.stderr();
    assert!(said.contains("no certificate was issued for `bad.test`"), "{said}");
    assert!(said.contains("the deploy stands") && said.contains("certs show bad.test"), "{said}");
    assert!(said.contains("bad.test") && said.to_lowercase().contains("rejectedidentifier"), "{said}");
    // The one does not hold up the other, and a placeholder serves meanwhile.
    assert_is_of_pebble(&shown(&world, "good.test"));
    assert!(!issuer(&shown(&world, "bad.test")).contains("Pebble"));
    assert_eq!(Ask::get("bad.test", "/").tls().at(world.daemon.https()).text(), "v1");
    let one = certificate(&world, "bad.test");
    assert_eq!(one.state, CertificateState::Failing);
    let events = world.agentctl(["events"]).succeeds().stdout();
    assert!(events.contains("certificate failed shop: certificate `bad.test` was not issued: "), "{events}");
    assert_eq!(world.daemon.metric("portcullis_certificate_orders_total{outcome=\"failed\"}"), 1);

    // A restart is no reason to try sooner.
    world.daemon.kill_9();
    world.daemon.start_again();
    let again = eventually("the manager has looked at it", || {
        let one = certificate(&world, "bad.test");
        if one.state == CertificateState::Failing { Ok(one) } else { Err(format!("{one:?}")) }
    });
    assert_eq!((again.next_attempt_ms, again.failure), (one.next_attempt_ms, one.failure));
}

#[test]
fn an_authority_that_is_down_holds_nothing_up() {
    let mut pebble = Pebble::start();
    pebble.stop();
    let world = world(&pebble, "");
    let puma = Puma::start(App::Rack, "v1");
    let ran = deploy(&world, "shop", &puma, &["--host", "shop.test"]).succeeds();
    assert!(ran.stdout().contains("self-signed placeholder for `shop.test` until"), "{ran}");
    assert_eq!(Ask::get("shop.test", "/").tls().at(world.daemon.https()).text(), "v1");
    eventually("the failure is known", || {
        let one = certificate(&world, "shop.test");
        let why = one.failure.as_ref().map(|failure| failure.message.clone()).unwrap_or_default();
        if why.contains("cannot be reached") { Ok(()) } else { Err(format!("{one:?}")) }
    });
    // An operator who knows that it is back need not wait.
    pebble.start_again();
    world.agentctl(["certs", "renew", "shop.test"]).succeeds();
    assert_is_of_pebble(&shown(&world, "shop.test"));
}

#[test]
fn services_come_and_go_on_their_own() {
    let pebble = Pebble::start();
    let world = world(&pebble, "");
    let puma = Puma::start(App::Rack, "v1");
    let together = ["--host", "a.test,b.test", "--tls-one-certificate", "--wait-tls"];
    deploy(&world, "shop", &puma, &together).succeeds();
    deploy(&world, "blog", &puma, &["--host", "blog.test", "--wait-tls"]).succeeds();
    assert_eq!(shown(&world, "a.test"), shown(&world, "b.test"));
    assert_ne!(shown(&world, "a.test"), shown(&world, "blog.test"));
    assert_eq!(pebble.orders(), 2);
    let listed = world.agentctl(["certs", "list"]).succeeds().stdout();
    assert!(listed.contains("a.test") && listed.contains("blog.test"), "{listed}");

    world.agentctl(["remove", "blog"]).succeeds();
    eventually("nobody wants it any more", || {
        let one = certificate(&world, "blog.test");
        if one.services.is_empty() && one.renew_at_ms.is_none() { Ok(()) } else { Err(format!("{one:?}")) }
    });
    // It is kept, and serves at once when the service returns.
    deploy(&world, "blog", &puma, &["--host", "blog.test", "--wait-tls"]).succeeds();
    assert_eq!(pebble.orders(), 2);
    assert!(certificates(&world).iter().all(|one| one.state == CertificateState::Valid));
}

#[test]
fn what_cannot_be_had_is_refused_before_anything_changes() {
    let pebble = Pebble::start();
    let world = world(&pebble, "");
    let puma = Puma::start(App::Rack, "v1");
    for (more, why) in [
        (&["--host", "*.shop.test"][..], "`*.shop.test`"),
        (&[][..], "for any host"),
        (&["--host", "127.0.0.1"], "the address `127.0.0.1`"),
        (&["--host", "shop.test", "--tls-staging"], "knows no staging area"),
    ] {
        let refused = deploy(&world, "shop", &puma, more);
        assert_ne!(refused.code(), Some(0), "{refused}");
        assert!(refused.stderr().contains(why), "{refused}");
    }
    assert!(world.daemon.status().services.is_empty());
    assert_eq!(pebble.orders(), 0);
}

#[test]
fn operators_renew_and_revoke() {
    let pebble = Pebble::start();
    let world = world(&pebble, "");
    let puma = Puma::start(App::Rack, "v1");
    deploy(&world, "shop", &puma, &["--host", "shop.test", "--wait-tls"]).succeeds();
    let first = shown(&world, "shop.test");
    world.agentctl(["certs", "renew", "shop.test"]).succeeds();
    let second = shown(&world, "shop.test");
    assert_ne!(first, second);
    world.agentctl(["certs", "revoke", "shop.test", "--reason", "key-compromise"]).succeeds();
    let third = shown(&world, "shop.test");
    assert!(third != first && third != second);
    assert_eq!(pebble.issued(), 3);
    let events = world.agentctl(["events"]).succeeds().stdout();
    assert!(events.contains("certificate `shop.test` was revoked"), "{events}");
    assert!(
        world.agentctl(["certs", "renew", "other.test"]).fails_with(1).stderr().contains("no certificate")
    );
}

#[test]
fn keys_are_nowhere_in_the_clear() {
    let pebble = Pebble::start();
    let world = world(&pebble, "");
    let puma = Puma::start(App::Rack, "v1");
    deploy(&world, "shop", &puma, &["--host", "shop.test", "--wait-tls"]).succeeds();
    let proc = |file: &str| std::fs::read(format!("/proc/{}/{file}", world.daemon.pid())).unwrap();
    let store_key = std::fs::read_to_string(world.daemon.state_dir().join("store.key")).unwrap();
    let mut said = vec![
        world.daemon.log().into_bytes(),
        serde_json::to_vec(&world.daemon.status()).unwrap(),
        world.agentctl(["certs", "show", "shop.test", "--json"]).succeeds().stdout().into_bytes(),
        world.agentctl(["events"]).succeeds().stdout().into_bytes(),
        proc("environ"),
        proc("cmdline"),
    ];
    let files = files_below(world.dir());
    assert!(files.iter().any(|path| path.ends_with("store.key")), "{files:?}");
    assert!(files.iter().any(|path| path.components().any(|part| part.as_os_str() == "certs")), "{files:?}");
    for path in &files {
        let below_state = path.starts_with(world.daemon.state_dir());
        let mode = std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert!(!below_state || mode == 0o600, "{} has mode {mode:o}", path.display());
        if !path.ends_with("store.key") {
            said.push(std::fs::read(path).unwrap());
        }
    }
    for bytes in said {
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains("PRIVATE KEY") && !text.contains(store_key.trim()), "{text}");
    }
}

/// All regular files.
fn files_below(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).expect("a directory") {
        let entry = entry.expect("an entry");
        let kind = entry.file_type().expect("its type");
        if kind.is_dir() {
            files.extend(files_below(&entry.path()));
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    files
}
