//! Targets for reads alone: reads go there, writes do not, and a visitor reads what they have just written.

use std::net::{SocketAddr, TcpListener};

use harness::{Answer, App, Ask, Puma, Recorder, Socket, World, eventually, free_address, now_ms};
use model::protocol::{ProblemCode, ServiceState, TargetRoleName, TargetStateName, TargetStatus};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A writer and some readers that keep what they get.
struct Shop {
    world: World,
    writer: Recorder,
    readers: Vec<Recorder>,
}

fn shop(writer: Recorder, readers: Vec<Recorder>, flags: &[&str]) -> Shop {
    let shop = Shop { world: World::start(), writer, readers };
    shop.deploy(flags);
    shop
}

impl Shop {
    #[track_caller]
    fn deploy(&self, flags: &[&str]) {
        let readers: Vec<String> = self.readers.iter().map(Recorder::target).collect();
        let readers = readers.iter().flat_map(|target| ["--read-target", target]);
        self.world
            .deploy_with(&self.writer.target(), &readers.chain(flags.iter().copied()).collect::<Vec<_>>());
    }

    fn ask(&self, method: &str) -> Answer {
        Ask::get("shop.test", "/").method(method).at(self.world.http())
    }

    /// Whether a GET with these cookies came to a reader.
    #[track_caller]
    fn reader_gets(&self, ask: &Ask, address: SocketAddr) -> bool {
        let count =
            |recorders: &[&Recorder]| -> usize { recorders.iter().map(|one| one.received().len()).sum() };
        let readers: Vec<&Recorder> = self.readers.iter().collect();
        let before = (count(&readers), count(&[&self.writer]));
        assert_eq!(ask.at(address).status, 200);
        let after = (count(&readers), count(&[&self.writer]));
        assert_eq!(after.0 + after.1, before.0 + before.1 + 1, "one target gets it");
        after.0 > before.0
    }
}

fn targets(world: &World) -> Vec<TargetStatus> {
    world.daemon.status().services[0].stable.targets.clone()
}

/// Waits until the target at `address` is in this state.
#[track_caller]
fn until(world: &World, address: &str, state: TargetStateName) {
    eventually("the target's state is seen", || {
        let targets = targets(world);
        let is_so = |one: &TargetStatus| one.target == address && one.state == state;
        if targets.iter().any(is_so) { Ok(()) } else { Err(format!("{targets:#?}")) }
    });
}

fn methods(recorder: &Recorder) -> Vec<String> {
    let method = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
    recorder.received().iter().map(|one| method(one.request_line())).collect()
}

#[test]
fn reads_go_to_readers_and_all_else_to_writers() {
    let shop = shop(Recorder::start(), vec![Recorder::start(), Recorder::start()], &[]);
    let writes = ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"];
    for method in ["GET", "HEAD"].iter().cycle().take(20).chain(&writes) {
        assert_eq!(shop.ask(method).status, 200, "{method}");
    }
    assert_eq!(methods(&shop.writer), writes);
    let read: Vec<usize> = shop.readers.iter().map(|reader| reader.received().len()).collect();
    assert_eq!(read.iter().sum::<usize>(), 20);
    assert!(read.iter().all(|count| *count > 0), "both are used: {read:?}");
    // Over HTTP/2 the same.
    for (method, reads) in [("GET", true), ("DELETE", false)] {
        shop.readers.iter().for_each(Recorder::forget);
        assert_eq!(Ask::get("shop.test", "/").method(method).h2().at(shop.world.http()).status, 200);
        assert_eq!(shop.readers.iter().any(|reader| !reader.received().is_empty()), reads, "{method}");
    }
}

#[test]
fn who_has_written_reads_it_at_once() {
    let shop = shop(Recorder::start(), vec![Recorder::start()], &["--writer-affinity-timeout", "1h"]);
    let http = shop.world.http();
    let read = |cookie: &str| shop.reader_gets(&Ask::get("shop.test", "/").header("cookie", cookie), http);

    let before_ms = now_ms();
    let answer = Ask::post("shop.test", "/orders", "one").at(http);
    let set = answer.header("set-cookie").to_owned();
    let (pair, attributes) = set.split_once("; ").expect("attributes");
    assert_eq!(attributes, "Path=/; Max-Age=3600; HttpOnly; SameSite=Lax");
    let (name, until) = pair.split_once('=').expect("a value");
    let until_ms: u64 = until.parse().expect("a time");
    assert_eq!(name, "portcullis-writer");
    assert!((before_ms + 3_600_000..=now_ms() + 3_600_000).contains(&until_ms), "{set}");

    assert!(!read(pair), "what was written is read where it was written");
    assert!(!read(&format!("a=1; {pair}; b=2")));
    assert!(read("a=1"), "other visitors read as ever");
    for forged in
        ["9999999999999", "18446744073709551615", "99999999999999999999999", "0", "-1", "", "soon", "1.7e12"]
    {
        assert!(read(&format!("portcullis-writer={forged}")), "{forged}");
    }
    let over = before_ms - 1;
    assert!(read(&format!("portcullis-writer={over}")), "its time is over");
    for method in ["GET", "HEAD", "OPTIONS"] {
        assert_eq!(shop.ask(method).header("set-cookie"), "", "{method}");
    }
    assert_ne!(shop.ask("DELETE").header("set-cookie"), "");
}

#[test]
fn the_time_after_a_write_ends() {
    let shop = shop(Recorder::start(), vec![Recorder::start()], &["--writer-affinity-timeout", "300ms"]);
    let set = shop.ask("POST").header("set-cookie").to_owned();
    assert!(set.contains("; Max-Age=1; "), "browsers know whole seconds: {set}");
    let pair = set.split(';').next().expect("a pair").to_owned();
    let ask = Ask::get("shop.test", "/").header("cookie", &pair);
    eventually("readers answer again", || {
        if shop.reader_gets(&ask, shop.world.http()) { Ok(()) } else { Err(pair.clone()) }
    });
    shop.deploy(&["--writer-affinity-timeout", "0s"]);
    assert_eq!(shop.ask("POST").header("set-cookie"), "", "0s turns it off");
}

#[test]
fn over_https_the_cookie_is_bound_to_it() {
    let flags = ["--tls", "--tls-redirect=false", "--writer-affinity-timeout", "1h"];
    let shop = shop(Recorder::start(), vec![Recorder::start()], &flags);
    let https = shop.world.daemon.https();
    let answer = Ask::post("shop.test", "/", "x").tls().at(https);
    let set = answer.header("set-cookie");
    assert!(set.starts_with("__Host-portcullis-writer="), "{set}");
    assert!(set.ends_with("; Path=/; Max-Age=3600; HttpOnly; SameSite=Lax; Secure"), "{set}");
    let value = set.split(';').next().and_then(|pair| pair.split_once('=')).expect("a pair").1;
    let with = |name: &str| Ask::get("shop.test", "/").tls().header("cookie", &format!("{name}={value}"));
    assert!(!shop.reader_gets(&with("__Host-portcullis-writer"), https));
    assert!(shop.reader_gets(&with("portcullis-writer"), https), "plain HTTP could have written that one");
}

#[test]
fn the_app_can_say_that_nothing_was_written() {
    let says = |answer: &'static [u8]| Recorder::answering(answer);
    let (no, yes, public) = (
        says(b"HTTP/1.1 200 OK\r\nX-Writer-Affinity: False\r\nContent-Length: 2\r\n\r\nok"),
        says(b"HTTP/1.1 200 OK\r\nx-writer-affinity: true\r\nContent-Length: 2\r\n\r\nok"),
        says(b"HTTP/1.1 200 OK\r\nCache-Control: public, max-age=60\r\nContent-Length: 2\r\n\r\nok"),
    );
    for (writer, has_cookie) in [(no, false), (yes, true), (public, false)] {
        let shop = shop(writer, vec![Recorder::start()], &[]);
        let answer = shop.ask("POST");
        assert_eq!(!answer.header("set-cookie").is_empty(), has_cookie, "{:?}", answer.headers);
        assert_eq!(answer.header("x-writer-affinity"), "", "{:?}", answer.headers);
    }
    // Where there are no readers, nobody has to know.
    let shop = shop(
        Recorder::answering(b"HTTP/1.1 200 OK\r\nX-Writer-Affinity: true\r\nContent-Length: 2\r\n\r\nok"),
        Vec::new(),
        &[],
    );
    let answer = shop.ask("POST");
    assert_eq!((answer.header("set-cookie"), answer.header("x-writer-affinity")), ("", ""));
}

#[test]
fn writers_read_while_no_reader_is_well() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
    let address = listener.local_addr().expect("a bound listener has an address");
    let (writer, reader) = (Recorder::start(), Recorder::on(listener, OK));
    let world = World::start();
    let flags = ["--read-target", &reader.target(), "--health-check-interval", "100ms"];
    world.deploy_with(&writer.target(), &flags);
    assert_eq!(world.get("/").text(), "ok");

    drop(reader);
    // Probes have seen nothing yet: a connection that is refused moves on to a writer.
    for _ in 0..10 {
        assert_eq!(world.get("/").text(), "recorded");
    }
    until(&world, &address.to_string(), TargetStateName::Ejected);
    assert_eq!(world.daemon.status().services[0].state, ServiceState::Degraded);
    assert_eq!(world.get("/").text(), "recorded");

    let _reader = Recorder::on(TcpListener::bind(address).expect("the address is free"), OK);
    until(&world, &address.to_string(), TargetStateName::Serving);
    eventually("the reader reads again", || match world.get("/").text() {
        text if text == "ok" => Ok(()),
        text => Err(text),
    });
    assert_eq!(world.daemon.status().services[0].state, ServiceState::Serving);
}

#[test]
fn the_last_writer_is_never_given_up_for_a_reader() {
    let (writer, reader) = (Recorder::start(), Recorder::answering(OK));
    let world = World::start();
    world.deploy_with(&writer.target(), &["--read-target", &reader.target()]);
    let address = writer.target();
    drop(writer);
    until(&world, &address, TargetStateName::Suspect);
    assert_eq!(world.get("/").text(), "ok", "readers read on");
    assert_eq!(Ask::post("shop.test", "/", "x").at(world.http()).status, 502);
    assert_eq!(methods(&reader), ["GET"], "no reader gets a write");
}

#[test]
fn pumas_share_the_reads_and_one_may_die() {
    let [writer, mut one, other] = ["writer", "one", "other"].map(|name| Puma::start(App::Rack, name));
    let world = World::start();
    world.deploy_with(&writer.target(), &["--read-target", &format!("{},{}", one.target(), other.target())]);
    let load = world.load("/");
    load.goes_on_for(50);
    one.kill();
    load.goes_on_for(50);
    let seen = load.finish();
    // What was under way on the reader that died may be lost with it.
    let releases: Vec<&str> = seen.releases().into_iter().filter(|release| !release.is_empty()).collect();
    assert_eq!(releases, ["one", "other"], "a reader was left: {seen}");
    let load = world.load("/");
    load.goes_on_for(50);
    assert_eq!(load.finish().lost_nothing().releases(), ["other"]);
    let posted = Ask::post("shop.test", "/upload", "x").at(world.http()).json();
    assert_eq!(posted["release"], "writer");
}

#[test]
fn websockets_are_opened_to_writers_unless_told_otherwise() {
    let (rails, rack) = (Puma::start(App::Rails, "rails"), Puma::start(App::Rack, "rack"));
    let world = World::start();
    // Rack cannot open one: who answers is known.
    world.deploy_with(&rails.target(), &["--read-target", &rack.target()]);
    let mut cable = Socket::open_cable(world.http(), "shop.test");
    assert_eq!(cable.cable_echo("hello"), "rails");
    let mut cable = Socket::open_cable_over_http2(world.http(), "shop.test");
    assert_eq!(cable.cable_echo("hello"), "rails");
    assert_eq!(world.get("/").text(), "rack");

    world.deploy_with(&rack.target(), &["--read-target", &rails.target(), "--read-target-websockets"]);
    let mut cable = Socket::open_cable(world.http(), "shop.test");
    assert_eq!(cable.cable_echo("hello"), "rails");
    let mut cable = Socket::open_cable_over_http2(world.http(), "shop.test");
    assert_eq!(cable.cable_echo("hello"), "rails");
}

#[test]
fn readers_and_writers_have_lines_of_their_own() {
    let (writer, mut reader) = (Puma::start(App::Rack, "writer"), Puma::start(App::Rack, "reader"));
    let world = World::start();
    let flags = ["--read-target", &reader.target(), "--max-in-flight", "1", "--queue-timeout", "1m"];
    world.deploy_with(&writer.target(), &flags);
    let work = |method: &str| Ask::get("shop.test", "/work").method(method).begin(world.http());
    let waits = |count: u64| {
        eventually("so many wait", || {
            let stable = world.daemon.status().services[0].stable.clone();
            if stable.waiting == count { Ok(()) } else { Err(format!("{stable:#?}")) }
        });
    };
    let busy = |puma: &Puma| {
        eventually("it is at work", || match puma.get("/crowd").json()["now"].as_u64() {
            Some(1) => Ok(()),
            other => Err(format!("{other:?}")),
        });
    };
    writer.get("/close");
    let written = work("POST");
    busy(&writer);
    assert_eq!(world.get("/").text(), "reader", "reads do not wait for writes");
    writer.get("/open");
    assert_eq!(written.finish().expect("an answer").text(), "writer");

    reader.get("/close");
    let held = work("GET");
    busy(&reader);
    let waiting: Vec<_> = (0..3).map(|_| Ask::get("shop.test", "/").begin(world.http())).collect();
    waits(3);
    assert_eq!(Ask::post("shop.test", "/", "x").at(world.http()).text(), "writer", "nor writes for reads");
    // Those in line go on to the writer when the last reader is gone.
    reader.stop_listening();
    reader.kill();
    for one in waiting {
        assert_eq!(one.finish().expect("an answer").text(), "writer");
    }
    // On a connection that had been used before, what was under way may be asked again.
    let held = held.finish().expect("an answer");
    assert!(held.status == 502 || held.text() == "writer", "{held}");
    waits(0);
}

#[test]
fn a_reader_passes_the_gate_like_any_target() {
    let (old, new) = (Recorder::answering(OK), Recorder::start());
    let world = World::start();
    world.deploy(&old.target());
    let deploy = |more: [&str; 2]| {
        let args = ["--json", "deploy", "shop", "--target", &new.target(), "--deploy-timeout", "1s"];
        world.operator().run(args.iter().chain(&more))
    };
    let dead = free_address().to_string();
    let refused = deploy(["--read-target", &dead]).fails_with(5);
    assert!(refused.stdout().contains(&dead), "{refused}");
    assert_eq!(world.get("/").text(), "ok", "traffic is unchanged");
    let history = world.agentctl(["--json", "history", "shop"]).succeeds().json();
    assert_eq!(history["entries"][0]["readers"][0], dead.as_str(), "{history}");

    let twice = deploy(["--read-target", &new.target()]).fails_with(2);
    assert!(twice.to_string().contains("is named twice"), "{twice}");
    assert!(twice.to_string().contains("for reads alone"), "{twice}");
}

#[test]
fn readers_belong_to_their_release() {
    let pumas = ["writer", "reader", "next"].map(|name| Puma::start(App::Rack, name));
    let [writer, reader, next] = &pumas;
    let mut world = World::start();
    world.deploy_with(&writer.target(), &["--read-target", &reader.target()]);
    let roles = |world: &World| -> Vec<(String, TargetRoleName)> {
        targets(world).into_iter().map(|one| (one.target, one.role)).collect()
    };
    let both = vec![(writer.target(), TargetRoleName::Writer), (reader.target(), TargetRoleName::Reader)];
    assert_eq!(roles(&world), both);
    for verb in [["status", "shop"], ["targets", "shop"], ["history", "shop"]] {
        let shown = world.agentctl(verb).succeeds().stdout();
        assert!(shown.contains(&format!("{} (reads)", reader.target())), "{shown}");
    }
    world.daemon.kill_9();
    world.daemon.start_again();
    assert_eq!(roles(&world), both, "and after a restart");
    assert_eq!(world.get("/").text(), "reader");

    // The same again changes nothing.
    let again = world.deploy_with(&writer.target(), &["--read-target", &reader.target()]);
    assert!(again.to_string().contains("already; nothing to do"), "{again}");

    let slow = Ask::get("shop.test", "/slow?s=1").begin(world.http());
    eventually("the reader is asked", || {
        if targets(&world)[1].in_flight == 1 { Ok(()) } else { Err(format!("{:?}", targets(&world))) }
    });
    world.deploy(&next.target());
    assert_eq!(slow.finish().expect("it was drained").text(), "slow answer of reader");
    assert_eq!(world.get("/").text(), "next");
    world.agentctl(["rollback", "shop"]).succeeds();
    assert_eq!(world.get("/").text(), "reader", "a rollback brings them back");
}

#[test]
fn a_canary_may_have_readers() {
    let (stable, canary, reader) = (Recorder::start(), Recorder::start(), Recorder::answering(OK));
    let world = World::start();
    world.deploy(&stable.target());
    let args = ["canary", "start", "shop", "--target", &canary.target(), "--weight", "0%"];
    let more = ["--read-target", &reader.target(), "--header", "x-canary=1"];
    world.operator().run(args.iter().chain(&more)).succeeds();
    let ask =
        |method: &str| Ask::get("shop.test", "/").method(method).header("x-canary", "1").at(world.http());
    assert_eq!((ask("GET").text(), ask("POST").text()), ("ok".into(), "recorded".into()));
    assert_eq!((methods(&canary), methods(&reader)), (vec!["POST".into()], vec!["GET".to_owned()]));
    assert_eq!(world.get("/").text(), "recorded");
    assert_eq!(methods(&stable), ["GET"]);
}

#[test]
fn a_forced_deploy_does_not_wait_and_says_so() {
    let good = Recorder::answering(OK);
    let world = World::start();
    world.deploy(&good.target());
    let dead = free_address().to_string();
    let forced = world.deploy_with(&dead, &["--force"]);
    assert!(forced.to_string().contains("FORCED: nobody waited until it was healthy"), "{forced}");
    let events = world.agentctl(["events"]).succeeds().stdout();
    assert!(events.contains("WITHOUT having passed its gate"), "{events}");
    assert_eq!(world.get("/").status, 502, "its targets are tried");
    until(&world, &dead, TargetStateName::Suspect);
    world.agentctl(["rollback", "shop"]).succeeds();
    assert_eq!(world.get("/").text(), "ok");

    // What is healthy later serves without another deploy.
    let late = Puma::misbehaving(App::Rack, "late", &[("BAD", "late_up")]);
    world.deploy_with(&late.target(), &["--force"]);
    assert_eq!(world.get("/").text(), "late", "although its probes fail");
    until(&world, &late.target(), TargetStateName::Serving);
}

#[test]
fn a_forced_deploy_is_watched_all_the_same() {
    let good = Puma::start(App::Rack, "good");
    let world = World::start();
    world.deploy(&good.target());
    let load = world.load("/");
    load.goes_on_for(10);
    let dead = free_address().to_string();
    let args = ["--json", "deploy", "shop", "--target", &dead, "--force", "--bake", "1m"];
    let reverted = world.agentctl(args).fails_with(6);
    let problem = reverted.events().into_iter().find_map(|event| match event {
        model::protocol::Event::Failed { problem } => Some(problem),
        _ => None,
    });
    assert_eq!(problem.map(|problem| problem.code), Some(ProblemCode::Reverted), "{reverted}");
    drop(load);
    assert_eq!(world.get("/").text(), "good");
}
