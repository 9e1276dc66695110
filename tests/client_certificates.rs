//! A service that asks its clients for certificates is reached by those whom it trusts, whichever way they come.

use std::path::PathBuf;

use harness::{Ask, Authority, ClientAuthority, DaemonOptions, Raw, Recorder, Visitor, World};
use rustls::SupportedProtocolVersion;
use rustls::version::{TLS12, TLS13};

/// What the app is told of a client's certificate.
const TOLD: [&str; 4] = ["client-cert", "x-ssl-client-verify", "x-ssl-client-s-dn", "x-ssl-client-sha256"];

const FORGED: &str = "Client-Cert: :AAAA:\r\nX-SSL-Client-Verify: SUCCESS\r\nX-SSL-Client-S-DN: CN=root\r\n\
    X_SSL_Client_S_DN: CN=root\r\nX-SSL-Client-SHA256: 00\r\nClient-Cert-Chain: :AAAA:\r\n";

const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];

struct Asking {
    world: World,
    recorder: Recorder,
    ours: ClientAuthority,
    files: Authority,
}

impl Asking {
    fn start() -> Self {
        Self::with(World::start())
    }

    fn with(world: World) -> Self {
        let (files, ours) = (Authority::default(), ClientAuthority::new("ours"));
        Self { world, recorder: Recorder::start(), ours, files }
    }

    /// The file with whom it trusts.
    fn trusting(&self, authorities: &[&ClientAuthority]) -> String {
        let path: PathBuf = self.files.path("clients.pem");
        let pem: String = authorities.iter().map(|one| one.pem()).collect();
        std::fs::write(&path, pem).expect("a fresh directory can be written");
        path.to_str().expect("a path in UTF-8").to_owned()
    }

    fn deploy(&self, more: &[&str]) {
        self.world.deploy_with(&self.recorder.target(), &[&["--tls"], more].concat());
    }

    /// Asks for certificates of `ours`.
    fn deploy_asking(&self, more: &[&str]) {
        let ca = self.trusting(&[&self.ours]);
        self.deploy(&[&["--tls-client-ca-path", &ca], more].concat());
    }

    /// The status of one visit and what the app was told; nothing came of it where the handshake failed.
    fn visit(&self, visitor: &Visitor, path: &str) -> (Option<u16>, Vec<String>) {
        self.recorder.forget();
        let request = format!("GET {path} HTTP/1.1\r\nHost: shop.test\r\n{FORGED}Connection: close\r\n\r\n");
        let visit = visitor.send(self.world.daemon.https(), "shop.test", &request);
        let received = self.recorder.received();
        let told = received.iter().flat_map(|request| {
            assert!(!request.head.to_lowercase().contains("x_ssl"), "{}", request.text());
            assert!(request.values("client-cert-chain").is_empty(), "{}", request.text());
            TOLD.iter().flat_map(|name| request.values(name)).map(str::to_owned).collect::<Vec<_>>()
        });
        let told = told.collect();
        // For the log of a story that fails.
        let status = visit.inspect_err(|why| println!("{why}")).ok().map(|visit| visit.status);
        assert_eq!(status == Some(200), received.len() == 1, "what is refused does not reach the app");
        (status, told)
    }
}

#[test]
fn who_shows_no_certificate_or_somebody_elses_is_refused() {
    let asking = Asking::start();
    asking.deploy_asking(&[]);
    let (ann, stranger) = (asking.ours.certify("ann"), ClientAuthority::new("theirs").certify("ann"));
    for version in VERSIONS {
        let (status, told) = asking.visit(&Visitor::showing_over(&ann, &[version]), "/");
        assert_eq!(status, Some(200), "{version:?}");
        assert!(told[0].starts_with(':') && told[0].ends_with(':') && told[0].len() > 100, "{told:?}");
        assert_eq!(&told[1..3], ["SUCCESS", "CN=ann"], "{version:?}");
        assert_eq!(told[3].len(), 64, "{told:?}");
        let stranger = Visitor::showing_over(&stranger, &[version]);
        assert_eq!(asking.visit(&stranger, "/"), (None, vec![]), "{version:?}");
    }
    for visitor in [Visitor::new(), Visitor::of_tls12()] {
        assert_eq!(asking.visit(&visitor, "/"), (None, vec![]));
    }
}

#[test]
fn where_it_is_optional_the_app_is_told_and_decides() {
    let asking = Asking::start();
    asking.deploy_asking(&["--tls-client-auth", "optional"]);
    let ann = Visitor::showing(&asking.ours.certify("ann"));
    let (status, told) = asking.visit(&ann, "/");
    assert_eq!((status, &*told[1], &*told[2]), (Some(200), "SUCCESS", "CN=ann"));
    assert_eq!(asking.visit(&Visitor::new(), "/"), (Some(200), vec!["NONE".to_owned()]));
    let stranger = Visitor::showing(&ClientAuthority::new("theirs").certify("ann"));
    assert_eq!(asking.visit(&stranger, "/"), (None, vec![]));

    // Whoever is not asked at all cannot say anything about it either.
    asking.deploy(&["--tls-client-ca-path", ""]);
    assert_eq!(asking.visit(&ann, "/"), (Some(200), vec![]));
}

#[test]
fn without_tls_of_ours_there_is_no_certificate() {
    let args = ["--trusted-proxy", "127.0.0.0/8"].map(Into::into).to_vec();
    let asking = Asking::with(World::with(DaemonOptions { args, ..DaemonOptions::default() }));
    asking.deploy_asking(&["--tls-redirect=false"]);
    asking.recorder.forget();
    let plain = Ask::get("shop.test", "/");
    // A proxy that ends TLS cannot pass on what its client has shown.
    for ask in [plain.clone(), plain.clone().h2(), plain.header("x-forwarded-proto", "https")] {
        let answer = ask.at(asking.world.http());
        let reason = answer.header("x-portcullis-reason");
        assert_eq!((answer.status.as_u16(), reason), (403, "client_certificate_required"), "{answer}");
    }
    assert!(asking.recorder.received().is_empty());
}

#[test]
fn services_that_share_a_host_ask_for_themselves() {
    let asking = Asking::start();
    asking.deploy(&[]);
    let ca = asking.trusting(&[&asking.ours]);
    let target = asking.recorder.target();
    let admin = ["deploy", "admin", "--target", &target, "--host", "shop.test", "--path-prefix", "/admin"];
    let how = ["--tls", "--tls-client-ca-path", &ca, "--bake", "0s"];
    asking.world.operator().run(admin.iter().chain(&how)).succeeds();
    let ann = Visitor::showing(&asking.ours.certify("ann"));
    let (status, told) = asking.visit(&ann, "/admin");
    assert_eq!((status, &*told[2]), (Some(200), "CN=ann"));
    assert_eq!(asking.visit(&ann, "/"), (Some(200), vec![]), "this one has not asked");
    assert_eq!(asking.visit(&Visitor::new(), "/"), (Some(200), vec![]));
    assert_eq!(asking.visit(&Visitor::new(), "/admin"), (Some(403), vec![]));
    // Another spelling of the path is another path, or the same service.
    for path in ["/admin/", "/admin/x", "//admin", "/x/../admin", "/%61dmin"] {
        let (status, told) = asking.visit(&Visitor::new(), path);
        assert!(status != Some(200) || told.is_empty(), "{path}: {status:?} {told:?}");
    }
}

/// `www.test` and `shop.test` have one certificate, and only handshakes for the latter ask for one of the client.
fn with_two_names(asking: &Asking) {
    let world = &asking.world;
    let target = asking.recorder.target();
    let hosts = ["--host", "www.test", "--host", "shop.test"];
    let deploy = ["deploy", "www", "--target", &target, "--tls", "--bake", "0s"];
    world.operator().run(deploy.iter().chain(&hosts)).succeeds();
    let ca = asking.trusting(&[&asking.ours]);
    let admin = ["deploy", "admin", "--target", &target, "--host", "shop.test", "--path-prefix", "/admin"];
    let how = ["--tls", "--tls-client-ca-path", &ca, "--bake", "0s"];
    world.operator().run(admin.iter().chain(&how)).succeeds();
    asking.recorder.forget();
}

#[test]
fn a_connection_that_was_not_asked_is_sent_to_one_that_is() {
    let asking = Asking::start();
    with_two_names(&asking);
    let https = asking.world.daemon.https();
    // A browser that reuses a connection for another name of its certificate.
    let open = Ask::get("shop.test", "/").tls().under("www.test");
    let guarded = Ask::get("shop.test", "/admin").tls().under("www.test");
    for (open, guarded) in [(open.clone(), guarded.clone()), (open.h2(), guarded.h2())] {
        assert_eq!(open.at(https).status, 200, "the certificate is good for it");
        let answer = guarded.at(https);
        assert_eq!((answer.status.as_u16(), answer.header("x-portcullis-reason")), (421, "misdirected"));
    }
    assert_eq!(asking.recorder.received().len(), 2);
}

#[test]
fn every_request_of_a_kept_connection_is_looked_at() {
    let asking = Asking::start();
    with_two_names(&asking);
    let https = asking.world.daemon.https();
    let mut kept = Raw::connect_tls(https, "www.test", &["http/1.1"]);
    for (host, path, status) in [
        ("www.test", "/", "200"),
        ("shop.test", "/admin", "421"),
        ("shop.test", "/", "200"),
        ("shop.test", "/admin", "421"),
    ] {
        let before = kept.text().len();
        kept.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        let answered = |text: &str| text[before..].contains("\r\n\r\n");
        let text = kept.read_until(answered);
        let answer = &text[before..];
        assert!(answer.contains(&format!("HTTP/1.1 {status} ")), "{host}{path}: {answer}");
    }
}

#[test]
fn a_session_from_before_it_asked_is_of_no_use() {
    let asking = Asking::start();
    asking.deploy(&[]);
    let (newer, older) = (Visitor::new(), Visitor::of_tls12());
    let https = asking.world.daemon.https();
    for visitor in [&newer, &older] {
        for resumed in [false, true] {
            assert_eq!(visitor.visit(https, "shop.test", "/").unwrap().resumed, resumed);
        }
    }
    asking.deploy_asking(&[]);
    for visitor in [&newer, &older] {
        assert_eq!(asking.visit(visitor, "/"), (None, vec![]));
    }
    asking.deploy_asking(&["--tls-client-auth", "optional"]);
    let anybody = Visitor::new();
    for resumed in [false, true] {
        let visit = anybody.visit(https, "shop.test", "/").unwrap();
        assert_eq!((visit.resumed, visit.status), (resumed, 200));
    }
    asking.deploy_asking(&["--tls-client-auth", "required"]);
    assert_eq!(asking.visit(&anybody, "/"), (None, vec![]));
}

#[test]
fn whoever_resumes_is_known_until_another_is_trusted() {
    let asking = Asking::start();
    asking.deploy_asking(&[]);
    let https = asking.world.daemon.https();
    let ann = asking.ours.certify("ann");
    let visitors = VERSIONS.map(|version| Visitor::showing_over(&ann, &[version]));
    for visitor in &visitors {
        for resumed in [false, true, true] {
            asking.recorder.forget();
            let visit = visitor.visit(https, "shop.test", "/").unwrap();
            assert_eq!((visit.resumed, visit.status), (resumed, 200), "{visit:?}");
            assert_eq!(asking.recorder.received()[0].values("x-ssl-client-s-dn"), ["CN=ann"]);
        }
    }
    // The same deploy again reads the file anew.
    let theirs = ClientAuthority::new("theirs");
    asking.trusting(&[&theirs]);
    asking.deploy(&[]);
    for visitor in &visitors {
        assert_eq!(asking.visit(visitor, "/"), (None, vec![]));
    }
    let bob = Visitor::showing(&theirs.certify("bob"));
    assert_eq!(asking.visit(&bob, "/").1[2], "CN=bob");
    // Both, while clients get new ones.
    asking.trusting(&[&theirs, &asking.ours]);
    asking.deploy(&[]);
    for visitor in visitors.iter().chain([&bob]) {
        assert_eq!(asking.visit(visitor, "/").0, Some(200));
    }
}

#[test]
fn a_file_that_nobody_can_be_known_by_is_refused_at_the_deploy() {
    let asking = Asking::start();
    asking.deploy(&[]);
    let path = |name: &str, text: &str| {
        let path = asking.files.path(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for (file, want) in [
        (asking.files.path("missing.pem").to_str().unwrap().to_owned(), "cannot read"),
        (path("empty.pem", ""), "holds no certificate"),
        (path("key.pem", &asking.ours.certify("ann").1), "holds no certificate"),
        (path("broken.pem", broken), "none of an authority"),
    ] {
        let target = asking.recorder.target();
        let deploy = ["deploy", "shop", "--target", &target, "--tls-client-ca-path", &file];
        let refused = asking.world.operator().run(deploy).fails_with(1);
        assert!(refused.stderr().contains(want) && refused.stderr().contains(&file), "{refused}");
    }
    assert_eq!(asking.visit(&Visitor::new(), "/").0, Some(200), "nothing has changed");
}

#[test]
fn after_a_restart_without_the_file_nobody_is_trusted() {
    let mut asking = Asking::start();
    asking.deploy_asking(&[]);
    let ann = Visitor::showing(&asking.ours.certify("ann"));
    asking.world.daemon.kill_9();
    asking.world.daemon.start_again();
    assert_eq!(asking.visit(&ann, "/").0, Some(200));
    asking.world.daemon.kill_9();
    std::fs::remove_file(asking.files.path("clients.pem")).unwrap();
    asking.world.daemon.start_again();
    for visitor in [&ann, &Visitor::new()] {
        assert_eq!(asking.visit(visitor, "/"), (Some(403), vec![]));
    }
    // A deploy with the file in its place mends it.
    asking.deploy_asking(&[]);
    assert_eq!(asking.visit(&ann, "/").0, Some(200));
}
