//! `bin/bench`: Portcullis beside nginx and haproxy on this machine, as CPU time per request.
//!
//! The method and how to read the figures are in docs/performance.md. The parts: `peers` starts the proxies on one
//! core; `world` is the other core, with the `origin` behind them and the clients before them; `window` counts;
//! `compare` goes through rounds and cells.

mod cells;
mod cli;
mod client_http1;
mod client_http2;
mod compare;
mod cpu;
mod failure;
mod frames;
mod log_reader;
mod machine;
mod origin;
mod peers;
mod poll;
mod progress;
mod response;
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
use crate::peers::{Build, Ground};
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
    let portcullis = Build { binary: portcullis(cli)?, services: usize::from(cli.table) };
    machine::raise_descriptor_limit();
    let cores = Cores::claim()?;
    let priority = Priority::raise();
    if priority.is_none() {
        progress.say(
            "note: without the right to a higher priority (root), other work on the machine disturbs more",
        );
    }
    let ground = Ground::prepare(cores)?;
    let mut world = World::new()?;
    let before = match &cli.compare {
        Some(binary) => Some(Build { binary: existing(binary)?, ..portcullis.clone() }),
        None => None,
    };
    let plan = compare::Plan {
        cells: cli.cells(),
        kinds: cli.kinds(),
        rounds: cli.rounds(),
        lengths: Lengths { warm_up: cli.warm_up(), window: cli.window() },
        idle: cli.idle(),
        portcullis,
        before,
    };
    let report = compare::run(&ground, &mut world, &plan, &progress)?;
    print!("{}", report.render());
    if let Some(path) = &cli.json {
        let text = format!("{:#}\n", report.json());
        std::fs::write(path, text).tried(|| format!("write {}", path.display()))?;
    }
    Ok(())
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
