//! `agentctl completions`: a script for a shell.

use clap::CommandFactory;
use clap_complete::Shell;

use super::Context;
use crate::cli::Cli;
use crate::failure::Failure;

pub(crate) fn run(context: &mut Context, shell: Shell) -> Result<(), Failure> {
    // Through memory: `generate` panics when its writer fails, as a closed pipe does.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "agentctl", &mut script);
    context.output.data(&String::from_utf8_lossy(&script))
}
