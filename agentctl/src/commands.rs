//! The verbs. Each one asks the agent, has the answer rendered, and prints it.

pub(crate) mod canary;
mod certs;
mod completions;
pub(crate) mod deploy;
mod events;
mod history;
mod list;
mod operation;
mod pause;
mod policy;
mod remove;
mod rollback;
mod status;
mod targets;

use std::time::{SystemTime, UNIX_EPOCH};

use model::name::ServiceName;
use serde::de::DeserializeOwned;

use crate::cli::{Cli, Verb};
use crate::client::{Call, Client, ClientError};
use crate::failure::Failure;
use crate::output::Output;
use crate::render::clean;

/// What every verb works with.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) output: Output,
    pub(crate) json: bool,
    /// Of a verb that was done.
    pub(crate) exit_code: u8,
}

impl Context {
    pub(crate) fn new(cli: &Cli, output: Output) -> Self {
        Self { client: Client::new(&cli.control), output, json: cli.json, exit_code: 0 }
    }

    /// Asks for a document; with `--json` prints it as it came, otherwise as `render` makes it.
    async fn show<T: DeserializeOwned>(
        &mut self,
        call: Call,
        render: impl FnOnce(&T, &Output) -> String,
    ) -> Result<(), Failure> {
        match self.client.document(call).await {
            Ok(document) if self.json => self.print_json(&document.text),
            Ok(document) => {
                let text = render(&document.value, &self.output);
                self.output.data(&text)
            }
            Err(error) => self.refused(error),
        }
    }

    /// With `--json` a refusal is a reply like others, and printed as one.
    fn refused(&mut self, error: ClientError) -> Result<(), Failure> {
        if let (true, ClientError::Problem(problem)) = (self.json, &error) {
            let text = serde_json::to_string(problem).expect("wire shapes cannot fail to print");
            self.print_json(&text)?;
        }
        Err(error.into())
    }

    fn print_json(&mut self, text: &str) -> Result<(), Failure> {
        self.output.data(&format!("{}\n", clean::json(text.trim_end())))
    }
}

pub(crate) async fn run(context: &mut Context, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Deploy(arguments) => deploy::run(context, &arguments).await,
        Verb::Rollback { service, release } => rollback::run(context, &service, release.as_ref()).await,
        Verb::History { service } => history::run(context, &service).await,
        Verb::Status { service } => status::run(context, service.as_ref()).await,
        Verb::List => list::run(context).await,
        Verb::Targets { service } => targets::run(context, service.as_ref()).await,
        Verb::Remove { service } => remove::run(context, &service).await,
        Verb::Canary(verb) => canary::run(context, verb).await,
        Verb::Pause(arguments) => pause::pause(context, &arguments).await,
        Verb::Resume { service } => pause::resume(context, &service).await,
        Verb::Stop(arguments) => pause::stop(context, &arguments).await,
        Verb::Events { follow } => events::run(context, follow).await,
        Verb::Completions { shell } => completions::run(context, shell),
        Verb::Apply(arguments) => policy::apply(context, &arguments).await,
        Verb::Plan { file } => policy::plan(context, &file).await,
        Verb::Export { services } => policy::export(context, &services).await,
        Verb::Certs(verb) => certs::run(context, verb).await,
    }
}

fn service_path(service: &ServiceName) -> String {
    format!("/v1/services/{service}")
}

/// Unix time in ms.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The texts of parsed values, as the protocol wants them.
fn texts<T: ToString>(values: &[T]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
#[path = "commands_tests.rs"]
mod tests;
