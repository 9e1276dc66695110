//! `agentctl remove`: a service drains and goes.

use model::name::ServiceName;

use super::{Context, operation, service_path};
use crate::client::Call;
use crate::failure::Failure;

pub(crate) async fn run(context: &mut Context, service: &ServiceName) -> Result<(), Failure> {
    operation::run(context, service, Call::delete(service_path(service))).await
}
