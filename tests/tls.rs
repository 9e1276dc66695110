//! TLS ends at Portcullis: the right certificate for each name, and nothing for names that are not ours.

use harness::{App, Ask, Authority, Puma, World, handshake};

fn pem_to_der(pem: &std::path::Path) -> Vec<u8> {
    let output = std::process::Command::new("openssl")
        .args(["x509", "-outform", "DER", "-in"])
        .arg(pem)
        .output()
        .expect("openssl is installed (bin/test installs it)");
    output.stdout
}

#[test]
fn each_service_shows_its_own_certificate() {
    let world = World::start();
    let authority = Authority::default();
    let puma = Puma::start(App::Rack, "v1");
    let mut expected = Vec::new();
    for name in ["shop.test", "blog.test"] {
        let (certificate, key) = authority.certify(name);
        let service = name.split('.').next().unwrap_or(name);
        world
            .operator()
            .run([
                "deploy",
                service,
                "--target",
                &puma.target(),
                "--host",
                name,
                "--bake",
                "0s",
                "--tls",
                "--tls-certificate-path",
                certificate.to_str().unwrap(),
                "--tls-private-key-path",
                key.to_str().unwrap(),
            ])
            .succeeds();
        expected.push((name, pem_to_der(&certificate)));
    }
    for (name, der) in expected {
        for spelling in [name.to_owned(), name.to_uppercase()] {
            let shown = handshake(world.daemon.https(), &spelling, &[]).unwrap();
            assert_eq!(shown.certificate, der, "{spelling}");
        }
        assert_eq!(Ask::get(name, "/").tls().at(world.daemon.https()).text(), "v1");
    }
}

#[test]
fn a_service_without_certificate_shows_a_placeholder() {
    let world = World::start();
    let puma = Puma::start(App::Rack, "v1");
    world.deploy_with(&puma.target(), &["--tls"]);
    assert!(!handshake(world.daemon.https(), "shop.test", &[]).unwrap().certificate.is_empty());
    for ask in [Ask::get("shop.test", "/").tls(), Ask::get("shop.test", "/").tls().h2()] {
        assert_eq!(ask.at(world.daemon.https()).text(), "v1");
    }
}

#[test]
fn alpn_offers_both_versions() {
    let world = World::start();
    let puma = Puma::start(App::Rack, "v1");
    world.deploy_with(&puma.target(), &["--tls"]);
    for (offered, chosen) in [
        (&["h2", "http/1.1"][..], Some("h2")),
        (&["http/1.1"], Some("http/1.1")),
        (&["http/1.1", "h2"], Some("h2")),
        (&[], None),
    ] {
        let shown = handshake(world.daemon.https(), "shop.test", offered).unwrap();
        assert_eq!(shown.alpn.as_deref(), chosen, "{offered:?}");
    }
    assert!(handshake(world.daemon.https(), "shop.test", &["spdy/3"]).is_err());
}

#[test]
fn names_that_are_not_ours_get_no_certificate() {
    let world = World::start();
    let puma = Puma::start(App::Rack, "v1");
    world.deploy_with(&puma.target(), &["--tls"]);
    for name in ["other.test", "a.shop.test"] {
        assert!(handshake(world.daemon.https(), name, &[]).is_err(), "{name}");
    }
}

#[test]
fn a_connection_for_one_name_does_not_serve_another() {
    let world = World::start();
    let puma = Puma::start(App::Rack, "v1");
    world.deploy_with(&puma.target(), &["--tls"]);
    let target = puma.target();
    world
        .agentctl(["deploy", "blog", "--target", &target, "--host", "blog.test", "--tls", "--bake", "0s"])
        .succeeds();
    // The Host field says something else than the handshake did.
    let answer = Ask::get("shop.test", "/").tls().under("blog.test").at(world.daemon.https());
    assert_eq!((answer.status.as_u16(), answer.header("x-portcullis-reason")), (421, "misdirected"));
}

#[test]
fn plain_http_is_redirected_for_a_service_with_tls() {
    let world = World::start();
    let puma = Puma::start(App::Rack, "v1");
    world.deploy_with(&puma.target(), &["--tls"]);
    let answer = Ask::get("shop.test", "/a%2Fb?c=d").at(world.http());
    assert_eq!(answer.status, 301, "{answer}");
    let location = answer.header("location");
    assert!(location.starts_with("https://shop.test") && location.ends_with("/a%2Fb?c=d"), "{location}");
    let posted = Ask::post("shop.test", "/", "body").at(world.http());
    assert_eq!(posted.status, 308, "the method is kept: {posted}");

    world.deploy_with(&puma.target(), &["--tls", "--tls-redirect=false"]);
    assert_eq!(world.get("/").text(), "v1");
}

#[test]
fn a_certificate_that_does_not_fit_is_refused_before_the_wait() {
    let world = World::start();
    let authority = Authority::default();
    let puma = Puma::start(App::Rack, "v1");
    world.deploy(&puma.target());
    let (certificate, _) = authority.certify("shop.test");
    let (_, other_key) = authority.certify("blog.test");
    let rubbish = authority.path("rubbish.pem");
    std::fs::write(&rubbish, "no PEM at all").unwrap();
    let missing = authority.path("missing.pem");
    for (certificate, key) in [(&certificate, &other_key), (&rubbish, &other_key), (&missing, &other_key)] {
        let args = ["--tls", "--tls-certificate-path", certificate.to_str().unwrap()];
        let target = puma.target();
        let deploy = ["deploy", "shop", "--target", &target, "--tls-private-key-path", key.to_str().unwrap()];
        let refused = world.operator().run(deploy.iter().chain(&args)).fails_with(1);
        assert!(refused.stderr().contains(".pem") || refused.stderr().contains(".key"), "{refused}");
    }
    assert_eq!(world.get("/").text(), "v1", "still without TLS");
}

#[test]
fn a_cutover_under_tls_loses_nothing_either() {
    let world = World::start();
    let (v1, v2) = (Puma::start(App::Rack, "v1"), Puma::start(App::Rack, "v2"));
    world.deploy_with(&v1.target(), &["--tls"]);
    let load = world.load_over_tls("/");
    for target in [v2.target(), v1.target(), v2.target()] {
        world.deploy_with(&target, &["--tls"]);
    }
    load.goes_on_for(20);
    let seen = load.finish().lost_nothing();
    assert_eq!(seen.last_body(), "v2", "{seen}");
}
