//! What the manager of automatic certificates has in hand for the data plane. Replaced whole.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::certificate::CertificateName;
use model::name::HostPattern;
use rustls::sign::CertifiedKey;

/// Certificates that came from an authority, and how its questions are answered.
#[derive(Clone, Default)]
pub struct Managed {
    /// Of our account; `None` while there is none.
    pub thumbprint: Option<Arc<str>>,
    pub certificates: BTreeMap<CertificateName, ManagedCertificate>,
}

#[derive(Clone)]
pub struct ManagedCertificate {
    pub hosts: Vec<HostPattern>,
    pub certified: Arc<CertifiedKey>,
    /// Unix time in ms.
    pub not_after_ms: u64,
    /// Directory of the authority.
    pub directory: Arc<str>,
    /// Of a staging area, which browsers do not trust.
    pub staging: bool,
}

impl Managed {
    /// Whether both show the same.
    pub fn is_same(&self, other: &Self) -> bool {
        let same = |(one, two): (&ManagedCertificate, &ManagedCertificate)| {
            Arc::ptr_eq(&one.certified, &two.certified) && one.hosts == two.hosts
        };
        self.thumbprint == other.thumbprint
            && self.certificates.keys().eq(other.certificates.keys())
            && self.certificates.values().zip(other.certificates.values()).all(same)
    }

    /// The one for `host`; of several, that which browsers trust and which lasts longest.
    pub fn for_host(&self, host: &HostPattern) -> Option<&ManagedCertificate> {
        let naming = self.certificates.values().filter(|one| one.hosts.contains(host));
        naming.max_by_key(|one| (!one.staging, one.not_after_ms))
    }
}

impl std::fmt::Debug for ManagedCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ManagedCertificate")
            .field("hosts", &self.hosts)
            .field("not_after_ms", &self.not_after_ms)
            .finish_non_exhaustive()
    }
}
