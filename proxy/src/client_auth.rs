//! Certificates that clients show: whom a service trusts, and what its app is told of who showed one.
//!
//! The handshake asks for them, by host. Whether a request may go on is decided for every request and its service, by the
//! certificate of its connection: so it makes no difference for which name the handshake was, or whether it resumed a
//! session that began before anybody asked.

use std::sync::{Arc, OnceLock};

use ::aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use model::service::ClientAuthMode;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::ticket_keys::Purpose;

mod subject;

/// What the app is told where a service asks, and the client showed nothing.
pub const NOBODY: &[u8] = b"x-ssl-client-verify: NONE\r\n";

/// Whom a service trusts.
pub struct ClientAuth {
    pub mode: ClientAuthMode,
    authorities: Vec<CertificateDer<'static>>,
    /// `None`: nobody.
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    id: Purpose,
}

/// What handshakes for a host ask for: certificates that any of its services trusts.
pub struct HostAuth {
    /// `None`: nobody is trusted, so there is nothing to ask for.
    pub verifier: Option<Arc<dyn ClientCertVerifier>>,
    pub purpose: Purpose,
    members: Vec<Purpose>,
    /// Made by the first handshake that needs it.
    pub config: OnceLock<Arc<ServerConfig>>,
}

/// Somebody whose certificate was checked.
#[derive(Debug, PartialEq, Eq)]
pub struct ClientIdentity {
    /// The lines of the head that tell the app.
    pub fields: Box<[u8]>,
}

impl ClientAuth {
    pub fn new(
        mode: ClientAuthMode,
        authorities: Vec<CertificateDer<'static>>,
    ) -> Result<Self, rustls::Error> {
        let verifier = verifier(&authorities, true)?;
        let mut ids: Vec<[u8; 32]> = authorities.iter().map(|der| *blake3::hash(der).as_bytes()).collect();
        ids.sort_unstable();
        ids.dedup();
        let id = *blake3::hash(ids.as_flattened()).as_bytes();
        Ok(Self { mode, authorities, verifier, id })
    }

    /// Where it cannot be known who is to be trusted.
    pub fn of_nobody(mode: ClientAuthMode) -> Self {
        Self { mode, authorities: Vec::new(), verifier: None, id: Purpose::default() }
    }

    /// The same for those who trust the same.
    pub fn id(&self) -> Purpose {
        self.id
    }

    /// Checks a client's chain, its own certificate first, as of now.
    pub fn verify(&self, chain: &[CertificateDer<'_>]) -> Option<ClientIdentity> {
        let (own, rest) = chain.split_first()?;
        self.verifier.as_ref()?.verify_client_cert(own, rest, UnixTime::now()).ok()?;
        ClientIdentity::of(own)
    }
}

impl HostAuth {
    /// `are_all`: there is no service on the host that asks for none.
    pub fn new(services: &[Arc<ClientAuth>], are_all: bool) -> Result<Self, rustls::Error> {
        let is_mandatory = are_all && services.iter().all(|one| one.mode == ClientAuthMode::Required);
        let mut members: Vec<Purpose> = services.iter().map(|one| one.id).collect();
        members.sort_unstable();
        members.dedup();
        let authorities: Vec<_> = services.iter().flat_map(|one| one.authorities.iter().cloned()).collect();
        // A session that began when less was asked for is not resumed.
        let mut purpose = blake3::Hasher::new();
        purpose.update(&[u8::from(is_mandatory)]).update(members.as_flattened());
        Ok(Self {
            verifier: verifier(&authorities, !is_mandatory)?,
            purpose: *purpose.finalize().as_bytes(),
            members,
            config: OnceLock::new(),
        })
    }

    /// Whether its handshakes ask for what `service` trusts.
    pub fn asks_for(&self, service: &ClientAuth) -> bool {
        self.members.contains(&service.id)
    }
}

/// `None` without any authority.
fn verifier(
    authorities: &[CertificateDer<'static>],
    is_optional: bool,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, rustls::Error> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.clone())?;
    }
    if roots.is_empty() {
        return Ok(None);
    }
    let provider = Arc::new(default_provider());
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let builder = if is_optional { builder.allow_unauthenticated() } else { builder };
    builder.build().map(Some).map_err(|error| rustls::Error::General(error.to_string()))
}

impl ClientIdentity {
    /// `Client-Cert` as in RFC 9440, and what nginx's users are used to.
    fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let fingerprint: String =
            digest(&SHA256, certificate).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let fields = format!(
            "client-cert: :{}:\r\nx-ssl-client-verify: SUCCESS\r\nx-ssl-client-s-dn: {}\r\nx-ssl-client-sha256: {fingerprint}\r\n",
            STANDARD.encode(certificate),
            subject::print(parsed.subject()),
        );
        Some(Self { fields: fields.into_bytes().into() })
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa,
        KeyPair,
    };

    use super::*;

    struct Authority(CertifiedIssuer<'static, KeyPair>);

    impl Authority {
        fn new(name: &str) -> Self {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.distinguished_name.push(DnType::CommonName, name);
            Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
        }

        fn certify(&self, change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
            let mut params = CertificateParams::default();
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            change(&mut params);
            params.signed_by(&KeyPair::generate().unwrap(), &self.0).unwrap().der().clone()
        }

        fn der(&self) -> CertificateDer<'static> {
            self.0.der().clone()
        }
    }

    fn auth(mode: ClientAuthMode, authorities: &[&Authority]) -> Arc<ClientAuth> {
        let authorities = authorities.iter().map(|one| one.der()).collect();
        Arc::new(ClientAuth::new(mode, authorities).unwrap())
    }

    #[test]
    fn only_whom_it_trusts() {
        let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
        let trusted = auth(ClientAuthMode::Required, &[&ours]);
        let named =
            |params: &mut CertificateParams| params.distinguished_name.push(DnType::CommonName, "ann");
        for (label, chain, is_trusted) in [
            ("ours", vec![ours.certify(named)], true),
            ("theirs", vec![theirs.certify(named)], false),
            ("theirs beside ours", vec![theirs.certify(named), ours.der()], false),
            ("nobody's", vec![], false),
            ("rubbish", vec![CertificateDer::from(vec![1, 2, 3])], false),
            (
                "of a server",
                vec![ours.certify(|params| {
                    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]
                })],
                false,
            ),
            (
                "expired",
                vec![ours.certify(|params| params.not_after = rcgen::date_time_ymd(2020, 1, 1))],
                false,
            ),
            (
                "not yet",
                vec![ours.certify(|params| params.not_before = rcgen::date_time_ymd(2900, 1, 1))],
                false,
            ),
        ] {
            assert_eq!(trusted.verify(&chain).is_some(), is_trusted, "{label}");
            assert!(ClientAuth::of_nobody(ClientAuthMode::Required).verify(&chain).is_none(), "{label}");
        }
    }

    #[test]
    fn what_the_app_is_told() {
        let ours = Authority::new("ours");
        let own = ours.certify(|params| {
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(DnType::OrganizationName, "Shop, \"Inc\"\r\nx-admin: 1");
            params.distinguished_name.push(DnType::CommonName, DnValue::Utf8String(" ann ü".into()));
        });
        let identity = auth(ClientAuthMode::Required, &[&ours]).verify(std::slice::from_ref(&own)).unwrap();
        let text = String::from_utf8(identity.fields.to_vec()).unwrap();
        let lines: Vec<&str> = text.split("\r\n").collect();
        assert_eq!(lines.len(), 5, "{text}");
        assert_eq!(lines[0], format!("client-cert: :{}:", STANDARD.encode(&own)));
        assert_eq!(lines[1], "x-ssl-client-verify: SUCCESS");
        assert_eq!(lines[2], r#"x-ssl-client-s-dn: CN=\ ann \C3\BC,O=Shop\, \"Inc\"\0D\0Ax-admin: 1"#);
        assert!(lines[3].starts_with("x-ssl-client-sha256: ") && lines[3].len() == 21 + 64, "{}", lines[3]);
    }

    #[test]
    fn hosts_ask_for_what_their_services_trust() {
        let (one, other) = (Authority::new("one"), Authority::new("other"));
        let required = auth(ClientAuthMode::Required, &[&one]);
        let optional = auth(ClientAuthMode::Optional, &[&other]);
        let host = |services: &[&Arc<ClientAuth>], are_all| {
            let services: Vec<_> = services.iter().copied().cloned().collect();
            HostAuth::new(&services, are_all).unwrap()
        };
        let is_mandatory = |host: &HostAuth| host.verifier.as_ref().unwrap().client_auth_mandatory();
        assert!(is_mandatory(&host(&[&required], true)));
        assert!(!is_mandatory(&host(&[&required], false)), "another service of the host asks for none");
        assert!(!is_mandatory(&host(&[&required, &optional], true)));
        let both = host(&[&required, &optional], true);
        assert!(both.asks_for(&required) && both.asks_for(&optional));
        assert!(!host(&[&required], true).asks_for(&optional));

        // Tickets are good among those who ask for the same.
        let same = auth(ClientAuthMode::Required, &[&one]);
        assert_eq!(host(&[&required], true).purpose, host(&[&same], true).purpose);
        assert_eq!(both.purpose, host(&[&optional, &required], true).purpose);
        let purposes = [
            host(&[&required], true).purpose,
            host(&[&required], false).purpose,
            host(&[&optional], true).purpose,
            both.purpose,
        ];
        for (n, purpose) in purposes.iter().enumerate() {
            assert!(!purposes[..n].contains(purpose), "{n}");
        }
        assert!(host(&[&Arc::new(ClientAuth::of_nobody(ClientAuthMode::Required))], true).verifier.is_none());
    }
}
