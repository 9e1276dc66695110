//! TLS-ALPN-01: the certificate that answers a challenge (RFC 8737).

use std::net::IpAddr;
use std::sync::Arc;

use aws_lc_rs::digest;
use model::name::HostName;
use rustls::crypto::aws_lc_rs as provider;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::adapters::certificate::SelfSignedError;

/// For one handshake with ALPN `acme-tls/1` and the challenged host's name, and for nothing else.
pub fn challenge_certificate(
    host: &HostName,
    key_authorization: &str,
) -> Result<Arc<CertifiedKey>, SelfSignedError> {
    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::new(vec![super::identifier(host).to_owned()])?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    let digest = digest::digest(&digest::SHA256, key_authorization.as_bytes());
    params.custom_extensions = vec![rcgen::CustomExtension::new_acme_identifier(digest.as_ref())];
    let certificate = params.self_signed(&key)?.der().clone();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    // `CertifiedKey::from_der` would read the certificate and stop at its extension, which must be critical.
    let key = provider::sign::any_supported_type(&key)?;
    Ok(Arc::new(CertifiedKey::new(vec![certificate], key)))
}

/// Whom a challenge handshake asks for. An address comes as its name in reverse DNS (RFC 8738 §6).
pub fn challenge_host(server_name: &str) -> Option<HostName> {
    let name = server_name.trim_end_matches('.').to_ascii_lowercase();
    if let Some(reversed) = name.strip_suffix(".in-addr.arpa") {
        let parts: Vec<&str> = reversed.rsplit('.').collect();
        let address: IpAddr = parts.join(".").parse().ok()?;
        return address.to_string().parse().ok();
    }
    if let Some(reversed) = name.strip_suffix(".ip6.arpa") {
        let digits: Vec<&str> = reversed.rsplit('.').collect();
        if digits.len() != 32 || digits.iter().any(|digit| digit.len() != 1) {
            return None;
        }
        let groups: Vec<String> = digits.chunks(4).map(<[&str]>::concat).collect();
        let address: IpAddr = groups.join(":").parse().ok()?;
        return format!("[{address}]").parse().ok();
    }
    name.parse().ok()
}

#[cfg(test)]
mod tests {
    use x509_parser::parse_x509_certificate;

    use super::*;

    #[test]
    fn the_certificate_names_the_host_and_the_digest_in_a_critical_extension() {
        for host in ["shop.test", "192.0.2.7", "[2001:db8::7]"] {
            let made = challenge_certificate(&host.parse().unwrap(), "token.thumbprint").unwrap();
            let der = made.end_entity_cert().unwrap();
            let (_, parsed) = parse_x509_certificate(der).unwrap();
            let names = parsed.subject_alternative_name().unwrap().unwrap();
            assert_eq!(names.value.general_names.len(), 1, "{host}");
            let acme = parsed.extensions().iter().find(|one| one.oid.to_id_string() == "1.3.6.1.5.5.7.1.31");
            let acme = acme.unwrap();
            assert!(acme.critical, "{host}");
            let digest = digest::digest(&digest::SHA256, b"token.thumbprint");
            assert_eq!(acme.value, [&[4, 32], digest.as_ref()].concat(), "{host}: an OCTET STRING");
        }
    }

    #[test]
    fn names_of_challenge_handshakes() {
        for (name, want) in [
            ("Shop.test", Some("shop.test")),
            ("shop.test.", Some("shop.test")),
            ("7.2.0.192.in-addr.arpa", Some("192.0.2.7")),
            ("7.2.0.in-addr.arpa", None),
            ("999.2.0.192.in-addr.arpa", None),
            (
                "7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
                Some("[2001:db8::7]"),
            ),
            ("7.0.ip6.arpa", None),
            ("not a name", None),
        ] {
            assert_eq!(challenge_host(name).as_ref().map(HostName::as_str), want, "{name}");
        }
    }
}
