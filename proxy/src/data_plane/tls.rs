//! TLS towards clients: certificates come from the snapshot, by server name.

pub mod client_auth;
pub mod handshake;
pub mod tickets;

use std::borrow::Cow;
use std::sync::Arc;

use model::route::HostMap;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CipherSuite, ServerConfig};

use self::tickets::Tickets;
use crate::client_auth::HostAuth;
use crate::snapshot::Published;
use crate::ticket_keys::TicketKeys;

/// TLS 1.2 and 1.3 with HTTP/2 and HTTP/1.1, asking clients for what `auth` says. Sessions are resumed by tickets alone,
/// and never with early data.
pub fn server_config(published: Published, keys: TicketKeys, auth: Option<&HostAuth>) -> Arc<ServerConfig> {
    let builder = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider supports TLS 1.2 and 1.3");
    let builder = match auth.and_then(|auth| auth.verifier.clone()) {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(FromSnapshot(published)));
    // All suites are good; which of them it is should not be up to a client's age.
    config.ignore_client_order = true;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Each ticket costs the handshake; one is what a returning browser uses.
    config.send_tls13_tickets = 1;
    config.ticketer = Arc::new(Tickets { keys, purpose: auth.map_or(tickets::ANYBODY, |auth| auth.purpose) });
    // Clients of TLS 1.2 without tickets are too few for a table that other workers and VMs do not see.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Arc::new(config)
}

/// Of suites the cheapest first, which is what browsers want, too: AES-128-GCM, AES-256-GCM, ChaCha20-Poly1305. Of key
/// exchanges the client's favourite, X25519MLKEM768 among them.
fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    let cheapest = [
        CipherSuite::TLS13_AES_128_GCM_SHA256,
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    ];
    // The others stay in their order.
    provider.cipher_suites.sort_by_key(|suite| !cheapest.contains(&suite.suite()));
    provider
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
        let snapshot = self.0.load();
        let first = certificate(&snapshot.certificates, hello.server_name())?;
        match certificate(&snapshot.rsa_certificates, hello.server_name()) {
            Some(rsa) if first.key.choose_scheme(hello.signature_schemes()).is_none() => Some(rsa),
            _ => Some(first),
        }
    }
}
