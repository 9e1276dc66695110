//! The comparison: CPU time per request of every proxy in every cell, interleaved, as ratios beside the goals.

use std::time::Duration;

use serde_json::{Value, json};

use crate::cells::{Cell, FLOOR_MAX};
use crate::failure::{Failure, Outcome};
use crate::peers::{Build, Ground, Kind, Peer};
use crate::progress::Progress;
use crate::stats::Spread;
use crate::table::{Table, figure};
use crate::window::{Idle, Lengths, Window, idle, measure};
use crate::world::World;

pub(crate) struct Plan<'p> {
    pub cells: Vec<Cell>,
    pub kinds: Vec<Kind>,
    pub rounds: usize,
    pub lengths: Lengths,
    /// For what proxies use when idle.
    pub idle: Duration,
    pub builds: &'p dyn Fn(Kind) -> Outcome<Build>,
}

/// All windows of one proxy in one cell, in the order of the rounds.
struct Series {
    cell: Cell,
    kind: Kind,
    idle: Idle,
    windows: Vec<Window>,
}

pub(crate) struct Report {
    rounds: usize,
    series: Vec<Series>,
    idle: Vec<(Kind, Idle)>,
}

pub(crate) fn run(
    ground: &Ground,
    world: &mut World,
    plan: &Plan<'_>,
    progress: &Progress,
) -> Outcome<Report> {
    let peers = start(ground, world, plan, progress)?;
    progress.say("measuring what they use when idle");
    let idle = idle(world, &peers, plan.idle)?;
    let mut series: Vec<Series> = Vec::new();
    for cell in &plan.cells {
        for (peer, idle) in peers.iter().zip(&idle) {
            if cell.is_plain() || peer.kind.has_tls() {
                series.push(Series { cell: *cell, kind: peer.kind, idle: *idle, windows: Vec::new() });
            }
        }
    }
    let (lines, mut logged) = (world.log.lines, 0);
    for round in 0..plan.rounds {
        for cell in &plan.cells {
            let mut turn: Vec<&mut Series> = series.iter_mut().filter(|one| one.cell == *cell).collect();
            if round % 2 == 1 {
                turn.reverse();
            }
            for one in turn {
                progress.now(&format!(
                    "round {} of {}: {}, {}",
                    round + 1,
                    plan.rounds,
                    cell.name,
                    one.kind.name()
                ));
                let peer = peers.iter().find(|peer| peer.kind == one.kind);
                let peer = peer.ok_or_else(|| Failure::new("a proxy was not started"))?;
                let window = measure(world, peer, cell, plan.lengths)?;
                if one.kind == Kind::Haproxy {
                    logged += window.requests;
                }
                one.windows.push(window);
            }
        }
        progress.say(&format!("round {} of {} done", round + 1, plan.rounds));
    }
    // The last lines may still be in the ring.
    world.serve(Duration::from_millis(100))?;
    if world.log.lines - lines < logged {
        progress.say(&format!(
            "warning: of {logged} requests in windows haproxy logged only {}: lost lines cost nothing",
            world.log.lines - lines
        ));
    }
    let idle = peers.iter().map(|peer| peer.kind).zip(idle).collect();
    Ok(Report { rounds: plan.rounds, series, idle })
}

fn start(ground: &Ground, world: &mut World, plan: &Plan<'_>, progress: &Progress) -> Outcome<Vec<Peer>> {
    let start = |kind: &Kind| {
        progress.now(&format!("starting {}", kind.name()));
        ground.start(world, *kind, &(plan.builds)(*kind)?)
    };
    plan.kinds.iter().map(start).collect()
}

impl Report {
    fn costs(&self, cell: &Cell, kind: Kind) -> Vec<f64> {
        let found = self.series.iter().find(|one| one.cell == *cell && one.kind == kind);
        found.map(Series::costs).unwrap_or_default()
    }

    fn cells(&self) -> Vec<Cell> {
        let mut cells: Vec<Cell> = self.series.iter().map(|one| one.cell).collect();
        cells.dedup();
        cells
    }

    fn ratio(&self, cell: &Cell, to: Kind) -> Option<Spread> {
        Spread::of_ratios(&self.costs(cell, Kind::Portcullis), &self.costs(cell, to))
    }

    /// The tables for people.
    pub(crate) fn render(&self) -> String {
        let mut text = format!("CPU µs per request (median of {} rounds)\n\n{}", self.rounds, self.summary());
        text += &format!(
            "\nEach proxy: µs (least–most), requests/s, its core's use, memory\n\n{}",
            self.details()
        );
        let idle: Vec<String> = self
            .idle
            .iter()
            .map(|(kind, idle)| format!("{} {:.1} ms/s", kind.name(), idle.all * 1e3))
            .collect();
        text + &format!("\nWithout requests: {}\n", idle.join(", "))
    }

    fn summary(&self) -> String {
        let kinds: Vec<Kind> = self.idle.iter().map(|(kind, _)| *kind).collect();
        let others: Vec<Kind> = kinds.iter().copied().filter(|kind| *kind != Kind::Portcullis).collect();
        let is_rated = kinds.contains(&Kind::Portcullis);
        let mut header = vec!["cell".to_owned()];
        header.extend(kinds.iter().map(|kind| kind.name().to_owned()));
        if is_rated {
            header.extend(others.iter().map(|kind| format!("× {}", kind.name())));
        }
        let mut table = Table::new(header);
        for cell in self.cells() {
            let mut row = vec![cell.name.to_owned()];
            row.extend(kinds.iter().map(|kind| match Spread::of(self.costs(&cell, *kind)) {
                Some(cost) => figure(cost.median),
                None => "–".to_owned(),
            }));
            if is_rated {
                row.extend(others.iter().map(|kind| self.verdict(&cell, *kind)));
            }
            table.row(row);
        }
        table.render()
    }

    /// Ratio, goal and whether it is met; of another build the spread instead.
    fn verdict(&self, cell: &Cell, to: Kind) -> String {
        let Some(ratio) = self.ratio(cell, to) else { return "–".to_owned() };
        let goal = match to {
            Kind::Haproxy => cell.haproxy_max,
            Kind::Nginx => cell.nginx_max,
            Kind::Floor if cell.name == "h1-plain-small" => FLOOR_MAX,
            Kind::Before => return format!("{:.3} ({:.3}–{:.3})", ratio.median, ratio.min, ratio.max),
            _ => return format!("{:.2}", ratio.median),
        };
        let verdict = if ratio.median <= goal { "met" } else { "NOT MET" };
        format!("{:.2} ≤ {goal:.2} {verdict}", ratio.median)
    }

    fn details(&self) -> String {
        let mut table = Table::new(["cell", "proxy", "µs", "least–most", "per s", "core", "RSS MiB"]);
        for one in &self.series {
            let Some(cost) = Spread::of(one.costs()) else { continue };
            let middle = |value: fn(&Window) -> f64| {
                Spread::of(one.windows.iter().map(value)).map_or(0.0, |spread| spread.median)
            };
            table.row([
                one.cell.name.to_owned(),
                one.kind.name().to_owned(),
                figure(cost.median),
                format!("{}–{}", figure(cost.min), figure(cost.max)),
                format!("{:.0}", middle(Window::per_second)),
                format!("{:.0} %", middle(Window::busy) * 100.0),
                format!("{:.1}", middle(|window| window.rss_kib as f64) / 1024.0),
            ]);
        }
        table.render()
    }

    /// The same for scripts.
    pub(crate) fn json(&self) -> Value {
        let rows = self.series.iter().filter_map(|one| {
            let cost = Spread::of(one.costs())?;
            let rss = Spread::of(one.windows.iter().map(|window| window.rss_kib as f64))?;
            let busy = Spread::of(one.windows.iter().map(Window::busy))?;
            let mut row = json!({
                "cell": one.cell.name,
                "proxy": one.kind.name(),
                "cpu_us": cost.median,
                "cpu_us_min": cost.min,
                "cpu_us_max": cost.max,
                "rss_kib": rss.median as u64,
                "requests": one.windows.iter().map(|window| window.requests).sum::<u64>(),
                "core_share": busy.median,
                "idle_ms_per_s": one.idle.all * 1e3,
            });
            if one.kind == Kind::Portcullis {
                for to in [Kind::Haproxy, Kind::Nginx, Kind::Floor, Kind::Before] {
                    if let Some(ratio) = self.ratio(&one.cell, to) {
                        row[format!("ratio_{}", to.name())] = json!(ratio.median);
                    }
                }
            }
            Some(row)
        });
        json!({"rounds": self.rounds, "rows": rows.collect::<Vec<_>>()})
    }
}

impl Series {
    fn costs(&self) -> Vec<f64> {
        self.windows.iter().map(|window| window.cost_us(self.idle)).collect()
    }
}
