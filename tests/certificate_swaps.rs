//! Certificates are exchanged under load: no handshake fails, and each sees what was there before or what came.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use harness::{Authority, Recorder, World, eventually, handshake};

const SWAPS: usize = 100;
const HANDSHAKES: usize = 10_000;
const CLIENTS: usize = 4;

/// In one file with its key, so that one rename exchanges both.
struct Made {
    pem: String,
    der: Vec<u8>,
}

fn make() -> Made {
    let made = rcgen::generate_simple_self_signed(["shop.test".to_owned()]).expect("a host name");
    Made { pem: made.cert.pem() + &made.signing_key.serialize_pem(), der: made.cert.der().to_vec() }
}

#[test]
fn no_handshake_fails_while_certificates_are_exchanged() {
    let world = World::start();
    let recorder = Recorder::start();
    let files = Authority::default();
    let (path, next) = (files.path("shop.pem"), files.path("next.pem"));
    let certificates: Arc<[Made]> = (0..=SWAPS).map(|_| make()).collect();
    let exchange = |n: usize| {
        std::fs::write(&next, &certificates[n].pem).unwrap();
        std::fs::rename(&next, &path).unwrap();
        let (target, file) = (recorder.target(), path.to_str().unwrap());
        let deploy = ["deploy", "shop", "--target", &target, "--host", "shop.test", "--tls", "--bake", "0s"];
        let how = ["--tls-certificate-path", file, "--tls-private-key-path", file];
        world.operator().run(deploy.iter().chain(&how)).succeeds();
    };
    exchange(0);

    // Exchanges that have begun, and handshakes that are over.
    let (begun, over) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut oldest = 0;
                while begun.load(Ordering::SeqCst) < SWAPS || over.load(Ordering::SeqCst) < HANDSHAKES {
                    let shown = handshake(world.daemon.https(), "shop.test", &["h2"]).expect("a handshake");
                    let newest = begun.load(Ordering::SeqCst);
                    let known = |made: &Made| made.der == shown.certificate;
                    let seen = certificates.iter().position(known).expect("one of ours");
                    // Neither one that is still to come, nor one that was exchanged before this client's last handshake: the
                    // exchange before the one that has begun is over, but for the moment in which the agent carries it out.
                    assert!(seen <= newest && seen + 2 >= oldest, "{oldest} ..= {newest}: {seen}");
                    oldest = newest;
                    over.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        for n in 1..=SWAPS {
            // Spread over the handshakes, as far as the machine lets them.
            eventually("handshakes go on", || match over.load(Ordering::SeqCst) {
                some if some >= n * HANDSHAKES / SWAPS / 2 => Ok(()),
                few => Err(few.to_string()),
            });
            begun.store(n, Ordering::SeqCst);
            exchange(n);
        }
    });
    assert!(over.load(Ordering::SeqCst) >= HANDSHAKES);
    let shown = handshake(world.daemon.https(), "shop.test", &[]).unwrap();
    assert!(shown.certificate == certificates[SWAPS].der, "the last one");
}
