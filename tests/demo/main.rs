//! `bin/demo`: Portcullis doing its job on this machine, in a temp directory, on free ports.
//!
//! With `--once` it ends after the tour, and well only if every promise held; otherwise it stays up until
//! Ctrl-C, to be played with.

mod release;
mod tour;

use std::process::ExitCode;

use crate::release::puma_is_installed;
use crate::tour::Tour;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let once = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => false,
        ["--once"] => true,
        _ => {
            eprintln!("usage: bin/demo [--once]");
            return ExitCode::from(2);
        }
    };
    let with_puma = puma_is_installed();
    println!("The app is {}.", if with_puma { "a real Puma" } else { "built in, for Puma is not installed" });
    let mut tour = Tour::begin(with_puma);
    let broken = tour.run();
    if !broken.is_empty() {
        eprintln!("\n{} of the demo's promises did not hold:", broken.len());
        broken.iter().for_each(|promise| eprintln!("  {promise}"));
        return ExitCode::FAILURE;
    }
    println!("\nEverything held.");
    if !once {
        stay(&tour);
    }
    ExitCode::SUCCESS
}

fn stay(tour: &Tour) {
    let world = &tour.world;
    let control = world.daemon.control();
    println!("\nIt stays up until Ctrl-C. To try next:");
    println!(
        "  export PORTCULLIS_CONTROL={} PATH={}:$PATH",
        control.display(),
        harness::binaries_dir().display()
    );
    for line in [
        "agentctl status shop".to_owned(),
        "agentctl history shop".to_owned(),
        format!("curl -i -H 'Host: shop.test' http://{}/", world.http()),
        "agentctl rollback shop".to_owned(),
        "agentctl events".to_owned(),
        format!("curl http://{}/metrics", world.daemon.metrics()),
    ] {
        println!("  {line}");
    }
    harness::until_interrupted();
}
