//! What every request passes allocates nothing: finding the route, choosing the cohort, the rules for header fields.

use allocation_counter::measure;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use model::canary::{Assignment, FleetSecret, Overrides, Visit, VisitorSource};
use model::networks::Networks;
use model::route::{Lookup, RouteTable};
use model::weight::Weight;
use portcullis::config::ProxyHeaders;
use portcullis::data_plane::forwarded::{Forwarded, Trust};
use portcullis::data_plane::upstream::request_head::{BodyFraming, RequestHead};

fn allocations(step: impl FnMut()) -> u64 {
    let mut step = step;
    // The first time may set up something of the thread's.
    step();
    measure(step).count_total
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(vec![1]))), 1);
}

#[test]
fn finding_a_route_among_a_thousand() {
    let mut table = RouteTable::default();
    for n in 0..1000 {
        let hosts =
            [format!("shop{n}.example.com").parse().unwrap(), format!("*.shop{n}.test").parse().unwrap()];
        let prefixes = ["/", "/admin", "/api/v1"].map(|prefix| prefix.parse().unwrap());
        table.bind(&hosts, &prefixes, &n).unwrap();
    }
    for (host, path) in [("shop500.example.com", "/api/v1/orders/42"), ("a.shop7.test", "/x")] {
        let found = || assert!(matches!(table.lookup(host, path), Lookup::Found { .. }));
        assert_eq!(allocations(found), 0, "{host}{path}");
    }
    assert_eq!(allocations(|| assert_eq!(table.lookup("nobody.test", "/"), Lookup::UnknownHost)), 0);
}

#[test]
fn choosing_the_cohort_of_a_known_visitor() {
    let secret = FleetSecret::new(b"secret");
    let weight = Weight::from_basis_points(500).unwrap();
    let source = || VisitorSource { header: Some("x-account".to_owned()), ..VisitorSource::default() };
    let assignment = Assignment::new(&secret, "shop", "r2", weight, source(), Overrides::default());
    let assign = |cookie: Option<&str>, account: Option<&[u8]>| {
        let visit = Visit {
            header: |name: &str| account.filter(|_| name == "x-account"),
            cookie: |_: &str| cookie,
            client: [192, 0, 2, 7].into(),
            day: 20_000,
            user_agent: b"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36",
        };
        assignment.assign(&visit, true)
    };
    let id = assign(None, None).set_cookie.expect("a new visitor gets a cookie");
    assert_eq!(allocations(|| assert_eq!(assign(Some(&id), None).set_cookie, None)), 0, "by our cookie");
    assert_eq!(allocations(|| assert_eq!(assign(None, Some(b"42")).set_cookie, None)), 0, "by a header");
}

#[test]
fn writing_the_head_for_the_target() {
    let fields: HeaderMap = [
        ("host", "shop.example.com"),
        ("user-agent", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0"),
        ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
        ("cookie", "_shop_session=0123456789abcdef0123456789abcdef"),
        ("connection", "keep-alive, x-hop"),
        ("x-hop", "1"),
        ("te", "trailers"),
        ("x-forwarded-for", "6.6.6.6"),
        ("x_forwarded_for", "6.6.6.6"),
    ]
    .into_iter()
    .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
    .collect();
    let uri = Uri::from_static("/app/orders/42?page=2");
    let mut out = Vec::with_capacity(4096);
    let peer = [192, 0, 2, 7].into();
    let networks = |text: &str| text.parse::<ipnet::IpNet>().into_iter().collect::<Networks>();
    // Nobody's word is taken; then that of a proxy, for whose client the head is written.
    for (proxies, client) in [(networks(""), "192.0.2.7"), (networks("192.0.2.0/24"), "6.6.6.6")] {
        let headers = ProxyHeaders::XForwarded;
        let trust = Trust { proxies: &proxies, private: false, headers, client_ip_header: None };
        let write = || {
            out.clear();
            let forwarded = Forwarded::read(&fields, peer, true, &trust);
            let head = RequestHead {
                method: &Method::GET,
                uri: &uri,
                fields: &fields,
                forwarded: &forwarded,
                peer: "192.0.2.7",
                port: 443,
                strip: 4,
                request_id: b"0194fdc2-fa2f-7cc0-81d3-ff12045b73c8",
                now_ms: 1_700_000_000_000,
                body: BodyFraming::AsSent,
                websocket: false,
                client_ip_header: None,
                client: &[],
            };
            head.write(&mut out);
        };
        assert_eq!(allocations(write), 0, "{client}");
        assert!(out.windows(client.len()).any(|part| part == client.as_bytes()), "{client}");
    }
}
