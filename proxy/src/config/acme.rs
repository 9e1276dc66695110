//! `[acme]`: from which certificate authorities automatic certificates come, and how they are asked.
//!
//! What a service wants of them is in its policy; how they are talked to is in `adapters::acme`.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::ConfigError;

const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
const LETS_ENCRYPT_STAGING: &str = "https://acme-staging-v02.api.letsencrypt.org/directory";

/// A key for an external account is some dozens of bytes.
const HMAC_KEY_BYTES_MAX: u64 = 4096;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawAcme {
    directory: Option<String>,
    staging_directory: Option<String>,
    contact: Vec<String>,
    root: Option<PathBuf>,
    profile: Option<String>,
    eab_key_id: Option<String>,
    eab_hmac_key_file: Option<PathBuf>,
    challenges: Option<Vec<String>>,
    fallback: Vec<RawAuthority>,
}

/// `[[acme.fallback]]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawAuthority {
    directory: String,
    root: Option<PathBuf>,
    profile: Option<String>,
    eab_key_id: Option<String>,
    eab_hmac_key_file: Option<PathBuf>,
}

/// Where automatic certificates come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acme {
    pub production: Authority,
    /// Tried after a failure, so that a mistake of ours costs nobody's rate limits.
    pub staging: Option<Authority>,
    /// Asked in this order when the first one goes on failing.
    pub fallback: Vec<Authority>,
    /// In order of preference, never empty.
    pub challenges: Vec<ChallengeKind>,
}

/// A certificate authority: its directory, and who we are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    pub directory: String,
    /// PEM file with the roots that its own certificate is checked against, instead of the system's.
    pub root: Option<PathBuf>,
    /// `mailto:` URLs.
    pub contact: Vec<String>,
    pub profile: Option<String>,
    pub external_account: Option<ExternalAccount>,
}

/// Binds our account to one that the operator has there (RFC 8555 §7.3.4).
#[derive(Clone, PartialEq, Eq)]
pub struct ExternalAccount {
    pub key_id: String,
    /// Base64url, as authorities hand it out.
    pub hmac_key: String,
}

impl fmt::Debug for ExternalAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExternalAccount").field("key_id", &self.key_id).finish_non_exhaustive()
    }
}

/// How we prove that a host is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChallengeKind {
    /// Over the HTTP listener (RFC 8555 §8.3).
    Http01,
    /// In a handshake of the HTTPS listener (RFC 8737).
    TlsAlpn01,
}

impl Acme {
    /// The authority with this directory, if it is one of ours.
    pub fn find(&self, directory: &str) -> Option<&Authority> {
        let all = std::iter::once(&self.production).chain(&self.staging).chain(&self.fallback);
        all.into_iter().find(|one| one.directory == directory)
    }
}

/// Which listeners are on, and what is named outside of the file.
pub(super) struct Surroundings {
    pub directory: Option<String>,
    pub http: bool,
    pub https: bool,
}

/// `None`: automatic certificates are off, and placeholders stay.
pub(super) fn resolve(raw: RawAcme, around: Surroundings) -> Result<Option<Acme>, ConfigError> {
    let named = around.directory.or(raw.directory);
    let challenges = challenges(raw.challenges, around.http, around.https)?;
    if named.as_deref() == Some("off") {
        return Ok(None);
    }
    for contact in &raw.contact {
        if !contact.starts_with("mailto:") || contact.len() <= "mailto:".len() {
            let message = format!("`{contact}` is not a contact: write one such as `mailto:ops@example.com`");
            return Err(ConfigError::Value { key: "acme.contact", message });
        }
    }
    // Let's Encrypt's staging is of use for Let's Encrypt alone.
    let is_default = named.as_deref().is_none_or(|directory| directory == LETS_ENCRYPT);
    let staging = match raw.staging_directory {
        Some(text) if text == "off" => None,
        Some(text) => Some(text),
        None => is_default.then(|| LETS_ENCRYPT_STAGING.to_owned()),
    };
    let production = RawAuthority {
        directory: named.unwrap_or_else(|| LETS_ENCRYPT.to_owned()),
        root: raw.root.clone(),
        profile: raw.profile.clone(),
        eab_key_id: raw.eab_key_id,
        eab_hmac_key_file: raw.eab_hmac_key_file,
    };
    let staging = staging.map(|directory| RawAuthority {
        directory,
        root: raw.root,
        profile: raw.profile,
        ..RawAuthority::default()
    });
    let contact = &raw.contact;
    let fallback = raw.fallback.into_iter().map(|one| authority("acme.fallback", one, contact));
    Ok(Some(Acme {
        production: authority("acme.directory", production, contact)?,
        staging: staging.map(|one| authority("acme.staging_directory", one, contact)).transpose()?,
        fallback: fallback.collect::<Result<_, _>>()?,
        challenges,
    }))
}

fn authority(key: &'static str, raw: RawAuthority, contact: &[String]) -> Result<Authority, ConfigError> {
    let value = |message| ConfigError::Value { key, message };
    let RawAuthority { directory, root, profile, eab_key_id, eab_hmac_key_file } = raw;
    let is_url = directory.parse::<http::Uri>().is_ok_and(|url| url.scheme_str() == Some("https"));
    if !is_url {
        let message = format!("`{directory}` is not the https:// URL of an ACME directory, nor `off`");
        return Err(value(message));
    }
    if let Some(root) = &root {
        check_roots(root).map_err(|message| ConfigError::Value { key: "acme.root", message })?;
    }
    let external_account = match (eab_key_id, eab_hmac_key_file) {
        (None, None) => None,
        (Some(key_id), Some(file)) => {
            let hmac_key = hmac_key(&file)
                .map_err(|message| ConfigError::Value { key: "acme.eab_hmac_key_file", message })?;
            Some(ExternalAccount { key_id, hmac_key })
        }
        (Some(_), None) => return Err(value("`eab_key_id` needs `eab_hmac_key_file` beside it".to_owned())),
        (None, Some(_)) => return Err(value("`eab_hmac_key_file` needs `eab_key_id` beside it".to_owned())),
    };
    Ok(Authority { directory, root, contact: contact.to_vec(), profile, external_account })
}

/// A file that is missing or no PEM would only show at the first order.
fn check_roots(path: &Path) -> Result<(), String> {
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject;
    let pem = std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    match CertificateDer::from_pem_slice(&pem) {
        Ok(_) => Ok(()),
        Err(_) => Err(format!("{} holds no certificate in PEM", path.display())),
    }
}

fn hmac_key(path: &Path) -> Result<String, String> {
    let shown = path.display();
    let metadata = std::fs::metadata(path).map_err(|error| format!("cannot read {shown}: {error}"))?;
    if !metadata.is_file() || metadata.len() > HMAC_KEY_BYTES_MAX {
        return Err(format!("{shown} is no small file with the key alone"));
    }
    let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read {shown}: {error}"))?;
    let key = text.trim().trim_end_matches('=').to_owned();
    let is_base64url = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if key.is_empty() || !key.bytes().all(is_base64url) {
        return Err(format!("{shown} does not hold a key in base64url, as the authority hands it out"));
    }
    Ok(key)
}

/// HTTP-01 where there is a listener for it: it needs nothing of the store.
fn challenges(
    named: Option<Vec<String>>,
    http: bool,
    https: bool,
) -> Result<Vec<ChallengeKind>, ConfigError> {
    let value = |message| ConfigError::Value { key: "acme.challenges", message };
    let Some(named) = named else {
        let kinds = [(http, ChallengeKind::Http01), (https, ChallengeKind::TlsAlpn01)];
        return Ok(kinds.into_iter().filter_map(|(is_on, kind)| is_on.then_some(kind)).collect());
    };
    if named.is_empty() {
        return Err(value("at least one is needed: `http-01`, `tls-alpn-01`".to_owned()));
    }
    let one = |text: &String| match text.as_str() {
        "http-01" if !http => Err(value("`http-01` needs the HTTP listener, which is off".to_owned())),
        "tls-alpn-01" if !https => {
            Err(value("`tls-alpn-01` needs the HTTPS listener, which is off".to_owned()))
        }
        "http-01" => Ok(ChallengeKind::Http01),
        "tls-alpn-01" => Ok(ChallengeKind::TlsAlpn01),
        other => Err(value(format!("`{other}` is neither `http-01` nor `tls-alpn-01`"))),
    };
    named.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acme(text: &str, directory: Option<&str>, http: bool, https: bool) -> Result<Option<Acme>, String> {
        let raw = toml::from_str(text).map_err(|error| error.to_string())?;
        let around = Surroundings { directory: directory.map(str::to_owned), http, https };
        resolve(raw, around).map_err(|error| error.to_string())
    }

    #[test]
    fn lets_encrypt_unless_something_else_is_named() {
        let plain = acme("", None, true, true).unwrap().unwrap();
        assert_eq!(plain.production.directory, LETS_ENCRYPT);
        assert_eq!(plain.staging.map(|one| one.directory).as_deref(), Some(LETS_ENCRYPT_STAGING));
        assert_eq!(plain.challenges, [ChallengeKind::Http01, ChallengeKind::TlsAlpn01]);

        let other = acme("directory = \"https://ca.test/dir\"", None, false, true).unwrap().unwrap();
        assert_eq!((other.production.directory.as_str(), other.staging), ("https://ca.test/dir", None));
        assert_eq!(other.challenges, [ChallengeKind::TlsAlpn01]);
    }

    #[test]
    fn what_is_named_outside_comes_before_the_file() {
        let text = "directory = \"https://ca.test/dir\"";
        assert_eq!(acme(text, Some("off"), true, true), Ok(None));
        assert_eq!(acme("directory = \"off\"", None, true, true), Ok(None));
        let named = acme("directory = \"off\"", Some("https://b.test/"), true, true).unwrap().unwrap();
        assert_eq!(named.production.directory, "https://b.test/");
    }

    #[test]
    fn every_authority_has_its_own_account() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("hmac");
        std::fs::write(&file, "c2VjcmV0LW9mLW91cnM=\n").unwrap();
        let text = format!(
            "contact = [\"mailto:a@b.test\"]\nprofile = \"shortlived\"\n[[fallback]]\n\
             directory = \"https://two.test/\"\neab_key_id = \"kid\"\neab_hmac_key_file = \"{}\"\n",
            file.display()
        );
        let acme = acme(&text, None, true, true).unwrap().unwrap();
        let [second] = &acme.fallback[..] else { panic!("{acme:?}") };
        assert_eq!((&second.contact, &second.profile), (&acme.production.contact, &None));
        assert_eq!(acme.staging.unwrap().profile.as_deref(), Some("shortlived"));
        let account = second.external_account.as_ref().unwrap();
        assert_eq!((account.key_id.as_str(), account.hmac_key.as_str()), ("kid", "c2VjcmV0LW9mLW91cnM"));
        assert!(!format!("{account:?}").contains("c2Vj"), "a secret is not shown");
    }

    #[test]
    fn bad_values_say_what_and_why() {
        for (text, wants) in [
            ("directory = \"http://ca.test/dir\"", "`acme.directory` in the configuration"),
            ("directory = \"letsencrypt\"", "nor `off`"),
            ("staging_directory = \"x\"", "`acme.staging_directory`"),
            ("contact = [\"ops@example.com\"]", "such as `mailto:ops@example.com`"),
            ("root = \"/nowhere/ca.pem\"", "cannot read /nowhere/ca.pem"),
            ("root = \"/etc/hostname\"", "holds no certificate"),
            ("eab_key_id = \"x\"", "needs `eab_hmac_key_file`"),
            ("eab_hmac_key_file = \"/x\"", "needs `eab_key_id`"),
            ("eab_key_id = \"x\"\neab_hmac_key_file = \"/nowhere\"", "cannot read /nowhere"),
            ("eab_key_id = \"x\"\neab_hmac_key_file = \"/dev/zero\"", "no small file"),
            ("challenges = [\"dns-01\"]", "neither `http-01` nor `tls-alpn-01`"),
            ("challenges = [\"http-01\"]", "which is off"),
            ("challenges = []", "at least one"),
            ("[[fallback]]\nroot = \"/x\"", "`acme.fallback`"),
            ("server = \"x\"", "unknown field `server`, expected one of `directory`"),
        ] {
            let error = acme(text, None, false, true).unwrap_err();
            assert!(error.contains(wants), "{text:?} gave {error:?}");
        }
    }
}
