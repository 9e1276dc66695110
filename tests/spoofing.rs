//! Each way to forge who asks, over which scheme, for which host: what the app sees is the truth.
//!
//! All of loopback is ours, so peers are told apart by address: a stranger, a proxy that is trusted, and a balancer that
//! begins with a PROXY header. Each case is judged by the bytes that arrived upstream, and some by what Rails makes of them.
//! Forged addresses are of 6.6.6.0/24, forged hosts end in `evil.test`: neither may arrive at all.

use std::io::Write;
use std::net::IpAddr;

use harness::{App, Ask, Puma, Raw, Received, Recorder, Socket, World, eventually};

const STRANGER: [u8; 4] = [127, 0, 0, 1];
const PROXY: [u8; 4] = [127, 0, 0, 2];
const BALANCER: [u8; 4] = [127, 0, 0, 3];

/// `10.0.0.0/8` and Cloudflare stand for proxies in front of the proxy.
const CONFIG: &str = r#"
trusted_proxies = ["127.0.0.2", "10.0.0.0/8", "2001:db8:aa::/48", "cloudflare"]
[proxy_protocol]
http = ["127.0.0.3"]
https = ["127.0.0.3/32"]
"#;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    Http1,
    Http2,
    Tls1,
    Tls2,
    WebSocket,
}

const TRANSPORTS: [Transport; 5] =
    [Transport::Http1, Transport::Http2, Transport::Tls1, Transport::Tls2, Transport::WebSocket];

impl Transport {
    fn is_tls(self) -> bool {
        matches!(self, Self::Tls1 | Self::Tls2)
    }

    fn carry(self, ask: Ask) -> Ask {
        match self {
            Self::Http1 => ask,
            Self::Http2 => ask.h2(),
            Self::Tls1 => ask.tls(),
            Self::Tls2 => ask.tls().h2(),
            Self::WebSocket => [
                ("connection", "upgrade"),
                ("upgrade", "websocket"),
                ("sec-websocket-version", "13"),
                ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ]
            .into_iter()
            .fold(ask, |ask, (name, value)| ask.header(name, value)),
        }
    }
}

/// Who asked, as the app is told.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    client: String,
    proto: String,
    host: String,
    port: String,
}

impl Told {
    fn of(seen: &Received) -> Self {
        let one = |name: &str| {
            let values = seen.values(name);
            assert_eq!(values.len(), 1, "{name} in {}", seen.head);
            values[0].to_owned()
        };
        let told = Self {
            client: one("x-forwarded-for"),
            proto: one("x-forwarded-proto"),
            host: one("x-forwarded-host"),
            port: one("x-forwarded-port"),
        };
        assert_eq!(one("x-real-ip"), told.client, "{}", seen.head);
        assert_eq!(one("host"), "shop.test", "{}", seen.head);
        let forged = ["6.6.6.", "evil", "forged"];
        assert!(!forged.iter().any(|forged| seen.head.contains(forged)), "arrived: {}", seen.head);
        told
    }
}

/// One service behind one daemon, and how many forgeries it has stood.
struct House {
    world: World,
    recorder: Recorder,
    cases: usize,
}

impl House {
    fn new(config: &str, more: &[&str]) -> Self {
        let (world, recorder) = (World::with_config(config), Recorder::start());
        let always = ["--host", "www.shop.test", "--tls", "--tls-redirect=false"];
        world.deploy_with(&recorder.target(), &[&always, more].concat());
        Self { world, recorder, cases: 0 }
    }

    /// What the app is told when `from` asks with these fields, behind these first bytes.
    #[track_caller]
    fn told(
        &mut self,
        from: [u8; 4],
        transport: Transport,
        preamble: &[u8],
        fields: &[(&str, &str)],
    ) -> Told {
        self.cases += 1;
        self.recorder.forget();
        let ask = Ask::get("shop.test", "/").from(IpAddr::from(from)).preceded_by(preamble.to_vec());
        let ask = fields.iter().fold(ask, |ask, (name, value)| ask.header(name, value));
        let answer = transport.carry(ask).try_at(self.address(transport));
        assert_eq!(answer.map(|answer| answer.status.as_u16()), Ok(200), "{transport:?} {fields:?}");
        let seen = self.recorder.received();
        assert_eq!(seen.len(), 1, "{transport:?} {fields:?}: {seen:#?}");
        Told::of(&seen[0])
    }

    fn address(&self, transport: Transport) -> std::net::SocketAddr {
        if transport.is_tls() { self.world.daemon.https() } else { self.world.http() }
    }

    /// The truth about a client of this listener of which nobody says more.
    fn truth(&self, client: &str, transport: Transport) -> Told {
        Told {
            client: client.to_owned(),
            proto: if transport.is_tls() { "https" } else { "http" }.to_owned(),
            host: "shop.test".to_owned(),
            port: self.address(transport).port().to_string(),
        }
    }

    fn refused(&self) -> u64 {
        self.world.daemon.metric("portcullis_connections_refused_total{reason=\"proxy_header\"}")
    }
}

impl Drop for House {
    fn drop(&mut self) {
        // Past the test runner's capture: the count is part of what a run says.
        let _ = writeln!(std::io::stderr(), "spoofing: {} cases", self.cases);
    }
}

/// By all names under which an app, a gem or a server looks for the client, the scheme or the host.
const FORGERIES: [(&str, &str); 44] = [
    ("X-Forwarded-For", "6.6.6.6"),
    ("X-Forwarded-Proto", "forged"),
    ("X-Forwarded-Host", "evil.test"),
    ("X-Forwarded-Port", "666forged"),
    ("X-Forwarded-Ssl", "forged"),
    ("X-Forwarded-Scheme", "forged"),
    ("X-Forwarded-Server", "evil.test"),
    ("X-Forwarded-Prefix", "/forged"),
    ("X-Forwarded-By", "6.6.6.6"),
    ("X-Forwarded", "for=6.6.6.6"),
    ("Forwarded", "for=6.6.6.6;proto=https;host=evil.test"),
    ("X-Real-IP", "6.6.6.6"),
    ("Client-IP", "6.6.6.6"),
    ("X-Client-IP", "6.6.6.6"),
    ("True-Client-IP", "6.6.6.6"),
    ("X-Cluster-Client-IP", "6.6.6.6"),
    ("X-Original-URL", "/forged"),
    ("X-Rewrite-URL", "/forged"),
    ("X-Original-Host", "evil.test"),
    ("Front-End-Https", "forged"),
    ("CF-Connecting-IP", "6.6.6.6"),
    ("CF-Connecting-IPv6", "6.6.6.6"),
    ("CF-Visitor", "{\"scheme\":\"forged\"}"),
    ("Fastly-Client-IP", "6.6.6.6"),
    ("Fastly-SSL", "forged"),
    ("CloudFront-Viewer-Address", "6.6.6.6:666"),
    ("CloudFront-Forwarded-Proto", "forged"),
    ("Fly-Client-IP", "6.6.6.6"),
    ("DO-Connecting-IP", "6.6.6.6"),
    ("Incap-Client-IP", "6.6.6.6"),
    ("X-Azure-ClientIP", "6.6.6.6"),
    ("X-Envoy-External-Address", "6.6.6.6"),
    ("X-Remote-Addr", "6.6.6.6"),
    ("X-Remote-IP", "6.6.6.6"),
    ("X-Request-Start", "t=666forged"),
    ("X-Sendfile-Type", "forged"),
    ("X-Accel-Mapping", "/forged=/"),
    ("Proxy", "http://evil.test"),
    // Rack makes one variable of a name with dashes and of its twins.
    ("X_Forwarded_For", "6.6.6.6"),
    ("X-Forwarded_For", "6.6.6.6"),
    ("X_Forwarded_Proto", "forged"),
    ("X_Forwarded_Host", "evil.test"),
    ("X_Real_IP", "6.6.6.6"),
    ("CF_Connecting_IP", "6.6.6.6"),
];

#[test]
fn strangers_cannot_say_who_they_are() {
    let mut house = House::new(CONFIG, &[]);
    for transport in TRANSPORTS {
        for (name, value) in FORGERIES {
            let told = house.told(STRANGER, transport, b"", &[(name, value)]);
            assert_eq!(told, house.truth("127.0.0.1", transport), "{name} over {transport:?}");
        }
        // Twice, as a list, with the true field beside it, or taken out by a name in `Connection`.
        for fields in [
            &[("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "127.0.0.2")][..],
            &[("x-forwarded-for", "6.6.6.6, 127.0.0.2, 10.0.0.1")],
            &[("x-forwarded-for", "6.6.6.6"), ("x_forwarded_for", "6.6.6.7")],
            &[("x-forwarded-proto", "https"), ("x-forwarded-ssl", "on"), ("x-forwarded-port", "443")],
        ] {
            let told = house.told(STRANGER, transport, b"", fields);
            assert_eq!(told, house.truth("127.0.0.1", transport), "{fields:?} over {transport:?}");
        }
    }
    let named = [("connection", "x-forwarded-for, x-forwarded-proto, x-real-ip, x-forwarded-host")];
    let told = house.told(STRANGER, Transport::Http1, b"", &named);
    assert_eq!(told, house.truth("127.0.0.1", Transport::Http1));
}

#[test]
fn the_scheme_is_the_connections() {
    let mut house = House::new(CONFIG, &[]);
    for (from, claimed, transport) in [
        (STRANGER, "https", Transport::Http2),
        (STRANGER, "http", Transport::Tls2),
        (PROXY, "https", Transport::Http2),
    ] {
        house.cases += 1;
        house.recorder.forget();
        let ask = transport.carry(Ask::get("shop.test", "/").from(from.into())).claiming(claimed);
        assert_eq!(ask.at(house.address(transport)).status, 200);
        let client = IpAddr::from(from).to_string();
        assert_eq!(Told::of(&house.recorder.request(1)), house.truth(&client, transport), "{claimed}");
    }
    house.cases += 1;
    house.recorder.forget();
    let absolute = "GET https://shop.test/ HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n";
    let answer = Raw::connect(house.world.http()).send(absolute).read_to_end();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(Told::of(&house.recorder.request(1)), house.truth("127.0.0.1", Transport::Http1));
}

#[test]
fn a_websocket_on_a_stream_of_http2_tells_the_truth_too() {
    let recorder = Recorder::scripted(|seen, stream| {
        let answer: &[u8] = match seen.values("upgrade")[..] {
            [] => b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            _ => b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        };
        drop(stream.write_all(answer));
    });
    let world = World::with_config(CONFIG);
    world.deploy(&recorder.target());
    let _socket = Socket::open_over_http2(world.http(), "shop.test", "/cable", &FORGERIES);
    let told = Told::of(&recorder.request(1));
    assert_eq!(
        (told.client.as_str(), told.proto.as_str(), told.host.as_str()),
        ("127.0.0.1", "http", "shop.test")
    );
}

#[test]
fn trailers_say_nothing_about_who_asks() {
    let config = format!("client_ip_header = \"Our-Client\"\n{CONFIG}");
    for (more, own) in [(&[][..], "Our-Client"), (&["--client-ip-header", "Its-Client"], "Its-Client")] {
        let mut house = House::new(&config, more);
        let twin = own.replace('-', "_");
        for from in [STRANGER, PROXY] {
            for (name, value) in FORGERIES.into_iter().chain([(own, "6.6.6.6"), (&twin, "6.6.6.6")]) {
                house.cases += 1;
                house.recorder.forget();
                let request = format!(
                    "POST / HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\nTrailer: {name}\r\n\r\n\
                     2\r\nhi\r\n0\r\n{name}: {value}\r\nX-Kept: 1\r\n\r\n"
                );
                let mut raw = Raw::connect_from(from.into(), house.world.http());
                let answer = raw.send(request).shut_write().read_to_end();
                assert!(answer.starts_with("HTTP/1.1 200"), "{name}: {answer}");
                let seen = house.recorder.request(1);
                let body = seen.text().to_lowercase();
                assert!(!body.contains(value) && body.contains("x-kept: 1"), "{name}: {body}");
                let client = IpAddr::from(from).to_string();
                assert_eq!(Told::of(&seen), house.truth(&client, Transport::Http1), "{name}");
            }
        }
    }
}

#[test]
fn a_trusted_proxy_speaks_for_its_client_and_not_for_what_that_said() {
    let mut house = House::new(CONFIG, &[]);
    let xff = "x-forwarded-for";
    let chain = |value| (xff, value);
    for (fields, client, proto, host, port) in [
        (&[][..], "127.0.0.2", None, None, None),
        (&[chain("203.0.113.9")], "203.0.113.9", None, None, None),
        // What a client sends stands left of what proxies add to it.
        (&[chain("6.6.6.6, 203.0.113.9")], "203.0.113.9", None, None, None),
        (&[chain("6.6.6.6"), chain("203.0.113.9")], "203.0.113.9", None, None, None),
        (&[chain("6.6.6.6, 10.6.6.6, 203.0.113.9, 10.0.0.1")], "203.0.113.9", None, None, None),
        (&[chain("6.6.6.6, 203.0.113.9"), chain("104.16.0.1, 10.0.0.1")], "203.0.113.9", None, None, None),
        (&[chain("6.6.6.6, [2001:db9::9]:4711, 2001:db8:aa::1")], "2001:db9::9", None, None, None),
        (&[chain("6.6.6.6, ::ffff:203.0.113.9")], "203.0.113.9", None, None, None),
        // Rubbish ends the walk at the last proxy that is known.
        (&[chain("6.6.6.6, rubbish, 10.0.0.1")], "10.0.0.1", None, None, None),
        (&[chain("6.6.6.6, unknown")], "127.0.0.2", None, None, None),
        (&[chain("6.6.6.6, ")], "127.0.0.2", None, None, None),
        // The scheme, host and port of the proxy next to the client.
        (
            &[chain("203.0.113.9"), ("x-forwarded-proto", "https")],
            "203.0.113.9",
            Some("https"),
            None,
            Some("443"),
        ),
        (&[chain("203.0.113.9"), ("x-forwarded-proto", "http")], "203.0.113.9", Some("http"), None, None),
        (
            &[chain("203.0.113.9, 10.0.0.1"), ("x-forwarded-proto", "https,http")],
            "203.0.113.9",
            Some("https"),
            None,
            Some("443"),
        ),
        (&[chain("203.0.113.9"), ("x-forwarded-port", "8443")], "203.0.113.9", None, None, Some("8443")),
        (
            &[chain("203.0.113.9"), ("x-forwarded-host", "www.shop.test")],
            "203.0.113.9",
            None,
            Some("www.shop.test"),
            None,
        ),
        (
            &[chain("203.0.113.9"), ("x-forwarded-host", "evil.test, www.shop.test")],
            "203.0.113.9",
            None,
            Some("www.shop.test"),
            None,
        ),
        // Most proxies pass this one on as it comes; it may say no more than `Host` could.
        (&[chain("203.0.113.9"), ("x-forwarded-host", "evil.test")], "203.0.113.9", None, None, None),
        // Of what a proxy does not write nothing is believed.
        (
            &[chain("203.0.113.9"), ("forwarded", "for=6.6.6.6;proto=https;host=evil.test")],
            "203.0.113.9",
            None,
            None,
            None,
        ),
        (
            &[chain("203.0.113.9"), ("x-real-ip", "6.6.6.6"), ("client-ip", "6.6.6.6")],
            "203.0.113.9",
            None,
            None,
            None,
        ),
        (&[chain("203.0.113.9"), ("x_forwarded_for", "6.6.6.6")], "203.0.113.9", None, None, None),
        (&[chain("203.0.113.9"), ("cf-connecting-ip", "6.6.6.6")], "203.0.113.9", None, None, None),
        (&[chain("203.0.113.9"), ("x-forwarded-ssl", "forged")], "203.0.113.9", None, None, None),
    ] {
        for transport in TRANSPORTS {
            let told = house.told(PROXY, transport, b"", fields);
            let truth = house.truth(client, transport);
            let said = |said: Option<&str>, truth: String| said.map_or(truth, str::to_owned);
            // Over TLS the port of `https` is the listener's.
            let port = port.filter(|port| !(transport.is_tls() && *port == "443"));
            let port = if transport.is_tls() && proto == Some("http") { Some("80") } else { port };
            let want = Told {
                client: client.to_owned(),
                proto: said(proto, truth.proto),
                host: said(host, truth.host),
                port: said(port, truth.port),
            };
            assert_eq!(told, want, "{fields:?} over {transport:?}");
        }
    }
}

/// A header of version 2: what it is for, the family, the addresses and what follows them.
fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).expect("a short header").to_be_bytes();
    [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[0x20 | command, family], &length, rest].concat()
}

/// From 203.0.113.9 to port 8443.
const V2_ADDRESSES: [u8; 12] = [203, 0, 113, 9, 192, 0, 2, 1, 0x30, 0x39, 0x20, 0xfb];
const V1: &[u8] = b"PROXY TCP4 203.0.113.9 192.0.2.1 12345 8443\r\n";

#[test]
fn a_balancer_says_for_whom_it_connects() {
    let mut house = House::new(CONFIG, &[]);
    let mut v6 = [0; 36];
    v6[..16].copy_from_slice(&"2001:db9::9".parse::<std::net::Ipv6Addr>().expect("an address").octets());
    v6[34..].copy_from_slice(&[0x20, 0xfb]);
    let extras = [&V2_ADDRESSES[..], &[0xea, 0, 3, 1, b'v', b'p', 0x04, 0, 1, 0]].concat();
    let forged = ("x-forwarded-for", "6.6.6.6, 127.0.0.2");
    for (header, fields, client, port) in [
        (V1.to_vec(), &[][..], "203.0.113.9", Some("8443")),
        (V1.to_vec(), &[forged], "203.0.113.9", Some("8443")),
        (
            b"PROXY TCP6 2001:db9::9 2001:db9::1 12345 8443\r\n".to_vec(),
            &[forged],
            "2001:db9::9",
            Some("8443"),
        ),
        (b"PROXY UNKNOWN\r\n".to_vec(), &[forged], "127.0.0.3", None),
        (b"PROXY UNKNOWN 6.6.6.6 6.6.6.7 1 2\r\n".to_vec(), &[], "127.0.0.3", None),
        (v2(1, 0x11, &V2_ADDRESSES), &[forged], "203.0.113.9", Some("8443")),
        (v2(1, 0x11, &extras), &[], "203.0.113.9", Some("8443")),
        (v2(1, 0x21, &v6), &[forged], "2001:db9::9", Some("8443")),
        (v2(0, 0x00, &[]), &[forged], "127.0.0.3", None),
        (v2(0, 0x11, &V2_ADDRESSES), &[], "127.0.0.3", None),
        // The balancer's client is a CDN that is trusted: its chain is followed. Strangers' are not.
        (
            b"PROXY TCP4 104.16.0.1 192.0.2.1 1 8443\r\n".to_vec(),
            &[("x-forwarded-for", "6.6.6.6, 203.0.113.9")],
            "203.0.113.9",
            Some("8443"),
        ),
        (
            b"PROXY TCP4 203.0.113.9 192.0.2.1 1 8443\r\n".to_vec(),
            &[
                ("x-forwarded-for", "6.6.6.6"),
                ("x-forwarded-proto", "forged"),
                ("x-forwarded-host", "www.shop.test"),
            ],
            "203.0.113.9",
            Some("8443"),
        ),
    ] {
        for transport in TRANSPORTS {
            let told = house.told(BALANCER, transport, &header, fields);
            let mut want = house.truth(client, transport);
            want.port = port.map_or(want.port, str::to_owned);
            assert_eq!(told, want, "{} {fields:?} over {transport:?}", header.escape_ascii());
        }
    }
    assert_eq!(house.refused(), 0);
    eventually("the log tells clients from those who bring them", || {
        let log = house.world.daemon.access_log();
        let has = |peer: Option<&str>| {
            log.iter().any(|line| {
                line["client"] == "203.0.113.9" && line.get("peer").and_then(|at| at.as_str()) == peer
            })
        };
        if has(None) && has(Some("104.16.0.1")) { Ok(()) } else { Err(format!("{log:#?}")) }
    });
}

#[test]
fn a_header_that_comes_in_pieces_is_one_header() {
    let mut house = House::new(CONFIG, &[]);
    for header in [V1.to_vec(), v2(1, 0x11, &V2_ADDRESSES)] {
        house.cases += 1;
        house.recorder.forget();
        let request = b"GET / HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n";
        let mut raw = Raw::connect_from(BALANCER.into(), house.world.http());
        for byte in [&header[..], request].concat() {
            raw.send([byte]);
        }
        assert!(raw.read_to_end().starts_with("HTTP/1.1 200"));
        assert_eq!(Told::of(&house.recorder.request(1)).client, "203.0.113.9");
    }
}

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n";

#[test]
fn a_header_from_anybody_else_is_rubbish() {
    let mut house = House::new(CONFIG, &[]);
    for from in [STRANGER, PROXY] {
        for header in [V1.to_vec(), b"PROXY UNKNOWN\r\n".to_vec(), v2(1, 0x11, &V2_ADDRESSES), v2(0, 0, &[])]
        {
            for transport in [Transport::Http1, Transport::Tls1] {
                house.cases += 1;
                house.recorder.forget();
                let mut raw = Raw::connect_from(from.into(), house.address(transport));
                let answer = raw.send([&header[..], REQUEST].concat()).shut_write().read_to_end();
                if !transport.is_tls() {
                    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer:?}");
                }
                assert!(!answer.contains("200"), "{answer:?}");
                assert_eq!(house.recorder.settled(), [], "{}", header.escape_ascii());
            }
        }
    }
    assert_eq!(house.refused(), 0, "they are clients like any other");
}

#[test]
fn a_balancer_without_a_header_is_hung_up_on_and_counted() {
    let mut house = House::new(CONFIG, &[]);
    let mut wrong_sum = V2_ADDRESSES.to_vec();
    wrong_sum.extend_from_slice(&[0x03, 0, 4, 0, 0, 0, 0]);
    let beginnings = [
        REQUEST.to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x00\x05hello".to_vec(),
        b"PROXY TCP4 203.0.113.9 192.0.2.1 1 8443\n".to_vec(),
        b"PROXY TCP4 203.0.113.9\r\n".to_vec(),
        b"PROXY TCP4 6.6.6.6 6.6.6.6 1 2 3\r\n".to_vec(),
        [b"PROXY UNKNOWN ", &[b'x'; 200][..], b"\r\n"].concat(),
        v2(1, 0x11, &V2_ADDRESSES[1..]),
        v2(1, 0x11, &wrong_sum),
        v2(1, 0x11, &[0; 5000]),
        v2(2, 0x11, &V2_ADDRESSES),
        V1[..20].to_vec(),
    ];
    for (n, beginning) in (1..).zip(&beginnings) {
        house.cases += 1;
        let mut raw = Raw::connect_from(BALANCER.into(), house.world.http());
        assert_eq!(raw.send(beginning).shut_write().read_to_end(), "", "{}", beginning.escape_ascii());
        eventually("it is counted", || match house.refused() {
            count if count == n => Ok(()),
            count => Err(format!("{count} of {n}: {}", beginning.escape_ascii())),
        });
    }
    // Behind a header is a client, which may not send another one.
    let mut raw = Raw::connect_from(BALANCER.into(), house.world.http());
    let answer = raw.send([V1, V1, REQUEST].concat()).shut_write().read_to_end();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer:?}");
    assert_eq!(house.recorder.settled(), []);
    assert!(house.world.daemon.log().contains("have to begin with a PROXY header"), "it is said");
}

#[test]
fn a_header_has_a_deadline() {
    let house = House::new(&format!("{CONFIG}[limits]\nrequest_head_timeout = \"1s\"\n"), &[]);
    let mut silent = Raw::connect_from(BALANCER.into(), house.world.http());
    let mut slow = Raw::connect_from(BALANCER.into(), house.world.daemon.https());
    slow.send(&V1[..10]);
    assert_eq!((silent.read_to_end(), slow.read_to_end()), (String::new(), String::new()));
    assert_eq!(house.refused(), 2);
}

#[test]
fn clients_behind_a_balancer_count_for_themselves() {
    let config = format!("{CONFIG}[limits]\nconnections_per_client = 2\n");
    let house = House::new(&config, &[]);
    let connect = |client: &str| {
        let mut raw = Raw::connect_from(BALANCER.into(), house.world.http());
        raw.send(format!("PROXY TCP4 {client} 192.0.2.1 1 80\r\nGET / HTTP/1.1\r\nHost: shop.test\r\n\r\n"));
        raw
    };
    let mut inside: Vec<Raw> = Vec::new();
    for client in ["203.0.113.9", "203.0.113.9", "203.0.113.10", "203.0.113.10"] {
        let mut raw = connect(client);
        raw.read_until(|answer| answer.contains("recorded"));
        inside.push(raw);
    }
    assert_eq!(connect("203.0.113.9").read_to_end(), "", "one too many");
    let refused = "portcullis_connections_refused_total{reason=\"client\"}";
    assert_eq!(house.world.daemon.metric(refused), 1);
    drop(inside);
    eventually("places are free again", || {
        let mut raw = connect("203.0.113.9");
        let answer = raw.shut_write().read_to_end();
        if answer.contains("recorded") { Ok(()) } else { Err(answer) }
    });
}

#[test]
fn a_canary_knows_the_client_behind_a_balancer() {
    let house = House::new(CONFIG, &[]);
    let canary = Recorder::start();
    let target = canary.target();
    let start =
        ["canary", "start", "shop", "--target", &target, "--weight", "0%", "--network", "203.0.113.0/24"];
    house.world.operator().run(start).succeeds();
    let ask = |header: &[u8]| {
        let ask = Ask::get("shop.test", "/").from(BALANCER.into()).preceded_by(header.to_vec());
        assert_eq!(ask.header("x-forwarded-for", "203.0.113.9").at(house.world.http()).status, 200);
    };
    ask(V1);
    assert_eq!(canary.received().len(), 1, "the client's network is an override");
    ask(b"PROXY TCP4 198.51.100.1 192.0.2.1 1 80\r\n");
    assert_eq!((canary.received().len(), house.recorder.received().len()), (1, 1), "a forged one is not");
}

#[test]
fn a_cdn_may_name_the_client_in_a_field_of_its_own() {
    // Of the process; of the service, which comes first.
    let config = format!("client_ip_header = \"CF-Connecting-IP\"\n{CONFIG}");
    for (config, more, name, other) in [
        (config.as_str(), &[][..], "CF-Connecting-IP", "True-Client-IP"),
        (config.as_str(), &["--client-ip-header", "True-Client-IP"], "True-Client-IP", "CF-Connecting-IP"),
        (CONFIG, &["--client-ip-header", "My-Client"], "My-Client", "CF-Connecting-IP"),
    ] {
        let mut house = House::new(config, more);
        let chain = ("x-forwarded-for", "198.51.100.7");
        let twin = name.replace('-', "_");
        for (from, preamble, fields, client) in [
            (PROXY, &b""[..], vec![(name, "203.0.113.9"), chain], "203.0.113.9"),
            (
                PROXY,
                b"",
                vec![(name, "203.0.113.9"), chain, (&twin, "6.6.6.6"), (other, "6.6.6.6")],
                "203.0.113.9",
            ),
            (PROXY, b"", vec![(name, "2001:db9::9")], "2001:db9::9"),
            (PROXY, b"", vec![(name, "forged"), chain], "198.51.100.7"),
            (PROXY, b"", vec![(name, "6.6.6.6, 6.6.6.7"), chain], "198.51.100.7"),
            (PROXY, b"", vec![(name, "6.6.6.6"), (name, "6.6.6.7"), chain], "198.51.100.7"),
            (PROXY, b"", vec![chain], "198.51.100.7"),
            (STRANGER, b"", vec![(name, "6.6.6.6"), ("x-forwarded-for", "6.6.6.6")], "127.0.0.1"),
            (STRANGER, b"", vec![(&twin, "6.6.6.6")], "127.0.0.1"),
            (BALANCER, V1, vec![(name, "6.6.6.6")], "203.0.113.9"),
        ] {
            for transport in TRANSPORTS {
                let told = house.told(from, transport, preamble, &fields);
                assert_eq!(told.client, client, "{fields:?} over {transport:?}");
                // An app that looks there finds the truth as well.
                let seen = house.recorder.request(1);
                assert_eq!(seen.values(name), [client], "{fields:?}: {}", seen.head);
            }
        }
    }
}

#[test]
fn a_service_may_trust_private_networks() {
    // Loopback is private.
    let chain = [("x-forwarded-for", "6.6.6.6, 203.0.113.9"), ("x-forwarded-proto", "https")];
    let forged = [("x-forwarded-for", "6.6.6.6"), ("x-forwarded-proto", "https")];
    let config = "[proxy_protocol]\nhttp = [\"127.0.0.3\"]\n";
    for (more, from, preamble, fields, client, proto) in [
        (&["--forward-headers"][..], STRANGER, &b""[..], &chain, "203.0.113.9", "https"),
        (&["--forward-headers=false"], STRANGER, b"", &forged, "127.0.0.1", "http"),
        (&[], STRANGER, b"", &forged, "127.0.0.1", "http"),
        // Whoever comes from a public address never speaks for anybody but is listed.
        (&["--forward-headers"], BALANCER, V1, &forged, "203.0.113.9", "http"),
    ] {
        let mut house = House::new(config, more);
        let told = house.told(from, Transport::Http1, preamble, fields);
        assert_eq!((told.client.as_str(), told.proto.as_str()), (client, proto), "{more:?}");
    }
}

#[test]
fn proxies_may_write_the_standard_field() {
    let config = format!("proxy_headers = \"forwarded\"\n{CONFIG}");
    let mut house = House::new(&config, &[]);
    let forwarded = |value| ("forwarded", value);
    let forged = ("x-forwarded-for", "6.6.6.6");
    for (from, fields, client, https, host) in [
        (PROXY, &[forwarded("for=203.0.113.9"), forged][..], "203.0.113.9", None, None),
        (
            PROXY,
            &[forwarded("for=6.6.6.6, for=\"[2001:db9::9]:47\";proto=https")],
            "2001:db9::9",
            Some("https"),
            None,
        ),
        (
            PROXY,
            &[forwarded("for=6.6.6.6"), forwarded("For=203.0.113.9;Host=www.shop.test")],
            "203.0.113.9",
            None,
            Some("www.shop.test"),
        ),
        (PROXY, &[forwarded("for=203.0.113.9;host=evil.test")], "203.0.113.9", None, None),
        (PROXY, &[forwarded("for=6.6.6.6;proto=https, for=203.0.113.9")], "203.0.113.9", None, None),
        (
            PROXY,
            &[forwarded("for=203.0.113.9;proto=https, for=10.0.0.1;proto=http")],
            "203.0.113.9",
            Some("https"),
            None,
        ),
        (PROXY, &[forwarded("for=6.6.6.6, for=_secret, for=10.0.0.1")], "10.0.0.1", None, None),
        (PROXY, &[forwarded("for=6.6.6.6, for=unknown")], "127.0.0.2", None, None),
        // A quotation mark that the client leaves open swallows nothing.
        (PROXY, &[forwarded("for=\"6.6.6.6, for=203.0.113.9")], "127.0.0.2", None, None),
        (PROXY, &[forwarded("for=6.6.6.6;x=\", for=\"[2001:db9::9]\"")], "127.0.0.2", None, None),
        (
            PROXY,
            &[forged, ("x-forwarded-proto", "https"), ("x-forwarded-host", "evil.test")],
            "127.0.0.2",
            None,
            None,
        ),
        (STRANGER, &[forwarded("for=6.6.6.6;proto=https;host=evil.test")], "127.0.0.1", None, None),
    ] {
        for transport in TRANSPORTS {
            let told = house.told(from, transport, b"", fields);
            let truth = house.truth(client, transport);
            let host = host.map_or(truth.host, str::to_owned);
            let proto = https.map_or(truth.proto, str::to_owned);
            assert_eq!((told.client, told.proto, told.host), (client.to_owned(), proto, host), "{fields:?}");
        }
    }
}

#[test]
fn rails_sees_the_truth_without_being_told_of_proxies() {
    let world = World::with_config(CONFIG);
    let puma = Puma::start(App::Rails, "v1");
    world.deploy_with(&puma.target(), &["--host", "www.shop.test", "--tls", "--tls-redirect=false"]);
    let mut cases = 0;
    let cloudflare = b"PROXY TCP4 104.16.0.1 192.0.2.1 1 443\r\n";
    let xff = |value| ("x-forwarded-for", value);
    let https = ("x-forwarded-proto", "https");
    for (from, preamble, fields, tls, remote_ip, scheme, host) in [
        (STRANGER, &b""[..], vec![], false, "127.0.0.1", "http", "shop.test"),
        (STRANGER, b"", FORGERIES.to_vec(), false, "127.0.0.1", "http", "shop.test"),
        (STRANGER, b"", FORGERIES.to_vec(), true, "127.0.0.1", "https", "shop.test"),
        (
            STRANGER,
            b"",
            vec![xff("6.6.6.6"), ("client-ip", "6.6.6.7"), https],
            false,
            "127.0.0.1",
            "http",
            "shop.test",
        ),
        (
            STRANGER,
            b"",
            vec![("x-forwarded-ssl", "on"), ("forwarded", "proto=https")],
            false,
            "127.0.0.1",
            "http",
            "shop.test",
        ),
        (PROXY, b"", vec![xff("203.0.113.9"), https], false, "203.0.113.9", "https", "shop.test"),
        (
            PROXY,
            b"",
            vec![xff("6.6.6.6, 203.0.113.9, 10.0.0.1"), https],
            false,
            "203.0.113.9",
            "https",
            "shop.test",
        ),
        (
            PROXY,
            b"",
            vec![xff("203.0.113.9"), ("client-ip", "6.6.6.6")],
            false,
            "203.0.113.9",
            "http",
            "shop.test",
        ),
        (
            PROXY,
            b"",
            vec![xff("203.0.113.9"), ("x-forwarded-host", "evil.test")],
            false,
            "203.0.113.9",
            "http",
            "shop.test",
        ),
        (
            PROXY,
            b"",
            vec![xff("203.0.113.9"), ("x-forwarded-host", "www.shop.test")],
            false,
            "203.0.113.9",
            "http",
            "www.shop.test",
        ),
        // A client of a private network, whom Rails takes for one more proxy, with a forged address in front.
        (PROXY, b"", vec![xff("6.6.6.6, 192.168.7.7")], false, "192.168.7.7", "http", "shop.test"),
        (BALANCER, V1, vec![xff("6.6.6.6"), https], false, "203.0.113.9", "http", "shop.test"),
        (BALANCER, V1, vec![], true, "203.0.113.9", "https", "shop.test"),
        // A CDN has public addresses, which Rails would take for the client.
        (
            BALANCER,
            cloudflare,
            vec![xff("6.6.6.6, 203.0.113.9"), https],
            false,
            "203.0.113.9",
            "https",
            "shop.test",
        ),
        (BALANCER, cloudflare, vec![xff("6.6.6.6, 2001:db9::9")], true, "2001:db9::9", "https", "shop.test"),
    ] {
        for h2 in [false, true] {
            cases += 1;
            let ask = Ask::get("shop.test", "/headers").from(from.into()).preceded_by(preamble.to_vec());
            let ask = fields.iter().fold(ask, |ask, (name, value)| ask.header(name, value));
            let ask = if tls { ask.tls() } else { ask };
            let ask = if h2 { ask.h2() } else { ask };
            let answer = ask.at(if tls { world.daemon.https() } else { world.http() });
            assert_eq!(answer.status, 200, "{fields:?}: {answer}");
            let seen = answer.json();
            let got = [&seen["remote_ip"], &seen["ip"], &seen["scheme"], &seen["ssl"]];
            let text = |text: &str| serde_json::Value::from(text);
            let want = [text(remote_ip), text(remote_ip), text(scheme), (scheme == "https").into()];
            assert_eq!(got.map(Clone::clone), want, "{fields:?}: {seen}");
            let url = seen["url"].as_str().expect("a text");
            assert!(
                url.starts_with(&format!("{scheme}://{host}")) && url.ends_with("/headers"),
                "{fields:?}: {url}"
            );
        }
    }
    let _ = writeln!(std::io::stderr(), "spoofing: {cases} cases with Rails");
}

#[test]
fn a_list_of_proxies_that_cannot_be_read_is_refused_at_the_start() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let list = dir.path().join("cdn.txt");
    std::fs::write(&list, "10.0.0.0/8\n10.1.2.3/99\n").expect("a fresh directory can be written");
    for (entry, wants) in [
        ("cloudfare", "one of `cloudflare`, `cloudfront`, `fastly`, `private`"),
        (list.to_str().expect("a path in UTF-8"), "line 2: `10.1.2.3/99` is not a network"),
    ] {
        let args = ["--trusted-proxy", entry].map(Into::into).to_vec();
        let options = harness::DaemonOptions { args, ..harness::DaemonOptions::default() };
        let (status, log) = harness::Daemon::start_in_vain(dir.path(), &options);
        assert_eq!(status.code(), Some(2), "{log}");
        assert!(log.contains(wants), "{log}");
    }
}
