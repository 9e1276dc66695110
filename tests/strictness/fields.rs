//! Fields: well-formed, few, and none that speaks for us.

use super::house::{Chapter, get};
use super::strict::Request;

#[test]
fn fields_are_well_formed() {
    let mut chapter = Chapter::begin("field syntax");
    for (id, field) in [
        ("F01", "X-A : b"),
        ("F02", "X-A\t: b"),
        ("F03", "no colon"),
        ("F03a", ": empty"),
        ("F04", "X-A: a\0b"),
        ("F05", "X-A: a\rb"),
        ("F05a", "X-A: a\r\r"),
        ("F07", "X-A: a\u{1}b"),
        ("F08", "X-A: a\r\n folded: b"),
        ("F09", "X(A: b"),
        ("F10", "X-A: a\u{7f}b"),
    ] {
        chapter.case(id, get(&format!("{field}\r\n"))).half_closes().refused(&[400]);
    }
    chapter.case("F14", "GET /t HTTP/1.1\r\n X: y\r\nHost: shop.test\r\n\r\n").refused(&[400]);
    let hidden = "GET /smuggled HTTP/1.1\r\nHost: shop.test\r\n\r\n";
    for (id, bytes) in [
        ("F05b", "GET /t HTTP/1.1\nHost: shop.test\r\n\r\n".to_owned()),
        ("F06", format!("GET /t HTTP/1.1\nHost: shop.test\n\n{hidden}")),
        ("F06a", format!("GET /t HTTP/1.1\r\nHost: shop.test\n\r\n{hidden}")),
        ("F06b", format!("GET /t HTTP/1.1\r\nHost: shop.test\r\n\n{hidden}")),
        ("F06c", format!("GET /t HTTP/1.1\r\nHost: shop.test\r\nX: y\n\n{hidden}")),
    ] {
        chapter.case(id, bytes).refused(&[400]);
    }
    // Behind a body, too: whatever announced its length.
    for (id, first) in [
        ("F06d", "POST /t HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 5\r\n\r\na\nb\nc"),
        (
            "F06e",
            "POST /t HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\na\nb\r\n0\r\n\r\n",
        ),
        ("F06f", "GET /t HTTP/1.1\r\nHost: shop.test\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"),
    ] {
        chapter.case(id, format!("{first}GET /smuggled HTTP/1.1\nHost: shop.test\n\n")).judged(|seen| {
            let statuses: Vec<u16> = seen.answers.iter().map(|answer| answer.status).collect();
            let smuggled = seen.upstream.iter().any(|seen| seen.request_line().contains("smuggled"));
            match (&statuses[..], smuggled, seen.stayed_open) {
                ([200, 400], false, false) => Ok(()),
                _ => Err("the second one has bare line feeds".to_owned()),
            }
        });
    }
    let many = |count: usize| "X-A: b\r\n".repeat(count);
    chapter.case("F11", get(&many(500))).refused(&[431]);
    chapter.case("F11b", get(&many(20_000))).refused(&[431]);
    chapter.case("F11c", get(&many(90))).passed("");
    let long = |bytes: usize| format!("X-A: {}\r\n", "x".repeat(bytes));
    chapter.case("F12", get(&long(64 * 1024))).either(&[431], "");
    chapter.case("F12a", get(&long(32 * 1024))).either(&[431], "");
    chapter.case("F13", get(&long(1 << 20))).refused(&[431]);
    chapter.case("F13a", get(&format!("{}: b\r\n", "x".repeat(70_000)))).refused(&[400, 431]);
    chapter.end();
}

#[test]
fn what_binds_one_hop_ends_there() {
    let mut chapter = Chapter::begin("hop-by-hop fields");
    let without = |gone: &'static str| move |request: &Request| request.values(gone).is_empty();
    let with_one = |kept: &'static str| move |request: &Request| request.values(kept).len() == 1;
    for (id, fields, gone) in [
        ("F15", "Connection: X-Hop\r\nX-Hop: 1\r\n", "x-hop"),
        ("F15a", "Connection: close, x-HOP , y\r\nX-Hop: 1\r\n", "x-hop"),
        ("F15b", "Connection: keep-alive\r\nConnection: X-Hop\r\nX-Hop: 1\r\nX-Hop: 2\r\n", "x-hop"),
        ("F17", "TE: gzip\r\nConnection: TE\r\n", "te"),
        ("F18", "Keep-Alive: timeout=5\r\n", "keep-alive"),
        ("F18a", "Proxy-Connection: keep-alive\r\n", "proxy-connection"),
        ("F18b", "Connection: close\r\n", "connection"),
        ("F18c", "Trailer: X-A\r\nConnection: Trailer\r\n", "trailer"),
        ("F18d", "HTTP2-Settings: AAMAAABk\r\n", "http2-settings"),
    ] {
        chapter.case(id, get(fields)).checks(without(gone)).passed("");
    }
    let no_gzip = |request: &Request| request.values("te").iter().all(|te| *te == "trailers");
    chapter.case("F17a", get("TE: trailers, gzip\r\n")).checks(no_gzip).passed("");
    for (id, nominated) in [
        ("F16", "Host"),
        ("F16b", "X-Forwarded-For"),
        ("F16c", "X-Forwarded-Proto"),
        ("F16d", "X-Real-IP"),
        ("F16e", "X-Request-Id"),
        ("F16f", "X-Forwarded-Host"),
        ("F16g", "Cookie"),
        ("F16h", "Authorization"),
    ] {
        let fields = format!("Connection: {nominated}\r\nCookie: a=1\r\nAuthorization: x\r\n");
        let name: &'static str = Box::leak(nominated.to_ascii_lowercase().into_boxed_str());
        chapter.case(id, get(&fields)).checks(with_one(name)).passed("");
    }
    let too_many = format!("Connection: {}\r\n", ["a"; 1_000].join(","));
    chapter.case("F19", get(&too_many)).refused(&[400, 431]);
    chapter.end();
}

#[test]
fn who_the_client_is_is_not_the_clients_to_say() {
    let mut chapter = Chapter::begin("forged identities");
    for (id, field) in [
        ("F20", "X-Forwarded-For"),
        ("F21", "X-Forwarded-Proto"),
        ("F22", "X-Forwarded-Host"),
        ("F23", "X-Forwarded-Port"),
        ("F24", "X-Forwarded-Ssl"),
        ("F24a", "X-Forwarded-Scheme"),
        ("F25", "Forwarded"),
        ("F26", "X-Real-IP"),
        ("F27", "Client-IP"),
        ("F27a", "X-Client-IP"),
        ("F27b", "True-Client-IP"),
        ("F28", "X_Forwarded_For"),
        ("F28a", "X_Forwarded_Proto"),
        ("F28b", "X_Real_IP"),
        ("F28c", "X-Forwarded_For"),
        ("F28d", "CLIENT_IP"),
        ("F29", "Proxy"),
        ("F30", "X-Sendfile-Type"),
        ("F30a", "X-Accel-Mapping"),
        ("F30b", "X-Original-URL"),
        ("F30c", "X-Rewrite-URL"),
        ("F31", "X-Request-Start"),
        ("F31a", "X_Request_Start"),
        ("F31b", "X-Forwarded-Prefix"),
    ] {
        let no_forgery = |request: &Request| !request.mentions("forged");
        chapter.case(id, get(&format!("{field}: forged\r\n"))).checks(no_forgery).passed("");
    }
    for (id, sent) in [
        ("F31c", "forged".repeat(100)),
        ("F31d", "forged\r\nX-Request-Id: forged".to_owned()),
        ("F31e", "forged {}".to_owned()),
    ] {
        let one_of_ours =
            |request: &Request| !request.mentions("forged") && request.values("x-request-id").len() == 1;
        chapter.case(id, get(&format!("X-Request-Id: {sent}\r\n"))).checks(one_of_ours).passed("");
    }
    chapter.end();
}
