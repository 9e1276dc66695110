//! One visitor's TLS: remembers its sessions, may have a certificate of its own, and tells how each handshake went.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    CipherSuite, ClientConfig, HandshakeKind, NamedGroup, ProtocolVersion, SupportedProtocolVersion, version,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::exchange::say;
use crate::runtime::runtime;
use crate::tls::trust_anyone;
use crate::wait::PATIENCE;

pub struct Visitor {
    config: Arc<ClientConfig>,
}

/// One connection with one request over HTTP/1.1.
#[derive(Debug, Clone)]
pub struct Visit {
    pub resumed: bool,
    pub version: ProtocolVersion,
    pub group: Option<NamedGroup>,
    pub suite: CipherSuite,
    /// DER of the server's own certificate; of the first handshake, where the session was resumed.
    pub certificate: Vec<u8>,
    pub took_early_data: bool,
    pub status: u16,
    /// Head and body as they came.
    pub text: String,
}

impl Visitor {
    pub fn new() -> Self {
        Self::with(aws_lc_rs::default_provider(), &[&version::TLS13, &version::TLS12], None)
    }

    pub fn of_tls12() -> Self {
        Self::with(aws_lc_rs::default_provider(), &[&version::TLS12], None)
    }

    /// Offers these groups alone, the first one with its key.
    pub fn with_groups(groups: &[&'static dyn rustls::crypto::SupportedKxGroup]) -> Self {
        let provider = CryptoProvider { kx_groups: groups.to_vec(), ..aws_lc_rs::default_provider() };
        Self::with(provider, &[&version::TLS13], None)
    }

    /// Shows this certificate to whoever asks for one: PEM of the chain and of the key.
    pub fn showing(own: &(String, String)) -> Self {
        Self::showing_over(own, &[&version::TLS13, &version::TLS12])
    }

    pub fn showing_over(
        (chain, key): &(String, String),
        versions: &[&'static SupportedProtocolVersion],
    ) -> Self {
        let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<Vec<_>, _>>();
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a private key");
        let pair = (chain.expect("certificates"), key);
        Self::with(aws_lc_rs::default_provider(), versions, Some(pair))
    }

    fn with(
        provider: CryptoProvider,
        versions: &[&'static SupportedProtocolVersion],
        own: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    ) -> Self {
        let builder = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(versions)
            .expect("the provider has these versions")
            .dangerous()
            .with_custom_certificate_verifier(trust_anyone());
        let mut config = match own {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                builder.with_client_auth_cert(chain, key).expect("a key of its certificate")
            }
        };
        config.enable_early_data = true;
        Self { config: Arc::new(config) }
    }

    /// Asks for `path` on a connection of its own.
    pub fn visit(&self, address: SocketAddr, name: &str, path: &str) -> Result<Visit, String> {
        self.visit_under(address, name, name, path)
    }

    /// Shakes hands for `server_name` and asks for `host`.
    pub fn visit_under(
        &self,
        address: SocketAddr,
        server_name: &str,
        host: &str,
        path: &str,
    ) -> Result<Visit, String> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        self.send(address, server_name, &request)
    }

    /// Sends `text` and reads to the end.
    pub fn send(&self, address: SocketAddr, server_name: &str, text: &str) -> Result<Visit, String> {
        let server_name = ServerName::try_from(server_name.to_owned()).map_err(say)?;
        let connector = TlsConnector::from(Arc::clone(&self.config));
        let visiting = async {
            let tcp = TcpStream::connect(address).await.map_err(say)?;
            let mut stream = connector.connect(server_name, tcp).await.map_err(say)?;
            stream.write_all(text.as_bytes()).await.map_err(say)?;
            let mut read = Vec::new();
            stream.read_to_end(&mut read).await.map_err(say)?;
            let session = stream.get_ref().1;
            let text = String::from_utf8_lossy(&read).into_owned();
            Ok(Visit {
                resumed: session.handshake_kind() == Some(HandshakeKind::Resumed),
                version: session.protocol_version().ok_or("no version")?,
                group: session.negotiated_key_exchange_group().map(|group| group.name()),
                suite: session.negotiated_cipher_suite().ok_or("no suite")?.suite(),
                certificate: session
                    .peer_certificates()
                    .and_then(<[_]>::first)
                    .map(|der| der.to_vec())
                    .unwrap_or_default(),
                took_early_data: session.is_early_data_accepted(),
                status: text.split(' ').nth(1).and_then(|word| word.parse().ok()).ok_or("no answer")?,
                text,
            })
        };
        runtime().block_on(async { timeout(PATIENCE, visiting).await.map_err(say)? })
    }
}

impl Default for Visitor {
    fn default() -> Self {
        Self::new()
    }
}
