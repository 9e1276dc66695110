//! `agentctl events`: the audit log, as it is or as it grows.

use model::protocol::LoggedEvent;

use super::Context;
use crate::client::{Call, ClientError};
use crate::failure::Failure;
use crate::render::events;

pub(crate) async fn run(context: &mut Context, follow: bool) -> Result<(), Failure> {
    let call = Call::get(format!("/v1/events?follow={follow}"));
    let mut lines = match context.client.lines(call).await {
        Ok(lines) => lines,
        Err(error) => return context.refused(error),
    };
    while !context.output.data_closed() {
        match lines.next().await? {
            Some(line) => print(context, &line)?,
            // A log that is followed has no end of its own.
            None if follow => return Err(ClientError::Cut { source: None }.into()),
            None => break,
        }
    }
    Ok(())
}

fn print(context: &mut Context, line: &str) -> Result<(), Failure> {
    if context.json {
        return context.print_json(line);
    }
    let event: LoggedEvent = serde_json::from_str(line).map_err(|source| ClientError::NotUnderstood {
        what: "not a line of the audit log".into(),
        source,
    })?;
    context.output.data(&events::line(&event))
}
