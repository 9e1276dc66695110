//! The request line (RFC 9112 §3): one target in one form.

use harness::Raw;

use super::house::{Chapter, get};

fn line(line: &str) -> Vec<u8> {
    format!("{line}\r\nHost: shop.test\r\n\r\n").into_bytes()
}

#[test]
fn a_request_line_has_one_shape() {
    let mut chapter = Chapter::begin("request lines");
    for (id, request, statuses) in [
        ("D01", "GET  /t HTTP/1.1", &[400][..]),
        ("D01a", "GET /t  HTTP/1.1", &[400]),
        ("D02", "GET\t/t\tHTTP/1.1", &[400]),
        ("D03", " GET /t HTTP/1.1", &[400]),
        ("D05", "GET /t HTTP/1.2", &[400, 505]),
        ("D06", "GET /t HTTP/2.0", &[400, 505]),
        ("D07", "GET /t HTTP/1.1 ", &[400]),
        ("D08", "GET /t http/1.1", &[400]),
        ("D09", "GET /t HTTP/1.", &[400]),
        ("D10", "GET /t HTTP/1.10", &[400]),
        ("D11", "GET /t HTTP/01.1", &[400]),
        ("D12", "GET /t HTTPS/1.1", &[400]),
        ("D13", "G(T /t HTTP/1.1", &[400]),
        ("D14", "GET /t HTTP/1.1\0", &[400]),
        ("D43", "GET /t", &[400, 505]),
        ("D44", "GET\u{b}/t\u{b}HTTP/1.1", &[400]),
        ("D45", "GET", &[400]),
        ("D46", "/t HTTP/1.1", &[400]),
        ("D47", "GET /t HTTP/9.9", &[400, 505]),
        ("D15", "GET /a b HTTP/1.1", &[400]),
        ("D16", "GET /a\u{1}b HTTP/1.1", &[400]),
        ("D17", "GET /a\0b HTTP/1.1", &[400]),
        ("D18", "GET /a\u{7f}b HTTP/1.1", &[400]),
        ("D19", "GET /\u{e9} HTTP/1.1", &[400]),
        ("D19a", "GET /?q=\u{e9} HTTP/1.1", &[400]),
        ("D21", "GET /a\rb HTTP/1.1", &[400]),
    ] {
        chapter.case(id, line(request)).half_closes().refused(statuses);
    }
    chapter.case("D04", "GET /t\r\n\r\n").half_closes().refused(&[400, 505]);
    let mut latin1 = b"GET /t?\xff HTTP/1.1\r\n".to_vec();
    latin1.extend_from_slice(b"Host: shop.test\r\n\r\n");
    chapter.case("D19b", latin1).half_closes().refused(&[400]);
    // Other protocols.
    let hello = b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\r\n\r\n".to_vec();
    chapter.case("D51", hello).half_closes().refused(&[400]);
    chapter.case("D52", "SSH-2.0-OpenSSH_9.2p1\r\n\r\n").half_closes().refused(&[400]);
    chapter.case("D53", "HTTP/1.1 200 OK\r\nHost: shop.test\r\n\r\n").half_closes().refused(&[400]);
    let preface = [get(""), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec()].concat();
    chapter.case("D54", preface).judged(|seen| {
        let sound = seen.answers.first().is_some_and(|answer| answer.status == 200);
        if sound && seen.upstream.len() == 1 && !seen.stayed_open {
            Ok(())
        } else {
            Err("it went on".to_owned())
        }
    });
    let long = format!("GET /{} HTTP/1.1", "x".repeat(70_000));
    chapter.case("D48", line(&long)).refused(&[400, 414, 431]);
    chapter.case("D49", line("get /t HTTP/1.1")).either(&[400, 405, 501], "");
    chapter.case("D50", [b"\r\n\r\n".to_vec(), get("")].concat()).either(&[400], "");
    chapter.end();
}

#[test]
fn a_target_has_one_form() {
    let mut chapter = Chapter::begin("request targets");
    let is = |want: &'static str| move |request: &super::strict::Request| request.line == want;
    chapter.case("D20", line("GET /t#frag HTTP/1.1")).checks(is("GET /t HTTP/1.1")).either(&[400], "");
    for (id, request, statuses) in [
        ("D22", "GET foo/t HTTP/1.1", &[400][..]),
        ("D22a", "GET foo HTTP/1.1", &[400]),
        ("D22b", "GET shop.test:80 HTTP/1.1", &[400]),
        ("D22c", "GET ?x HTTP/1.1", &[400]),
        ("D23", "GET * HTTP/1.1", &[400]),
        ("D23a", "OPTIONS * HTTP/1.1", &[400, 405, 501]),
        ("D24", "CONNECT 127.0.0.1:22 HTTP/1.1", &[400, 405]),
        ("D24a", "CONNECT shop.test:443 HTTP/1.1", &[400, 405]),
        ("D25", "CONNECT /t HTTP/1.1", &[400, 405]),
        ("D26", "TRACE /t HTTP/1.1\r\nCookie: secret", &[405]),
        ("D28", "GET http://evil.test/t HTTP/1.1", &[400, 404, 421]),
        ("D29", "GET http://user@shop.test/t HTTP/1.1", &[400]),
        ("D29a", "GET http://evil.test@shop.test/t HTTP/1.1", &[400]),
        ("D29b", "GET http://shop.test:80@evil.test/t HTTP/1.1", &[400]),
        ("D30", "GET ftp://shop.test/t HTTP/1.1", &[400]),
        ("D30a", "GET file:///etc/passwd HTTP/1.1", &[400]),
        ("D31", "GET http:///t HTTP/1.1", &[400]),
        ("D32", "GET http://shop.test:99999/t HTTP/1.1", &[400]),
        ("D32a", "GET http://shop.test:0/t HTTP/1.1", &[400]),
        ("D32b", "GET http:/t HTTP/1.1", &[400]),
    ] {
        chapter.case(id, line(request)).half_closes().refused(statuses);
    }
    for (id, target) in [
        ("D27", "http://shop.test/t?x"),
        ("D27a", "http://SHOP.TEST/t?x"),
        ("D27b", "https://shop.test/t?x"),
        ("D27c", "http://shop.test:80/t?x"),
    ] {
        let bytes = line(&format!("GET {target} HTTP/1.1"));
        chapter.case(id, bytes).checks(is("GET /t?x HTTP/1.1")).either(&[400], "");
    }
    chapter
        .case("D27d", "GET http://shop.test HTTP/1.1\r\nHost: shop.test\r\n\r\n")
        .checks(is("GET / HTTP/1.1"))
        .passed("");
    chapter.case("D27e", "GET http://shop.test/t HTTP/1.1\r\n\r\n").refused(&[400]);
    for (id, path) in [
        ("D34", "//x"),
        ("D35", "/a/../b"),
        ("D36", "/%2e%2e/x"),
        ("D37", "/a%2fb"),
        ("D38", "/%00"),
        ("D39", "/a\\b"),
        ("D40", "/%zz"),
        ("D41", "/%0d%0aX:y"),
        ("D42", "/a/./b"),
        ("D42a", "/a;b=c/d"),
        ("D42b", "//evil.test/x"),
        ("D42c", "/?a=%0d%0aX:y"),
        ("D42d", "/a%"),
        ("D42e", "/a?b?c=http://x/"),
    ] {
        let want = format!("GET {path} HTTP/1.1");
        let bytes = line(&want);
        chapter.case(id, bytes).checks(move |request| request.line == want).either(&[400], "");
    }
    // Over TLS with ALPN, HTTP/1.1 was agreed upon.
    chapter.world.deploy_with(&chapter.recorder.target(), &["--tls"]);
    chapter.recorder.forget();
    let mut client = Raw::connect_tls(chapter.world.daemon.https(), "shop.test", &["http/1.1"]);
    client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    let answer = client.read_to_end();
    let sound =
        (answer.is_empty() || answer.starts_with("HTTP/1.1 400")) && chapter.recorder.received().is_empty();
    chapter.record("D33", if sound { Ok(()) } else { Err(answer) });
    chapter.end();
}
