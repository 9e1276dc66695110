//! What teams who come from kamal-proxy rely on, and no other story tells (docs/kamal-proxy-parity.md).

use std::process::{Command, Stdio};

use harness::{App, Ask, Authority, DaemonOptions, Puma, Raw, Recorder, World, eventually, handshake};

#[test]
fn hosts_and_settings_change_with_the_release() {
    let world = World::start();
    let (shop, any) =
        (Recorder::start(), Recorder::answering(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nany"));
    world.deploy_with(&shop.target(), &["--host", "old.test", "--max-request-body", "3"]);
    let status = |host: &str| Ask::post(host, "/", "1234").at(world.http()).status.as_u16();
    assert_eq!([status("shop.test"), status("old.test"), status("new.test")], [413, 413, 404]);
    let target = shop.target();
    let deploy = ["deploy", "shop", "--target", &target, "--bake", "0s"];
    let new = ["--host", "shop.test,new.test", "--max-request-body", "0"];
    world.operator().run(deploy.iter().chain(&new)).succeeds();
    assert_eq!([status("shop.test"), status("old.test"), status("new.test")], [200, 404, 200]);

    // A service for any host is in nobody's way, and has what nobody else has.
    world.agentctl(["deploy", "rest", "--target", &any.target(), "--bake", "0s"]).succeeds();
    assert_eq!(Ask::get("new.test", "/").at(world.http()).text(), "recorded");
    assert_eq!(Ask::get("old.test", "/").at(world.http()).text(), "any");
}

#[test]
fn nothing_is_added_to_what_was_asked_or_answered() {
    let world = World::start();
    // No browser could read this as what it claims to be: whoever inflates or sniffs shows it.
    let recorder = Recorder::answering(
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 13\r\n\r\n<html>not zip",
    );
    world.deploy(&recorder.target());
    let mut client = Raw::connect(world.http());
    client.send("GET /a?b;c=%zz&&d HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n");
    let answer = client.read_to_end();
    assert!(answer.ends_with("\r\n\r\n<html>not zip"), "{answer}");
    let head = answer.to_ascii_lowercase();
    assert!(head.contains("content-encoding: gzip") && !head.contains("content-type"), "{answer}");
    let seen = recorder.request(1);
    assert_eq!(seen.request_line(), "GET /a?b;c=%zz&&d HTTP/1.1");
    for field in ["accept-encoding", "accept", "user-agent"] {
        assert!(seen.values(field).is_empty(), "{}", seen.head);
    }
}

#[test]
fn who_leaves_before_the_answer_is_a_499_in_the_log() {
    let world = World::start();
    let puma = Puma::start(App::Rack, "v1");
    world.deploy(&puma.target());
    // Over HTTP/1.1 a client that only closes its sending side is answered (docs/decisions/0003), so that is told later.
    let mut asked =
        Ask::get("shop.test", "/slow?s=20").header("x-request-id", "impatient").h2().begin(world.http());
    eventually("the app works on it", || {
        let status = world.daemon.status();
        let in_flight = status.services[0].stable.targets[0].in_flight;
        if in_flight == 1 { Ok(()) } else { Err(format!("{in_flight} in flight")) }
    });
    asked.reset();
    let line = eventually("the line is written", || {
        let lines = world.daemon.access_log();
        lines
            .iter()
            .find(|line| line["request_id"] == "impatient")
            .cloned()
            .ok_or_else(|| format!("{lines:?}"))
    });
    assert_eq!((&line["status"], &line["reason"]), (&499.into(), &"client_closed".into()), "{line}");
}

#[test]
fn a_removed_service_finishes_what_it_has() {
    let world = World::start();
    let recorder = Recorder::scripted(|request, stream| {
        use std::io::Write as _;
        // The answer ends when the client has seen that the service is gone.
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf");
        if request.request_line().starts_with("GET /long") {
            let gone = request.values("x-gone-when")[0].to_owned();
            while !std::path::Path::new(&gone).exists() {
                std::thread::yield_now();
            }
        }
        let _ = stream.write_all(b"half");
    });
    world.deploy(&recorder.target());
    let gone = world.dir().join("gone");
    let mut client = Raw::connect(world.http());
    client.send(format!("GET /long HTTP/1.1\r\nHost: shop.test\r\nX-Gone-When: {}\r\n\r\n", gone.display()));
    client.read_until(|seen| seen.ends_with("half"));
    let removing = world.operator().start(["remove", "shop"]);
    eventually("new requests are answered 404", || match world.get("/").status.as_u16() {
        404 => Ok(()),
        other => Err(other.to_string()),
    });
    std::fs::write(&gone, "").expect("a directory of the story's own");
    client.read_until(|seen| seen.ends_with("halfhalf"));
    harness::Ran::of(removing).succeeds();
}

#[test]
fn one_redirect_leads_to_the_canonical_host_and_to_https() {
    let world = World::start();
    let puma = Puma::start(App::Rack, "v1");
    let plain = ["--host", "www.test", "--canonical-host", "shop.test"];
    world.deploy_with(&puma.target(), &plain);
    let went = |ask: Ask, at| {
        let answer = ask.at(at);
        (answer.status.as_u16(), answer.header("location").to_owned())
    };
    let port = world.daemon.https().port();
    assert_eq!(
        went(Ask::get("www.test", "/a?b"), world.http()),
        (301, "http://shop.test/a?b".to_owned()),
        "without TLS the scheme stays"
    );
    world.deploy_with(&puma.target(), &[&plain[..], &["--tls"]].concat());
    let there = format!("https://shop.test:{port}/a?b");
    for (ask, at, status) in [
        (Ask::get("www.test", "/a?b"), world.http(), 301),
        (Ask::get("shop.test", "/a?b"), world.http(), 301),
        (Ask::post("www.test", "/a?b", "x"), world.http(), 308),
        (Ask::get("www.test", "/a?b").tls(), world.daemon.https(), 301),
    ] {
        assert_eq!(went(ask, at), (status, there.clone()));
    }
    assert_eq!(Ask::get("shop.test", "/").tls().at(world.daemon.https()).text(), "v1");
}

#[test]
fn a_service_without_tls_is_not_there_over_tls() {
    let world = World::start();
    let puma = Puma::start(App::Rack, "v1");
    world.deploy(&puma.target());
    let target = puma.target();
    let blog = ["deploy", "blog", "--target", &target, "--host", "blog.test", "--tls", "--bake", "0s"];
    world.agentctl(blog).succeeds();
    assert!(handshake(world.daemon.https(), "shop.test", &[]).is_err(), "there is no certificate for it");
    let answer = Ask::get("shop.test", "/").tls().under("blog.test").at(world.daemon.https());
    assert_eq!((answer.status.as_u16(), answer.header("x-portcullis-reason")), (421, "misdirected"));
}

#[test]
fn a_certificate_may_be_for_any_host_and_for_clients_that_name_none() {
    let world = World::start();
    let puma = Puma::start(App::Rack, "v1");
    // A name of digits is an address, which no client sends.
    let nameless = "127.0.0.1";
    world.deploy_with(&puma.target(), &["--tls"]);
    assert!(handshake(world.daemon.https(), nameless, &[]).is_err(), "which of the hosts should it be?");
    let authority = Authority::default();
    let (certificate, key) = authority.certify("any.test");
    let files = [certificate.to_str().unwrap(), key.to_str().unwrap()];
    let target = puma.target();
    let deploy = ["deploy", "rest", "--target", &target, "--bake", "0s", "--tls"];
    let with = ["--tls-certificate-path", files[0], "--tls-private-key-path", files[1]];
    world.operator().run(deploy.iter().chain(&with)).succeeds();
    let shown = |name: &str| handshake(world.daemon.https(), name, &[]).unwrap().certificate;
    assert_eq!(shown(nameless), shown("whatever.test"));
    assert_ne!(shown(nameless), shown("shop.test"));
    assert_eq!(Ask::get("whatever.test", "/").tls().at(world.daemon.https()).text(), "v1");
}

#[test]
fn tls_begins_with_version_1_2() {
    let world = World::start();
    let puma = Puma::start(App::Rack, "v1");
    world.deploy_with(&puma.target(), &["--tls"]);
    for (version, want) in [("-tls1_1", false), ("-tls1_2", true), ("-tls1_3", true)] {
        let address = world.daemon.https().to_string();
        let output = Command::new("openssl")
            .args(["s_client", "-connect", &address, "-servername", "shop.test", "-brief", version])
            // Without this openssl itself refuses the old version.
            .args(["-cipher", "DEFAULT@SECLEVEL=0"])
            .stdin(Stdio::null())
            .output()
            .expect("openssl is installed (bin/test installs it)");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(said.contains("CONNECTION ESTABLISHED"), want, "{version}: {said}");
        if !want {
            assert!(said.contains("alert"), "the server says so: {said}");
        }
    }
}

#[test]
fn redirects_come_before_a_pause() {
    let world = World::start();
    let puma = Puma::start(App::Rack, "v1");
    world.deploy_with(&puma.target(), &["--tls"]);
    world.agentctl(["stop", "shop"]).succeeds();
    for path in ["/", "/up"] {
        assert_eq!(world.get(path).status, 301, "{path}");
    }
    let there = |path: &str| Ask::get("shop.test", path).tls().at(world.daemon.https()).status.as_u16();
    assert_eq!([there("/"), there("/up")], [503, 200]);
}

#[test]
fn the_log_can_say_more() {
    for (env, says_it) in [(vec![], false), (vec![("PORTCULLIS_LOG".to_owned(), "debug".to_owned())], true)] {
        let world = World::with(DaemonOptions { env, ..DaemonOptions::default() });
        let answer = Raw::connect(world.http()).send("no request\r\n\r\n").read_to_end();
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
        eventually("it is counted", || match world.daemon.metric("portcullis_malformed_requests_total") {
            1 => Ok(()),
            other => Err(other.to_string()),
        });
        assert_eq!(world.daemon.log().contains("\"level\":\"DEBUG\""), says_it, "{}", world.daemon.log());
    }
}

#[test]
fn metrics_of_what_is_gone_go_too() {
    let world = World::start();
    let recorder = Recorder::start();
    world.deploy(&recorder.target());
    assert_eq!(Ask::get("shop.test", "/").method("BREW").at(world.http()).status, 200);
    assert_eq!(Ask::get("nobody.test", "/").at(world.http()).status, 404);
    let metrics = || Ask::get("localhost", "/metrics").at(world.daemon.metrics()).text();
    let scraped = metrics();
    assert!(scraped.contains("service=\"shop\"") && !scraped.contains("BREW"), "{scraped}");
    assert!(!scraped.contains("nobody.test"), "what clients make up is no label: {scraped}");
    assert!(scraped.contains("reason=\"unknown_host\""), "{scraped}");
    world.agentctl(["remove", "shop"]).succeeds();
    eventually("its series are gone", || {
        let scraped = metrics();
        if scraped.contains("service=\"shop\"") { Err(scraped) } else { Ok(()) }
    });
    assert_eq!(Ask::get("localhost", "/").at(world.daemon.metrics()).status, 404);
}
