//! `agentctl rollback`: the held release serves again, or an older one after its gate.

use model::name::{ReleaseId, ServiceName};
use model::protocol::RollbackRequest;

use super::{Context, operation, service_path};
use crate::client::Call;
use crate::failure::Failure;

pub(crate) async fn run(
    context: &mut Context,
    service: &ServiceName,
    release: Option<&ReleaseId>,
) -> Result<(), Failure> {
    let request = RollbackRequest { release: release.map(ToString::to_string) };
    let call = Call::post(format!("{}/rollback", service_path(service))).with(&request);
    operation::run(context, service, call).await
}
