//! Certificates as rustls wants them: from PEM files, or self-signed until there are any.
//!
//! Which service gets which is decided by the control plane.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use model::name::HostPattern;
use model::service::{CertificateFiles, ClientAuthPolicy};
use rustls::RootCertStore;
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::aws_lc_rs;
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};

use crate::client_auth::ClientAuth;

/// Far above any real chain; a path such as `/dev/zero` must not fill the memory.
const FILE_BYTES_MAX: u64 = 1 << 20;

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
    #[error("the private key in {key} does not belong to the first certificate in {certificate}")]
    Mismatch { certificate: PathBuf, key: PathBuf },
    #[error("{path} holds a certificate that is none of an authority")]
    Authority { path: PathBuf, source: rustls::Error },
    #[error("the certificate in {certificate} with the key in {key} cannot be used")]
    Unusable { certificate: PathBuf, key: PathBuf, source: rustls::Error },
}

/// Reads and checks both files. Blocks.
pub fn load(files: &CertificateFiles) -> Result<Arc<CertifiedKey>, CertificateError> {
    let (certificate, key) = (files.certificate.clone(), files.private_key.clone());
    let chain = parse_chain(&certificate, &read(&certificate)?)?;
    let private_key = parse_key(&key, &read(&key)?)?;
    match CertifiedKey::from_der(chain, private_key, &aws_lc_rs::default_provider()) {
        Ok(certified) => Ok(Arc::new(certified)),
        Err(rustls::Error::InconsistentKeys(_)) => Err(CertificateError::Mismatch { certificate, key }),
        Err(source) => Err(CertificateError::Unusable { certificate, key, source }),
    }
}

/// Reads the certificates of authorities that clients have theirs from. Blocks.
pub fn load_client_auth(policy: &ClientAuthPolicy) -> Result<ClientAuth, CertificateError> {
    let path = &policy.ca;
    let authorities = parse_chain(path, &read(path)?)?;
    let auth = ClientAuth::new(policy.mode, authorities);
    auth.map_err(|source| CertificateError::Authority { path: path.clone(), source })
}

/// The hosts that the certificate does not name, so that browsers will warn.
pub fn uncovered<'h>(certified: &CertifiedKey, hosts: &'h [HostPattern]) -> Vec<&'h HostPattern> {
    let Ok(parsed) = certified.end_entity_cert().and_then(ParsedCertificate::try_from) else {
        return hosts.iter().collect();
    };
    let covered = |host: &HostPattern| {
        let name = host.sample().as_str().trim_matches(['[', ']']).to_owned();
        ServerName::try_from(name).is_ok_and(|name| verify_server_name(&parsed, &name).is_ok())
    };
    hosts.iter().filter(|host| !covered(host)).collect()
}

/// The day after which the certificate is not valid any more, if that is over.
pub fn expired_on(certified: &CertifiedKey) -> Option<String> {
    let parsed = certified.end_entity_cert().and_then(ParsedCertificate::try_from).ok()?;
    // Who signed it is the clients' affair. Its dates are looked at before that.
    let checked = verify_server_cert_signed_by_trust_anchor(
        &parsed,
        &RootCertStore::empty(),
        &[],
        UnixTime::now(),
        aws_lc_rs::default_provider().signature_verification_algorithms.all,
    );
    let Err(rustls::Error::InvalidCertificate(rustls::CertificateError::ExpiredContext {
        not_after, ..
    })) = checked
    else {
        return None;
    };
    let seconds = i64::try_from(not_after.as_secs()).ok()?;
    let time = jiff::Timestamp::from_second(seconds).ok()?;
    Some(time.strftime("%Y-%m-%d").to_string())
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
    fn an_old_certificate_is_noticed() {
        let key = rcgen::KeyPair::generate().unwrap();
        for (until, want) in [(2024, Some("2024-07-01")), (2999, None)] {
            let mut params = rcgen::CertificateParams::new(vec!["shop.test".to_owned()]).unwrap();
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(until, 7, 1);
            let der = params.self_signed(&key).unwrap().der().clone();
            let private_key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
            let provider = aws_lc_rs::default_provider();
            let certified = CertifiedKey::from_der(vec![der], private_key, &provider).unwrap();
            assert_eq!(expired_on(&certified).as_deref(), want);
        }
    }

    #[test]
    fn files_that_do_not_fit_are_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let (certificate, key) = pair(&["shop.test"]);
        let (_, other_key) = pair(&["shop.test"]);
        let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
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
    fn hosts_that_a_certificate_does_not_name_are_found() {
        let hosts =
            |names: &[&str]| -> Vec<HostPattern> { names.iter().map(|n| n.parse().unwrap()).collect() };
        let made = self_signed(&hosts(&["shop.test", "*.shop.test", "[::1]", "127.0.0.1"])).unwrap();
        assert!(uncovered(&made, &hosts(&["shop.test", "www.shop.test", "*.shop.test", "[::1]"])).is_empty());
        let other = hosts(&["shop.test", "a.b.shop.test", "other.test"]);
        let found: Vec<String> = uncovered(&made, &other).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["a.b.shop.test", "other.test"]);
        assert!(self_signed(&[]).is_ok(), "a service for any host");
        assert!(self_signed(&hosts(&[&format!("{}.test", "a".repeat(63))])).is_ok(), "a long name");
    }
}
