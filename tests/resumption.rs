//! Whoever comes back resumes the session, at any worker, for as long as the keys of tickets live.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use harness::{App, Puma, Visitor, World, eventually};
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
fn the_client_chooses_the_key_exchange_and_we_the_cipher() {
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
    assert_eq!(modern.suite, CipherSuite::TLS13_AES_128_GCM_SHA256, "{modern:?}");
    let older = Visitor::of_tls12().visit(at, "shop.test", "/").unwrap();
    assert_eq!(older.suite, CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, "{older:?}");
}

#[test]
fn sessions_outlive_a_restart() {
    let mut world = World::start();
    let puma = Puma::start(App::Rack, "v1");
    world.deploy_with(&puma.target(), &["--tls"]);
    let visitors = [Visitor::new(), Visitor::of_tls12()];
    // What is not on disk yet when the power fails is no use to anybody, so let the first ticket prove that it is.
    eventually("the keys are there", || {
        let keys = world.dir().join("state/certs/tickets");
        keys.exists().then_some(()).ok_or_else(|| format!("no {}", keys.display()))
    });
    for visitor in &visitors {
        assert_eq!(visitor.visit(world.daemon.https(), "shop.test", "/").unwrap().status, 200);
    }
    world.daemon.kill_9();
    world.daemon.start_again();
    for visitor in &visitors {
        let visit = visitor.visit(world.daemon.https(), "shop.test", "/").unwrap();
        assert!(visit.resumed && visit.status == 200, "{visit:?}");
    }
}

#[test]
fn a_session_of_one_vm_is_resumed_by_another() {
    let shared = tempfile::tempdir().unwrap();
    let (store, key) = (shared.path().join("store"), shared.path().join("key"));
    std::fs::create_dir(&store).unwrap();
    std::fs::write(&key, "00112233445566778899aabbccddeeff".repeat(2)).unwrap();
    std::fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    let config = format!(
        "[store]\ndir = \"{}\"\nkey_file = \"{}\"\npoll = \"200ms\"\n",
        store.display(),
        key.display()
    );
    let puma = Puma::start(App::Rack, "v1");
    let mut vms: Vec<World> = (0..2).map(|_| World::with_config(&config)).collect();
    for vm in &vms {
        vm.deploy_with(&puma.target(), &["--tls"]);
    }
    let crosses = |vms: &[World]| {
        // Each time another visitor, who has never been at the second one.
        let visitor = Visitor::new();
        let [first, second] =
            [0, 1].map(|vm| visitor.visit(vms[vm].daemon.https(), "shop.test", "/").unwrap());
        assert!(!first.resumed);
        second.resumed.then_some(()).ok_or_else(|| format!("{second:?}"))
    };
    eventually("both have the same keys", || crosses(&vms));

    // Without the store they go on, and come up again.
    std::fs::rename(&store, shared.path().join("away")).unwrap();
    for vm in &mut vms {
        vm.daemon.kill_9();
        vm.daemon.start_again();
    }
    crosses(&vms).unwrap();
}
