//! `agentctl targets`: every target of every service, or of one.

use std::slice;

use model::name::ServiceName;
use model::protocol::{ServiceStatus, Status};

use super::{Context, service_path};
use crate::client::Call;
use crate::failure::Failure;
use crate::output::Output;
use crate::render::status;

pub(crate) async fn run(context: &mut Context, service: Option<&ServiceName>) -> Result<(), Failure> {
    match service {
        None => {
            let render =
                |agent: &Status, output: &Output| status::targets(&agent.services, output.data_paint);
            context.show(Call::get("/v1/status"), render).await
        }
        Some(name) => {
            let render = |service: &ServiceStatus, output: &Output| {
                status::targets(slice::from_ref(service), output.data_paint)
            };
            context.show(Call::get(service_path(name)), render).await
        }
    }
}
