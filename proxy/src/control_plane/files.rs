//! What a service's policy names on disk, read: certificates, authorities of clients and error pages, which come and
//! go together.

use std::path::Path;

use model::protocol::Problem;
use model::service::{Policy, Service};

use super::activations::Live;
use super::certificates::{self, ServiceCertificate};
use super::client_auth::{self, ServiceClientAuth};
use super::pages::{self, ServicePages};

#[derive(Debug, Clone, Default)]
pub struct Files {
    pub certificate: Option<ServiceCertificate>,
    pub pages: Option<ServicePages>,
    pub client_auth: Option<ServiceClientAuth>,
}

impl Files {
    /// Reads the files of a policy that is not accepted yet; what it does not name is `None`.
    pub async fn load(policy: &Policy) -> Result<Self, Problem> {
        Ok(Self {
            certificate: certificates::load(policy).await?,
            pages: pages::load(policy).await?,
            client_auth: client_auth::load(policy).await?,
        })
    }

    pub fn of(live: &Live) -> Self {
        Self {
            certificate: live.certificate.clone(),
            pages: live.pages.clone(),
            client_auth: live.client_auth.clone(),
        }
    }

    /// Those of a service as it is now: what was `read` for it, else what it had `before`, else what is on disk.
    pub async fn current(service: &Service, read: Self, before: Self, state_dir: &Path) -> Self {
        let certificates = read.certificate.into_iter().chain(before.certificate);
        let pages = read.pages.into_iter().chain(before.pages);
        let client_auth = read.client_auth.into_iter().chain(before.client_auth);
        Self {
            certificate: certificates::current(service, certificates).await,
            pages: pages::current(service, pages, state_dir).await,
            client_auth: client_auth::current(service, client_auth).await,
        }
    }

    pub fn put_into(self, live: &mut Live) {
        (live.certificate, live.pages) = (self.certificate, self.pages);
        live.client_auth = self.client_auth;
    }
}
