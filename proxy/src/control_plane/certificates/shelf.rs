//! Where documents of certificates lie: in the store that all VMs share, and copied to this one. The copy serves after a
//! restart without the store; where nothing is shared, it is the store.

use model::certificate::CertificateName;

use super::document::{Document, DocumentError};
use crate::adapters::store::{Lease, StoreError, Vault};
use crate::adapters::vaults::Vaults;

const CERTIFICATES: &str = "certificates/";

#[derive(Debug, Clone)]
pub struct Shelf {
    local: Vault,
    shared: Option<Vault>,
}

#[derive(Debug, thiserror::Error)]
pub enum ShelfError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the document of certificate `{name}` cannot be used")]
    Document { name: CertificateName, source: DocumentError },
}

impl Shelf {
    pub fn of(vaults: &Vaults) -> Self {
        Self { local: vaults.local.clone(), shared: vaults.shared.clone() }
    }

    /// Where leases are, and what all VMs see.
    pub fn store(&self) -> &Vault {
        self.shared.as_ref().unwrap_or(&self.local)
    }

    pub fn is_shared(&self) -> bool {
        self.shared.is_some()
    }

    /// The document in the store.
    pub async fn read(&self, name: &CertificateName) -> Result<Option<Document>, ShelfError> {
        read(self.store(), name).await
    }

    /// This VM's copies. What cannot be read is said in the log, and left out.
    pub async fn copies(&self) -> Vec<(CertificateName, Document)> {
        let mut copies = Vec::new();
        let keys = match self.local.list(CERTIFICATES).await {
            Ok(keys) => keys,
            Err(error) => {
                tracing::error!(cause = cause(&error), "cannot look for certificates on this VM: {error}");
                return copies;
            }
        };
        let names = keys.iter().filter_map(|key| key.strip_prefix(CERTIFICATES)?.parse().ok());
        for name in names {
            match read(&self.local, &name).await {
                Ok(found) => copies.extend(found.map(|document| (name, document))),
                Err(error) => {
                    tracing::error!(%name, cause = cause(&error), "a certificate on this VM cannot be used: {error}");
                }
            }
        }
        copies
    }

    /// Writes the document into the store, unless the lease has passed to another VM.
    pub async fn write(
        &self,
        lease: &Lease,
        name: &CertificateName,
        document: &Document,
    ) -> Result<(), ShelfError> {
        self.store().put_fenced(lease, &key(name), &document.print()).await?;
        Ok(())
    }

    /// Keeps a copy of what is in the store, or could not get there.
    pub async fn keep(&self, name: &CertificateName, document: &Document) {
        self.keep_copy(&key(name), &document.print()).await;
    }

    /// The same of any value.
    pub async fn keep_copy(&self, key: &str, bytes: &[u8]) {
        if !self.is_shared() {
            return;
        }
        let anything = crate::adapters::store::Expected::Anything;
        if let Err(error) = self.local.put(key, bytes, anything).await {
            let cause = cause(&error);
            tracing::error!(
                key,
                cause,
                "this VM has no copy of it, and would need the store after a restart: {error}"
            );
        }
    }

    /// A value as this VM last saw it.
    pub async fn copy_of(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.local.get(key).await?.map(|stored| stored.bytes))
    }
}

async fn read(vault: &Vault, name: &CertificateName) -> Result<Option<Document>, ShelfError> {
    let Some(stored) = vault.get(&key(name)).await? else { return Ok(None) };
    let parsed = Document::parse(&stored.bytes);
    parsed.map(Some).map_err(|source| ShelfError::Document { name: name.clone(), source })
}

pub fn key(name: &CertificateName) -> String {
    format!("{CERTIFICATES}{name}")
}

/// What an error came from, in one line.
pub fn cause(error: &dyn std::error::Error) -> Option<String> {
    let mut causes = Vec::new();
    let mut source = error.source();
    while let Some(one) = source {
        causes.push(one.to_string());
        source = one.source();
    }
    (!causes.is_empty()).then(|| causes.join(": "))
}
