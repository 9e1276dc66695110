//! Work for nothing: each flood of frames costs bounded memory and ends with a word why (RFC 9113 §10.5).

use std::io::Write;
use std::process::Command;

use harness::{
    Fields, Frame, Frames, Patient, Raw, Recorder, World, block, frame, headers, headers_of_block,
};

use super::house::{Chapter, echo};

const GET: Fields<'_> =
    &[(":method", "GET"), (":scheme", "http"), (":path", "/t"), (":authority", "shop.test")];
const POST: Fields<'_> =
    &[(":method", "POST"), (":scheme", "http"), (":path", "/t"), (":authority", "shop.test")];
const REFUSED_STREAM: u32 = 7;
const CANCEL: [u8; 4] = [0, 0, 0, 8];
const ENHANCE_YOUR_CALM: u32 = 11;
/// Resident memory that one flood may leave behind; an allocator keeps some of what it has had.
const GROWTH_KIB_MAX: u64 = 32 * 1024;

/// The frame with which a client breaks a stream.
type Breaking = Box<dyn Fn(u32) -> Vec<u8>>;

/// Runs one flood; judges memory, what arrived upstream, and whether others are served.
fn flood(chapter: &mut Chapter, id: &str, attack: impl FnOnce(&World) -> Result<(), String>) {
    chapter.recorder.forget();
    let before = chapter.world.daemon.rss_kib();
    let outcome = attack(&chapter.world).and_then(|()| {
        let arrived = chapter.upstream_of_case(false)?.len();
        let grown = chapter.world.daemon.rss_kib().saturating_sub(before);
        println!("  {id}: {grown} KiB more, {arrived} requests upstream");
        match (grown <= GROWTH_KIB_MAX, arrived <= 1_500) {
            (true, true) => Ok(()),
            _ => Err(format!("{grown} KiB more, {arrived} requests upstream")),
        }
    });
    chapter.record(id, outcome);
}

/// The end that `client` is told.
fn ends_with(client: &mut Frames, codes: &[u32]) -> Result<(), String> {
    match client.read_to_end() {
        Some(code) if codes.contains(&code) => Ok(()),
        other => Err(format!("wanted a GOAWAY with one of {codes:?}, got {other:?}")),
    }
}

#[test]
fn floods_of_frames_are_calmed() {
    let mut chapter = Chapter::begin("HTTP/2 floods");
    let repeated = |bytes: Vec<u8>, times: usize| bytes.repeat(times);
    let calm = &[ENHANCE_YOUR_CALM][..];
    let open_block = || frame(Frame::HEADERS, 0, 1, &block(GET));
    let upload = || headers(1, 0, POST);
    for (id, opening, one, times, codes) in [
        (
            "D02",
            open_block(),
            frame(Frame::CONTINUATION, 0, 1, &[0; 16_384]),
            1_280,
            &[1, 9, ENHANCE_YOUR_CALM][..],
        ),
        ("D03", open_block(), frame(Frame::CONTINUATION, 0, 1, b""), 30_000, calm),
        ("D04", vec![], frame(Frame::SETTINGS, 0, 0, b""), 30_000, calm),
        ("D04a", vec![], frame(Frame::SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255].repeat(100)), 30_000, calm),
        ("D04b", vec![], frame(Frame::SETTINGS, Frame::ACK, 0, b""), 30_000, &[1, ENHANCE_YOUR_CALM]),
        ("D05", vec![], frame(Frame::PING, 0, 0, b"12345678"), 30_000, calm),
        ("D05a", vec![], frame(Frame::PING, Frame::ACK, 0, b"12345678"), 30_000, calm),
        ("D06", upload(), frame(Frame::DATA, 0, 1, b""), 30_000, calm),
        ("D08", upload(), frame(Frame::WINDOW_UPDATE, 0, 0, &[0; 4]), 3_000, &[1]),
        ("D08b", upload(), frame(Frame::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]), 30_000, calm),
        ("D08c", upload(), frame(Frame::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]), 30_000, calm),
        ("D09", vec![], frame(Frame::PRIORITY, 0, 1, &[0, 0, 0, 0, 16]), 30_000, calm),
        ("D09a", vec![], frame(0x10, 0, 0, b"\0\0\0\x01u=1"), 30_000, calm),
        ("D09b", vec![], frame(0xbe, 0, 0, b"grease"), 30_000, calm),
        ("D09c", upload(), frame(Frame::PRIORITY, 0, 3, &[0, 0, 0, 3, 16]), 30_000, calm),
    ] {
        flood(&mut chapter, id, |world| {
            let mut client = Frames::connect(world.http());
            client.send(&opening).flood(&repeated(one, times));
            ends_with(&mut client, codes)
        });
    }
    // Each stream is broken by its client, so that it is for us to reset it (CVE-2025-8671).
    let promising = [POST, &[("content-length", "5")]].concat();
    let broken: [(&str, Breaking, &[u32]); 3] = [
        // h2 ends the connection for the first one.
        ("D08a", Box::new(|stream| frame(Frame::WINDOW_UPDATE, 0, stream, &[0; 4])), &[1]),
        ("D08d", Box::new(|stream| frame(Frame::DATA, Frame::END_STREAM, stream, b"too long")), calm),
        (
            "D08e",
            Box::new(|stream| {
                frame(Frame::PRIORITY, 0, stream, &[&stream.to_be_bytes()[..], &[16]].concat())
            }),
            calm,
        ),
    ];
    for (id, break_it, codes) in broken {
        flood(&mut chapter, id, |world| {
            let mut client = Frames::connect(world.http());
            let streams = (0..3_000).map(|n| 2 * n + 1);
            let all = streams.flat_map(|stream| [headers(stream, 0, &promising), break_it(stream)].concat());
            client.flood(&all.collect::<Vec<u8>>());
            ends_with(&mut client, codes)
        });
    }
    chapter.world.deploy_with(&chapter.recorder.target(), &["--tls", "--tls-redirect=false"]);
    flood(&mut chapter, "D05b", |world| {
        let mut client = Frames::over(Raw::connect_tls(world.daemon.https(), "shop.test", &["h2"]), &[]);
        client.flood(&repeated(frame(Frame::PING, 0, 0, b"over TLS"), 30_000));
        ends_with(&mut client, calm)
    });
    flood(&mut chapter, "D07", |world| {
        let mut client = Frames::connect(world.http());
        client.send(upload()).flood(&repeated(frame(Frame::DATA, 0, 1, b"x"), 30_000));
        client.send(frame(Frame::DATA, Frame::END_STREAM, 1, b""));
        client.end_of(1);
        match (client.status_of(1), client.seen.last().and_then(Frame::error)) {
            (Some(200), _) | (_, Some(ENHANCE_YOUR_CALM)) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    chapter.end();
}

#[test]
fn streams_that_are_given_up_are_counted() {
    let mut chapter = Chapter::begin("HTTP/2 rapid resets");
    let given_up = |n: u32| {
        let stream = 2 * n + 1;
        [headers(stream, Frame::END_STREAM, GET), frame(Frame::RST_STREAM, 0, stream, &CANCEL)].concat()
    };
    // CVE-2023-44487.
    flood(&mut chapter, "D01", |world| {
        let mut client = Frames::connect(world.http());
        client.flood(&(0..3_000).flat_map(given_up).collect::<Vec<u8>>());
        ends_with(&mut client, &[ENHANCE_YOUR_CALM])
    });
    // Each one is accepted before it is reset, so h2 counts nothing.
    flood(&mut chapter, "D01a", |world| {
        let mut client = Frames::connect(world.http());
        for n in 0..3_000 {
            let stream = 2 * n + 1;
            client.send(headers(stream, Frame::END_STREAM, GET)).send(frame(
                Frame::PING,
                0,
                0,
                &u64::from(n).to_be_bytes(),
            ));
            let pong = |frame: &Frame| {
                frame.kind == Frame::GOAWAY
                    || (frame.kind == Frame::PING && frame.payload == u64::from(n).to_be_bytes())
            };
            if client.read_until(pong).is_none_or(|frame| frame.kind == Frame::GOAWAY) {
                break;
            }
            client.send(frame(Frame::RST_STREAM, 0, stream, &CANCEL));
            client.seen.clear();
        }
        client.seen.retain(|frame| frame.kind == Frame::GOAWAY);
        ends_with(&mut client, &[ENHANCE_YOUR_CALM])
    });
    let closed = chapter.world.daemon.metric("portcullis_connections_closed_total{reason=\"flood\"}");
    chapter.record("D01b", if closed == 2 { Ok(()) } else { Err(format!("{closed} counted as floods")) });
    chapter.end();
}

#[test]
fn streams_beyond_the_limit_are_refused() {
    let mut chapter = Chapter::begin("HTTP/2 streams without number");
    flood(&mut chapter, "D12", |world| {
        let mut client = Frames::connect(world.http());
        for n in 0..400 {
            client.send(headers(2 * n + 1, 0, POST));
        }
        let refused = client.read_until(|frame| frame.error() == Some(REFUSED_STREAM));
        refused.map(drop).ok_or("nothing was refused".to_owned())
    });
    flood(&mut chapter, "D12a", |world| {
        let mut client = Frames::connect(world.http());
        let all: Vec<u8> = (0..100_000).flat_map(|n| headers(2 * n + 1, Frame::END_STREAM, GET)).collect();
        client.flood(&all);
        // It asked without waiting for anything.
        ends_with(&mut client, &[ENHANCE_YOUR_CALM])
    });
    // The HTTP/2 bomb (CVE-2026-49975): a byte names a field that the table remembers.
    for (id, name) in [("D10", "x"), ("D11", "cookie")] {
        flood(&mut chapter, id, |world| {
            let mut clients = Vec::new();
            for _ in 0..10 {
                let mut client = Frames::connect_with(world.http(), &[(4, 0)]);
                // A literal with incremental indexing (RFC 7541 §6.2.1) is entry 62.
                let entry = [&[0x40][..], &block(&[(name, "a")])[1..]].concat();
                for n in 0..100 {
                    let remembered = if n == 0 { &entry[..] } else { &[] };
                    let bomb = [&block(GET), remembered, &[0xbe; 1_800]].concat();
                    client.send(headers_of_block(2 * n + 1, Frame::END_STREAM, &bomb));
                }
                clients.push(client);
            }
            // All of it has been read once a ping comes back, or the connection has ended.
            for client in &mut clients {
                client.send(frame(Frame::PING, 0, 0, b"are over"));
                client.read_until(|frame| frame.kind == Frame::PING && frame.payload == b"are over");
            }
            let grown_upstream =
                clients.iter().filter(|client| client.seen.iter().any(|f| f.status() == Some(200)));
            match grown_upstream.count() {
                0 => Ok(()),
                n => Err(format!("{n} were served")),
            }
        });
    }
    chapter.end();
}

#[test]
fn who_means_well_is_not_calmed() {
    const BIG: usize = 32 << 20;
    let mut chapter = Chapter::on(
        "busy HTTP/2 clients",
        Recorder::scripted(|seen, stream| {
            if !seen.request_line().contains("/big") {
                return echo(seen, stream);
            }
            let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {BIG}\r\n\r\n");
            let _ = stream.write_all(&vec![b'b'; BIG]);
        }),
    );
    // Two updates for each frame of a fast download.
    let mut client = Frames::connect(chapter.world.http());
    let mut fields = GET.to_vec();
    fields[2] = (":path", "/big");
    client.send(headers(1, Frame::END_STREAM, &fields));
    let (mut bytes, mut updates, mut over) = (0, 0, false);
    while !over && client.read_some() {
        let mut answer = Vec::new();
        for read in std::mem::take(&mut client.seen).iter().filter(|frame| frame.kind == Frame::DATA) {
            let length = read.payload.len();
            (bytes, over) = (bytes + length, read.ends_stream());
            if length > 0 {
                let increment = u32::try_from(length).expect("a frame is short").to_be_bytes();
                answer.extend(frame(Frame::WINDOW_UPDATE, 0, 0, &increment));
                answer.extend(frame(Frame::WINDOW_UPDATE, 0, 1, &increment));
                updates += 2;
            }
        }
        client.send(answer);
    }
    let served = bytes == BIG && updates > 3_000;
    chapter.record("W01", if served { Ok(()) } else { Err(format!("{bytes} bytes, {updates} updates")) });
    // Five priorities for each of 400 requests, as browsers once sent them, and every third request given up.
    let mut client = Frames::connect(chapter.world.http());
    let mut given_up = 0;
    for n in 0..400 {
        let stream = 2 * n + 1;
        client.send(frame(Frame::PRIORITY, 0, stream, &[0, 0, 0, 0, 16]).repeat(5));
        client.send(headers(stream, Frame::END_STREAM, GET));
        if n % 3 == 0 {
            client.send(frame(Frame::RST_STREAM, 0, stream, &CANCEL));
            given_up += 1;
        } else {
            client.end_of(stream);
        }
    }
    let answered = client.seen.iter().filter(|frame| frame.status() == Some(200)).count();
    let is_sound = answered >= 400 - given_up && !client.seen.iter().any(|frame| frame.kind == Frame::GOAWAY);
    chapter.record("W02", if is_sound { Ok(()) } else { Err(format!("{answered} answers of 400")) });
    chapter.end();
}

#[test]
fn h2load_is_served_in_bounded_memory() {
    let patient = Patient::start();
    let world = World::start();
    world.deploy(&patient.target());
    let before = world.daemon.rss_kib();
    let output = Command::new("h2load")
        .args(["--requests=100000", "--clients=4", "--max-concurrent-streams=100", "--threads=1"])
        .arg(format!("--connect-to={}", world.http()))
        .arg(format!("http://shop.test:{}/t", world.http().port()))
        .output()
        .expect("h2load is installed (bin/test installs it)");
    let text = String::from_utf8_lossy(&output.stdout);
    let grown = world.daemon.peak_rss_kib().saturating_sub(before);
    println!("h2load: 100000 streams on 4 connections, {grown} KiB more at the peak");
    assert!(text.contains("100000 succeeded, 0 failed, 0 errored, 0 timeout"), "{text}");
    assert!(grown <= GROWTH_KIB_MAX, "{grown} KiB");
    assert_eq!(
        world.daemon.metric("portcullis_connections_closed_total{reason=\"flood\"}"),
        0,
        "nobody flooded"
    );
}
