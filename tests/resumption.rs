//! Whoever comes back resumes the session, at any worker, for as long as the keys of tickets live.

use harness::{App, Puma, Visitor, World};
use rustls::crypto::aws_lc_rs::kx_group;
use rustls::{CipherSuite, NamedGroup, ProtocolVersion};

#[test]
fn whoever_comes_back_resumes_at_any_worker() {
    let world = World::with_args(["--workers", "4"]);
    let puma = Puma::start(App::Rack, "v1");
    world.deploy_with(&puma.target(), &["--tls"]);
    for (visitor, version) in
        [(Visitor::new(), ProtocolVersion::TLSv1_3), (Visitor::of_tls12(), ProtocolVersion::TLSv1_2)]
    {
        for n in 0..40 {
            let visit = visitor.visit(world.daemon.https(), "shop.test", "/").unwrap();
            assert_eq!((visit.version, visit.status), (version, 200), "{visit:?}");
            assert_eq!(visit.resumed, n > 0, "visit {n}: {visit:?}");
            assert!(!visit.took_early_data, "a request must not come twice: {visit:?}");
        }
    }
}

#[test]
fn another_name_begins_a_session_of_its_own() {
    let world = World::start();
    let puma = Puma::start(App::Rack, "v1");
    world.deploy_with(&puma.target(), &["--tls", "--host", "www.shop.test"]);
    let visitor = Visitor::new();
    for (name, resumed) in
        [("shop.test", false), ("www.shop.test", false), ("shop.test", true), ("www.shop.test", true)]
    {
        let visit = visitor.visit(world.daemon.https(), name, "/").unwrap();
        assert_eq!(visit.resumed, resumed, "{name}: {visit:?}");
    }
}

#[test]
fn the_clients_choice_of_keys_is_followed_and_the_best_ciphers_come_first() {
    let world = World::start();
    let puma = Puma::start(App::Rack, "v1");
    world.deploy_with(&puma.target(), &["--tls"]);
    let at = world.daemon.https();
    for (groups, want) in [
        (&[kx_group::X25519MLKEM768, kx_group::X25519][..], NamedGroup::X25519MLKEM768),
        (&[kx_group::X25519, kx_group::X25519MLKEM768], NamedGroup::X25519),
        (&[kx_group::SECP256R1], NamedGroup::secp256r1),
        (&[kx_group::SECP384R1], NamedGroup::secp384r1),
    ] {
        let visit = Visitor::with_groups(groups).visit(at, "shop.test", "/").unwrap();
        assert_eq!((visit.group, visit.status), (Some(want), 200), "{visit:?}");
    }
    let modern = Visitor::new().visit(at, "shop.test", "/").unwrap();
    assert_eq!(modern.suite, CipherSuite::TLS13_AES_256_GCM_SHA384, "{modern:?}");
    let older = Visitor::of_tls12().visit(at, "shop.test", "/").unwrap();
    assert_eq!(older.suite, CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, "{older:?}");
}
