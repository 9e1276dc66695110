//! Which error pages each service has: those of its policy's directory, or our copy of them.

use std::path::Path;
use std::sync::Arc;

use model::name::ServiceName;
use model::page::Pages;
use model::protocol::{Problem, ProblemCode};
use model::service::{Policy, Service};

use crate::adapters::page_files::{PageError, PageTexts};

/// As they were read, and ready to be shown.
#[derive(Debug, Clone)]
pub struct ServicePages {
    texts: Arc<PageTexts>,
    pub pages: Arc<Pages>,
}

impl ServicePages {
    fn new(texts: PageTexts) -> Result<Self, PageError> {
        let pages = Arc::new(texts.parse()?);
        Ok(Self { texts: Arc::new(texts), pages })
    }

    fn fits(&self, policy: &Policy) -> bool {
        policy.error_pages.as_deref() == Some(self.texts.directory())
    }
}

/// Reads the pages of a policy that is not accepted yet. `None` where it names none.
pub async fn load(policy: &Policy) -> Result<Option<ServicePages>, Problem> {
    let Some(directory) = policy.error_pages.clone() else { return Ok(None) };
    let read = move || PageTexts::read(&directory).and_then(ServicePages::new);
    match tokio::task::spawn_blocking(read).await {
        Ok(Ok(pages)) => Ok(Some(pages)),
        Ok(Err(error)) => Err(Problem::from_error(ProblemCode::Invalid, &error)
            .hint("traffic is unchanged; correct the pages or their permissions and deploy again")),
        Err(error) => Err(Problem::from_error(ProblemCode::Internal, &error)),
    }
}

/// Keeps a copy, so that a restart finds the pages although their directory is gone.
pub async fn keep(pages: &ServicePages, service: &ServiceName, state_dir: &Path) -> Result<(), Problem> {
    let (texts, name, dir) = (Arc::clone(&pages.texts), service.clone(), state_dir.to_owned());
    match tokio::task::spawn_blocking(move || texts.keep(&dir, &name)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Problem::from_error(ProblemCode::Storage, &error)
            .hint("nothing was changed and all traffic is served as before; make room, then try again")),
        Err(error) => Err(Problem::from_error(ProblemCode::Internal, &error)),
    }
}

/// The pages of a service as it is now. What cannot be read gives an error in the log and the plain pages.
pub async fn current(
    service: &Service,
    known: impl IntoIterator<Item = ServicePages>,
    state_dir: &Path,
) -> Option<ServicePages> {
    let directory = service.policy.error_pages.clone()?;
    if let Some(fitting) = known.into_iter().find(|one| one.fits(&service.policy)) {
        return Some(fitting);
    }
    let (name, dir) = (service.name.clone(), state_dir.to_owned());
    // Of the two, the copy is what was checked at the deploy.
    let kept =
        move || PageTexts::kept(&dir, &name, &directory).and_then(|texts| ServicePages::new(texts).ok());
    if let Ok(Some(kept)) = tokio::task::spawn_blocking(kept).await {
        return Some(kept);
    }
    load(&service.policy).await.unwrap_or_else(|problem| {
        let causes = problem.causes.join(": ");
        tracing::error!(service = %service.name, causes, "{}; plain pages are shown", problem.message);
        None
    })
}
