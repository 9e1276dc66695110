//! `plan` and `apply`: whole policies, declared for several services at once and made true together or not at all.
//!
//! No release changes and no target is probed; what is in flight goes on under the policy that it began with.

use std::sync::Arc;

use model::protocol::{Applied, DeclareRequest, Plan, Problem, ProblemCode};

use super::certificates::{self, ServiceCertificate};
use super::context::{Context, Shared};
use super::declarations::{self, Policies};
use super::operations::Claim;
use super::registry::Declaration;

pub const VERB: &str = "apply";

/// Refuses what `apply` would refuse. Files of services that would not change are not looked at.
pub async fn plan(context: &Context, request: &DeclareRequest) -> Result<Plan, Problem> {
    let policies = declarations::parse(request)?;
    let state = &context.registry.view().state;
    declarations::check_generation(state, request.generation)?;
    declarations::check_routes(state, &policies)?;
    let services = declarations::plan(state, &policies);
    for (plan, policy) in services.iter().zip(policies.values()) {
        if !plan.differences.is_empty() {
            certificates::load(policy).await?;
        }
    }
    Ok(Plan { generation: state.generation, services })
}

pub async fn apply(context: &Shared, actor: String, request: &DeclareRequest) -> Result<Applied, Problem> {
    let policies = declarations::parse(request)?;
    // A deploy under way has its own idea of the policy, and may go back to the one before.
    let claims = claim(context, &policies, &actor)?;
    let state = &context.registry.view().state;
    declarations::check_generation(state, request.generation)?;
    declarations::check_routes(state, &policies)?;
    let mut certificates = Vec::new();
    for (name, policy) in &policies {
        let loaded: Option<ServiceCertificate> = certificates::load(policy).await?;
        certificates.extend(loaded.map(|certificate| (name.clone(), certificate)));
    }
    let services = declarations::plan(state, &policies);
    let declaration = Declaration { policies, actor, generation: request.generation, certificates };
    // Whether the caller stays or not, the services are claimed until it is done.
    let context = Arc::clone(context);
    let tasks = context.tasks.clone();
    let declaring = tasks.spawn(async move {
        let declared = context.registry.declare(declaration).await;
        drop(claims);
        declared
    });
    let declared = declaring.await.map_err(|error| Problem::from_error(ProblemCode::Internal, &error))?;
    let (generation, changed) = declared?;
    Ok(Applied { generation, changed, services })
}

fn claim(context: &Context, policies: &Policies, actor: &str) -> Result<Vec<Claim>, Problem> {
    policies.keys().map(|name| context.operations.claim(name, VERB, actor)).collect()
}
