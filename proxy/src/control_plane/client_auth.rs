//! Whose certificates the clients of each service show: the authorities in its policy's file.

use std::sync::Arc;

use model::protocol::{Problem, ProblemCode};
use model::route::HostMap;
use model::service::{ClientAuthPolicy, Policy, Service};

use super::registry::View;
use super::snapshots::patterns;
use crate::adapters::certificate;
use crate::client_auth::{ClientAuth, HostAuth};

#[derive(Clone)]
pub struct ServiceClientAuth {
    pub auth: Arc<ClientAuth>,
    source: ClientAuthPolicy,
}

impl std::fmt::Debug for ServiceClientAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ServiceClientAuth").field(&self.source).finish()
    }
}

fn wanted(policy: &Policy) -> Option<&ClientAuthPolicy> {
    policy.tls.as_ref()?.client_auth.as_ref()
}

/// Reads the file of a policy that is not accepted yet. `None` where it names none.
pub async fn load(policy: &Policy) -> Result<Option<ServiceClientAuth>, Problem> {
    let Some(source) = wanted(policy).cloned() else { return Ok(None) };
    let read = source.clone();
    match tokio::task::spawn_blocking(move || certificate::load_client_auth(&read)).await {
        Ok(Ok(auth)) => Ok(Some(ServiceClientAuth { auth: Arc::new(auth), source })),
        Ok(Err(error)) => Err(Problem::from_error(ProblemCode::Certificate, &error)
            .hint("traffic is unchanged; correct the file of `--tls-client-ca-path` or its permissions and try again")),
        Err(error) => Err(Problem::from_error(ProblemCode::Internal, &error)),
    }
}

/// That of a service as it is now. Where the file cannot be read, nobody is trusted.
pub async fn current(
    service: &Service,
    known: impl IntoIterator<Item = ServiceClientAuth>,
) -> Option<ServiceClientAuth> {
    let source = wanted(&service.policy)?;
    if let Some(fitting) = known.into_iter().find(|one| one.source == *source) {
        return Some(fitting);
    }
    match load(&service.policy).await {
        Ok(loaded) => loaded,
        Err(problem) => {
            let causes = problem.causes.join(": ");
            tracing::error!(service = %service.name, causes, "{}; no client of it is trusted", problem.message);
            let auth = Arc::new(ClientAuth::of_nobody(source.mode));
            Some(ServiceClientAuth { auth, source: source.clone() })
        }
    }
}

/// What handshakes ask for: a name is all that they know, and services may share it.
pub fn by_host(view: &View) -> HostMap<Option<Arc<HostAuth>>> {
    #[derive(Default)]
    struct Shared {
        asking: Vec<Arc<ClientAuth>>,
        count: usize,
    }
    let (mut shared, mut by_host) = (HostMap::<Shared>::default(), HostMap::default());
    if view.live.values().all(|live| live.client_auth.is_none()) {
        return by_host;
    }
    for (service, live) in view.services() {
        for pattern in patterns(service) {
            let host = shared.bound_mut(pattern);
            host.count += 1;
            host.asking.extend(live.client_auth.as_ref().map(|one| Arc::clone(&one.auth)));
        }
    }
    for (service, _) in view.services().filter(|(_, live)| live.client_auth.is_some()) {
        for pattern in patterns(service) {
            let Some(Shared { asking, count }) = shared.bound(pattern) else { continue };
            match HostAuth::new(asking, asking.len() == *count) {
                Ok(host) => *by_host.bound_mut(pattern) = Some(Arc::new(host)),
                // Its requests are refused all the same, for nobody is asked.
                Err(error) => tracing::error!(service = %service.name, %error, "its clients cannot be asked"),
            }
        }
    }
    by_host
}
