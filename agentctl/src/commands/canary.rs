//! `agentctl canary …`: a second release with a share of the visitors.

use model::name::ServiceName;
use model::protocol::{CanarySetRequest, CanaryStartRequest, Done, OverridesBody, ServiceStatus};

use super::{Context, now_ms, operation, service_path, texts};
use crate::cli::{CanaryStartArgs, CanaryVerb};
use crate::client::Call;
use crate::failure::Failure;
use crate::render::{canary, clean};

pub(crate) async fn run(context: &mut Context, verb: CanaryVerb) -> Result<(), Failure> {
    match verb {
        CanaryVerb::Start(arguments) => {
            let call = post(&arguments.service, "start").with(&start_request(&arguments));
            operation::run(context, &arguments.service, call).await
        }
        CanaryVerb::Set { service, weight } => {
            let call = post(&service, "set").with(&CanarySetRequest { weight: weight.to_string() });
            context.show(call, |done: &Done, _| format!("{}\n", clean::line(&done.message))).await
        }
        CanaryVerb::Status { service } => status(context, &service).await,
        CanaryVerb::Promote { service } => operation::run(context, &service, post(&service, "promote")).await,
        CanaryVerb::Abort { service } => operation::run(context, &service, post(&service, "abort")).await,
    }
}

fn post(service: &ServiceName, action: &str) -> Call {
    Call::post(format!("{}/canary/{action}", service_path(service)))
}

pub(crate) fn start_request(arguments: &CanaryStartArgs) -> CanaryStartRequest {
    CanaryStartRequest {
        targets: texts(&arguments.release.targets),
        release: arguments.release.release.as_ref().map(ToString::to_string),
        weight: arguments.weight.to_string(),
        rollout: arguments.rollout.clone(),
        overrides: OverridesBody {
            headers: texts(&arguments.headers),
            cookies: texts(&arguments.cookies),
            networks: texts(&arguments.networks),
            visitors: arguments.visitors.clone(),
        },
        read_targets: texts(&arguments.release.read_targets),
    }
}

/// The canary is a part of its service's reply; with `--json` that part is printed, or `null`.
async fn status(context: &mut Context, service: &ServiceName) -> Result<(), Failure> {
    let reply = match context.client.document::<ServiceStatus>(Call::get(service_path(service))).await {
        Ok(reply) => reply,
        Err(error) => return context.refused(error),
    };
    if context.json {
        let part = serde_json::to_string(&reply.value.canary).expect("wire shapes cannot fail to print");
        return context.print_json(&part);
    }
    let paint = context.output.data_paint;
    context.output.data(&canary::text(service.as_str(), reply.value.canary.as_ref(), now_ms(), paint))
}
