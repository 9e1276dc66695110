//! Buffered bodies: a slow client holds no thread of the app, whichever way the bytes go, and what is kept for it
//! is bounded and leaves nothing behind.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use harness::{
    Answer, App, Ask, Crowd, Daemon, DaemonOptions, Manner, PATIENCE, Puma, Raw, Received, Recorder, Socket,
    Uploads, World, eventually,
};
use model::protocol::ReleaseStatus;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// A daemon with this section `[buffers]` in its configuration.
fn buffers(text: &str) -> World {
    World::with_limits(&format!("\n[buffers]\n{text}"), DaemonOptions::default())
}

/// A world where `target` serves `shop` with these flags.
fn world_of(target: &str, flags: &[&str]) -> World {
    let world = World::start();
    world.deploy_with(target, flags);
    world
}

fn stable(world: &World) -> ReleaseStatus {
    world.daemon.status().services.into_iter().find(|one| one.name == "shop").expect("it is deployed").stable
}

fn held(world: &World) -> [u64; 3] {
    ["memory_bytes", "disk_bytes", "files"]
        .map(|name| world.daemon.metric(&format!("portcullis_buffer_{name}")))
}

/// Files of buffered bodies that the daemon has open, and what they take of the disk.
fn files(world: &World) -> (usize, u64) {
    let dir = world.daemon.state_dir().join("buffers");
    let descriptors = format!("/proc/{}/fd", world.daemon.pid());
    let open = std::fs::read_dir(descriptors).expect("the daemon runs").filter_map(|entry| {
        let path = entry.ok()?.path();
        let is_ours = std::fs::read_link(&path).ok()?.starts_with(&dir);
        is_ours.then(|| std::fs::metadata(path).ok()).flatten()
    });
    open.fold((0, 0), |(count, bytes), file| (count + 1, bytes + file.blocks() * 512))
}

fn disk_bytes(world: &World) -> u64 {
    files(world).1
}

fn names_in(dir: &Path) -> usize {
    std::fs::read_dir(dir).map_or(0, Iterator::count)
}

/// Nothing is kept for anybody, in memory or on disk.
#[track_caller]
fn until_nothing_is_held(world: &World) {
    eventually("nothing is held", || match (held(world), files(world)) {
        ([0, 0, 0], (0, 0)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(names_in(&world.daemon.state_dir().join("buffers")), 0);
}

/// No place at the target is taken, and nobody waits for one.
#[track_caller]
fn until_no_seat_is_taken(world: &World) {
    eventually("no seat is taken", || {
        let stable = stable(world);
        let taken: u32 =
            stable.targets.iter().filter_map(|target| target.seats).map(|seats| seats.taken).sum();
        if (taken, stable.waiting) == (0, 0) { Ok(()) } else { Err(format!("{stable:?}")) }
    });
}

fn is_refused(answer: &Answer, status: u16, reason: &str) {
    let seen = (answer.status.as_u16(), answer.header("x-portcullis-reason"));
    assert_eq!(seen, (status, reason), "{answer}");
}

/// How many clients upload, how much, what all of them may hold in memory, and whether that is the whole promise.
struct Scale {
    uploads: usize,
    body: usize,
    memory: usize,
    /// Of one body in memory.
    share: usize,
}

impl Scale {
    fn chosen() -> Self {
        if std::env::var_os("PORTCULLIS_FULL_UPLOADS").is_some() {
            return Self { uploads: 200, body: 20_000_000, memory: 48 * MIB, share: MIB };
        }
        Self { uploads: 60, body: 3 * MIB, memory: 8 * MIB, share: 64 * KIB }
    }
}

/// How long the slowest of those take that are to finish.
const SENDING_S: usize = 8;

#[test]
fn slow_uploads_hold_no_thread_of_the_app() {
    let Scale { uploads, body, memory, share } = Scale::chosen();
    let mut world = buffers(&format!("memory_bytes = {memory}"));
    let puma = Puma::start(App::Rack, "v1");
    let share = share.to_string();
    let flags =
        ["--max-in-flight", "2", "--queue-timeout", "5m", "--buffer-requests", "--buffer-memory", &share];
    world.deploy_with(&puma.target(), &flags);
    let bytes: Arc<Vec<u8>> = Arc::new((0..body).map(|n| (n * 31 % 251) as u8).collect());
    let want = Ask::post("shop.test", "/upload", bytes.to_vec()).at(puma_address(&puma)).json();
    let before = world.daemon.rss_kib();

    // Equal parts: a third of these at each speed, and half of the others.
    let (slow_count, fast_count) = (uploads / 5 * 3, uploads / 5 * 2);
    let slow = [KIB, 10 * KIB, 100 * KIB].into_iter().map(Some).cycle().take(slow_count);
    let fast = [Some(body / SENDING_S), None].into_iter().cycle().take(fast_count);
    let slow = Uploads::start(world.http(), &bytes, slow);
    eventually("all of the slow ones send", || match slow.begun() {
        begun if begun == slow_count => Ok(()),
        begun => Err(format!("{begun} of {slow_count}")),
    });
    // Those who need the app get it, at full speed, and so do uploads that come in fast.
    let load = world.load("/work");
    load.goes_on_for(100);
    let fast = Uploads::start(world.http(), &bytes, fast);
    let mut disk_peak = 0;
    eventually("the fast ones are done", || {
        disk_peak = disk_peak.max(disk_bytes(&world));
        match fast.finished() {
            finished if finished == fast_count => Ok(()),
            finished => Err(format!("{finished} of {fast_count}")),
        }
    });
    let mut longest: f64 = 0.0;
    for answer in fast.answers() {
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let (_, json) = answer.split_once("\r\n\r\n").expect("a body");
        let seen: serde_json::Value = serde_json::from_str(json).expect("JSON");
        assert_eq!((&seen["bytes"], &seen["sha256"]), (&want["bytes"], &want["sha256"]));
        longest = longest.max(seen["waited_ms"].as_f64().expect("Puma tells"));
    }
    // The app waited for copies from here, and for none of those that took so long to send.
    assert!(longest < SENDING_S as f64 * 750.0, "{longest} ms");
    load.goes_on_for(100);
    let seen = load.finish().lost_nothing();
    until_no_seat_is_taken(&world);
    let with_slow_ones =
        eventually("some of what the slow ones have sent is on disk", || match disk_bytes(&world) {
            0 => Err("none of it".to_owned()),
            bytes => Ok(bytes),
        });
    assert!(slow.finished() < slow_count, "there are slow ones left: {} of {slow_count}", slow.finished());
    let crowd = puma.get("/crowd").json();
    assert!(crowd["max"].as_u64().is_some_and(|max| max <= 2) && crowd["now"] == 0, "{crowd}");

    let (rss, peak) = (world.daemon.rss_kib(), world.daemon.peak_rss_kib());
    let at_once = world.daemon.metric("portcullis_buffer_memory_bytes");
    println!(
        "{uploads} uploads of {body} bytes: {fast_count} finished, and the app waited {longest} ms for one of them at most; \
         {slow_count} slow ones hold {at_once} bytes of {memory} in memory and {with_slow_ones} on disk, of {disk_peak} at \
         the peak; RSS {before} KiB before, {peak} peak, {rss} with the slow ones; {seen}"
    );
    // Beside the buffers each connection has what hyper reads into.
    let allowed = (memory + uploads * 128 * KIB + 16 * MIB) as u64 / 1024;
    assert!(peak - before <= allowed, "{} KiB of {allowed}", peak - before);
    drop(slow);
    until_nothing_is_held(&world);

    // The same crowd, and the daemon is killed.
    let crowd = Uploads::start(world.http(), &bytes, (0..uploads / 2).map(|_| Some(body / 3)));
    eventually(
        "some go to disk",
        || if disk_bytes(&world) > 0 { Ok(()) } else { Err("none does".to_owned()) },
    );
    let dir = world.daemon.state_dir().join("buffers");
    world.daemon.kill_9();
    assert_eq!(names_in(&dir), 0, "no name, no file");
    drop(crowd);
    world.daemon.start_again();
    until_nothing_is_held(&world);
    assert_eq!(world.get("/work").status, 200);
}

fn puma_address(puma: &Puma) -> std::net::SocketAddr {
    puma.target().parse().expect("it listens on TCP")
}

#[test]
fn a_request_arrives_whole_and_framed_anew() {
    let recorder = Recorder::start();
    let world = world_of(&recorder.target(), &["--buffer-requests", "--buffer-memory", "1000"]);
    let long = "0123456789".repeat(500);
    let chunk = format!("{:x}\r\n{long}\r\n", long.len());
    let chunk = chunk.as_str();
    // What the client sends behind its head, in pieces; how the target learns of its end, and what it gets.
    let rows: [(&str, &[&str], &str, &str); 5] = [
        ("Content-Length: 5", &["he", "llo"], "content-length: 5", "hello"),
        ("Content-Length: 5000", &[&long[..1], &long[1..]], "content-length: 5000", &long),
        ("Transfer-Encoding: chunked", &["5\r\nhel", "lo\r\n0\r\n\r\n"], "content-length: 5", "hello"),
        ("Transfer-Encoding: chunked", &[chunk, chunk, "0\r\n\r\n"], "content-length: 10000", ""),
        ("Transfer-Encoding: chunked", &["0\r\n\r\n"], "content-length: 0", ""),
    ];
    for (field, pieces, framing, body) in rows {
        recorder.forget();
        let mut client = Raw::connect(world.http());
        client.send(format!("POST /t HTTP/1.1\r\nHost: shop.test\r\n{field}\r\n\r\n"));
        let (last, first) = pieces.split_last().expect("there are pieces");
        for piece in first {
            client.send(piece);
        }
        if !first.is_empty() {
            eventually("it is here", || match held(&world) {
                [0, ..] => Err("nothing is held".to_owned()),
                _ => Ok(()),
            });
            assert_eq!((recorder.received(), stable(&world).targets[0].in_flight), (vec![], 0), "{field}");
        }
        client.send(last);
        client.read_until(|seen| seen.ends_with("recorded"));
        let seen = recorder.request(1);
        let fields: Vec<String> = ["content-length", "transfer-encoding"]
            .iter()
            .flat_map(|name| seen.values(name).into_iter().map(move |value| format!("{name}: {value}")))
            .collect();
        assert_eq!(fields, [framing], "{field}: {}", seen.head);
        let want = if framing.ends_with("10000") { long.repeat(2) } else { body.to_owned() };
        assert!(seen.complete && seen.text() == want, "{field}: {} bytes", seen.body.len());
        // The connection goes on.
        client.send("GET /next HTTP/1.1\r\nHost: shop.test\r\n\r\n");
        client.read_until(|seen| seen.matches("recorded").count() == 2);
    }
    recorder.forget();
    let answer = Ask::post("shop.test", "/t", long.clone()).h2().at(world.http());
    assert_eq!((answer.status.as_u16(), recorder.request(1).text() == long), (200, true));
    until_nothing_is_held(&world);

    let status = world.agentctl(["status", "shop", "--json"]).succeeds().json();
    let policy = &status["policy"];
    assert_eq!(
        (&policy["buffer_requests"], &policy["buffer_memory_bytes"]),
        (&true.into(), &1000.into()),
        "{policy}"
    );
    world.deploy_with(&recorder.target(), &["--buffer-requests=false"]);
    let status = world.agentctl(["status", "shop", "--json"]).succeeds().json();
    assert_eq!(status["policy"]["buffer_requests"], false);
}

#[test]
fn trailers_of_a_request_survive() {
    let recorder = Recorder::start();
    let world = world_of(&recorder.target(), &["--buffer-requests"]);
    let mut client = Raw::connect(world.http());
    client
        .send("POST /t HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n");
    client.send("5\r\nhello\r\n0\r\nX-Sum: 7\r\n\r\n").read_until(|seen| seen.contains("recorded"));
    let seen = recorder.request(1);
    assert_eq!(seen.values("transfer-encoding"), ["chunked"], "{}", seen.head);
    assert_eq!(seen.text().to_lowercase(), "5\r\nhello\r\n0\r\nx-sum: 7\r\n\r\n");
}

#[test]
fn the_body_is_asked_for_and_the_queue_time_begins_behind_it() {
    let recorder = Recorder::start();
    let world = world_of(&recorder.target(), &["--buffer-requests", "--max-request-body", "1000"]);
    let mut client = Raw::connect(world.http());
    client.send("POST /t HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    client.read_until(|seen| seen.starts_with("HTTP/1.1 100"));
    client.send("hel");
    eventually("it is here", || if held(&world)[0] > 0 { Ok(()) } else { Err("nothing".to_owned()) });
    let arrived_ms = harness::now_ms();
    client.send("lo").read_until(|seen| seen.ends_with("recorded"));
    let seen = recorder.request(1);
    let start = seen.values("x-request-start")[0].strip_prefix("t=").expect("t=<ms>").to_owned();
    assert!(start.parse::<u64>().is_ok_and(|start_ms| start_ms >= arrived_ms), "{start} < {arrived_ms}");
    assert!(seen.values("expect").is_empty(), "{}", seen.head);

    // Too large is known from the head: no byte of the body is asked for.
    let mut client = Raw::connect(world.http());
    client
        .send("POST /t HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 5000\r\nExpect: 100-continue\r\n\r\n");
    let answer = client.read_until(|seen| seen.contains("\r\n\r\n"));
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[test]
fn what_is_wrong_with_a_body_is_the_clients_and_never_gets_to_the_app() {
    let recorder = Recorder::start();
    for flags in [
        &["--max-request-body", "1000", "--body-idle-timeout", "1s", "--buffer-requests"][..],
        &[
            "--max-request-body",
            "1000",
            "--body-idle-timeout",
            "1s",
            "--buffer-memory",
            "0",
            "--buffer-requests",
        ],
    ] {
        let world = world_of(&recorder.target(), flags);
        for (body, status) in [
            (format!("7d0\r\n{}\r\n0\r\n\r\n", "x".repeat(2000)), "413"),
            (format!("3e8\r\n{}\r\n1\r\nx\r\n0\r\n\r\n", "x".repeat(1000)), "413"),
            ("5\r\nhelloX\r\n0\r\n\r\n".to_owned(), "400"),
            ("zz\r\n".to_owned(), "400"),
            ("5\r\nhel".to_owned(), "408"),
        ] {
            let mut client = Raw::connect(world.http());
            client.send("POST /t HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n");
            let answer = client.send(&body).read_to_end();
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{body:?}: {answer}");
        }
        // Who leaves in the middle leaves nothing.
        let mut client = Raw::connect(world.http());
        client.send("POST /t HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 500\r\n\r\nhello");
        eventually("it is here", || if held(&world)[0] > 0 { Ok(()) } else { Err("nothing".to_owned()) });
        drop(client);
        until_nothing_is_held(&world);
        assert_eq!(recorder.settled(), []);
    }
}

#[test]
fn without_room_a_request_is_refused_and_nothing_stays() {
    let recorder = Recorder::start();
    let world = buffers("memory_bytes = 1048576\ndisk_bytes = 4000000");
    world.deploy_with(&recorder.target(), &["--buffer-requests", "--buffer-memory", "100000"]);
    let upload = |bytes: usize| Ask::post("shop.test", "/t", vec![b'x'; bytes]).at(world.http());
    assert_eq!(upload(2_000_000).status, 200);
    is_refused(&upload(3_000_000), 503, "buffers_full");
    until_nothing_is_held(&world);
    // What could never be held is not even asked for.
    let mut client = Raw::connect(world.http());
    client.send(
        "POST /t HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 4000000\r\nExpect: 100-continue\r\n\r\n",
    );
    assert!(client.read_to_end().starts_with("HTTP/1.1 503 "), "{}", client.text());
    assert_eq!(world.daemon.metric("portcullis_buffers_full_total{body=\"request\"}"), 2);
    assert_eq!(world.daemon.metric("portcullis_buffers_spilled_total{body=\"request\"}"), 2);
    assert_eq!(upload(2_000_000).status, 200, "there is room again");
    assert_eq!(recorder.settled().len(), 2);
    eventually("the log has it", || {
        let log = world.daemon.access_log();
        let refused = log.iter().filter(|line| line["reason"] == "buffers_full");
        if refused.count() == 2 { Ok(()) } else { Err(format!("{log:?}")) }
    });
}

#[test]
fn one_client_cannot_take_all_of_the_disk() {
    let recorder = Recorder::start();
    let args = ["--trusted-proxy", "127.0.0.0/8"].map(Into::into).to_vec();
    let config = "\n[buffers]\ndisk_bytes = 4000000";
    let world = World::with_limits(config, DaemonOptions { args, ..DaemonOptions::default() });
    world.deploy_with(&recorder.target(), &["--buffer-requests", "--buffer-memory", "0"]);
    let mut greedy = Raw::connect(world.http());
    greedy.send("POST /t HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 2000000\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n");
    greedy.send(vec![b'x'; 1_900_000]);
    eventually("it has nearly half", || match held(&world) {
        [_, disk, _] if disk > 1_800_000 => Ok(()),
        held => Err(format!("{held:?}")),
    });
    let upload = |client: &str| {
        let ask = Ask::post("shop.test", "/t", vec![b'x'; 900_000]).header("x-forwarded-for", client);
        ask.at(world.http())
    };
    is_refused(&upload("192.0.2.1"), 503, "buffers_full");
    assert_eq!(upload("192.0.2.2").status, 200);
    greedy.send(vec![b'x'; 100_000]).read_until(|seen| seen.ends_with("recorded"));
    // Its room is given back behind its answer.
    until_nothing_is_held(&world);
    assert_eq!(upload("192.0.2.1").status, 200);
    until_nothing_is_held(&world);
}

#[test]
fn a_full_disk_refuses_what_needs_it_and_nothing_else() {
    let mount = tempfile::tempdir().expect("a temporary directory");
    let Some(wrapper) = with_small_disk(mount.path()) else { return };
    let recorder = Recorder::start();
    let config = format!("\n[buffers]\ndirectory = \"{}\"\ndisk_bytes = 1000000000", mount.path().display());
    let world = World::with_limits(&config, DaemonOptions { wrapper, ..DaemonOptions::default() });
    world.deploy_with(&recorder.target(), &["--buffer-requests", "--buffer-memory", "100000"]);
    let upload = |bytes: usize| Ask::post("shop.test", "/t", vec![b'x'; bytes]).at(world.http());
    assert_eq!(upload(1_000_000).status, 200);
    is_refused(&upload(3_000_000), 503, "buffers_full");
    until_nothing_is_held(&world);
    assert_eq!((upload(1_000_000).status.as_u16(), world.get("/").status.as_u16()), (200, 200));
    let log = world.daemon.log();
    assert!(log.contains("buffered bodies cannot be written"), "{log}");
}

/// A command in front of the daemon that gives it a disk of 2 MiB at `path`.
fn with_small_disk(path: &Path) -> Option<Vec<std::ffi::OsString>> {
    let can_mount = std::process::Command::new("unshare").args(["--mount", "true"]).status();
    if !can_mount.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: needs a mount namespace (run the tests as root)");
        return None;
    }
    let script = r#"mount -t tmpfs -o size=2m tmpfs "$1" && shift && exec "$@""#;
    let command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"];
    Some(command.map(Into::into).into_iter().chain([path.into()]).collect())
}

#[test]
fn a_directory_that_cannot_be_used_is_refused_before_it_is_needed() {
    // Where a directory should be there is a file: not even root can write below it.
    let puma = Puma::start(App::Rack, "v1");
    let mut world = World::start();
    let dir = world.daemon.state_dir().join("buffers");
    std::fs::remove_dir(&dir).expect("it is empty");
    std::fs::write(&dir, "").expect("the state directory is ours");
    for flag in ["--buffer-requests", "--buffer-responses"] {
        let refused = world.agentctl(["deploy", "shop", "--target", &puma.target(), flag]).fails_with(1);
        for want in ["cannot write temporary files in", "Not a directory", "[buffers] directory"] {
            assert!(refused.stderr().contains(want), "{want}: {refused}");
        }
    }
    assert!(world.daemon.status().services.is_empty(), "nothing changed");
    // Services that need no buffers are served all the same, also after a restart.
    world.deploy(&puma.target());
    world.daemon.stop();
    world.daemon.start_again();
    assert_eq!(world.get("/").text(), "v1");
    assert!(world.daemon.log().contains("cannot write temporary files in"));

    // One that is named has to be there.
    let config = world.dir().join("named.toml");
    std::fs::write(&config, format!("[buffers]\ndirectory = \"{}\"\n", dir.display())).expect("a file");
    let other = tempfile::tempdir().expect("a temporary directory");
    let options = DaemonOptions { args: vec!["--config".into(), config.into()], ..DaemonOptions::default() };
    let (status, log) = Daemon::start_in_vain(other.path(), &options);
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("hint:") && log.contains(&dir.display().to_string()), "{log}");
}

#[test]
fn a_slow_upload_goes_to_the_release_that_serves_when_it_is_whole() {
    let (v1, v2) = (Puma::start(App::Rack, "v1"), Puma::start(App::Rack, "v2"));
    let world = world_of(&v1.target(), &["--buffer-requests", "--drain-timeout", "1h"]);
    let mut client = Raw::connect(world.http());
    client.send("POST /upload HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 10\r\n\r\nhello");
    eventually("it is here", || if held(&world)[0] > 0 { Ok(()) } else { Err("nothing".to_owned()) });
    // The drain has nobody to wait for.
    world.deploy_with(&v2.target(), &[]);
    client.send("world").read_until(|seen| seen.contains("\"release\":\"v2\",\"bytes\":10"));
}

#[test]
fn a_buffered_request_moves_whole_to_another_target() {
    let (alive, dead) = (Recorder::start(), Recorder::start());
    let both = format!("{},{}", alive.target(), dead.target());
    let world = world_of(&both, &["--buffer-requests", "--buffer-memory", "1000"]);
    drop(dead);
    let body = "0123456789".repeat(5_000);
    eventually("one was sent to the dead target first", || {
        assert_eq!(Ask::post("shop.test", "/t", body.clone()).at(world.http()).status, 200);
        let lines = world.daemon.access_log();
        if lines.iter().any(|line| line["retried"] == true) { Ok(()) } else { Err(format!("{lines:?}")) }
    });
    assert!(alive.settled().iter().all(|seen| seen.complete && seen.text() == body));
}

const RESPONSES: &[&str] = &["--buffer-responses"];

#[test]
fn slow_readers_hold_no_thread_of_the_app() {
    const READERS: usize = 20;
    let world = buffers("memory_bytes = 4194304");
    let puma = Puma::start(App::Rack, "v1");
    let flags = ["--max-in-flight", "1", "--queue-timeout", "5m", "--buffer-responses"];
    world.deploy_with(&puma.target(), &flags);
    let before = world.daemon.rss_kib();
    let every = std::time::Duration::from_millis(100);
    let crowd = Crowd::start(
        world.http(),
        READERS,
        Manner::SlowRead { host: "shop.test", path: "/big?mib=8", every },
    );
    eventually("the app has made all of their answers", || {
        let held = held(&world);
        let stable = stable(&world);
        let seats = stable.targets[0].seats.expect("they are limited").taken;
        // Each is kept but for what the kernel has taken.
        let all = held[1] >= (READERS * 6 * MIB) as u64;
        if (seats, stable.waiting, all) == (0, 0, true) {
            Ok(())
        } else {
            Err(format!("{held:?} {stable:?}"))
        }
    });
    assert_eq!(crowd.gone(), 0, "{crowd}");
    let load = world.load("/work");
    load.goes_on_for(100);
    load.finish().lost_nothing();
    // A deploy does not wait for them either.
    let v2 = Puma::start(App::Rack, "v2");
    world.deploy_with(&v2.target(), &["--drain-timeout", "1h"]);
    assert_eq!(crowd.gone(), 0, "they read on: {crowd}");
    let (peak, disk) = (world.daemon.peak_rss_kib(), files(&world));
    println!(
        "{READERS} slow readers of 8 MiB: RSS {before} KiB before, {peak} peak; {disk:?} files and bytes on disk"
    );
    // Two reads on their way for each, the kernel's buffers not counted.
    let allowed = (4 * MIB + READERS * 256 * KIB + 16 * MIB) as u64 / 1024;
    assert!(peak - before <= allowed, "{} KiB of {allowed}", peak - before);
    drop(crowd);
    until_nothing_is_held(&world);
    // Who reads all of it gets all of it.
    let answer = world.get("/big?mib=8");
    assert_eq!((answer.body.len(), answer.body.iter().all(|byte| *byte == b'b')), (8 * MIB, true));
    assert_eq!(Ask::get("shop.test", "/big?mib=8").h2().at(world.http()).body.len(), 8 * MIB);
    until_nothing_is_held(&world);
}

#[test]
fn whole_answers_go_out_whole() {
    let recorder = Recorder::scripted(|request, stream| {
        let answer: &[u8] = match request.request_line().split(' ').nth(1) {
            Some("/chunked") => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n",
            Some("/empty") => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            Some("/204") => b"HTTP/1.1 204 No Content\r\n\r\n",
            Some("/304") => b"HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n",
            Some("/hints") => {
                b"HTTP/1.1 103 Early Hints\r\nLink: </app.css>; rel=preload\r\n\r\n\
                  HTTP/1.1 302 Found\r\nLocation: /there\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
            }
            _ => b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        };
        let _ = stream.write_all(answer);
    });
    let world = world_of(&recorder.target(), RESPONSES);
    for (method, path, status, length, body) in [
        ("GET", "/", 200, "5", "hello"),
        ("HEAD", "/", 200, "5", ""),
        ("GET", "/chunked", 200, "5", "hello"),
        ("GET", "/empty", 200, "0", ""),
        ("GET", "/204", 204, "", ""),
        ("GET", "/304", 304, "", ""),
        ("GET", "/hints", 302, "2", "ok"),
    ] {
        for ask in [Ask::get("shop.test", path), Ask::get("shop.test", path).h2()] {
            let answer = ask.method(method).at(world.http());
            // Over HTTP/2 the end of the head says that there is no body.
            let want = if length == "0" && answer.version == http::Version::HTTP_2 { "" } else { length };
            let seen = (answer.status.as_u16(), answer.header("content-length"), answer.text());
            assert_eq!(seen, (status, want, body.to_owned()), "{method} {path}: {answer}");
        }
    }
    // The hint comes first, and the status behind it is the app's.
    let mut client = Raw::connect(world.http());
    let seen =
        client.send("GET /hints HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n").read_to_end();
    let (hints, rest) = seen.split_once("HTTP/1.1 302 ").unwrap_or_else(|| panic!("{seen}"));
    assert!(hints.starts_with("HTTP/1.1 103") && hints.contains("rel=preload"), "{seen}");
    assert!(rest.to_lowercase().contains("location: /there") && !rest.contains("preload"), "{seen}");
    until_nothing_is_held(&world);
}

#[test]
fn trailers_of_an_answer_survive() {
    let recorder = Recorder::answering(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n",
    );
    let world = world_of(&recorder.target(), RESPONSES);
    let mut client = Raw::connect(world.http());
    client.send("GET / HTTP/1.1\r\nHost: shop.test\r\nTE: trailers\r\nConnection: TE, close\r\n\r\n");
    let seen = client.read_to_end().to_lowercase();
    assert!(seen.contains("2\r\nok\r\n0\r\nx-sum: 7\r\n"), "{seen}");
    let answer = Ask::get("shop.test", "/").h2().at(world.http());
    assert_eq!((answer.text().as_str(), answer.trailers["x-sum"].as_bytes()), ("ok", &b"7"[..]));
}

#[test]
fn an_app_that_flushes_is_seen_at_once() {
    // The second piece is made only after the client has seen the first.
    let (seen_first, wait_for_client) = std::sync::mpsc::sync_channel::<()>(1);
    let wait_for_client = std::sync::Mutex::new(wait_for_client);
    let recorder = Recorder::scripted(move |request: &Received, stream| {
        let asks = if request.request_line().contains("/now") { "X-Accel-Buffering: no\r\n" } else { "" };
        let head = format!("HTTP/1.1 200 OK\r\n{asks}Transfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n");
        let _ = stream.write_all(head.as_bytes());
        let _ = wait_for_client.lock().map(|client| client.recv_timeout(PATIENCE));
        let _ = stream.write_all(b"6\r\nsecond\r\n0\r\n\r\n");
    });
    let world = world_of(&recorder.target(), RESPONSES);
    let mut client = Raw::connect(world.http());
    client.send("GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n");
    assert!(!client.read_until(|seen| seen.contains("first")).contains("second"));
    seen_first.send(()).expect("the target waits");
    client.read_until(|seen| seen.ends_with("6\r\nsecond\r\n0\r\n\r\n"));
    // The connection goes on; one that does not pause is sent whole.
    seen_first.send(()).expect("the target waits");
    client.send("GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n");
    client.read_until(|seen| seen.ends_with("\r\n\r\nfirstsecond"));
    // One that does not want to be buffered is streamed.
    seen_first.send(()).expect("the target waits");
    client.send("GET /now HTTP/1.1\r\nHost: shop.test\r\n\r\n");
    client.read_until(|seen| seen.ends_with("5\r\nfirst\r\n6\r\nsecond\r\n0\r\n\r\n"));

    // A stream that never pauses and never ends is not waited for either.
    let endless = Recorder::scripted(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        // An app that trickles: the time between its pieces is what the story is about.
        while stream.write_all(b"1\r\nx\r\n").is_ok() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    });
    let world = world_of(&endless.target(), RESPONSES);
    let mut client = Raw::connect(world.http());
    client.send("GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n").read_until(|seen| seen.contains("x\r\n"));
    drop(client);
    // Whoever leaves takes the target's connection along.
    endless.settled();
    until_nothing_is_held(&world);
}

#[test]
fn event_streams_and_websockets_are_never_buffered() {
    let puma = Puma::start(App::Rails, "v1");
    let world = world_of(&puma.target(), &["--buffer-requests", "--buffer-responses"]);
    let mut events = Raw::connect(world.http());
    events.send("GET /events HTTP/1.1\r\nHost: shop.test\r\n\r\n");
    events.read_until(|seen| seen.matches("data: v1").count() > 2);
    let mut cable = Socket::open_cable(world.http(), "shop.test");
    assert_eq!(cable.cable_echo("still there"), "v1");
    assert_eq!(held(&world), [0, 0, 0]);
    let upload = Ask::post("shop.test", "/upload", vec![b'x'; 3 * MIB]).at(world.http()).json();
    assert_eq!(upload["bytes"], 3 * MIB);
}

/// Answers `/length` with an announced length, `/chunked` without, `/slow` with a pause in the middle, 2000 bytes each.
fn two_thousand_bytes() -> Recorder {
    Recorder::scripted(|request: &Received, stream| {
        let path = request.request_line().split(' ').nth(1).unwrap_or_default().to_owned();
        let half = format!("3e8\r\n{}\r\n", "x".repeat(1000));
        let _ = if path == "/length" {
            let body = "x".repeat(2000);
            stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n{body}").as_bytes())
        } else {
            let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            let first = stream.write_all(format!("{head}{half}").as_bytes());
            if path == "/slow" {
                // The app's own pause, longer than an answer is held back for one.
                std::thread::sleep(std::time::Duration::from_secs(1));
            }
            first.and_then(|()| stream.write_all(format!("{half}0\r\n\r\n").as_bytes()))
        };
    })
}

#[test]
fn an_answer_beyond_the_limit_is_refused_or_cut() {
    let recorder = two_thousand_bytes();
    for buffering in ["--buffer-responses=true", "--buffer-responses=false"] {
        let world = world_of(&recorder.target(), &[buffering, "--max-response-body", "2000"]);
        for path in ["/length", "/chunked", "/slow"] {
            assert_eq!(world.get(path).body.len(), 2000, "{buffering} {path}");
        }
        world.deploy_with(&recorder.target(), &["--max-response-body", "1999"]);
        for path in ["/length", "/chunked", "/slow"] {
            match Ask::get("shop.test", path).try_at(world.http()) {
                // The length says it before a byte is passed on; so does the end of an answer that is held back.
                Ok(answer) => is_refused(&answer, 502, "response_too_large"),
                Err(why) => {
                    let is_held = buffering == "--buffer-responses=true" && path != "/slow";
                    assert!(path != "/length" && !is_held, "{buffering} {path}: {why}");
                }
            }
            eventually("the log tells why", || {
                let lines = world.daemon.access_log();
                match lines.iter().rfind(|line| line["path"] == path) {
                    Some(line) if line["reason"] == "response_too_large" => Ok(()),
                    line => Err(format!("{buffering} {path}: {line:?}")),
                }
            });
        }
        assert_eq!(Ask::get("shop.test", "/length").method("HEAD").at(world.http()).status, 200);
        until_nothing_is_held(&world);
    }
}

#[test]
fn an_answer_that_breaks_off_is_no_answer() {
    let recorder = Recorder::scripted(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nhello");
        let _ = stream.shutdown(std::net::Shutdown::Both);
    });
    let world = world_of(&recorder.target(), RESPONSES);
    is_refused(&world.get("/"), 502, "upstream_closed");
    until_nothing_is_held(&world);
}

#[test]
fn without_room_an_answer_is_streamed() {
    let world = buffers("memory_bytes = 1048576\ndisk_bytes = 0");
    let puma = Puma::start(App::Rack, "v1");
    world.deploy_with(&puma.target(), &["--buffer-responses", "--buffer-memory", "1000000000"]);
    for ask in [Ask::get("shop.test", "/big?mib=8"), Ask::get("shop.test", "/big?mib=8").h2()] {
        let answer = ask.at(world.http());
        assert_eq!((answer.status.as_u16(), answer.body.len()), (200, 8 * MIB));
    }
    assert_eq!(world.daemon.metric("portcullis_buffers_full_total{body=\"response\"}"), 2);
    until_nothing_is_held(&world);
}
