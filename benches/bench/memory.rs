//! `--memory`: what a proxy holds when nobody asks, and what each kind of client adds.
//!
//! Each figure comes from a process of its own: allocators do not forget what the clients before have needed.

use std::time::Duration;

use serde_json::{Value, json};

use crate::client_idle::{BATCH, Habit, Once};
use crate::failure::{Outcome, Tried};
use crate::origin::Body;
use crate::peers::{Build, Ground, Kind, Peer};
use crate::progress::Progress;
use crate::table::{Table, figure};
use crate::transport::{Dial, client_config};
use crate::world::World;

/// A machine of a small team.
const SERVICES: usize = 3;
const IDLE: u64 = 2000;
const SLOW: u64 = 500;
const SETTLE: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy)]
struct Crowd {
    what: &'static str,
    clients: u64,
    body: Body,
    habit: Habit,
    tls: bool,
    /// Portcullis's goal, in KiB for each.
    kib_max: Option<f64>,
}

const CROWDS: [Crowd; 4] = [
    Crowd {
        what: "idle connection, plain",
        clients: IDLE,
        body: Body::Small,
        habit: Habit::StaysIdle,
        tls: false,
        kib_max: None,
    },
    Crowd {
        what: "idle connection, TLS",
        clients: IDLE,
        body: Body::Small,
        habit: Habit::StaysIdle,
        tls: true,
        kib_max: Some(32.0),
    },
    Crowd {
        what: "slow reader of 1 MiB, plain",
        clients: SLOW,
        body: Body::Megabyte,
        habit: Habit::ReadsNothing,
        tls: false,
        kib_max: Some(64.0),
    },
    Crowd {
        what: "slow reader of 1 MiB, TLS",
        clients: SLOW,
        body: Body::Megabyte,
        habit: Habit::ReadsNothing,
        tls: true,
        kib_max: Some(64.0),
    },
];

/// 16 MB.
const IDLE_KIB_MAX: f64 = 16.0 * 1000.0 * 1000.0 / 1024.0;

pub(crate) struct Report {
    kinds: Vec<Kind>,
    rows: Vec<Row>,
}

struct Row {
    what: String,
    /// KiB, by proxy.
    kib: Vec<f64>,
    kib_max: Option<f64>,
}

pub(crate) fn run(
    ground: &Ground,
    world: &mut World,
    kinds: &[Kind],
    builds: &dyn Fn(Kind, usize) -> Outcome<Build>,
    many: usize,
    progress: &Progress,
) -> Outcome<Report> {
    let kinds: Vec<Kind> = kinds.iter().copied().filter(|kind| *kind != Kind::Floor).collect();
    let mut rows = Vec::new();
    for (services, kib_max) in [(SERVICES, Some(IDLE_KIB_MAX)), (many, None)] {
        let mut kib = Vec::new();
        for kind in &kinds {
            progress.now(&format!("{}, idle", kind.name()));
            let peer = ground.start(world, *kind, &builds(*kind, services)?)?;
            world.serve(SETTLE)?;
            kib.push(peer.processes.rss_kib()? as f64);
        }
        rows.push(Row { what: format!("process, idle, {services} services"), kib, kib_max });
    }
    for crowd in CROWDS {
        let mut kib = Vec::new();
        for kind in &kinds {
            progress.now(&format!("{}, {}", kind.name(), crowd.what));
            let peer = ground.start(world, *kind, &builds(*kind, SERVICES)?)?;
            let each = each(world, &peer, &crowd);
            kib.push(each.tried(|| format!("measure {} with {}", crowd.what, kind.name()))?);
        }
        progress.say(&format!("measured: {}", crowd.what));
        rows.push(Row { what: crowd.what.to_owned(), kib, kib_max: crowd.kib_max });
    }
    Ok(Report { kinds, rows })
}

/// KiB that each client of a crowd adds.
fn each(world: &mut World, peer: &Peer, crowd: &Crowd) -> Outcome<f64> {
    let tls = if crowd.tls { Some(client_config(b"http/1.1", false)?) } else { None };
    let address =
        if crowd.tls { peer.addresses.tls.unwrap_or(peer.addresses.plain) } else { peer.addresses.plain };
    let dial = Dial { address, tls };
    // What the first requests need once is not the crowd's.
    let mut first = Once::new(dial.clone(), Body::Small, Habit::StaysIdle);
    first.join_all(world, BATCH)?;
    drop(first);
    world.serve(SETTLE)?;
    let before = peer.processes.rss_kib()?;
    let mut load = Once::new(dial, crowd.body, crowd.habit);
    load.join_all(world, crowd.clients)?;
    world.run(&mut load, SETTLE)?;
    let after = peer.processes.rss_kib()?;
    Ok((after as f64 - before as f64) / crowd.clients as f64)
}

impl Report {
    pub(crate) fn render(&self) -> String {
        let mut header = vec!["KiB".to_owned()];
        header.extend(self.kinds.iter().map(|kind| kind.name().to_owned()));
        header.push("goal".to_owned());
        let mut table = Table::new(header);
        for row in &self.rows {
            let mut cells = vec![row.what.clone()];
            cells.extend(row.kib.iter().map(|kib| figure(*kib)));
            let ours = self.kinds.iter().position(|kind| *kind == Kind::Portcullis).map(|at| row.kib[at]);
            cells.push(match (row.kib_max, ours) {
                (Some(max), Some(ours)) => {
                    let verdict = if ours <= max { "met" } else { "NOT MET" };
                    format!("≤ {} {verdict}", figure(max))
                }
                _ => "–".to_owned(),
            });
            table.row(cells);
        }
        format!(
            "Resident memory ({IDLE} idle connections after one request, {SLOW} slow readers)\n\n{}",
            table.render()
        )
    }

    pub(crate) fn json(&self) -> Value {
        let row = |row: &Row| {
            let of = |(kind, kib): (&Kind, &f64)| json!({"what": row.what, "proxy": kind.name(), "kib": kib});
            self.kinds.iter().zip(&row.kib).map(of).collect::<Vec<_>>()
        };
        json!({"rows": self.rows.iter().flat_map(row).collect::<Vec<_>>()})
    }
}
