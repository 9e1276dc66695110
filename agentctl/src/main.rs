//! `agentctl`: arguments → a verb → an exit code. What a verb does lives in `commands`.

mod cli;
mod client;
mod commands;
mod declaration;
mod failure;
mod output;
mod progress;
mod render;
#[cfg(test)]
mod test_agent;
mod values;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::Cli;
use crate::commands::Context;
use crate::output::Output;

fn main() -> ExitCode {
    let mut output = Output::of_process();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(usage) => return output.usage(&usage).into(),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(source) => return output.fail("agentctl", &source.into()).into(),
    };
    let title = cli.title();
    let mut context = Context::new(&cli, output);
    match runtime.block_on(commands::run(&mut context, cli.verb)) {
        Ok(()) => context.exit_code.into(),
        Err(failure) => context.output.fail(&title, &failure).into(),
    }
}
