//! `agentctl history`: what a service has seen.

use model::name::ServiceName;
use model::protocol::History;

use super::{Context, now_ms, service_path};
use crate::client::Call;
use crate::failure::Failure;
use crate::render::history;

pub(crate) async fn run(context: &mut Context, service: &ServiceName) -> Result<(), Failure> {
    let call = Call::get(format!("{}/history", service_path(service)));
    let render =
        |seen: &History, output: &crate::output::Output| history::table_of(seen, now_ms(), output.data_paint);
    context.show(call, render).await
}
