//! TLS from the client's side, and a small certificate authority for the server's side.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::exchange::say;
use crate::runtime::runtime;

/// Makes certificates and keys as PEM files.
pub struct Authority {
    dir: TempDir,
}

impl Default for Authority {
    fn default() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary directory") }
    }
}

impl Authority {
    /// The paths of a certificate for `name` and of its key.
    pub fn certify(&self, name: &str) -> (PathBuf, PathBuf) {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a host name");
        let (certificate, key) = (self.path(&format!("{name}.pem")), self.path(&format!("{name}.key")));
        std::fs::write(&certificate, made.cert.pem()).expect("a fresh directory can be written");
        std::fs::write(&key, made.signing_key.serialize_pem()).expect("a fresh directory can be written");
        (certificate, key)
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

/// What a handshake came to.
#[derive(Debug)]
pub struct Handshake {
    pub alpn: Option<String>,
    /// DER of the server's own certificate.
    pub certificate: Vec<u8>,
}

/// Shakes hands with `address` for `name`, whoever signed the certificate.
pub fn handshake(address: SocketAddr, name: &str, alpn: &[&str]) -> Result<Handshake, String> {
    runtime().block_on(async {
        let stream = connect(TcpStream::connect(address).await.map_err(say)?, name, alpn).await?;
        let (_, session) = stream.get_ref();
        let alpn = session.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned());
        let certificate = session.peer_certificates().and_then(<[_]>::first).map(|der| der.to_vec());
        Ok(Handshake { alpn, certificate: certificate.unwrap_or_default() })
    })
}

pub(crate) async fn connect(
    tcp: TcpStream,
    name: &str,
    alpn: &[&str],
) -> Result<TlsStream<TcpStream>, String> {
    let config = client_config(alpn);
    let host = name.rsplit_once(':').map_or(name, |(host, _)| host);
    let name = ServerName::try_from(host.to_owned()).map_err(say)?;
    TlsConnector::from(Arc::new(config)).connect(name, tcp).await.map_err(say)
}

/// Trusts anyone.
pub(crate) fn client_config(alpn: &[&str]) -> ClientConfig {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("the provider has the default versions")
        .dangerous()
        .with_custom_certificate_verifier(trust_anyone())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}

pub(crate) fn trust_anyone() -> Arc<dyn ServerCertVerifier> {
    Arc::new(TrustAnyone(aws_lc_rs::default_provider().signature_verification_algorithms))
}

/// Accepts every certificate: the stories compare the one that was shown with the one that they made.
#[derive(Debug)]
pub(crate) struct TrustAnyone(pub(crate) WebPkiSupportedAlgorithms);

impl ServerCertVerifier for TrustAnyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

/// An authority that clients have their certificates from.
pub struct ClientAuthority(CertifiedIssuer<'static, KeyPair>);

impl ClientAuthority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("a certificate"))
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// PEM of a certificate for `name`, and of its key.
    pub fn certify(&self, name: &str) -> (String, String) {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }
}
