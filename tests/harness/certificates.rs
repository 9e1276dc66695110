//! Certificates of every make, as operators bring them, and clients that are choosy about them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PKCS_RSA_SHA256, RsaKeySize,
};
use rustls::crypto::{WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::exchange::say;
use crate::runtime::runtime;
use crate::tls::TrustAnyone;

/// What a certificate is to be like.
#[derive(Clone)]
pub struct Make<'m> {
    pub names: &'m [&'m str],
    pub rsa: bool,
    /// From the first of January of one year to that of another.
    pub years: (i32, i32),
    /// Days left, instead of the years.
    pub days_left: Option<u32>,
    /// Signed by an intermediate authority, whose certificate comes with it.
    pub chained: bool,
}

impl Default for Make<'_> {
    fn default() -> Self {
        Self { names: &["shop.test"], rsa: false, years: (2020, 2999), days_left: None, chained: false }
    }
}

/// A certificate and its key.
pub struct Made {
    /// The server's own first.
    pub chain: Vec<String>,
    pub key: String,
    /// DER of the server's own.
    pub der: Vec<u8>,
}

impl Make<'_> {
    pub fn make(&self) -> Made {
        let key = match self.rsa {
            true => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048),
            false => KeyPair::generate(),
        };
        let key = key.expect("a key can be made");
        let mut params = params(self.names);
        params.not_before = rcgen::date_time_ymd(self.years.0, 1, 1);
        params.not_after = rcgen::date_time_ymd(self.years.1, 1, 1);
        if let Some(days) = self.days_left {
            let now = std::time::SystemTime::now();
            params.not_before = (now - 80 * DAY).into();
            params.not_after = (now + days * DAY).into();
        }
        let (own, above) = if self.chained {
            let authority_key = KeyPair::generate().expect("a key can be made");
            let root_key = KeyPair::generate().expect("a key can be made");
            let root = Issuer::new(authority("root.test"), &root_key);
            let above = authority("middle.test").signed_by(&authority_key, &root).expect("it can be signed");
            let issuer = Issuer::new(authority("middle.test"), &authority_key);
            (params.signed_by(&key, &issuer), vec![above.pem()])
        } else {
            (params.self_signed(&key), Vec::new())
        };
        let own = own.expect("it can be signed");
        let chain = std::iter::once(own.pem()).chain(above).collect();
        Made { chain, key: key.serialize_pem(), der: own.der().to_vec() }
    }
}

const DAY: std::time::Duration = std::time::Duration::from_secs(24 * 60 * 60);

fn params(names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    CertificateParams::new(names).expect("host names")
}

fn authority(name: &str) -> CertificateParams {
    let mut params = params(&[]);
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

impl Made {
    /// As `NAME.pem` and `NAME.key`.
    pub fn write(&self, dir: &Path, name: &str) -> Files {
        let files =
            Files { certificate: dir.join(format!("{name}.pem")), key: dir.join(format!("{name}.key")) };
        std::fs::write(&files.certificate, self.chain.concat()).expect("the directory can be written");
        std::fs::write(&files.key, &self.key).expect("the directory can be written");
        files
    }
}

/// Where a pair lies.
#[derive(Clone)]
pub struct Files {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Files {
    /// Arguments of `agentctl deploy`.
    pub fn flags(&self) -> [String; 4] {
        let path = |path: &Path| path.display().to_string();
        let [certificate, key] = ["--tls-certificate-path", "--tls-private-key-path"].map(str::to_owned);
        [certificate, path(&self.certificate), key, path(&self.key)]
    }
}

/// All that the server shows for `name`, its own first. `knows` is which signatures the client can check.
pub fn shown_chain(
    address: SocketAddr,
    name: &str,
    knows: fn(SignatureScheme) -> bool,
) -> Result<Vec<Vec<u8>>, String> {
    runtime().block_on(async {
        let tcp = TcpStream::connect(address).await.map_err(say)?;
        let name = ServerName::try_from(name.to_owned()).map_err(say)?;
        let stream = TlsConnector::from(Arc::new(config(knows))).connect(name, tcp).await.map_err(say)?;
        let (_, session) = stream.get_ref();
        let chain = session.peer_certificates().unwrap_or_default();
        Ok(chain.iter().map(|der| der.to_vec()).collect())
    })
}

fn config(knows: fn(SignatureScheme) -> bool) -> ClientConfig {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let WebPkiSupportedAlgorithms { all, mapping } = provider.signature_verification_algorithms;
    let kept = mapping.iter().filter(|(scheme, _): &&(SignatureScheme, _)| knows(*scheme));
    // Lives as long as the test: rustls wants it static.
    let mapping = Vec::leak(kept.copied().collect());
    let trust_anyone = Arc::new(TrustAnyone(WebPkiSupportedAlgorithms { all, mapping }));
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has the default versions")
        .dangerous()
        .with_custom_certificate_verifier(trust_anyone)
        .with_no_client_auth()
}
