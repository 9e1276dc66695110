//! Arguments → configuration → daemon → exit code.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use portcullis::app;
use portcullis::config::{Config, Flags};
use tracing_subscriber::EnvFilter;

/// Gives memory back after a peak, where the system's allocator keeps it; costs the same CPU (docs/performance.md).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Edge proxy and health gateway for Rails apps on one machine
#[derive(Parser)]
#[command(name = "portcullis", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until SIGTERM
    #[command(after_help = EXAMPLES)]
    Run(Box<Flags>),
}

const EXAMPLES: &str = "\
Examples:
  A trial without root, on free ports, everything in one directory:
    portcullis run --http 127.0.0.1:8080 --https 127.0.0.1:8443 \\
        --control /tmp/pc/control.sock --state-dir /tmp/pc
  As systemd starts it:
    portcullis run --config /etc/portcullis/portcullis.toml

Services are made with `agentctl --control PATH deploy …`.";

fn main() -> ExitCode {
    let Command::Run(flags) = Cli::parse().command;
    let filter = EnvFilter::try_from_env("PORTCULLIS_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().json().with_writer(std::io::stderr).with_env_filter(filter).init();
    app::raise_descriptor_limit();
    let config = match Config::load(*flags) {
        Ok(config) => config,
        Err(error) => return fail(&error, None, 2),
    };
    match app::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, error.hint(), 1),
    }
}

/// What happened, why, and what to do, for the person who started it.
fn fail(error: &dyn std::error::Error, hint: Option<&str>, code: u8) -> ExitCode {
    eprintln!("error: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        eprintln!("cause: {cause}");
        source = cause.source();
    }
    if let Some(hint) = hint {
        eprintln!("hint:  {hint}");
    }
    ExitCode::from(code)
}
