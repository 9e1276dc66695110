//! Certificates that operators bring: each name is shown the best one, bad ones are refused before anything changes, and
//! renewed ones are taken without a command and without a failed handshake.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use harness::{Ask, Daemon, Files, Made, Make, Ran, Recorder, World, eventually, handshake, shown_chain};
use rustls::SignatureScheme;

fn looking_often() -> World {
    World::with_args(["--certificate-check-interval", "50ms"])
}

/// Deploys `shop` with these hosts and pairs.
fn deploy(world: &World, recorder: &Recorder, hosts: &str, pairs: &[&Files]) -> Ran {
    let mut args: Vec<String> =
        ["deploy", "shop", "--bake", "0s", "--tls", "--host", hosts, "--target"].map(str::to_owned).to_vec();
    args.push(recorder.target());
    args.extend(pairs.iter().flat_map(|files| files.flags()));
    world.operator().run(args)
}

fn shown(world: &World, name: &str) -> Vec<u8> {
    handshake(world.daemon.https(), name, &[]).expect("a handshake").certificate
}

fn wait_until_shown(world: &World, made: &Made) {
    eventually("the new certificate is shown", || match shown(world, "shop.test") == made.der {
        true => Ok(()),
        false => Err("the old one is".to_owned()),
    });
}

/// The messages of all events of this kind.
fn told(world: &World, kind: &str) -> Vec<String> {
    let events = world.agentctl(["events", "--json"]).succeeds().stdout();
    let events = events.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
    let of_kind = events.filter(|event| event["kind"] == kind);
    of_kind.map(|event| event["message"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn each_name_is_shown_the_certificate_that_fits_it_best() {
    let mut world = World::start();
    let recorder = Recorder::start();
    let make = |names, rsa| Make { names, rsa, ..Make::default() }.make();
    let wild = make(&["*.shop.test", "shop.test"], false);
    let wild_rsa = make(&["*.shop.test", "shop.test"], true);
    let www = make(&["www.shop.test"], false);
    let other = make(&["blog.test"], true);
    let files: Vec<_> = [("rsa", &wild_rsa), ("wild", &wild), ("www", &www), ("other", &other)]
        .map(|(name, made)| made.write(world.dir(), name))
        .to_vec();
    let hosts = "shop.test,*.shop.test,blog.test";
    deploy(&world, &recorder, hosts, &files.iter().collect::<Vec<_>>()).succeeds();

    let only_rsa = |scheme: SignatureScheme| scheme.as_str().is_some_and(|name| name.starts_with("RSA"));
    let check = |world: &World| {
        for (name, for_all, for_old) in [
            ("shop.test", &wild, Some(&wild_rsa)),
            ("a.shop.test", &wild, Some(&wild_rsa)),
            // By its exact name for those who can have it.
            ("www.shop.test", &www, Some(&wild_rsa)),
            ("WWW.shop.test", &www, Some(&wild_rsa)),
            ("blog.test", &other, Some(&other)),
        ] {
            let address = world.daemon.https();
            assert!(shown_chain(address, name, |_| true).unwrap()[0] == for_all.der, "{name}");
            let old = shown_chain(address, name, only_rsa).map(|chain| chain[0].clone());
            assert!(old.ok().as_ref() == for_old.map(|made| &made.der), "{name} for an old client");
        }
    };
    check(&world);
    // One connection serves the names that have the same certificates, whichever of them it shows.
    for (opened_for, host, want) in [
        ("shop.test", "a.shop.test", 200),
        ("a.shop.test", "b.shop.test", 200),
        ("a.shop.test", "www.shop.test", 421),
        ("www.shop.test", "a.shop.test", 421),
        ("shop.test", "blog.test", 421),
    ] {
        let answer = Ask::get(host, "/").tls().under(opened_for).at(world.daemon.https());
        assert_eq!(answer.status.as_u16(), want, "{host} on a connection for {opened_for}");
    }

    // They are policy: kept over a restart, exported, and compared.
    world.daemon.kill_9();
    world.daemon.start_again();
    check(&world);
    let exported = world.agentctl(["export", "shop"]).succeeds().stdout();
    let file = world.dir().join("policy.toml");
    std::fs::write(&file, &exported).unwrap();
    let path = file.display().to_string();
    assert_eq!(world.agentctl(["plan", &path]).succeeds().stdout(), "", "{exported}");
    // A single pair takes the place of all.
    deploy(&world, &recorder, "shop.test", &[&files[1]]).succeeds();
    let pairs = world.agentctl(["export", "shop"]).succeeds().stdout();
    assert!(pairs.contains("tls_certificate_path") && !pairs.contains("tls_certificates"), "{pairs}");
    let drift = world.agentctl(["plan", &path]).fails_with(10);
    assert!(drift.stdout().contains("tls_certificates"), "{drift}");
}

fn openssl(args: &[&str]) {
    let made = std::process::Command::new("openssl").args(args).output().expect("openssl is installed");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

#[test]
fn what_would_not_do_is_refused_and_nothing_changes() {
    let world = World::start();
    let recorder = Recorder::start();
    let dir = world.dir();
    let made = |make: Make<'_>, name: &str| make.make().write(dir, name);
    let good = made(Make::default(), "good");
    let rsa = made(Make { rsa: true, ..Make::default() }, "good-rsa");
    let old = made(Make { years: (2020, 2024), ..Make::default() }, "old");
    let early = made(Make { years: (2900, 2999), ..Make::default() }, "early");
    let other = made(Make { names: &["other.test", "*.other.test"], ..Make::default() }, "other");
    let crossed = Files { certificate: good.certificate.clone(), key: other.key.clone() };
    let weak = Files { certificate: dir.join("weak.pem"), key: dir.join("weak.key") };
    let (key, certificate) = (weak.key.display().to_string(), weak.certificate.display().to_string());
    openssl(&[
        "req",
        "-x509",
        "-newkey",
        "rsa:1024",
        "-nodes",
        "-keyout",
        &key,
        "-out",
        &certificate,
        "-subj",
        "/CN=shop.test",
        "-addext",
        "subjectAltName=DNS:shop.test",
    ]);

    deploy(&world, &recorder, "shop.test", &[&good]).succeeds();
    let before = (shown(&world, "shop.test"), world.daemon.status().generation);
    for (hosts, pairs, words) in [
        ("shop.test", &[&old][..], &["old.pem expired on 2024-01-01"][..]),
        ("shop.test", &[&good, &old], &["old.pem expired on 2024-01-01"]),
        ("shop.test", &[&early], &["early.pem is not valid before 2900-01-01"]),
        (
            "shop.test",
            &[&other],
            &["other.pem names none of the service's hosts", "`other.test`, `*.other.test`", "`shop.test`"],
        ),
        ("shop.test", &[&good, &other], &["other.pem names none"]),
        (
            "shop.test,blog.test",
            &[&good, &rsa],
            &["no certificate names `blog.test`", "good.pem names `shop.test`"],
        ),
        ("*.shop.test", &[&good], &["names none of the service's hosts"]),
        ("shop.test", &[&crossed], &["other.key does not belong to", "good.pem"]),
        ("shop.test", &[&weak], &["weak.pem has 1024 bits", "2048"]),
    ] {
        let refused = deploy(&world, &recorder, hosts, pairs).fails_with(1);
        for word in words.iter().chain(&["traffic is unchanged"]) {
            assert!(refused.stderr().contains(word), "{word}: {refused}");
        }
        let now = (shown(&world, "shop.test"), world.daemon.status().generation);
        assert!(now == before, "{refused}");
    }
    // `apply` and `plan` look at the same.
    let policy = dir.join("policy.toml");
    let line = |key: &str, path: &Path| format!("{key} = \"{}\"\n", path.display());
    let text = "[service.shop]\nhosts = [\"shop.test\"]\ntls = true\n".to_owned()
        + &line("tls_certificate_path", &old.certificate)
        + &line("tls_private_key_path", &old.key);
    std::fs::write(&policy, text).unwrap();
    for verb in ["plan", "apply"] {
        let refused = world.agentctl([verb, policy.to_str().unwrap()]).fails_with(1);
        assert!(refused.stderr().contains("expired on 2024-01-01"), "{refused}");
    }
    // A certificate without a key is noticed at once.
    let path = good.certificate.to_str().unwrap();
    let flags = rsa
        .flags()
        .map(|flag| flag.to_owned())
        .into_iter()
        .chain(["--tls-certificate-path".into(), path.to_owned()]);
    let target = recorder.target();
    let args = ["deploy", "shop", "--target", &target].map(str::to_owned).into_iter().chain(flags);
    let refused = world.operator().run(args).fails_with(2);
    assert!(refused.stderr().contains("`private_key` is missing"), "{refused}");
}

#[test]
fn chains_that_clients_stumble_over_are_pointed_out_and_put_in_order() {
    let world = World::start();
    let recorder = Recorder::start();
    let made = Make { chained: true, ..Make::default() }.make();
    let reversed = Made {
        chain: made.chain.iter().rev().cloned().collect(),
        key: made.key.clone(),
        der: made.der.clone(),
    };
    let alone = Made { chain: vec![made.chain[0].clone()], key: made.key.clone(), der: made.der.clone() };
    for (made, length, words) in [
        (&made, 2, None),
        (&reversed, 2, Some("its chain is not in order, and is sent in the right one")),
        (&alone, 1, Some("it comes without the certificate of its issuer `CN=middle.test`")),
    ] {
        let files = made.write(world.dir(), "shop");
        let deployed = deploy(&world, &recorder, "shop.test", &[&files]).succeeds();
        let said = deployed.stdout() + &deployed.stderr();
        match words {
            Some(words) => assert!(said.contains(words), "{words}: {deployed}"),
            None => assert!(!said.contains("chain"), "{deployed}"),
        }
        let chain = shown_chain(world.daemon.https(), "shop.test", |_| true).unwrap();
        assert!(chain.len() == length && chain[0] == made.der, "{deployed}");
    }
}

/// Clients that shake hands all the time, and know every certificate that there has been.
struct Clients {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    known: Arc<Mutex<HashSet<Vec<u8>>>>,
    threads: Vec<std::thread::JoinHandle<Vec<String>>>,
}

impl Clients {
    fn start(daemon: &Daemon) -> Self {
        let (stop, count, known) =
            (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default(), Arc::<Mutex<_>>::default());
        let address = daemon.https();
        let client = |_| {
            let (stop, count, known) = (Arc::clone(&stop), Arc::clone(&count), Arc::clone(&known));
            std::thread::spawn(move || {
                let mut wrong = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    match handshake(address, "shop.test", &["h2"]) {
                        Err(error) => wrong.push(error),
                        Ok(seen) => {
                            let known: &Mutex<HashSet<Vec<u8>>> = &known;
                            if !known.lock().expect("no client panics").contains(&seen.certificate) {
                                wrong.push("a certificate that nobody made".to_owned());
                            }
                        }
                    }
                    count.fetch_add(1, Ordering::Relaxed);
                }
                wrong
            })
        };
        let threads = (0..3).map(client).collect();
        Self { stop, count, known, threads }
    }

    fn expect(&self, made: &Made) {
        self.known.lock().expect("no client panics").insert(made.der.clone());
    }

    /// Until so many more handshakes have been made.
    fn go_on_for(&self, more: u64) {
        let until = self.count.load(Ordering::Relaxed) + more;
        eventually("handshakes are made", || match self.count.load(Ordering::Relaxed) {
            count if count >= until => Ok(()),
            count => Err(format!("{count} of {until}")),
        });
    }

    fn finish(self) -> (u64, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let wrong =
            self.threads.into_iter().flat_map(|thread| thread.join().expect("no client panics")).collect();
        (self.count.load(Ordering::Relaxed), wrong)
    }
}

/// `link` leads to `to` from one moment to the next.
fn lead(link: &Path, to: &Path) {
    let next = link.with_extension("next");
    std::os::unix::fs::symlink(to, &next).expect("the directory can be written");
    std::fs::rename(next, link).expect("the directory can be written");
}

#[test]
fn twenty_renewals_fail_no_handshake() {
    let world = looking_often();
    let recorder = Recorder::start();
    let first = Make::default().make();
    // As Kubernetes has it: the files are links into a directory that is a link itself.
    let base = world.dir().join("tls");
    std::fs::create_dir_all(base.join("0")).unwrap();
    first.write(&base.join("0"), "tls");
    lead(&base.join("data"), &base.join("0"));
    let files = Files { certificate: base.join("tls.pem"), key: base.join("tls.key") };
    lead(&files.certificate, Path::new("data/tls.pem"));
    lead(&files.key, Path::new("data/tls.key"));
    deploy(&world, &recorder, "shop.test", &[&files]).succeeds();

    let clients = Clients::start(&world.daemon);
    clients.expect(&first);
    clients.go_on_for(30);
    for round in 1..=20 {
        let made = Make::default().make();
        clients.expect(&made);
        if round % 2 == 0 {
            let dir = base.join(round.to_string());
            std::fs::create_dir(&dir).unwrap();
            made.write(&dir, "tls");
            lead(&base.join("data"), &dir);
        } else {
            // In place, one after the other, with a moment in which they do not fit and the first is cut off.
            let text = made.chain.concat();
            std::fs::write(&files.certificate, &text[..text.len() / 2]).unwrap();
            clients.go_on_for(5);
            std::fs::write(&files.certificate, &text).unwrap();
            clients.go_on_for(5);
            std::fs::write(&files.key, &made.key).unwrap();
        }
        wait_until_shown(&world, &made);
    }
    clients.go_on_for(30);
    let (count, wrong) = clients.finish();
    assert!(wrong.is_empty(), "{} of {count} handshakes: {wrong:?}", wrong.len());
    assert_eq!(told(&world, "certificate refused"), [""; 0], "halves are no news");
    assert_eq!(told(&world, "certificate reloaded").len(), 20, "each renewal is taken once");
    assert_eq!(world.daemon.status().generation, 1, "no decision has changed");
}

#[test]
fn a_bad_renewal_leaves_the_old_one_and_says_why() {
    let world = looking_often();
    let recorder = Recorder::start();
    let first = Make::default().make();
    let files = first.write(world.dir(), "shop");
    deploy(&world, &recorder, "shop.test", &[&files]).succeeds();
    let failure = || world.daemon.status().services[0].certificates[0].failure.clone();
    assert_eq!(failure(), None);

    let expired = Make { years: (2020, 2024), ..Make::default() }.make();
    let foreign = Make { names: &["other.test"], ..Make::default() }.make();
    let mut refused = 0;
    for (bad, word) in [(&expired, "expired on 2024-01-01"), (&foreign, "names none of the service's hosts")]
    {
        bad.write(world.dir(), "shop");
        let failure = eventually("the status says why", || {
            failure()
                .filter(|failure| failure.message.contains(word))
                .ok_or_else(|| format!("{:?}", failure()))
        });
        refused += 1;
        assert_eq!(told(&world, "certificate refused").len(), refused, "{failure:?}");
        assert!(shown(&world, "shop.test") == first.der, "{word}");
        let status = world.agentctl(["status", "shop"]).succeeds();
        assert!(status.stdout().contains(word), "{status}");
    }
    std::fs::remove_file(&files.key).unwrap();
    eventually("that a file has gone is said, too", || match failure() {
        Some(failure) if failure.message.contains("cannot read") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let log = world.daemon.log();
    assert!(log.contains("the one from before is shown on"), "{log}");
    assert!(!log.contains("PRIVATE KEY-----"), "{log}");

    let second = Make::default().make();
    second.write(world.dir(), "shop");
    wait_until_shown(&world, &second);
    assert_eq!(failure(), None);
    assert_eq!(told(&world, "certificate reloaded").len(), 1);
}

#[test]
fn a_start_without_usable_files_heals_by_itself() {
    let mut world = looking_often();
    let recorder = Recorder::start();
    let first = Make::default().make();
    let files = first.write(world.dir(), "shop");
    deploy(&world, &recorder, "shop.test", &[&files]).succeeds();
    world.daemon.kill_9();
    let aside = files.key.with_extension("aside");
    std::fs::rename(&files.key, &aside).unwrap();
    world.daemon.start_again();
    assert!(shown(&world, "shop.test") != first.der, "a placeholder");
    let failure =
        world.daemon.status().services[0].certificates[0].failure.clone().expect("the status says why");
    assert!(failure.message.contains("shop.key"), "{failure:?}");
    std::fs::rename(&aside, &files.key).unwrap();
    wait_until_shown(&world, &first);
    assert_eq!(world.daemon.status().services[0].certificates[0].failure, None);
}

#[test]
fn a_signal_asks_for_a_look_at_once() {
    let world = World::with_args(["--certificate-check-interval", "1h"]);
    let recorder = Recorder::start();
    let files = Make::default().make().write(world.dir(), "shop");
    deploy(&world, &recorder, "shop.test", &[&files]).succeeds();
    let second = Make::default().make();
    second.write(world.dir(), "shop");
    world.daemon.hang_up();
    wait_until_shown(&world, &second);
}

#[test]
fn an_end_that_comes_near_is_told_before_it_comes() {
    let world = looking_often();
    let recorder = Recorder::start();
    let near = Make { days_left: Some(3), ..Make::default() }.make().write(world.dir(), "near");
    let far = Make { names: &["blog.test"], days_left: Some(60), ..Make::default() }
        .make()
        .write(world.dir(), "far");
    let deployed = deploy(&world, &recorder, "shop.test,blog.test", &[&near, &far]).succeeds();
    let said = deployed.stdout() + &deployed.stderr();
    assert!(said.contains("near.pem expires on ") && !said.contains("far.pem expires"), "{deployed}");
    let warned = eventually("the log warns", || {
        let told = told(&world, "certificate expiring");
        if told.is_empty() { Err("no event".to_owned()) } else { Ok(told) }
    });
    assert!(warned.len() == 1 && warned[0].contains("near.pem expires on"), "{warned:?}");
    let text = Ask::get("localhost", "/metrics").at(world.daemon.metrics()).text();
    let left = |name: &str, files: &Files| {
        let source = files.certificate.display();
        let series = format!(
            "portcullis_certificate_seconds_left{{name=\"{name}\",service=\"shop\",source=\"{source}\"}} "
        );
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(&series))
            .unwrap_or_else(|| panic!("{series}: {text}"));
        value.parse::<i64>().unwrap()
    };
    let day = 24 * 60 * 60;
    assert!((2 * day..=3 * day).contains(&left("shop.test", &near)), "{text}");
    assert!((59 * day..=60 * day).contains(&left("blog.test", &far)), "{text}");
}
