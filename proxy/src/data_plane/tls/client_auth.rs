//! Whether a connection's client may have what it asks for, where a service trusts only some.

use std::cell::RefCell;
use std::sync::Arc;

use model::reason::Reason;
use model::service::ClientAuthMode;
use rustls::ServerConnection;
use rustls_pki_types::CertificateDer;

use crate::client_auth::{ClientAuth, ClientIdentity, HostAuth};
use crate::data_plane::exchange::Tls;
use crate::ticket_keys::Purpose;

/// The client of a connection whose handshake asked for a certificate.
pub struct Client {
    asked_for: Arc<HostAuth>,
    /// What it showed, in this handshake or in that of the session that it resumed.
    chain: Vec<CertificateDer<'static>>,
    /// The last one that was asked about: most connections have to do with one service.
    checked: RefCell<Option<Checked>>,
}

/// By whom, and what came of it.
type Checked = (Purpose, Option<Arc<ClientIdentity>>);

impl Client {
    pub fn new(asked_for: Arc<HostAuth>, session: &ServerConnection) -> Self {
        let shown = session.peer_certificates().unwrap_or_default();
        Self {
            asked_for,
            chain: shown.iter().cloned().map(CertificateDer::into_owned).collect(),
            checked: RefCell::default(),
        }
    }

    /// Who it is in the eyes of a service. Chains are checked once for a connection, though the session may be older.
    fn identity(&self, service: &ClientAuth) -> Option<Arc<ClientIdentity>> {
        let mut checked = self.checked.borrow_mut();
        if let Some((_, identity)) = checked.as_ref().filter(|(by, _)| *by == service.id()) {
            return identity.clone();
        }
        let identity = service.verify(&self.chain).map(Arc::new);
        *checked = Some((service.id(), identity.clone()));
        identity
    }
}

/// Who asks, or why that is no business of theirs. `None` where the service leaves it to its app.
pub fn check(service: &ClientAuth, tls: Option<&Tls>) -> Result<Option<Arc<ClientIdentity>>, Reason> {
    let client = tls.and_then(|tls| tls.client.as_ref());
    if let Some(identity) = client.and_then(|client| client.identity(service)) {
        return Ok(Some(identity));
    }
    let was_asked = client.is_some_and(|client| client.asked_for.asks_for(service));
    match service.mode {
        // On a connection of its own it is asked (RFC 9110 §7.4).
        _ if tls.is_some() && !was_asked => Err(Reason::Misdirected),
        ClientAuthMode::Required => Err(Reason::ClientCertificateRequired),
        ClientAuthMode::Optional => Ok(None),
    }
}
