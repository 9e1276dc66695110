//! One host (RFC 9112 §3.2): what a request is routed by is what the app is told.

use harness::{Ask, Raw};

use super::house::Chapter;
use super::strict::Request;

#[test]
fn a_request_has_one_host() {
    let mut chapter = Chapter::begin("Host");
    for (id, fields) in [
        ("E01", ""),
        ("E02", "Host: shop.test\r\nHost: shop.test\r\n"),
        ("E03", "Host: shop.test\r\nHost: evil.test\r\n"),
        ("E03a", "Host: shop.test\r\nX: y\r\nhOST: evil.test\r\n"),
        ("E04", "Host: \r\n"),
        ("E05", "Host: shop.test evil\r\n"),
        ("E06", "Host: shop.test, evil.test\r\n"),
        ("E07", "Host: evil@shop.test\r\n"),
        ("E08", "Host: shop.test/x\r\n"),
        ("E09", "Host: shop.test?x\r\n"),
        ("E10", "Host: shop.test#x\r\n"),
        ("E11", "Host: shop.test\\x\r\n"),
        ("E12", "Host: shop.test\"x\r\n"),
        ("E13", "Host: shop.test\tevil\r\n"),
        ("E14", "Host: shop.test\0evil\r\n"),
        ("E15", "Host: shop.test:abc\r\n"),
        ("E16", "Host: shop.test:65616\r\n"),
        ("E17", "Host: [::1\r\n"),
        ("E18", "Host: shop.test:0\r\n"),
        ("E19", "Host: shop.test:-80\r\n"),
        ("E20", "Host: shop.test:80:80\r\n"),
        ("E21", "Host: shop..test\r\n"),
        ("E22", "Host: shop%2etest\r\n"),
        ("E23", "Host: sh\u{f6}p.test\r\n"),
        ("E23a", "Host: [::1]evil\r\n"),
        ("E23b", "Host: shop.test:+80\r\n"),
        ("E23c", "Host: .shop.test\r\n"),
        ("E23d", "Host: shop.test..\r\n"),
        ("E23e", "Host: http://shop.test\r\n"),
        ("E23f", "Host: shop.test;evil\r\n"),
        ("E23g", "Host: *\r\n"),
        ("E23h", "Host: shop.test:\r\n"),
    ] {
        let bytes = format!("GET /t HTTP/1.1\r\n{fields}\r\n");
        chapter.case(id, bytes).refused(&[400, 404, 421]);
    }
    let long = format!("GET /t HTTP/1.1\r\nHost: {}.test\r\n\r\n", "a".repeat(300));
    chapter.case("E26", long).refused(&[400, 404, 421]);
    for (id, host) in
        [("E27", "evil.test"), ("E28", "127.0.0.1"), ("E29", "a.shop.test"), ("E30", "localhost")]
    {
        chapter.case(id, format!("GET /t HTTP/1.1\r\nHost: {host}\r\n\r\n")).refused(&[404]);
    }
    for (id, host) in
        [("E24", "SHOP.TEST"), ("E25", "shop.test."), ("E31", "shop.test:8080"), ("E32", " shop.test \t")]
    {
        let told = host.trim().to_owned();
        let is_told = move |request: &Request| {
            request.values("host") == [told.as_str()] && request.values("x-forwarded-host") == [told.as_str()]
        };
        chapter.case(id, format!("GET /t HTTP/1.1\r\nHost:{host}\r\n\r\n")).checks(is_told).passed("");
    }
    chapter.end();
}

#[test]
fn a_connection_serves_the_names_of_its_certificate() {
    let mut chapter = Chapter::begin("SNI and Host");
    let target = chapter.recorder.target();
    chapter.world.deploy_with(&target, &["--tls", "--host", "www.shop.test"]);
    chapter
        .world
        .agentctl(["deploy", "blog", "--target", &target, "--host", "blog.test", "--tls", "--bake", "0s"])
        .succeeds();
    chapter.recorder.forget();
    let https = chapter.world.daemon.https();
    for (id, h2, host, under, want) in [
        ("S12", false, "shop.test", "blog.test", 421),
        ("H50", true, "shop.test", "blog.test", 421),
        ("S12a", false, "other.test", "shop.test", 421),
        ("S12b", true, "other.test", "shop.test", 421),
        ("S12c", false, "shop.test", "SHOP.test", 200),
        ("S12d", true, "blog.test", "blog.test", 200),
        // One certificate for both names: browsers ask for either on one connection.
        ("S13", true, "www.shop.test", "shop.test", 200),
        ("S13a", false, "shop.test", "www.shop.test", 200),
    ] {
        let ask = Ask::get(host, "/t").tls().under(under);
        let got = if h2 { ask.h2() } else { ask }.try_at(https);
        let arrived = chapter.recorder.settled().len();
        chapter.recorder.forget();
        let outcome = match got {
            Ok(answer) if answer.status == want && arrived == usize::from(want == 200) => Ok(()),
            other => Err(format!("{other:?}; {arrived} arrived upstream")),
        };
        chapter.record(id, outcome);
    }
    // The target's authority is what counts, and the field may not say otherwise.
    for (id, request) in [
        ("S12e", "GET https://shop.test/t HTTP/1.1\r\nHost: blog.test\r\n\r\n"),
        ("S12f", "GET https://blog.test/t HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n"),
    ] {
        let mut client = Raw::connect_tls(https, "blog.test", &["http/1.1"]);
        client.send(request);
        let answer = client.read_to_end();
        let refused = answer.starts_with("HTTP/1.1 400") && chapter.recorder.received().is_empty();
        chapter.record(id, if refused { Ok(()) } else { Err(answer) });
    }
    chapter.end();
}
