//! Certificates as rustls wants them: from PEM files, or self-signed until there are any.
//!
//! Which service gets which is decided by the control plane.

pub mod chain;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use model::name::HostPattern;
use model::own_certificates::{self, Facts, KeyKind};
use model::service::CertificateFiles;
use rustls::crypto::aws_lc_rs;
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, SignatureAlgorithm};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use self::chain::{Chain, X509Error};

/// No public authority has signed shorter ones since 2014.
const RSA_BITS_MIN: usize = 2048;

/// Far above any real chain; a path such as `/dev/zero` must not fill the memory.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A certificate and its key, ready to be shown, and what was found in its files.
#[derive(Debug)]
pub struct Pair {
    pub files: CertificateFiles,
    pub certified: Arc<CertifiedKey>,
    pub facts: Facts,
    /// Of the files.
    pub content: u64,
    /// What a client may stumble over, for people.
    pub remarks: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("cannot read {path}; the daemon reads it as its own user")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is no regular file of at most 1 MiB")]
    NotAFile { path: PathBuf },
    #[error("{path} holds no certificate; it must have a `BEGIN CERTIFICATE` block")]
    NoCertificate { path: PathBuf },
    #[error("{path} is not well-formed PEM")]
    Pem { path: PathBuf, source: rustls_pki_types::pem::Error },
    #[error("{path} holds no private key; it must have a `BEGIN PRIVATE KEY` block")]
    NoKey { path: PathBuf },
    #[error(
        "the private key in {path} is encrypted, and nobody is there to type its password; decrypt it with `openssl pkey`"
    )]
    EncryptedKey { path: PathBuf },
    #[error("the private key in {key} does not belong to the certificate in {certificate}")]
    Mismatch { certificate: PathBuf, key: PathBuf },
    #[error("the certificate in {certificate} with the key in {key} cannot be used")]
    Unusable { certificate: PathBuf, key: PathBuf, source: rustls::Error },
    #[error("{path} holds something else than an X.509 certificate in a `BEGIN CERTIFICATE` block")]
    NotX509 { path: PathBuf, source: X509Error },
    #[error(
        "the key of the certificate in {path} has {bits} bits: RSA needs 2048 at least, and clients insist on them"
    )]
    WeakKey { path: PathBuf, bits: usize },
}

/// Both files of a pair as they are on disk.
pub struct PairFiles {
    files: CertificateFiles,
    certificate: Result<Vec<u8>, CertificateError>,
    key: Result<Vec<u8>, CertificateError>,
}

impl PairFiles {
    /// Blocks.
    pub fn read(files: &CertificateFiles) -> Self {
        let (certificate, key) = (read(&files.certificate), read(&files.private_key));
        Self { files: files.clone(), certificate, key }
    }

    /// Tells contents apart; files that cannot be read differ from all that can.
    pub fn content(&self) -> u64 {
        let mut hasher = blake3::Hasher::new();
        for file in [&self.certificate, &self.key] {
            match file {
                Ok(bytes) => hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes),
                Err(error) => hasher.update(&[0xff; 8]).update(error.to_string().as_bytes()),
            };
        }
        let [a, b, c, d, e, f, g, h, ..] = *hasher.finalize().as_bytes();
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }

    /// Whether they can be shown; not whether they should be: dates and names are looked at by the caller.
    pub fn parse(self) -> Result<Pair, CertificateError> {
        let content = self.content();
        let Self { files, certificate, key } = self;
        let chain = parse_chain(&files.certificate, &certificate?)?;
        let private_key = parse_key(&files.private_key, &key?)?;
        check_strength(&files.certificate, &chain)?;
        let unusable = |source| CertificateError::Unusable {
            certificate: files.certificate.clone(),
            key: files.private_key.clone(),
            source,
        };
        let key =
            aws_lc_rs::default_provider().key_provider.load_private_key(private_key).map_err(unusable)?;
        let is_its_own = |der: &CertificateDer<'static>| {
            let matched = CertifiedKey::new(vec![der.clone()], Arc::clone(&key)).keys_match();
            matches!(matched, Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)))
        };
        let Some(own) = chain.iter().position(is_its_own) else {
            let CertificateFiles { certificate, private_key: key } = files;
            return Err(CertificateError::Mismatch { certificate, key });
        };
        let Chain { ders, remarks } = chain::in_order(chain, own)
            .map_err(|source| CertificateError::NotX509 { path: files.certificate.clone(), source })?;
        let key_kind = match key.algorithm() {
            SignatureAlgorithm::RSA => KeyKind::Rsa,
            SignatureAlgorithm::ED25519 => KeyKind::Ed25519,
            _ => KeyKind::Ecdsa,
        };
        let facts = chain::facts(&ders, key_kind)
            .map_err(|source| CertificateError::NotX509 { path: files.certificate.clone(), source })?;
        let certified = Arc::new(CertifiedKey::new(ders, key));
        Ok(Pair { files, certified, facts, content, remarks })
    }
}

/// Reads and checks both files. Blocks.
pub fn load(files: &CertificateFiles) -> Result<Pair, CertificateError> {
    PairFiles::read(files).parse()
}

/// The hosts that the certificate does not name; all of them where it cannot be taken apart.
pub fn uncovered(certified: &CertifiedKey, hosts: &[HostPattern]) -> Vec<HostPattern> {
    // Whose names are looked for does not ask for the key.
    match chain::facts(&certified.cert, KeyKind::Ecdsa) {
        Ok(facts) => own_certificates::uncovered(&[&facts], hosts),
        Err(_) => hosts.to_vec(),
    }
}

/// aws-lc would refuse the key as well, but cannot say why.
fn check_strength(path: &Path, chain: &[CertificateDer<'static>]) -> Result<(), CertificateError> {
    let path = || path.to_owned();
    for der in chain {
        let bits =
            chain::rsa_bits(der).map_err(|source| CertificateError::NotX509 { path: path(), source })?;
        if let Some(bits) = bits.filter(|bits| *bits < RSA_BITS_MIN) {
            return Err(CertificateError::WeakKey { path: path(), bits });
        }
    }
    Ok(())
}

/// Lets HTTPS open at once, with a warning in every browser.
pub fn self_signed(hosts: &[HostPattern]) -> Result<Arc<CertifiedKey>, SelfSignedError> {
    let mut names: Vec<String> =
        hosts.iter().map(|host| host.to_string().trim_matches(['[', ']']).to_owned()).collect();
    if names.is_empty() {
        names.push("portcullis.invalid".to_owned());
    }
    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::new(names.clone())?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    // X.520 allows a common name 64 characters; longer names stand in the alternative names only.
    let common = names.first().filter(|name| name.len() <= 64).map_or("portcullis", String::as_str);
    params.distinguished_name.push(rcgen::DnType::CommonName, common);
    let certificate = params.self_signed(&key)?.der().clone();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok(Arc::new(CertifiedKey::from_der(vec![certificate], key, &aws_lc_rs::default_provider())?))
}

#[derive(Debug, thiserror::Error)]
pub enum SelfSignedError {
    #[error("cannot make a self-signed certificate")]
    Make(#[from] rcgen::Error),
    #[error("cannot use the self-signed certificate")]
    Use(#[from] rustls::Error),
}

fn read(path: &Path) -> Result<Vec<u8>, CertificateError> {
    let failed = |source| CertificateError::Read { path: path.to_owned(), source };
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() || metadata.len() > FILE_BYTES_MAX {
        return Err(CertificateError::NotAFile { path: path.to_owned() });
    }
    std::fs::read(path).map_err(failed)
}

fn parse_chain(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match chain {
        Ok(chain) if chain.is_empty() => Err(CertificateError::NoCertificate { path: path.to_owned() }),
        Ok(chain) => Ok(chain),
        Err(source) => Err(CertificateError::Pem { path: path.to_owned(), source }),
    }
}

fn parse_key(path: &Path, pem: &[u8]) -> Result<PrivateKeyDer<'static>, CertificateError> {
    let path = path.to_owned();
    // PKCS #8 says so in its label, the older form in a header field.
    let says = |needle: &[u8]| memchr::memmem::find(pem, needle).is_some();
    if says(b"BEGIN ENCRYPTED PRIVATE KEY") || says(b"Proc-Type: 4,ENCRYPTED") {
        return Err(CertificateError::EncryptedKey { path });
    }
    match PrivateKeyDer::from_pem_slice(pem) {
        Ok(key) => Ok(key),
        Err(rustls_pki_types::pem::Error::NoItemsFound) => Err(CertificateError::NoKey { path }),
        Err(source) => Err(CertificateError::Pem { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(names: &[&str]) -> (String, String) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn files_that_do_not_fit_are_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let (certificate, key) = pair(&["shop.test"]);
        let (_, other_key) = pair(&["shop.test"]);
        let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
        let no_x509 = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let cut = &certificate[..certificate.len() / 2];
        for (label, certificate, key, want) in [
            ("good", certificate.as_str(), key.as_str(), ""),
            ("both in one", &format!("{key}{certificate}"), &key, ""),
            ("other key", &certificate, &other_key, "does not belong"),
            ("encrypted", &certificate, encrypted, "is encrypted"),
            ("no certificate", &key, &key, "holds no certificate"),
            ("no key", &certificate, &certificate, "holds no private key"),
            ("empty", "", &key, "holds no certificate"),
            ("cut", cut, &key, "not well-formed PEM"),
            ("no X.509", no_x509, &key, "something else than an X.509 certificate"),
        ] {
            let files = CertificateFiles {
                certificate: write(dir.path(), "c.pem", certificate),
                private_key: write(dir.path(), "k.pem", key),
            };
            match load(&files) {
                Ok(_) => assert_eq!(want, "", "{label}"),
                Err(error) => {
                    assert!(!want.is_empty() && error.to_string().contains(want), "{label}: {error}");
                }
            }
        }
        let missing =
            CertificateFiles { certificate: dir.path().join("no"), private_key: dir.path().join("no") };
        assert!(matches!(load(&missing), Err(CertificateError::Read { .. })));
        let folder = CertificateFiles { certificate: dir.path().into(), private_key: dir.path().into() };
        assert!(matches!(load(&folder), Err(CertificateError::NotAFile { .. })));
    }

    #[test]
    fn placeholders_name_their_hosts() {
        for hosts in [
            &["shop.test", "*.shop.test", "[::1]", "127.0.0.1"][..],
            &[&format!("{}.test", "a".repeat(63))],
            &[],
        ] {
            let hosts: Vec<HostPattern> = hosts.iter().map(|host| host.parse().unwrap()).collect();
            let made = self_signed(&hosts).unwrap();
            let facts = chain::facts(&made.cert, KeyKind::Ecdsa).unwrap();
            assert!(hosts.iter().all(|host| facts.names.contains(host)), "{hosts:?}, {facts:?}");
        }
    }
}
