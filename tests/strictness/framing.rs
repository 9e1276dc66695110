//! One request has one length (RFC 9112 §6): Content-Length and Transfer-Encoding.

use harness::Recorder;

use super::house::{Chapter, SMUGGLED, echo, post};

const CHUNKED: &str = "5\r\nhello\r\n0\r\n\r\n";
const CODED: &str = "Transfer-Encoding: chunked\r\n";

#[test]
fn a_body_has_one_length() {
    let mut chapter = Chapter::begin("Content-Length");
    let ends_at_once = format!("0\r\n\r\n{SMUGGLED}");
    let length = format!("Content-Length: {}\r\n", ends_at_once.len());
    // The coding wins and the connection closes, as RFC 9112 §6.3 allows.
    for (id, fields) in [
        ("B01", format!("{length}{CODED}")),
        ("B02", format!("{CODED}{length}")),
        ("B03", format!("Content-Length: 3\r\n{CODED}")),
    ] {
        chapter.case(id, post(&fields, &ends_at_once)).must_close().either(&[400], "");
    }
    for (id, length) in [
        ("B04", "5\r\nContent-Length: 56"),
        ("B07", "5, 6"),
        ("B08", "+5"),
        ("B09", "-5"),
        ("B10", "5 5"),
        ("B11", "0x5"),
        ("B12", "5;x"),
        ("B13", ""),
        ("B14", "5,"),
        ("B15", ",5"),
        ("B16", "99999999999999999999999"),
        ("B17", "18446744073709551621"),
        ("B20", "5.0"),
        ("B21", "5e0"),
        ("B22", "1_0"),
        ("B23", "\"5\""),
        ("B24", "\u{ff15}"),
        ("B25", "5\0"),
        ("B26", "\u{b}5"),
        ("B27", "\u{c}5"),
        ("B28", "\u{a0}5"),
        ("B28a", "5\r\nContent-Length: 5\r\nContent-Length: 6"),
        ("B28b", "18446744073709551615"),
    ] {
        let bytes = post(&format!("Content-Length: {length}\r\n"), "hello");
        chapter.case(id, bytes).half_closes().refused(&[400, 413, 431]);
    }
    // Lengths that could be, of bodies that never come.
    for (id, length) in [("B18", "9223372036854775813"), ("B19", "4294967301")] {
        let bytes = post(&format!("Content-Length: {length}\r\n"), "hello");
        chapter.case(id, bytes).half_closes().refused(&[400, 408, 413]);
    }
    chapter.case("B06", post("Content-Length: 5, 5\r\n", "hello")).either(&[400], "hello");
    let says_five = |request: &super::strict::Request| request.values("content-length") == ["5"];
    for (id, length) in
        [("B05", "5\r\nContent-Length: 5"), ("B29", "005"), ("B29b", "5 \t"), ("B29c", "\t 5")]
    {
        let bytes = post(&format!("Content-Length: {length}\r\n"), "hello");
        chapter.case(id, bytes).checks(says_five).passed("hello");
    }
    chapter
        .case("B29a", post("Content-Length: 0000000000000000000000005\r\n", "hello"))
        .either(&[400], "hello");
    chapter.case("B29d", post("Content-Length: 000\r\n", "")).passed("");
    chapter
        .case("B29e", post("Content-Length: 5\r\nContent-Length: 005\r\n", "hello"))
        .either(&[400], "hello");
    chapter.end();
}

#[test]
fn chunked_is_the_only_transfer_coding() {
    let mut chapter = Chapter::begin("Transfer-Encoding");
    for (id, coding) in [
        ("B31", "chunked, identity"),
        ("B32", "identity, chunked"),
        ("B33", "gzip, chunked"),
        ("B34", "chunked, chunked"),
        ("B35", "identity"),
        ("B36", "\u{b}chunked"),
        ("B37", "\"chunked\""),
        ("B38", "chunked;q=1"),
        ("B39", ",chunked"),
        ("B40", "chunked,"),
        ("B41", "chunked\0"),
        ("B42", "\u{a0}chunked"),
        ("B43", "chu nked"),
        ("B44", "[chunked]"),
        ("B45", "chunked\u{b}"),
        ("B46", "\u{c}chunked"),
        ("B47", "'chunked'"),
        ("B48", "chunked\u{7f}"),
        ("B49", ""),
        ("B52", "chunked\r\nTransfer-Encoding: chunked"),
        ("B53", "chunked\r\nTransfer-Encoding: cow"),
        ("B54", "cow\r\nTransfer-Encoding: chunked"),
        ("B57", "\r\n chunked"),
        ("B57a", "\r\n\tchunked"),
    ] {
        let bytes = post(&format!("Transfer-Encoding: {coding}\r\n"), CHUNKED);
        chapter.case(id, bytes).half_closes().refused(&[400, 501]);
    }
    let both = format!("Content-Length: {}\r\nTransfer-Encoding: xchunked\r\n", CHUNKED.len());
    chapter.case("B30", post(&both, CHUNKED)).refused(&[400, 501]);
    for (id, fields) in [
        ("B55", "Transfer-Encoding : chunked\r\n"),
        ("B56", "Content-Length : 51\r\n"),
        ("B58", "X-A: b\r\n Transfer-Encoding: chunked\r\n"),
        ("B58a", "X-A: b\r\n\tContent-Length: 5\r\n"),
        ("B63", "X-A: b\nTransfer-Encoding: chunked\r\n"),
        ("B64", "X-A: b\rTransfer-Encoding: chunked\r\n"),
        ("B65", "Content-\0Length: 5\r\n"),
        ("B67", "Content-Length abcde: 5\r\n"),
        ("B68", ": x\r\nContent-Length: 5\r\n"),
    ] {
        chapter.case(id, post(fields, "hello")).half_closes().refused(&[400, 501]);
    }
    let mut odd_name = b"POST /t HTTP/1.1\r\nHost: shop.test\r\nContent-Length\xff: 5\r\n\r\n".to_vec();
    odd_name.extend_from_slice(b"hello");
    chapter.case("B66", odd_name).half_closes().refused(&[400]);
    for (id, version) in [
        ("B61", "Transfer-Encoding: chunked\r\n"),
        ("B62", "Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n"),
    ] {
        let bytes = format!("POST /t HTTP/1.0\r\nHost: shop.test\r\n{version}\r\n{CHUNKED}");
        chapter.case(id, bytes).refused(&[400, 501]);
    }
    for (id, coding) in [("B50", "CHUNKED"), ("B51", "\t chunked \t"), ("B51a", "chUnKed")] {
        let bytes = post(&format!("Transfer-Encoding: {coding}\r\n"), CHUNKED);
        chapter.case(id, bytes).passed("hello");
    }
    // Twins with an underscore become the same CGI variable in Rack: they do not pass.
    for (id, fields) in [
        ("B59", "Transfer_Encoding: chunked\r\nContent-Length: 5\r\n"),
        ("B60", "Content_Length: 9\r\nContent-Length: 5\r\n"),
    ] {
        let no_twin =
            |request: &super::strict::Request| !request.fields.iter().any(|(name, _)| name.contains('_'));
        chapter.case(id, post(fields, "hello")).checks(no_twin).passed("hello");
    }
    chapter.case("B69", post("Connection: Content-Length\r\nContent-Length: 5\r\n", "hello")).passed("hello");
    let bytes = post(&format!("Connection: Transfer-Encoding\r\n{CODED}"), CHUNKED);
    chapter.case("B70", bytes).passed("hello");
    let trailers = "5\r\nhello\r\n0\r\nContent-Length: 99\r\nTransfer-Encoding: chunked\r\n\r\n";
    chapter.case("B71", post(CODED, trailers)).judged(|seen| {
        super::house::is_passed(seen, "hello")?;
        let body = seen.upstream[0].text();
        if body.contains("ontent-") || body.contains("ncoding") { Err(body) } else { Ok(()) }
    });
    chapter.end();
}

#[test]
fn bodies_of_methods_that_have_none_stay_bodies() {
    let mut chapter = Chapter::on(
        "bodies where none is expected",
        Recorder::hasty(
            |head| {
                let early = head.request_line().contains("/early");
                early.then_some(&b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno"[..])
            },
            echo,
        ),
    );
    let length = SMUGGLED.len();
    for (id, method, path) in [
        ("A16", "GET", "/t"),
        ("A17", "HEAD", "/t"),
        ("A18", "OPTIONS", "/t"),
        ("A19", "GET", "/up?x"),
        ("A19a", "DELETE", "/t"),
    ] {
        let bytes = format!(
            "{method} {path} HTTP/1.1\r\nHost: shop.test\r\nContent-Length: {length}\r\n\r\n{SMUGGLED}"
        );
        chapter.case(id, bytes).either(&[400], SMUGGLED);
    }
    for (id, method) in [("A20", "GET"), ("A20a", "HEAD"), ("A20b", "OPTIONS")] {
        let bytes = format!(
            "{method} /t HTTP/1.1\r\nHost: shop.test\r\n{CODED}\r\n{length:x}\r\n{SMUGGLED}\r\n0\r\n\r\n"
        );
        chapter.case(id, bytes).either(&[400], SMUGGLED);
    }
    // The app refuses before the body has come: what comes then is a body, and no request.
    for (id, expect) in [("A12", "Expect: 100-continue\r\n"), ("A13", "")] {
        let bytes = format!(
            "POST /early HTTP/1.1\r\nHost: shop.test\r\n{expect}Content-Length: {length}\r\n\r\n{SMUGGLED}"
        );
        chapter.case(id, bytes).judged(|seen| {
            let smuggled = seen.upstream.iter().any(|seen| seen.request_line().contains("smuggled"));
            match (&seen.answers[..], smuggled) {
                ([answer], false) if answer.status == 403 => Ok(()),
                _ => Err("it is more than one request".to_owned()),
            }
        });
    }
    for (id, expect) in [("A22", "100-continue, x"), ("A23", "x"), ("A24", "100-continue;x"), ("A25", "")] {
        let bytes = post(&format!("Expect: {expect}\r\nContent-Length: 5\r\n"), "hello");
        chapter.case(id, bytes).either(&[400, 417], "hello");
    }
    let no_expect = |request: &super::strict::Request| request.values("expect").is_empty();
    for (id, expect) in [("A26", "100-continue"), ("A27", "100-CONTINUE")] {
        let bytes = post(&format!("Expect: {expect}\r\nContent-Length: 5\r\n"), "hello");
        chapter.case(id, bytes).checks(no_expect).passed("hello");
    }
    chapter.end();
}
