//! What an app can rely on behind Portcullis, and a client in front of it: routes, fields, streams, limits.

use std::io::Write;

use harness::{
    Answer, App, Ask, PATIENCE, Puma, Raw, Received, Recorder, Socket, SocketEvent, World, eventually,
    free_address,
};

/// A world with one recorder as the service `shop` at `shop.test`.
fn recorded(recorder: &Recorder, more: &[&str]) -> World {
    let world = World::start();
    world.deploy_with(&recorder.target(), more);
    world
}

fn asked(world: &World, recorder: &Recorder, ask: Ask) -> Received {
    recorder.forget();
    assert_eq!(ask.at(world.http()).status, 200);
    recorder.request(1)
}

#[test]
fn forwarded_fields_are_ours() {
    let recorder = Recorder::start();
    let world = recorded(&recorder, &[]);
    let seen = asked(&world, &recorder, Ask::get("shop.test", "/"));
    assert_eq!(seen.values("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(seen.values("x-forwarded-proto"), ["http"]);
    assert_eq!(seen.values("x-forwarded-host"), ["shop.test"]);
    assert_eq!(seen.values("x-real-ip"), ["127.0.0.1"]);
    assert_eq!(seen.values("host"), ["shop.test"]);
    assert_eq!(seen.values("x-kamal-target"), [recorder.target()]);
    assert_eq!(seen.values("x-request-id").len(), 1);
    let start = seen.values("x-request-start")[0].strip_prefix("t=").expect("t=<ms>").to_owned();
    let (start_ms, now_ms) = (start.parse::<u64>().expect("milliseconds"), harness::now_ms());
    assert!(start_ms <= now_ms && now_ms - start_ms < 600_000, "{start}");

    let over_tls = Ask::get("shop.test", "/").tls();
    world.deploy_with(&recorder.target(), &["--tls", "--tls-redirect=false"]);
    recorder.forget();
    assert_eq!(over_tls.at(world.daemon.https()).status, 200);
    assert_eq!(recorder.request(1).values("x-forwarded-proto"), ["https"]);
}

#[test]
fn a_trusted_proxy_is_believed_and_nobody_else() {
    let recorder = Recorder::start();
    let forged = || {
        Ask::get("shop.test", "/")
            .header("x-forwarded-for", "198.51.100.9, 203.0.113.7")
            .header("x-forwarded-proto", "https")
            .header("x-request-start", "t=1")
            .header("x-kamal-target", "192.0.2.1:80")
    };
    let world = recorded(&recorder, &[]);
    let seen = asked(&world, &recorder, forged());
    assert_eq!(seen.values("x-kamal-target"), [recorder.target()], "{}", seen.head);
    assert_eq!(seen.values("x-forwarded-for"), ["127.0.0.1"], "{}", seen.head);
    assert_eq!(
        (seen.values("x-forwarded-proto"), seen.values("x-real-ip")),
        (vec!["http"], vec!["127.0.0.1"])
    );

    let world = World::with_args(["--trusted-proxy", "127.0.0.0/8"]);
    world.deploy(&recorder.target());
    let seen = asked(&world, &recorder, forged());
    // The chain is walked from the right: 127.0.0.1 is trusted, 203.0.113.7 is not, what is left of it is hearsay.
    assert_eq!(seen.values("x-real-ip"), ["203.0.113.7"], "{}", seen.head);
    assert_eq!(seen.values("x-forwarded-proto"), ["https"]);
}

#[test]
fn the_app_is_told_by_which_address_it_was_asked() {
    let recorder = Recorder::start();
    let world = World::start();
    let with_one_that_is_gone = format!("{},{}", free_address(), recorder.target());
    world.deploy_with(&with_one_that_is_gone, &["--force"]);
    // With a body that is there before the target is chosen anew, and without.
    let moved = |method: &str| {
        eventually("a request goes on to the other target", || {
            let ask = if method == "POST" {
                Ask::post("shop.test", "/", "x=1")
            } else {
                Ask::get("shop.test", "/")
            };
            let seen = asked(&world, &recorder, ask);
            assert_eq!(seen.values("x-kamal-target"), [recorder.target()], "{}", seen.head);
            let log = world.daemon.access_log();
            let moved = log.iter().any(|line| line["method"] == method && line["retried"] == true);
            if moved { Ok(()) } else { Err(format!("{} requests", log.len())) }
        });
    };
    moved("POST");
    moved("GET");
}

#[test]
fn rails_sees_the_client_and_the_scheme() {
    let world = World::start();
    let puma = Puma::start(App::Rails, "v1");
    world.deploy_with(&puma.target(), &["--tls", "--tls-redirect=false"]);
    let ask = Ask::get("shop.test", "/headers")
        .header("x-forwarded-for", "198.51.100.9")
        .header("client-ip", "1.2.3.4");
    let seen = ask.tls().h2().at(world.daemon.https()).json();
    assert_eq!((&seen["remote_ip"], &seen["ssl"]), (&"127.0.0.1".into(), &true.into()), "{seen}");
    assert_eq!(seen["request_id"], seen["seen"]["HTTP_X_REQUEST_ID"], "{seen}");
}

#[test]
fn a_request_id_is_kept_if_it_is_sane() {
    let recorder = Recorder::start();
    let world = recorded(&recorder, &[]);
    let long = "x".repeat(500);
    for (given, kept) in
        [("abc-123_DEF", true), ("white space", false), ("a\"b", false), (long.as_str(), false)]
    {
        let seen = asked(&world, &recorder, Ask::get("shop.test", "/").header("x-request-id", given));
        let ids = seen.values("x-request-id");
        assert_eq!((ids.len(), ids[0] == given), (1, kept), "{given:?}: {ids:?}");
    }
}

#[test]
fn hosts_and_prefixes_find_their_service() {
    let world = World::start();
    let pumas = ["exact", "wild", "admin", "any"].map(|name| Puma::start(App::Rack, name));
    for (puma, routes) in pumas.iter().zip([
        &["--host", "shop.test"][..],
        &["--host", "*.shop.test"],
        &["--host", "shop.test", "--path-prefix", "/admin"],
        &[],
    ]) {
        let target = puma.target();
        let args = ["deploy", &puma.release, "--target", &target, "--bake", "0s"];
        world.operator().run(args.iter().chain(routes)).succeeds();
    }
    for (host, path, want) in [
        ("shop.test", "/", "exact"),
        ("SHOP.test.", "/", "exact"),
        ("shop.test:8080", "/x", "exact"),
        ("a.shop.test", "/", "wild"),
        ("a.b.shop.test", "/", "any"),
        ("shop.test", "/admin", "admin"),
        ("shop.test", "/admin/users", "admin"),
        ("shop.test", "/administrator", "exact"),
        ("other.test", "/", "any"),
        ("127.0.0.1", "/", "any"),
    ] {
        let answer = Ask::get(host, path).at(world.http());
        assert_eq!(answer.header("x-release"), want, "{host}{path}: {answer}");
    }
}

#[test]
fn a_host_that_nobody_has_is_a_404_that_says_so() {
    let recorder = Recorder::start();
    let world = recorded(&recorder, &["--path-prefix", "/app"]);
    for (host, path, reason) in [("other.test", "/app", "unknown_host"), ("shop.test", "/", "unknown_path")] {
        let answer = Ask::get(host, path).at(world.http());
        assert_eq!((answer.status.as_u16(), answer.header("x-portcullis-reason")), (404, reason), "{answer}");
    }
}

#[test]
fn stripping_a_prefix_decodes_nothing() {
    let recorder = Recorder::start();
    let world = recorded(&recorder, &["--path-prefix", "/app"]);
    for (path, upstream) in [
        ("/app", "/"),
        ("/app/", "/"),
        ("/app/a%2Fb?c=%2f&d", "/a%2Fb?c=%2f&d"),
        ("/app//x/../y", "//x/../y"),
        ("/app?x", "/?x"),
    ] {
        let seen = asked(&world, &recorder, Ask::get("shop.test", path));
        assert_eq!(seen.request_line(), format!("GET {upstream} HTTP/1.1"), "{path}");
        assert_eq!(seen.values("x-forwarded-prefix"), ["/app"]);
    }
    world.deploy_with(&recorder.target(), &["--path-prefix", "/app", "--strip-path-prefix=false"]);
    let seen = asked(&world, &recorder, Ask::get("shop.test", "/app/x"));
    assert_eq!(seen.request_line(), "GET /app/x HTTP/1.1");
}

#[test]
fn answers_stream_as_they_are_made() {
    // The second piece is made only after the client has seen the first.
    let (seen_first, wait_for_client) = std::sync::mpsc::sync_channel::<()>(1);
    let wait_for_client = std::sync::Mutex::new(wait_for_client);
    let recorder = Recorder::scripted(move |_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n");
        let _ = wait_for_client.lock().map(|client| client.recv_timeout(PATIENCE));
        let _ = stream.write_all(b"6\r\nsecond\r\n0\r\n\r\n");
    });
    let world = recorded(&recorder, &[]);
    let mut client = Raw::connect(world.http());
    client.send("GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n");
    assert!(!client.read_until(|seen| seen.contains("first")).contains("second"));
    seen_first.send(()).unwrap();
    client.read_until(|seen| seen.contains("second"));
}

#[test]
fn uploads_stream_as_they_arrive() {
    let recorder = Recorder::scripted(|_, stream| drop(stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n")));
    let world = recorded(&recorder, &[]);
    let mut client = Raw::connect(world.http());
    client.send("POST /t HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
    eventually("the target holds the request before its end", || {
        let in_flight = world.daemon.status().services[0].stable.targets[0].in_flight;
        if in_flight == 1 { Ok(()) } else { Err(format!("{in_flight} in flight")) }
    });
    client.send("6\r\n world\r\n0\r\n\r\n");
    client.read_until(|seen| seen.starts_with("HTTP/1.1 204"));
    let seen = recorder.request(1);
    assert!(seen.complete && seen.text().contains("hello") && seen.text().contains(" world"), "{seen:?}");
}

#[test]
fn trailers_and_early_hints_pass() {
    let recorder = Recorder::answering(
        b"HTTP/1.1 103 Early Hints\r\nLink: </app.css>; rel=preload\r\n\r\n\
          HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n",
    );
    let world = recorded(&recorder, &[]);
    let mut client = Raw::connect(world.http());
    client.send("GET / HTTP/1.1\r\nHost: shop.test\r\nTE: trailers\r\nConnection: TE, close\r\n\r\n");
    let seen = client.read_to_end().to_lowercase();
    let (hints, rest) = seen.split_once("http/1.1 200").unwrap_or_else(|| panic!("{seen}"));
    assert!(hints.starts_with("http/1.1 103") && hints.contains("rel=preload"), "{seen}");
    assert!(rest.contains("x-sum: 7"), "{seen}");
    let answer = Ask::get("shop.test", "/").h2().at(world.http());
    assert_eq!((answer.text().as_str(), answer.trailers["x-sum"].as_bytes()), ("ok", &b"7"[..]));
}

#[test]
fn a_body_is_asked_for_when_it_is_wanted() {
    let recorder = Recorder::start();
    let world = recorded(&recorder, &["--max-request-body", "1000"]);
    let mut client = Raw::connect(world.http());
    client.send("POST /t HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    client.read_until(|seen| seen.starts_with("HTTP/1.1 100"));
    client.send("hello");
    client.read_until(|seen| seen.contains("recorded"));
    assert_eq!(recorder.request(1).text(), "hello");

    // Too large is known from the head: no byte of the body is asked for.
    let mut client = Raw::connect(world.http());
    client
        .send("POST /t HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 5000\r\nExpect: 100-continue\r\n\r\n");
    let answer = client.read_until(|seen| seen.contains("\r\n\r\n"));
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[test]
fn answers_without_a_body_have_none() {
    let world = World::start();
    let puma = Puma::start(App::Rack, "v1");
    world.deploy(&puma.target());
    let mut client = Raw::connect(world.http());
    for (method, path, status) in
        [("HEAD", "/", "200"), ("GET", "/status?code=204", "204"), ("GET", "/status?code=304", "304")]
    {
        client.send(format!("{method} {path} HTTP/1.1\r\nHost: shop.test\r\n\r\n"));
        let seen = client
            .read_until(|seen| seen.contains(&format!("HTTP/1.1 {status}")) && seen.ends_with("\r\n\r\n"));
        assert!(!seen.contains("\r\n\r\nv1"), "{method} {path}: {seen}");
    }
    // All on one connection: no stray byte shifted the answers.
    client.send("GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n").read_until(|seen| seen.ends_with("\r\n\r\nv1"));
}

#[test]
fn a_body_beyond_the_limit_is_refused() {
    let world = World::start();
    let puma = Puma::start(App::Rack, "v1");
    world.deploy_with(&puma.target(), &["--max-request-body", "1000"]);
    let upload = |bytes: usize| Ask::post("shop.test", "/upload", vec![b'x'; bytes]);
    assert_eq!(upload(1000).at(world.http()).json()["bytes"], 1000);
    let answer = upload(1001).at(world.http());
    assert_eq!((answer.status.as_u16(), answer.header("x-portcullis-reason")), (413, "body_too_large"));
    // Without a length it shows only on the way.
    let mut client = Raw::connect(world.http());
    client.send("POST /upload HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send(format!("7d0\r\n{}\r\n0\r\n\r\n", "x".repeat(2000)));
    let answer = client.read_until(|seen| seen.contains("\r\n\r\n"));
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[test]
fn our_own_errors_say_why() {
    let world = World::start();
    let puma = Puma::start(App::Rack, "v1");
    world.deploy_with(&puma.target(), &["--target-timeout", "500ms"]);
    let answer = world.get("/slow?s=30");
    assert_eq!((answer.status.as_u16(), answer.header("x-portcullis-reason")), (504, "upstream_timeout"));
    drop(puma);
    let answer = world.get("/");
    assert_eq!((answer.status.as_u16(), answer.header("x-portcullis-reason")), (502, "connect_failed"));
    let as_json = Ask::get("shop.test", "/").header("accept", "application/json").at(world.http());
    assert_eq!(as_json.header("content-type"), "application/json", "{as_json}");
    as_json.json();
    let as_page = Ask::get("shop.test", "/").header("accept", "text/html").at(world.http());
    assert!(as_page.header("content-type").starts_with("text/html"), "{as_page}");
}

#[test]
fn the_apps_own_errors_are_left_alone() {
    let world = World::start();
    let puma = Puma::start(App::Rack, "v1");
    world.deploy(&puma.target());
    let answer = world.get("/status?code=503");
    assert_eq!((answer.status.as_u16(), answer.header("x-portcullis-reason")), (503, ""), "{answer}");
}

#[test]
fn websockets_carry_both_ways() {
    let world = World::start();
    let puma = Puma::start(App::Rails, "v1");
    world.deploy(&puma.target());
    let mut cable = Socket::open_cable(world.http(), "shop.test");
    for n in 0..20 {
        assert_eq!(cable.cable_echo(&format!("message {n}")), "v1");
    }
    let refused = Socket::open(world.http(), "shop.test", "/", &[]);
    assert!(refused.is_err(), "a path that does not upgrade does not");
    drop(puma);
    assert!(matches!(cable.wait_for_the_end(), SocketEvent::Cut(_) | SocketEvent::Closed(_)));
}

#[test]
fn websockets_open_on_a_stream_of_http2_too() {
    let world = World::start();
    let puma = Puma::start(App::Rails, "v1");
    world.deploy(&puma.target());
    let mut cable = Socket::open_cable_over_http2(world.http(), "shop.test");
    assert!(!cable.response.headers().contains_key("sec-websocket-accept"), "{:?}", cable.response);
    for n in 0..20 {
        assert_eq!(cable.cable_echo(&format!("message {n}")), "v1");
    }
    let next = Puma::start(App::Rails, "v2");
    world.deploy_with(&next.target(), &["--drain-timeout", "5s"]);
    assert_eq!(cable.wait_for_the_end(), SocketEvent::Closed(Some(1012)));
}

#[test]
fn connections_to_the_app_are_kept_and_shared() {
    let recorder = Recorder::start();
    let world = World::with_args(["--workers", "1"]);
    world.deploy(&recorder.target());
    for _ in 0..10 {
        assert_eq!(world.get("/").status, 200);
    }
    let used: std::collections::BTreeSet<_> =
        recorder.received().iter().map(|seen| seen.connection).collect();
    assert_eq!(used.len(), 1, "ten clients in a row, one connection upstream: {used:?}");
}

#[test]
fn each_request_is_a_line_in_the_access_log_and_counted() {
    let world = World::start();
    let puma = Puma::start(App::Rack, "v1");
    world.deploy_with(&puma.target(), &["--release", "abc123"]);
    let answer =
        Ask::get("shop.test", "/some/path?secret=1").header("x-request-id", "find-me").at(world.http());
    assert_eq!(answer.status, 200);
    let line = eventually("the line is written", || {
        let lines = world.daemon.access_log();
        lines.iter().find(|line| line["request_id"] == "find-me").cloned().ok_or_else(|| format!("{lines:?}"))
    });
    for (field, want) in [
        ("method", "GET"),
        ("host", "shop.test"),
        ("path", "/some/path"),
        ("service", "shop"),
        ("release", "abc123"),
        ("cohort", "stable"),
        ("target", &puma.target()),
    ] {
        assert_eq!(line[field], want, "{line}");
    }
    assert_eq!(line["status"], 200, "{line}");
    let metrics = Ask::get("localhost", "/metrics").at(world.daemon.metrics());
    let counted = |answer: &Answer| {
        answer.text().lines().any(|line| {
            ["service=\"shop\"", "release=\"abc123\"", "method=\"GET\",status=\"200\"} 1"]
                .iter()
                .all(|part| line.contains(part))
        })
    };
    assert!(counted(&metrics), "{metrics}");
}

#[test]
fn a_client_that_stalls_is_let_go() {
    let world = World::start();
    let puma = Puma::start(App::Rack, "v1");
    world.deploy_with(&puma.target(), &["--body-idle-timeout", "500ms"]);
    let mut client = Raw::connect(world.http());
    client.send("POST /upload HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 10\r\n\r\nhalf");
    let answer = client.read_to_end();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    let load = world.load("/slow?s=0.1");
    load.goes_on_for(30);
    load.finish().lost_nothing();
}

#[test]
fn no_target_leads_to_the_control_socket() {
    let world = World::start();
    let path = |name: &str| world.dir().join(name);
    std::os::unix::fs::symlink("control.sock", path("link.sock")).unwrap();
    let control = world.daemon.control();
    let file = control.file_name().unwrap().to_str().unwrap().to_owned();
    for name in [&file, &format!("./{file}"), &format!("/{file}"), "link.sock"] {
        let target = format!("unix:{}/{name}", world.dir().display());
        let refused = world.agentctl(["deploy", "evil", "--target", &target]).fails_with(2);
        assert!(refused.stderr().contains("this agent itself listens there"), "{refused}");
    }
    // One that came to lead there later.
    let puma = Puma::on_unix_socket(App::Rack, "v1");
    std::fs::remove_file(path("link.sock")).unwrap();
    std::os::unix::fs::symlink(puma.target().strip_prefix("unix:").unwrap(), path("link.sock")).unwrap();
    world.deploy(&format!("unix:{}", path("link.sock").display()));
    assert_eq!(world.get("/").text(), "v1");
    std::fs::remove_file(path("link.sock")).unwrap();
    std::os::unix::fs::symlink(&control, path("link.sock")).unwrap();
    drop(puma);
    eventually("the target fails", || match world.get("/v1/status") {
        answer if answer.status == 502 => Ok(()),
        answer => Err(answer.to_string()),
    });
}
