//! A long operation: its events are followed to the end, shown as they come.

use std::time::Duration;

use model::name::ServiceName;
use model::protocol::{Done, Event, Problem};
use tokio::time::{Instant, interval};

use super::Context;
use crate::client::{Call, ClientError};
use crate::failure::Failure;
use crate::output::{Output, terminal_size};
use crate::progress::Progress;
use crate::render::{clean, live};

/// Asks for an operation, shows its progress, and prints its result.
pub(crate) async fn run(context: &mut Context, service: &ServiceName, call: Call) -> Result<(), Failure> {
    tokio::select! {
        // Otherwise a Ctrl-C would look as if it had stopped the operation.
        _ = tokio::signal::ctrl_c() => Err(Failure::Interrupted { service: service.to_string() }),
        ended = follow(context, call) => ended,
    }
}

/// The same for an operation on a certificate.
pub(crate) async fn run_certificate(context: &mut Context, name: &str, call: Call) -> Result<(), Failure> {
    tokio::select! {
        _ = tokio::signal::ctrl_c() => Err(Failure::InterruptedCertificate { name: name.to_owned() }),
        ended = follow(context, call) => ended,
    }
}

async fn follow(context: &mut Context, call: Call) -> Result<(), Failure> {
    let mut lines = match context.client.lines(call).await {
        Ok(lines) => lines,
        Err(error) => return refused(context, error),
    };
    let mut display = Display::new(&context.output, context.json);
    let mut second = interval(Duration::from_secs(1));
    loop {
        let line = tokio::select! {
            line = lines.next() => line,
            _ = second.tick() => {
                display.draw(&mut context.output);
                continue;
            }
        };
        let Some(line) = line? else { return Err(ClientError::Cut { source: None }.into()) };
        if context.json {
            context.print_json(&line)?;
        }
        match parse(&line)? {
            Some(Event::Done(done)) => {
                display.draw(&mut context.output);
                return finish(context, &done);
            }
            Some(Event::Failed { problem }) => {
                display.draw(&mut context.output);
                return Err(problem.into());
            }
            Some(event) => display.show(&mut context.output, &event),
            None => {}
        }
    }
}

/// A refusal ends the stream of `--json` like a failure that came later, so that its last line always tells.
fn refused(context: &mut Context, error: ClientError) -> Result<(), Failure> {
    if let (true, ClientError::Problem(problem)) = (context.json, &error) {
        let event = Event::Failed { problem: Problem::clone(problem) };
        let text = serde_json::to_string(&event).expect("wire shapes cannot fail to print");
        context.print_json(&text)?;
    }
    Err(error.into())
}

/// `None`: an event of a newer agent, which is no reason to stop watching.
fn parse(line: &str) -> Result<Option<Event>, ClientError> {
    let source = match serde_json::from_str(line) {
        Ok(event) => return Ok(Some(event)),
        Err(source) => source,
    };
    let value: Option<serde_json::Value> = serde_json::from_str(line).ok();
    let kind = value.as_ref().and_then(|value| value.get("event")?.as_str());
    match kind {
        None | Some("done" | "failed") => {
            Err(ClientError::NotUnderstood { what: "not an event of an operation".into(), source })
        }
        Some(_) => Ok(None),
    }
}

fn finish(context: &mut Context, done: &Done) -> Result<(), Failure> {
    if context.json {
        return Ok(());
    }
    context.output.data(&format!("{}\n", clean::line(&done.message)))
}

/// The progress on stderr: a block drawn over on a terminal, lines elsewhere, nothing beside `--json`.
struct Display {
    progress: Progress,
    style: Style,
    began: Instant,
}

enum Style {
    Silent,
    Lines,
    /// How many lines stand there now.
    Block(usize),
}

impl Display {
    fn new(output: &Output, json: bool) -> Self {
        let style = match (json, output.live) {
            (true, _) => Style::Silent,
            (false, true) => Style::Block(0),
            (false, false) => Style::Lines,
        };
        Self { progress: Progress::default(), style, began: Instant::now() }
    }

    fn show(&mut self, output: &mut Output, event: &Event) {
        let change = self.progress.apply(event);
        match (&self.style, change) {
            (Style::Lines, Some(line)) => output.talk(&format!("{}\n", clean::line(&line))),
            (Style::Block(_), _) => self.draw(output),
            _ => {}
        }
    }

    fn draw(&mut self, output: &mut Output) {
        if let Style::Block(drawn) = &mut self.style {
            let lines = live::lines(&self.progress, self.began.elapsed(), terminal_size(), output.talk_paint);
            output.talk(&live::redraw(*drawn, &lines));
            *drawn = lines.len();
        }
    }
}
