//! Automatic certificates when the authority is away, busy, has forgotten us or will not have a name: what there is
//! goes on serving, the operator reads the authority's own words, and it mends by itself.

use std::path::Path;

use harness::{
    AcmeFront, Ask, DaemonOptions, Fault, Pebble, PebbleOptions, Recorder, SuggestedWindow, World,
    eventually, handshake, now_ms,
};
use serde_json::Value;

/// A daemon whose authority is at `directory`; `more` goes into `[acme]`.
fn world(directory: &str, root: &Path, more: &str) -> World {
    let dir = root.parent().expect("it is in a directory");
    let file = dir.join("portcullis.toml");
    std::fs::write(&file, format!("[acme]\nroot = \"{}\"\n{more}\n", root.display()))
        .expect("it can be written");
    let env = vec![("PORTCULLIS_ACME_DIRECTORY".to_owned(), directory.to_owned())];
    World::with(DaemonOptions { args: vec!["--config".into(), file.into()], env, ..DaemonOptions::default() })
}

fn validate_at(pebble: &Pebble, world: &World) {
    pebble.validate_at(&[world.http()], &[world.daemon.https()]);
}

fn deploy(world: &World, app: &Recorder, hosts: &[&str]) {
    let mut args = vec!["deploy", "shop", "--target", "", "--tls", "--bake", "0s"];
    let target = app.target();
    args[3] = &target;
    for host in hosts {
        args.extend(["--host", host]);
    }
    world.operator().run(args).succeeds();
}

fn certificate(world: &World, name: &str) -> Value {
    let list = world.agentctl(["certs", "list", "--json"]).succeeds().json();
    let all = list["certificates"].as_array().expect("a list").clone();
    all.into_iter().find(|one| one["name"] == name).unwrap_or_default()
}

#[track_caller]
fn reaches(world: &World, name: &str, state: &str) -> Value {
    eventually(&format!("{name} is {state}"), || {
        let seen = certificate(world, name);
        if seen["state"] == state { Ok(seen) } else { Err(format!("{seen:#}\n{}", world.daemon.log())) }
    })
}

fn shown(world: &World, name: &str) -> Vec<u8> {
    handshake(world.daemon.https(), name, &[]).expect("a handshake").certificate
}

#[test]
fn an_authority_that_is_down_holds_nothing_up() {
    let mut pebble = Pebble::start();
    pebble.stop();
    let (world, app) = (world(&pebble.directory(), &pebble.root(), ""), Recorder::start());
    validate_at(&pebble, &world);
    deploy(&world, &app, &["shop.test"]);
    let failing = reaches(&world, "shop.test", "failing");
    let message = failing["failure"]["message"].as_str().unwrap();
    assert!(message.contains("Connection refused"), "{message}");
    assert!(failing["next_attempt_ms"].as_u64() > Some(now_ms()), "{failing:#}");
    let placeholder = shown(&world, "shop.test");
    assert_eq!(Ask::get("shop.test", "/").tls().at(world.daemon.https()).status, 200);

    pebble.start_again();
    world.agentctl(["certs", "renew", "shop.test"]).succeeds();
    reaches(&world, "shop.test", "valid");
    assert_ne!(shown(&world, "shop.test"), placeholder);
}

#[test]
fn an_authority_that_hangs_costs_nobody_else_anything() {
    let pebble = Pebble::start();
    let (world, app) = (world(&pebble.directory(), &pebble.root(), ""), Recorder::start());
    validate_at(&pebble, &world);
    deploy(&world, &app, &["shop.test"]);
    reaches(&world, "shop.test", "valid");
    let first = shown(&world, "shop.test");
    pebble.freeze();
    deploy(&world, &app, &["shop.test", "www.shop.test"]);
    assert_eq!(shown(&world, "shop.test"), first);
    assert_eq!(Ask::get("www.shop.test", "/").tls().at(world.daemon.https()).status, 200);
    pebble.thaw();
    reaches(&world, "www.shop.test", "valid");
}

#[test]
fn an_authority_that_limits_us_is_left_alone_for_as_long_as_it_says() {
    let pebble = Pebble::start();
    let front = AcmeFront::before(&pebble);
    front.fail_orders(Fault::rate_limited(40_000), 99);
    let (world, app) = (world(&front.directory(), &front.root(), ""), Recorder::start());
    validate_at(&pebble, &world);
    let before_ms = now_ms();
    deploy(&world, &app, &["shop.test"]);
    let failing = reaches(&world, "shop.test", "failing");
    let message = failing["failure"]["message"].as_str().unwrap();
    assert!(message.contains("too many certificates (5) already issued"), "{message}");
    let next_ms = failing["next_attempt_ms"].as_u64().unwrap();
    assert!(next_ms >= before_ms + 40_000_000, "{failing:#}");
    assert_eq!(front.orders().len(), 1);
    assert!(world.daemon.log().contains("too many certificates (5) already issued"));
}

#[test]
fn a_name_that_is_refused_does_not_hold_up_the_others() {
    let blocked = vec!["blocked.test".to_owned()];
    let pebble = Pebble::with(PebbleOptions { blocked, ..PebbleOptions::default() });
    let (world, app) = (world(&pebble.directory(), &pebble.root(), ""), Recorder::start());
    validate_at(&pebble, &world);
    deploy(&world, &app, &["blocked.test", "shop.test"]);
    reaches(&world, "shop.test", "valid");
    let failing = reaches(&world, "blocked.test", "failing");
    let message = failing["failure"]["message"].as_str().unwrap();
    assert!(message.contains("rejectedIdentifier") && message.contains("blocked.test"), "{message}");
}

#[test]
fn an_account_that_is_not_known_any_more_is_made_anew() {
    let mut pebble = Pebble::start();
    let (world, app) = (world(&pebble.directory(), &pebble.root(), ""), Recorder::start());
    validate_at(&pebble, &world);
    deploy(&world, &app, &["shop.test"]);
    reaches(&world, "shop.test", "valid");
    let first = shown(&world, "shop.test");
    // It forgets all accounts.
    pebble.start_again();
    eventually("it is renewed", || {
        let ran = world.agentctl(["certs", "renew", "shop.test"]);
        if ran.code() == Some(0) { Ok(()) } else { Err(ran.stderr()) }
    });
    assert_ne!(shown(&world, "shop.test"), first);
}

#[test]
fn an_external_account_and_a_profile() {
    let hmac_key = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W".to_owned();
    let external_account = Some(("kid-1".to_owned(), hmac_key.clone()));
    let pebble = Pebble::with(PebbleOptions { external_account, ..PebbleOptions::default() });
    let front = AcmeFront::before(&pebble);
    front.offer_profiles(&["classic", "shortlived"]);
    let key_file = pebble.root().with_file_name("hmac");
    std::fs::write(&key_file, &hmac_key).unwrap();
    let more = format!(
        "profile = \"shortlived\"\neab_key_id = \"kid-1\"\neab_hmac_key_file = \"{}\"",
        key_file.display()
    );
    let (world, app) = (world(&front.directory(), &front.root(), &more), Recorder::start());
    validate_at(&pebble, &world);
    deploy(&world, &app, &["shop.test"]);
    reaches(&world, "shop.test", "valid");
    assert_eq!(front.orders()[0]["profile"], "shortlived");
    assert!(!world.daemon.log().contains(&hmac_key), "secrets stay out of logs");
}

#[test]
fn a_window_that_is_moved_is_followed() {
    let pebble = Pebble::start();
    let front = AcmeFront::before(&pebble);
    let (day, now) = (86_400_000, now_ms());
    let later =
        SuggestedWindow { start_ms: now + 30 * day, end_ms: now + 31 * day, retry_after_seconds: 3600 };
    front.suggest(later);
    let (mut world, app) = (world(&front.directory(), &front.root(), ""), Recorder::start());
    validate_at(&pebble, &world);
    deploy(&world, &app, &["shop.test"]);
    eventually("the window is known", || {
        let seen = certificate(&world, "shop.test");
        let renew_ms = seen["renew_at_ms"].as_u64().unwrap_or(0);
        if renew_ms.abs_diff(now + 30 * day) <= day { Ok(()) } else { Err(format!("{seen:#}")) }
    });
    let first = shown(&world, "shop.test");

    // As for a mass revocation. Asked for again after a restart.
    front.suggest(SuggestedWindow { start_ms: now - 2 * day, end_ms: now - day, ..later });
    assert!(world.daemon.stop().success());
    world.daemon.start_again();
    validate_at(&pebble, &world);
    eventually("it is renewed", || match front.orders().as_slice() {
        [_, second, ..] if !second["replaces"].is_null() => Ok(()),
        orders => Err(format!("{orders:#?}")),
    });
    front.suggest(later);
    eventually("the new one serves", || {
        if shown(&world, "shop.test") == first { Err("the old one".to_owned()) } else { Ok(()) }
    });
}
