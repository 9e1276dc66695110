//! Clients of HTTP/2 that answer every ping and otherwise take all the time in the world.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use harness::{DaemonOptions, Frame, Frames, Patient, Recorder, World, eventually, frame, headers};

use super::house::echo;

const WINDOW: u16 = 4;
const NO_ERROR: u32 = 0;

fn fields<'f>(method: &'f str, host: &'f str, path: &'f str) -> [(&'f str, &'f str); 4] {
    [(":method", method), (":scheme", "http"), (":path", path), (":authority", host)]
}

fn limits(text: &str) -> World {
    World::with_limits(text, DaemonOptions::default())
}

/// Row 32.
#[test]
fn a_window_that_stays_shut_ends_its_stream_alone() {
    let (patient, world) = (Patient::start(), limits("stall_timeout = \"1s\"\nkeep_alive_timeout = \"60s\""));
    world.deploy_with(&patient.target(), &["--body-idle-timeout", "60s"]);
    let before = world.daemon.rss_kib();
    let mut client = Frames::connect_with(world.http(), &[(WINDOW, 0)]);
    (0..10).for_each(|n| {
        client.send(headers(2 * n + 1, Frame::END_STREAM, &fields("GET", "shop.test", "/big?64")));
    });
    for n in 0..10 {
        let end = client.end_of(2 * n + 1);
        let reset = end.as_ref().is_some_and(|end| end.kind == Frame::RST_STREAM);
        assert!(reset, "stream {} ended with {end:?}", 2 * n + 1);
    }
    let grown = world.daemon.peak_rss_kib().saturating_sub(before);
    println!("strictness: 10 shut windows over 640 MB of answers: {grown} KiB more at the peak");
    assert!(grown <= 16 * 1024, "{grown} KiB for ten streams that nobody reads");
    client.send(headers(21, Frame::END_STREAM, &fields("GET", "shop.test", "/t")));
    client.send(frame(Frame::WINDOW_UPDATE, 0, 21, &1_000_u32.to_be_bytes()));
    client.end_of(21);
    assert_eq!(client.body_of(21), "patient", "the connection goes on");
}

/// Row 33.
#[test]
fn an_upload_that_drips_is_cut() {
    let (patient, world) = (Patient::start(), limits("bytes_per_second_min = 500"));
    world.deploy_with(&patient.target(), &["--body-idle-timeout", "2s"]);
    let mut client = Frames::connect(world.http());
    let mut upload = fields("POST", "shop.test", "/t").to_vec();
    upload.push(("content-length", "1000000"));
    client.send(headers(1, 0, &upload));
    let ended = |client: &Frames| {
        client
            .seen
            .iter()
            .any(|frame| frame.stream == 1 && (frame.kind == Frame::RST_STREAM || frame.ends_stream()))
    };
    // Reading takes a moment, which paces the drip: never two seconds without a byte, never 500 a second.
    while !ended(&client) {
        assert!(client.read_some(), "the connection goes on: {:?}", client.seen);
        client.send(frame(Frame::DATA, 0, 1, b"x"));
    }
    let status = client.status_of(1);
    assert!(status.is_none_or(|status| status == 408), "{status:?}");
    client.send(headers(3, Frame::END_STREAM, &fields("GET", "shop.test", "/t")));
    client.end_of(3);
    assert_eq!(client.body_of(3), "patient", "the connection goes on");
}

/// Row 34.
#[test]
fn pings_keep_no_idle_connection() {
    let world = limits("keep_alive_timeout = \"2s\"\nstall_timeout = \"1s\"");
    let recorder = Recorder::scripted(echo);
    world.deploy(&recorder.target());
    let mut client = Frames::connect(world.http());
    client.send(headers(1, Frame::END_STREAM, &fields("GET", "shop.test", "/t")));
    assert_eq!(client.read_to_end(), Some(NO_ERROR), "a word of farewell, and no error");
    assert_eq!(client.status_of(1), Some(200));
    let pinged = client.seen.iter().any(|frame| frame.kind == Frame::PING && frame.flags == 0);
    assert!(pinged, "it was asked whether it is there, and said yes");
    eventually("it is counted", || {
        let closed = world.daemon.metric("portcullis_connections_closed_total{reason=\"keep_alive\"}");
        if closed == 1 { Ok(()) } else { Err(format!("{closed}")) }
    });
}

/// Row 35.
#[test]
fn a_drain_finishes_what_it_has() {
    const STREAMS: u32 = 50;
    let released = Arc::new(AtomicBool::new(false));
    let recorder = Recorder::scripted({
        let released = Arc::clone(&released);
        move |seen, stream| {
            while seen.request_line().contains("/held") && !released.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
            }
            echo(seen, stream);
            let _ = stream.flush();
        }
    });
    let mut world = World::start();
    world.deploy(&recorder.target());
    let mut client = Frames::connect(world.http());
    (0..STREAMS).for_each(|n| {
        client.send(headers(2 * n + 1, Frame::END_STREAM, &fields("GET", "shop.test", "/held")));
    });
    recorder.request(STREAMS as usize);
    world.daemon.terminate();
    // First that there will be an end, then where it is.
    let first = client.read_until(|frame| frame.kind == Frame::GOAWAY).expect("a GOAWAY");
    assert_eq!((first.error(), first.last_stream()), (Some(NO_ERROR), Some(0x7fff_ffff)));
    let last =
        client.read_until(|frame| frame.kind == Frame::GOAWAY && frame.last_stream() != Some(0x7fff_ffff));
    assert_eq!(last.and_then(|last| last.last_stream()), Some(2 * STREAMS - 1));
    // Too late: neither answered nor sent to the app.
    let late = 2 * STREAMS + 1;
    client.send(headers(late, Frame::END_STREAM, &fields("GET", "shop.test", "/late")));
    released.store(true, Ordering::SeqCst);
    assert_eq!(client.read_to_end(), Some(NO_ERROR));
    for n in 0..STREAMS {
        assert_eq!(client.body_of(2 * n + 1), "GET /held HTTP/1.1", "stream {}", 2 * n + 1);
    }
    assert_eq!(client.status_of(late), None);
    assert!(world.daemon.wait_for_the_end().success());
    assert!(!recorder.received().iter().any(|seen| seen.request_line().contains("/late")));
}
