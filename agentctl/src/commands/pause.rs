//! `agentctl pause`, `resume` and `stop`: a service lets nobody through for a while.

use model::name::ServiceName;
use model::protocol::{BypassBody, Done, PauseRequest, StopRequest};

use super::{Context, operation, service_path, texts};
use crate::cli::{BypassArgs, PauseArgs, StopArgs};
use crate::client::Call;
use crate::failure::Failure;
use crate::render::clean;

pub(crate) async fn pause(context: &mut Context, arguments: &PauseArgs) -> Result<(), Failure> {
    let request = PauseRequest {
        drain_timeout: arguments.drain_timeout.as_ref().map(ToString::to_string),
        max_pause: arguments.max_pause.as_ref().map(ToString::to_string),
        waiting_max: arguments.max_waiting,
        bypass: bypass(&arguments.bypass),
    };
    halt(context, &arguments.service, post(&arguments.service, "pause").with(&request)).await
}

pub(crate) async fn stop(context: &mut Context, arguments: &StopArgs) -> Result<(), Failure> {
    let request = StopRequest {
        drain_timeout: arguments.drain_timeout.as_ref().map(ToString::to_string),
        message: arguments.message.clone(),
        bypass: bypass(&arguments.bypass),
    };
    halt(context, &arguments.service, post(&arguments.service, "stop").with(&request)).await
}

async fn halt(context: &mut Context, service: &ServiceName, call: Call) -> Result<(), Failure> {
    operation::run(context, service, call).await.map_err(Failure::of_halt)
}

pub(crate) async fn resume(context: &mut Context, service: &ServiceName) -> Result<(), Failure> {
    let call = post(service, "resume");
    context.show(call, |done: &Done, _| format!("{}\n", clean::line(&done.message))).await
}

fn post(service: &ServiceName, verb: &str) -> Call {
    Call::post(format!("{}/{verb}", service_path(service)))
}

fn bypass(arguments: &BypassArgs) -> BypassBody {
    BypassBody {
        headers: texts(&arguments.headers),
        cookies: texts(&arguments.cookies),
        networks: texts(&arguments.networks),
    }
}
