//! What do the header rules cost each request?

use divan::Bencher;
use http::{HeaderMap, HeaderName, HeaderValue};
use portcullis::data_plane::headers;

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
fn strip_and_write(bencher: Bencher<'_, '_>) {
    let peer = [192, 0, 2, 7].into();
    bencher.with_inputs(browser).bench_values(|mut fields| {
        let forwarded = headers::read_forwarded(&fields, peer, true, &[]);
        headers::strip_hop_by_hop(&mut fields);
        headers::write_forwarded(&mut fields, &forwarded, peer, 443, 1_700_000_000_000);
        fields
    });
}
