//! What browsers are told of HTTPS: where it was asked for, over HTTPS alone, and never against the app's own word.

use harness::{Answer, Ask, Recorder, World};

fn told(answer: &Answer) -> Vec<&str> {
    let values = answer.headers.get_all("strict-transport-security");
    values.iter().filter_map(|value| value.to_str().ok()).collect()
}

#[test]
fn browsers_are_told_over_https_alone() {
    let world = World::start();
    let recorder = Recorder::start();
    let deploy = |more: &[&str]| world.deploy_with(&recorder.target(), more);
    deploy(&["--tls"]);
    let ask = Ask::get("shop.test", "/");
    let https = || ask.clone().tls().at(world.daemon.https());
    assert!(told(&https()).is_empty(), "nobody asked for it");

    deploy(&["--hsts", "1y", "--hsts-subdomains", "--hsts-preload"]);
    let want = ["max-age=31536000; includeSubDomains; preload"];
    for ask in [ask.clone().tls(), ask.clone().tls().h2()] {
        assert_eq!(told(&ask.at(world.daemon.https())), want);
    }
    let redirect = ask.at(world.http());
    assert_eq!((redirect.status.as_u16(), told(&redirect)), (301, vec![]));
    deploy(&["--tls-redirect=false"]);
    assert!(told(&ask.at(world.http())).is_empty());

    // Our own answers come over HTTPS, too.
    world.agentctl(["stop", "shop"]).succeeds();
    let stopped = https();
    assert_eq!((stopped.status.as_u16(), told(&stopped)), (503, want.to_vec()));
    world.agentctl(["resume", "shop"]).succeeds();

    deploy(&["--hsts", "0s", "--hsts-preload=false"]);
    assert_eq!(told(&https()), ["max-age=0; includeSubDomains"]);
    deploy(&["--hsts", "", "--hsts-subdomains=false"]);
    assert!(told(&https()).is_empty());
}

#[test]
fn the_apps_own_word_counts() {
    let world = World::start();
    let recorder = Recorder::answering(
        b"HTTP/1.1 200 OK\r\nStrict-Transport-Security: max-age=60\r\nContent-Length: 0\r\n\r\n",
    );
    world.deploy_with(&recorder.target(), &["--tls", "--hsts", "1y"]);
    for ask in [Ask::get("shop.test", "/").tls(), Ask::get("shop.test", "/").tls().h2()] {
        assert_eq!(told(&ask.at(world.daemon.https())), ["max-age=60"]);
    }
}

#[test]
fn what_browsers_would_not_take_is_refused() {
    let world = World::start();
    let recorder = Recorder::start();
    for (args, want) in [
        (&["--tls", "--hsts", "soon"][..], "`soon` is not a time"),
        (&["--hsts", "1y"], "add `--tls`"),
        (&["--tls", "--hsts-subdomains"], "add `--hsts 1y`"),
        (&["--tls", "--hsts", "1y", "--hsts-preload"], "hsts_subdomains"),
    ] {
        let target = recorder.target();
        let deploy = ["deploy", "shop", "--target", &target, "--host", "shop.test"];
        let refused = world.operator().run(deploy.iter().chain(args)).fails_with(2);
        assert!(refused.stderr().contains(want), "{refused}");
    }
}
