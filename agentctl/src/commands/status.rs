//! `agentctl status`: the agent, or one service.

use model::name::ServiceName;
use model::protocol::{ServiceStatus, Status};

use super::{Context, now_ms, service_path};
use crate::client::Call;
use crate::failure::Failure;
use crate::output::Output;
use crate::render::status;

pub(crate) async fn run(context: &mut Context, service: Option<&ServiceName>) -> Result<(), Failure> {
    match service {
        None => {
            let render = |agent: &Status, output: &Output| status::agent(agent, now_ms(), output.data_paint);
            context.show(Call::get("/v1/status"), render).await
        }
        Some(name) => {
            let render = |service: &ServiceStatus, output: &Output| {
                status::service(service, now_ms(), output.data_paint)
            };
            context.show(Call::get(service_path(name)), render).await
        }
    }
}
