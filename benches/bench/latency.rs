//! `--latency`: how long visitors wait at a fixed rate, far below what the proxies could do; and what a request costs
//! there, for one that comes alone pays for waking the proxy up.

use std::time::Duration;

use serde_json::{Value, json};

use crate::cells::Cell;
use crate::client_idle::{Habit, Once};
use crate::client_paced::Paced;
use crate::failure::{Failure, Outcome, Tried};
use crate::origin::Body;
use crate::peers::{Build, Ground, Kind, Peer};
use crate::progress::Progress;
use crate::stats::{Spread, quantile};
use crate::table::{Table, figure};
use crate::transport::Dial;
use crate::window::{Idle, Lengths, count, idle};
use crate::world::World;

/// Against the better of the peers.
const P99_RATIO_MAX: f64 = 1.05;

/// Who runs before all others for a second is stopped by Linux for 50 ms, so that they get their turn, too: a window
/// is cut into stretches with rests between them, in which they have it.
const STRETCH: Duration = Duration::from_millis(700);
const REST: Duration = Duration::from_millis(200);
/// At the beginning of each stretch, not counted.
const SETTLE: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Plan<'p> {
    pub cells: Vec<Cell>,
    pub kinds: Vec<Kind>,
    /// Requests per second.
    pub rates: Vec<u32>,
    pub rounds: usize,
    pub lengths: Lengths,
    pub idle: Duration,
    /// Held by Portcullis alone.
    pub idle_connections: u64,
    pub builds: &'p dyn Fn(Kind) -> Outcome<Build>,
}

struct Series {
    cell: Cell,
    rate: u32,
    kind: Kind,
    rounds: Vec<Round>,
}

struct Round {
    p99_us: f64,
    cost_us: f64,
    /// Sorted.
    latencies_us: Vec<f64>,
}

impl Series {
    fn over_all(&self, share: f64) -> Option<f64> {
        let mut all: Vec<f64> = self.rounds.iter().flat_map(|round| &round.latencies_us).copied().collect();
        all.sort_by(f64::total_cmp);
        quantile(&all, share)
    }
}

pub(crate) struct Report {
    rounds: usize,
    series: Vec<Series>,
}

pub(crate) fn run(
    ground: &Ground,
    world: &mut World,
    plan: &Plan<'_>,
    progress: &Progress,
) -> Outcome<Report> {
    if !crate::machine::run_before_others() {
        progress.say("note: without root, other work on the machine is part of the latencies");
    }
    let mut peers = Vec::new();
    for kind in plan.kinds.iter().filter(|kind| **kind != Kind::Floor) {
        progress.now(&format!("starting {}", kind.name()));
        peers.push(ground.start(world, *kind, &(plan.builds)(*kind)?)?);
    }
    progress.say("measuring what they use when idle");
    let idle = idle(world, &peers, plan.idle)?;
    let ours = peers.iter().find(|peer| peer.kind == Kind::Portcullis);
    let _crowd = match ours.filter(|_| plan.idle_connections > 0) {
        Some(ours) => {
            progress.now(&format!("opening {} idle connections", plan.idle_connections));
            let dial = Dial { address: ours.addresses.plain, tls: None };
            let mut crowd = Once::new(dial, Body::Small, Habit::StaysIdle);
            crowd.join_all(world, plan.idle_connections)?;
            crowd.leave_alone(&world.poll)?;
            Some(crowd)
        }
        None => None,
    };
    let mut series = Vec::new();
    for cell in &plan.cells {
        for rate in &plan.rates {
            series.extend(peers.iter().map(|peer| Series {
                cell: *cell,
                rate: *rate,
                kind: peer.kind,
                rounds: Vec::new(),
            }));
        }
    }
    for round in 0..plan.rounds {
        for group in series.chunks_mut(peers.len()) {
            let mut turn: Vec<usize> = (0..peers.len()).collect();
            if round % 2 == 1 {
                turn.reverse();
            }
            for at in turn {
                let one = &mut group[at];
                let what = format!("{} at {} per second with {}", one.cell.name, one.rate, one.kind.name());
                progress.now(&format!("round {} of {}: {what}", round + 1, plan.rounds));
                let measured = measure(world, &peers[at], idle[at], one.cell, one.rate, plan.lengths);
                one.rounds.push(measured.tried(|| format!("measure {what}"))?);
            }
        }
        progress.say(&format!("round {} of {} done", round + 1, plan.rounds));
    }
    Ok(Report { rounds: plan.rounds, series })
}

fn measure(
    world: &mut World,
    peer: &Peer,
    idle: Idle,
    cell: Cell,
    rate: u32,
    lengths: Lengths,
) -> Outcome<Round> {
    let dial = cell.dial(peer.addresses)?.ok_or_else(|| Failure::new("it does not offer this"))?;
    let mut load = Paced::open(&world.poll, &dial, cell.body(), rate)?;
    // Handshakes.
    world.run(&mut load, lengths.warm_up)?;
    let stretches = lengths.window.div_duration_f64(STRETCH).ceil() as u32;
    let mut costs_us = Vec::new();
    for _ in 0..stretches {
        load.begin();
        world.run(&mut load, SETTLE)?;
        load.record();
        costs_us.push(count(world, peer, &mut load, lengths.window / stretches)?.cost_us(idle));
        let asked = load.rest();
        world.run_until(&mut load, asked, PATIENCE)?;
        world.run(&mut load, REST)?;
    }
    let latencies = load.latencies_us();
    drop(load);
    world.serve(Duration::from_millis(20))?;
    peer.empty_access_log()?;
    let p99_us = quantile(&latencies, 0.99).ok_or_else(|| Failure::new("no request was answered"))?;
    let cost_us = costs_us.iter().sum::<f64>() / costs_us.len() as f64;
    Ok(Round { p99_us, cost_us, latencies_us: latencies })
}

impl Report {
    /// The 99th percentile of all rounds together, beside that of the better peer.
    ///
    /// The peers are compared over all rounds, too: whichever of two happens to do better in one round does better than
    /// either does, and the more so the more the rounds differ.
    fn ratio(&self, ours: &Series) -> Option<f64> {
        let peers = self.series.iter().filter(|one| {
            (one.cell, one.rate) == (ours.cell, ours.rate) && matches!(one.kind, Kind::Haproxy | Kind::Nginx)
        });
        let better = peers.filter_map(|peer| peer.over_all(0.99)).min_by(f64::total_cmp)?;
        Some(ours.over_all(0.99)? / better)
    }

    pub(crate) fn render(&self) -> String {
        let header =
            ["cell", "per s", "proxy", "p50 µs", "p99 µs", "rounds' p99", "CPU µs", "p99 × the better peer"];
        let mut table = Table::new(header);
        for one in &self.series {
            let spread = |value: fn(&Round) -> f64| Spread::of(one.rounds.iter().map(value));
            let (Some(p50_us), Some(p99_us)) = (one.over_all(0.5), one.over_all(0.99)) else { continue };
            let (Some(p99), Some(cost)) = (spread(|round| round.p99_us), spread(|round| round.cost_us))
            else {
                continue;
            };
            let verdict = match self.ratio(one) {
                Some(ratio) if one.kind == Kind::Portcullis => {
                    let verdict = if ratio <= P99_RATIO_MAX { "met" } else { "NOT MET" };
                    format!("{ratio:.2} ≤ {P99_RATIO_MAX:.2} {verdict}")
                }
                Some(ratio) if one.kind == Kind::Before => format!("{ratio:.2}"),
                _ => "–".to_owned(),
            };
            table.row([
                one.cell.name.to_owned(),
                one.rate.to_string(),
                one.kind.name().to_owned(),
                figure(p50_us),
                figure(p99_us),
                format!("{}–{}", figure(p99.min), figure(p99.max)),
                figure(cost.median),
                verdict,
            ]);
        }
        format!(
            "Latency at a fixed rate, from when a request was due ({} rounds, all answers together)\n\n{}",
            self.rounds,
            table.render()
        )
    }

    pub(crate) fn json(&self) -> Value {
        let row = |one: &Series| {
            let median = |value: fn(&Round) -> f64| {
                Spread::of(one.rounds.iter().map(value)).map(|spread| spread.median)
            };
            json!({
                "cell": one.cell.name,
                "rate": one.rate,
                "proxy": one.kind.name(),
                "p50_us": one.over_all(0.5),
                "p99_us": one.over_all(0.99),
                "cpu_us": median(|round| round.cost_us),
                "ratio_p99_better_peer": self.ratio(one),
            })
        };
        json!({"rounds": self.rounds, "rows": self.series.iter().map(row).collect::<Vec<_>>()})
    }
}
