//! What do the header rules cost each request?

use divan::Bencher;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use portcullis::data_plane::forwarded::Forwarded;
use portcullis::data_plane::upstream::request_head::{BodyFraming, RequestHead};

fn main() {
    divan::main();
}

fn browser() -> HeaderMap {
    [
        ("host", "shop.example.com"),
        ("user-agent", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0"),
        ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
        ("accept-language", "en-GB,en;q=0.9"),
        ("accept-encoding", "gzip, deflate, br, zstd"),
        ("referer", "https://shop.example.com/orders"),
        ("cookie", "_shop_session=0123456789abcdef0123456789abcdef0123456789abcdef"),
        ("connection", "keep-alive"),
        ("cache-control", "max-age=0"),
        ("upgrade-insecure-requests", "1"),
        ("sec-fetch-mode", "navigate"),
        ("x-request-id", "0194fdc2-fa2f-7cc0-81d3-ff12045b73c8"),
    ]
    .into_iter()
    .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
    .collect()
}

#[divan::bench]
fn write_request_head(bencher: Bencher<'_, '_>) {
    let (fields, uri) = (browser(), Uri::from_static("/orders/42?page=2"));
    let mut out = Vec::with_capacity(2048);
    bencher.bench_local(|| {
        out.clear();
        let forwarded = Forwarded::direct(divan::black_box([192, 0, 2, 7].into()), true);
        let head = RequestHead {
            method: &Method::GET,
            uri: &uri,
            fields: &fields,
            forwarded: &forwarded,
            peer: "192.0.2.7",
            port: 443,
            strip: 0,
            request_id: b"0194fdc2-fa2f-7cc0-81d3-ff12045b73c8",
            now_ms: 1_700_000_000_000,
            body: BodyFraming::AsSent,
            websocket: false,
            client_ip_header: None,
            client: &[],
        };
        head.write(&mut out);
        out.len()
    });
}
