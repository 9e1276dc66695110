//! `plan` and `apply`: whole policies, declared for several services at once and made true together or not at all.
//!
//! No release changes and no target is probed; what is in flight goes on under the policy that it began with.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::protocol::{Applied, DeclareRequest, Plan, Problem, ProblemCode};

use super::certificates;
use super::context::{Context, Shared};
use super::declarations::{self, Policies};
use super::files::Files;
use super::operations::Claim;
use super::registry::Declaration;
use crate::adapters::state_file::State;

pub const VERB: &str = "apply";

/// Refuses what `apply` would refuse, but for operations under way.
pub async fn plan(context: &Context, request: &DeclareRequest) -> Result<Plan, Problem> {
    let policies = declarations::parse(request)?;
    let state = &context.registry.view().state;
    declarations::check_generation(state, request.generation)?;
    declarations::check_routes(state, &policies)?;
    for policy in policies.values() {
        certificates::check(policy, &context.certificates)?;
        Files::load(policy).await?;
    }
    let services = declarations::plan(state, &policies);
    Ok(Plan { generation: state.generation, services })
}

pub async fn apply(context: &Shared, actor: String, request: &DeclareRequest) -> Result<Applied, Problem> {
    let policies = declarations::parse(request)?;
    let state = &context.registry.view().state;
    declarations::check_generation(state, request.generation)?;
    let claims = claim(context, state, &policies, &actor)?;
    declarations::check_routes(state, &policies)?;
    let mut files = BTreeMap::new();
    for (name, policy) in &policies {
        certificates::check(policy, &context.certificates)?;
        files.insert(name.clone(), Files::load(policy).await?);
    }
    let services = declarations::plan(state, &policies);
    let declaration = Declaration { policies, actor, generation: state.generation, files };
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

/// A deploy under way has its own idea of the policy, and may go back to the one before: it must not come between.
/// Services that are as declared are nobody's business.
fn claim(context: &Context, state: &State, policies: &Policies, actor: &str) -> Result<Vec<Claim>, Problem> {
    let new = declarations::undeclared(state, policies);
    new.into_iter().map(|name| context.operations.claim(name, VERB, actor)).collect()
}
