//! TLS towards clients: certificates come from the snapshot, by server name.

pub mod handshake;

use std::borrow::Cow;
use std::sync::Arc;

use model::route::HostMap;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::snapshot::Published;

/// TLS 1.2 and 1.3 with HTTP/2 and HTTP/1.1. No session tickets across restarts, no early data.
pub fn server_config(published: Published) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider supports TLS 1.2 and 1.3")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(FromSnapshot(published)));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Each ticket costs the handshake; one is what a returning browser uses.
    config.send_tls13_tickets = 1;
    Arc::new(config)
}

/// The certificate for a server name. A name that nobody serves gets none, and the handshake an alert:
/// whoever scans addresses learns no names.
pub fn certificate(
    certificates: &HostMap<Option<Arc<CertifiedKey>>>,
    server_name: Option<&str>,
) -> Option<Arc<CertifiedKey>> {
    // Without a name only a service for any host can be meant; the empty name matches no other.
    let name = server_name.map(lower_case).unwrap_or_default();
    certificates.best(&name).cloned().flatten()
}

/// As the snapshot has its names.
fn lower_case(name: &str) -> Cow<'_, str> {
    match name.bytes().any(|b| b.is_ascii_uppercase()) {
        true => name.to_ascii_lowercase().into(),
        false => name.into(),
    }
}

struct FromSnapshot(Published);

impl std::fmt::Debug for FromSnapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FromSnapshot")
    }
}

impl ResolvesServerCert for FromSnapshot {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        certificate(&self.0.load().certificates, hello.server_name())
    }
}
