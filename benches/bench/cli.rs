//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::cells::{CELLS, Cell};
use crate::peers::Kind;

/// Compare Portcullis with nginx and haproxy: CPU time per request, side by side on one core
#[derive(Debug, Parser)]
#[command(name = "bench", after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub command: Option<Hidden>,
    /// Memory instead: of the idle process, and what idle connections and slow readers add
    #[arg(long, group = "mode")]
    pub memory: bool,
    /// Instead: cost per request with 1, 10, 100 and 1 000 services in the table
    #[arg(long, group = "mode")]
    pub services: bool,
    /// Latency at a fixed rate instead
    #[arg(long, group = "mode")]
    pub latency: bool,
    /// Requests per second of --latency; repeatable [default: 1200 and 6000]
    #[arg(long = "rate", value_name = "N", requires = "latency", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rates: Vec<u32>,
    /// Idle connections that Portcullis holds during --latency, each after one request; nobody else does, so that
    /// `before`, given the same build, shows what they change
    #[arg(long, value_name = "N", requires = "latency", default_value_t = 0, value_parser = clap::value_parser!(u16).range(..=20_000))]
    pub idle_connections: u16,
    /// Under a minute: 3 rounds of short windows; good for a first look
    #[arg(long)]
    pub quick: bool,
    /// How often each proxy is measured in each cell [default: 5, of --services 9; quick: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub rounds: Option<u16>,
    /// Length of a window in seconds [default: 0.9, of --latency 2; quick: 0.25]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub window: Option<Duration>,
    /// Only this cell; repeatable
    #[arg(long = "cell", value_name = "NAME", value_parser = cell)]
    pub cells: Vec<Cell>,
    /// Only this proxy; repeatable
    #[arg(long = "peer", value_name = "NAME")]
    pub peers: Vec<Kind>,
    /// Another build of Portcullis, measured in the same run as `before`
    #[arg(long, value_name = "BINARY")]
    pub compare: Option<PathBuf>,
    /// The build to measure [default: the one beside this program]
    #[arg(long, value_name = "BINARY")]
    pub portcullis: Option<PathBuf>,
    /// Services in Portcullis's table
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..))]
    pub table: u16,
    /// Write the figures to this file as JSON, too
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Hidden {
    /// The bare relay that the bench starts for its row `floor`
    #[command(hide = true)]
    Floor { origin: SocketAddr },
}

const EXAMPLES: &str = "\
Cells:
  h1-plain-small, h1-plain-10k, h1-plain-1m, h1-tls-small, h1-tls-10k, h1-tls-1m, h2-tls-small, h2-tls-10k:
    HTTP/1.1 or HTTP/2; answers of 13 bytes, 10 KiB or 1 MiB
  tls-handshake: a new connection for each request
  tls-resume: the same, and its session resumed

Examples:
  All of it, some four minutes; the tables go to standard output:
    bin/bench --json figures.json
  A first look:
    bin/bench --quick
  Memory, the size of the table, and latency:
    bin/bench --memory
    bin/bench --services
    bin/bench --latency --rate 1200
  Whether 9 000 idle connections make others wait:
    bin/bench --latency --cell h1-plain-small --rate 1200 --peer portcullis \
        --compare target/release/portcullis --idle-connections 9000
  What a change brings, against the build before it:
    cp target/release/portcullis /tmp/before       # then change something
    bin/bench --compare /tmp/before --cell h1-plain-small --peer portcullis --rounds 9";

impl Cli {
    pub(crate) fn rounds(&self) -> usize {
        let default = match (self.quick, self.services) {
            (true, _) => 3,
            // What is looked for is small.
            (false, true) => 9,
            (false, false) => 5,
        };
        self.rounds.map_or(default, usize::from)
    }

    pub(crate) fn window(&self) -> Duration {
        let default = match (self.quick, self.latency) {
            (true, _) => 250,
            // A p99 of 1 200 requests would be the twelfth.
            (false, true) => 2000,
            (false, false) => 900,
        };
        self.window.unwrap_or(Duration::from_millis(default))
    }

    pub(crate) fn rates(&self) -> Vec<u32> {
        if self.rates.is_empty() { vec![1200, 6000] } else { self.rates.clone() }
    }

    pub(crate) fn warm_up(&self) -> Duration {
        Duration::from_millis(if self.quick { 100 } else { 350 })
    }

    /// A round of probes takes 2 s.
    pub(crate) fn idle(&self) -> Duration {
        Duration::from_secs(if self.quick { 2 } else { 4 })
    }

    pub(crate) fn cells(&self) -> Vec<Cell> {
        CELLS.into_iter().filter(|cell| self.cells.is_empty() || self.cells.contains(cell)).collect()
    }

    /// Those that are named; of the others those that say most in this mode.
    pub(crate) fn cells_or(&self, names: &[&str]) -> Vec<Cell> {
        let is_wanted = |cell: &Cell| !self.cells.is_empty() || names.contains(&cell.name);
        self.cells().into_iter().filter(is_wanted).collect()
    }

    /// In the order of the columns.
    pub(crate) fn kinds(&self) -> Vec<Kind> {
        let all = [Kind::Portcullis, Kind::Before, Kind::Haproxy, Kind::Nginx, Kind::Floor];
        let is_wanted = |kind: &Kind| match kind {
            Kind::Before => self.compare.is_some(),
            kind => self.peers.is_empty() || self.peers.contains(kind),
        };
        all.into_iter().filter(is_wanted).collect()
    }
}

fn cell(name: &str) -> Result<Cell, String> {
    CELLS
        .into_iter()
        .find(|cell| cell.name == name)
        .ok_or_else(|| format!("there is no such cell; there are {}", CELLS.map(|cell| cell.name).join(", ")))
}

fn seconds(text: &str) -> Result<Duration, String> {
    let wrong = || "write seconds from 0.05 to 60, such as 0.9".to_owned();
    let seconds: f64 = text.parse().map_err(|_| wrong())?;
    if (0.05..=60.0).contains(&seconds) { Ok(Duration::from_secs_f64(seconds)) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_is_not_named_is_everything() {
        let parse = |args: &[&str]| {
            Cli::try_parse_from([&["bench"], args].concat()).map_err(|error| error.to_string())
        };
        let all = parse(&[]).unwrap();
        assert_eq!((all.cells().len(), all.rounds(), all.kinds().len()), (10, 5, 4));
        let some =
            parse(&["--quick", "--cell", "tls-handshake", "--peer", "nginx", "--compare", "x"]).unwrap();
        assert_eq!((some.cells().len(), some.rounds()), (1, 3));
        assert_eq!(some.kinds(), [Kind::Before, Kind::Nginx]);
        for (args, wants) in [
            (&["--cell", "h3"][..], "there are h1-plain-small"),
            (&["--window", "0"], "from 0.05 to 60"),
            (&["--rounds", "0"], "0 is not in 1.."),
        ] {
            let error = parse(args).unwrap_err();
            assert!(error.contains(wants), "{args:?} gave {error}");
        }
    }
}
