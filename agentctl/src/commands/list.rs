//! `agentctl list`: the services, one row each.

use model::protocol::Status;

use super::Context;
use crate::client::Call;
use crate::failure::Failure;
use crate::output::Output;
use crate::render::status;

pub(crate) async fn run(context: &mut Context) -> Result<(), Failure> {
    let render = |agent: &Status, output: &Output| status::list(agent, output.data_paint);
    context.show(Call::get("/v1/status"), render).await
}
