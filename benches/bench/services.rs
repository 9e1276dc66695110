//! `--services`: does a request cost the same with one service in the table and with a thousand?

use std::time::Duration;

use serde_json::{Value, json};

use crate::cells::Cell;
use crate::failure::Outcome;
use crate::peers::{Build, Ground, Kind, Peer};
use crate::progress::Progress;
use crate::stats::Spread;
use crate::table::{Table, figure};
use crate::window::{Idle, Lengths, idle, measure};
use crate::world::World;

const SIZES: [usize; 4] = [1, 10, 100, 1000];
/// Against one service.
const RATIO_MAX: f64 = 1.03;

pub(crate) struct Plan {
    pub cell: Cell,
    pub rounds: usize,
    pub lengths: Lengths,
    pub idle: Duration,
    pub portcullis: Build,
}

pub(crate) struct Report {
    cell: Cell,
    rounds: usize,
    /// By size, then by round; in µs.
    costs: Vec<Vec<f64>>,
    /// The same without anything that the control plane's thread used.
    workers: Vec<Vec<f64>>,
    /// What the control plane's thread used while requests were served, as a share of a core.
    control: Vec<Vec<f64>>,
    idle: Vec<Idle>,
}

pub(crate) fn run(ground: &Ground, world: &mut World, plan: &Plan, progress: &Progress) -> Outcome<Report> {
    let start = |services| {
        progress.now(&format!("starting portcullis with {services} services"));
        ground.start(world, Kind::Portcullis, &Build { services, ..plan.portcullis.clone() })
    };
    let peers: Vec<Peer> = SIZES.into_iter().map(start).collect::<Outcome<_>>()?;
    progress.say("measuring what they use when idle");
    let idle = idle(world, &peers, plan.idle)?;
    let mut costs = vec![Vec::new(); SIZES.len()];
    let mut workers = vec![Vec::new(); SIZES.len()];
    let mut control = vec![Vec::new(); SIZES.len()];
    for round in 0..plan.rounds {
        let mut turn: Vec<usize> = (0..SIZES.len()).collect();
        if round % 2 == 1 {
            turn.reverse();
        }
        for at in turn {
            progress.now(&format!("round {} of {}: {} services", round + 1, plan.rounds, SIZES[at]));
            let window = measure(world, &peers[at], &plan.cell, plan.lengths)?;
            costs[at].push(window.cost_us(idle[at]));
            workers[at].push(window.cost_us(Idle { all: 1.0, control: 1.0 }));
            control[at].push(window.cpu.control.as_secs_f64() / window.wall.as_secs_f64());
        }
        progress.say(&format!("round {} of {} done", round + 1, plan.rounds));
    }
    Ok(Report { cell: plan.cell, rounds: plan.rounds, costs, workers, control, idle })
}

impl Report {
    pub(crate) fn render(&self) -> String {
        let mut table = Table::new([
            "services",
            "µs",
            "least–most",
            "× one service",
            "goal",
            "× workers only",
            "control ms/s: idle",
            "busy",
        ]);
        for (at, services) in SIZES.iter().enumerate() {
            let cost = Spread::of(self.costs[at].iter().copied());
            let (Some(cost), Some(ratio), Some(workers)) =
                (cost, ratio(&self.costs, at), ratio(&self.workers, at))
            else {
                continue;
            };
            let verdict = if ratio <= RATIO_MAX { "met" } else { "NOT MET" };
            table.row([
                services.to_string(),
                format!("{:.2}", cost.median),
                format!("{}–{}", figure(cost.min), figure(cost.max)),
                format!("{ratio:.3}"),
                format!("≤ {RATIO_MAX:.2} {verdict}"),
                format!("{workers:.3}"),
                format!("{:.1}", self.idle[at].control * 1e3),
                format!("{:.1}", self.control_ms(at)),
            ]);
        }
        let rounds = self.rounds;
        format!("CPU µs per request of {} (median of {rounds} rounds)\n\n{}", self.cell.name, table.render())
    }

    fn control_ms(&self, at: usize) -> f64 {
        Spread::of(self.control[at].iter().copied()).map_or(0.0, |share| share.median * 1e3)
    }

    pub(crate) fn json(&self) -> Value {
        let row = |(at, services): (usize, &usize)| {
            let cost = Spread::of(self.costs[at].iter().copied())?;
            Some(json!({
                "cell": self.cell.name,
                "proxy": "portcullis",
                "services": services,
                "cpu_us": cost.median,
                "cpu_us_min": cost.min,
                "cpu_us_max": cost.max,
                "ratio_one_service": ratio(&self.costs, at),
                "ratio_one_service_workers": ratio(&self.workers, at),
                "control_ms_per_s_idle": self.idle[at].control * 1e3,
                "control_ms_per_s_busy": self.control_ms(at),
            }))
        };
        json!({"rounds": self.rounds, "rows": SIZES.iter().enumerate().filter_map(row).collect::<Vec<_>>()})
    }
}

/// Against one service, round by round.
fn ratio(costs: &[Vec<f64>], at: usize) -> Option<f64> {
    Spread::of_ratios(&costs[at], &costs[0]).map(|ratio| ratio.median)
}
