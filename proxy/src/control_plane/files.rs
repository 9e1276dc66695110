//! What a service's policy names on disk, read: certificates and error pages, which come and go together.

use std::path::Path;

use model::protocol::Problem;
use model::service::{Policy, Service};

use super::activations::Live;
use super::certificates::{self, ServiceCertificate};
use super::pages::{self, ServicePages};

#[derive(Debug, Clone, Default)]
pub struct Files {
    pub certificate: Option<ServiceCertificate>,
    pub pages: Option<ServicePages>,
}

impl Files {
    /// Reads the files of a policy that is not accepted yet; what it does not name is `None`.
    pub async fn load(policy: &Policy) -> Result<Self, Problem> {
        Ok(Self { certificate: certificates::load(policy).await?, pages: pages::load(policy).await? })
    }

    pub fn of(live: &Live) -> Self {
        Self { certificate: live.certificate.clone(), pages: live.pages.clone() }
    }

    /// Those of a service as it is now: what was `read` for it, else what it had `before`, else what is on disk.
    pub async fn current(service: &Service, read: Self, before: Self, state_dir: &Path) -> Self {
        let certificates = read.certificate.into_iter().chain(before.certificate);
        let pages = read.pages.into_iter().chain(before.pages);
        Self {
            certificate: certificates::current(service, certificates).await,
            pages: pages::current(service, pages, state_dir).await,
        }
    }

    pub fn put_into(self, live: &mut Live) {
        (live.certificate, live.pages) = (self.certificate, self.pages);
    }
}
