//! `bin/bench`: Portcullis beside nginx and haproxy on this machine, as CPU time per request.
//!
//! The method and how to read the figures are in docs/performance.md. The parts: `peers` starts the proxies on one
//! core; `world` is the other core, with the `origin` behind them and the clients before them; `window` counts;
//! `compare`, `memory`, `services` and `latency` each ask one question.

mod cells;
mod cli;
mod client_http1;
mod client_http2;
mod client_idle;
mod client_paced;
mod compare;
mod cpu;
mod failure;
mod frames;
mod latency;
mod log_reader;
mod machine;
mod memory;
mod origin;
mod peers;
mod poll;
mod progress;
mod response;
mod services;
mod stats;
mod table;
mod transport;
mod visitor;
mod window;
mod world;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Hidden};
use crate::failure::{Failure, Outcome, Tried};
use crate::machine::{Cores, Priority};
use crate::peers::{Build, Ground, Kind};
use crate::progress::Progress;
use crate::window::Lengths;
use crate::world::World;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Some(Hidden::Floor { origin }) => peers::serve_floor(origin),
        None => bench(&cli),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                eprintln!("cause: {cause}");
                source = cause.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn bench(cli: &Cli) -> Outcome<()> {
    let progress = Progress::new();
    if cli.peers.contains(&Kind::Before) && cli.compare.is_none() {
        return Err(Failure::new(NO_BEFORE));
    }
    let builds = builds(cli)?;
    machine::raise_descriptor_limit();
    let cores = Cores::claim()?;
    let priority = Priority::raise();
    if priority.is_none() {
        progress
            .say("note: without root, this cannot ask for a higher priority: other work disturbs it more");
    }
    let ground = Ground::prepare(cores)?;
    let mut world = World::new()?;
    let (text, json) = if cli.memory {
        let report =
            memory::run(&ground, &mut world, &cli.kinds(), &builds, usize::from(cli.table), &progress)?;
        (report.render(), report.json())
    } else if cli.services {
        services(cli, &ground, &mut world, builds(Kind::Portcullis, 1)?, &progress)?
    } else if cli.latency {
        latency(cli, &ground, &mut world, &builds, &progress)?
    } else {
        compare(cli, &ground, &mut world, &builds, &progress)?
    };
    print!("{text}");
    if let Some(path) = &cli.json {
        std::fs::write(path, format!("{json:#}\n")).tried(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

const NO_BEFORE: &str = "which build is `before`? Name it with --compare BINARY";

type Printed = (String, serde_json::Value);
type Builds<'b> = &'b dyn Fn(Kind, usize) -> Outcome<Build>;

fn compare(
    cli: &Cli,
    ground: &Ground,
    world: &mut World,
    builds: Builds<'_>,
    progress: &Progress,
) -> Outcome<Printed> {
    let plan = compare::Plan {
        cells: cli.cells(),
        kinds: cli.kinds(),
        rounds: cli.rounds(),
        lengths: lengths(cli),
        idle: cli.idle(),
        builds: &|kind| builds(kind, usize::from(cli.table)),
    };
    let report = compare::run(ground, world, &plan, progress)?;
    Ok((report.render(), report.json()))
}

fn services(
    cli: &Cli,
    ground: &Ground,
    world: &mut World,
    portcullis: Build,
    progress: &Progress,
) -> Outcome<Printed> {
    let [cell] = cli.cells_or(&["h1-plain-small"])[..] else {
        return Err(Failure::new("--services takes one --cell"));
    };
    let plan =
        services::Plan { cell, rounds: cli.rounds(), lengths: lengths(cli), idle: cli.idle(), portcullis };
    let report = services::run(ground, world, &plan, progress)?;
    Ok((report.render(), report.json()))
}

fn latency(
    cli: &Cli,
    ground: &Ground,
    world: &mut World,
    builds: Builds<'_>,
    progress: &Progress,
) -> Outcome<Printed> {
    let cells = cli.cells_or(&["h1-plain-small", "h1-tls-10k"]);
    if let Some(other) = cells.iter().find(|cell| !cell.can_be_paced()) {
        return Err(Failure::new(format!(
            "--latency is for cells of kept-alive HTTP/1.1, not {}",
            other.name
        )));
    }
    let plan = latency::Plan {
        cells,
        kinds: cli.kinds(),
        rates: cli.rates(),
        rounds: cli.rounds(),
        lengths: lengths(cli),
        idle: cli.idle(),
        idle_connections: u64::from(cli.idle_connections),
        builds: &|kind| builds(kind, usize::from(cli.table)),
    };
    let report = latency::run(ground, world, &plan, progress)?;
    Ok((report.render(), report.json()))
}

fn lengths(cli: &Cli) -> Lengths {
    Lengths { warm_up: cli.warm_up(), window: cli.window() }
}

/// Which Portcullis is meant, with how many services; for the peers it does not matter.
fn builds(cli: &Cli) -> Outcome<impl Fn(Kind, usize) -> Outcome<Build> + use<>> {
    let portcullis = portcullis(cli)?;
    let before = cli.compare.as_deref().map(existing).transpose()?;
    Ok(move |kind, services| {
        let binary = if kind == Kind::Before { before.as_ref() } else { Some(&portcullis) };
        let binary = binary.ok_or_else(|| Failure::new(NO_BEFORE))?;
        Ok(Build { binary: binary.clone(), services })
    })
}

/// The build that is named, or the one that was made along with this program.
fn portcullis(cli: &Cli) -> Outcome<PathBuf> {
    match &cli.portcullis {
        Some(binary) => existing(binary),
        None => {
            let this = std::env::current_exe().tried(|| "find this program".to_owned())?;
            existing(&this.with_file_name("portcullis"))
        }
    }
}

fn existing(binary: &Path) -> Outcome<PathBuf> {
    // Absolute, for the proxies are started with directories of their own.
    let found = binary.canonicalize().tried(|| format!("find the build {}", binary.display()))?;
    if !found.is_file() {
        return Err(Failure::new(format!("{} is not a program", found.display())));
    }
    Ok(found)
}
