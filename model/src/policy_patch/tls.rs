//! What a patch says of TLS: redirect, certificates, clients' certificates, HSTS.

use super::{absolute, invalid, set};
use crate::hsts::{Hsts, InvalidHsts};
use crate::protocol::{CertificatePair, PolicyPatch, Problem};
use crate::service::{
    CertificateFiles, ClientAuthMode, ClientAuthPolicy, InvalidClientAuthMode, Policy, TlsPolicy,
};

pub(super) fn apply(patch: &PolicyPatch, policy: &mut Policy) -> Result<(), Problem> {
    match patch.tls {
        Some(true) if policy.tls.is_none() => policy.tls = Some(TlsPolicy::default()),
        Some(false) => policy.tls = None,
        _ => {}
    }
    let files = certificate_files(patch)?;
    let Some(tls) = &mut policy.tls else {
        let field = match &files {
            Some(files) if !files.is_empty() => match patch.tls_certificate_path {
                Some(_) => "tls_certificate_path",
                None => "tls_certificates",
            },
            _ if patch.tls_redirect == Some(true) => "tls_redirect",
            _ if patch.tls_one_certificate == Some(true) => "tls_one_certificate",
            _ if patch.tls_staging == Some(true) => "tls_staging",
            _ if says(&patch.tls_client_ca_path) => "tls_client_ca_path",
            _ if says(&patch.tls_client_auth) => "tls_client_auth",
            _ if says(&patch.hsts) => "hsts",
            _ if patch.hsts_subdomains == Some(true) => "hsts_subdomains",
            _ if patch.hsts_preload == Some(true) => "hsts_preload",
            _ => return Ok(()),
        };
        let message = "the service has no TLS, so this would do nothing".to_owned();
        return Err(invalid(field, message).hint("add `--tls`, or leave this setting out"));
    };
    set(&mut tls.redirect, patch.tls_redirect);
    set(&mut tls.files, files);
    set(&mut tls.one_certificate, patch.tls_one_certificate);
    set(&mut tls.staging, patch.tls_staging);
    apply_client_auth(patch, tls)?;
    apply_hsts(patch, tls)
}

fn says(text: &Option<String>) -> bool {
    text.as_ref().is_some_and(|text| !text.is_empty())
}

fn apply_client_auth(patch: &PolicyPatch, tls: &mut TlsPolicy) -> Result<(), Problem> {
    match patch.tls_client_ca_path.as_deref() {
        None => {}
        Some("") => tls.client_auth = None,
        Some(text) => {
            let ca = absolute("tls_client_ca_path", text)?;
            let mode = tls.client_auth.as_ref().map_or(ClientAuthMode::Required, |auth| auth.mode);
            tls.client_auth = Some(ClientAuthPolicy { ca, mode });
        }
    }
    let Some(text) = &patch.tls_client_auth else { return Ok(()) };
    let mode =
        text.parse().map_err(|error: InvalidClientAuthMode| invalid("tls_client_auth", error.to_string()))?;
    match &mut tls.client_auth {
        Some(auth) => auth.mode = mode,
        None => {
            let message = "clients are asked for no certificate, because no authority is named".to_owned();
            return Err(invalid("tls_client_auth", message)
                .hint("add `--tls-client-ca-path FILE`, or leave this setting out"));
        }
    }
    Ok(())
}

fn apply_hsts(patch: &PolicyPatch, tls: &mut TlsPolicy) -> Result<(), Problem> {
    let before = tls.hsts.take();
    let max_age = patch.hsts.clone().or_else(|| before.as_ref().map(Hsts::print_max_age));
    let flag = |said: Option<bool>, of: fn(&Hsts) -> bool| said.unwrap_or(before.as_ref().is_some_and(of));
    let include_subdomains = flag(patch.hsts_subdomains, |hsts| hsts.include_subdomains);
    let preload = flag(patch.hsts_preload, |hsts| hsts.preload);
    let Some(max_age) = max_age.filter(|text| !text.is_empty()) else {
        let field = match (patch.hsts_subdomains, patch.hsts_preload) {
            (Some(true), _) => "hsts_subdomains",
            (_, Some(true)) => "hsts_preload",
            _ => return Ok(()),
        };
        let message = "browsers are told nothing that this could go for".to_owned();
        return Err(invalid(field, message).hint("add `--hsts 1y`, or leave this setting out"));
    };
    let hsts = Hsts::new(&max_age, include_subdomains, preload);
    tls.hsts = Some(hsts.map_err(|error| match error {
        InvalidHsts::Preload => invalid("hsts_preload", error.to_string()),
        _ => invalid("hsts", error.to_string()),
    })?);
    Ok(())
}

/// All pairs that the patch names, in its order; `None` if it does not speak of them. None at all: they are taken away.
fn certificate_files(patch: &PolicyPatch) -> Result<Option<Vec<CertificateFiles>>, Problem> {
    let (certificate, key) = (&patch.tls_certificate_path, &patch.tls_private_key_path);
    if certificate.is_none() && key.is_none() && patch.tls_certificates.is_none() {
        return Ok(None);
    }
    let empty = |path: &Option<String>| path.as_ref().is_none_or(String::is_empty);
    let mut files = Vec::new();
    if !(empty(certificate) && empty(key)) {
        let [certificate, key] = [certificate, key].map(|path| path.as_deref().unwrap_or_default());
        files.push(parse_pair(certificate, key, ["tls_certificate_path", "tls_private_key_path"])?);
    }
    let further = patch.tls_certificates.as_deref().unwrap_or_default();
    if further.len() > CertificateFiles::PAIRS_MAX {
        let message =
            format!("{} pairs are too many: at most {}", further.len(), CertificateFiles::PAIRS_MAX);
        return Err(invalid("tls_certificates", message));
    }
    for CertificatePair { certificate, private_key } in further {
        let pair = parse_pair(certificate, private_key, ["certificate", "private_key"]);
        let pair = pair.map_err(|problem| invalid("tls_certificates", problem.message))?;
        if files.iter().any(|known: &CertificateFiles| known.certificate == pair.certificate) {
            return Err(invalid("tls_certificates", format!("`{certificate}` is named twice")));
        }
        files.push(pair);
    }
    Ok(Some(files))
}

fn parse_pair(
    certificate: &str,
    key: &str,
    [its_field, key_field]: [&str; 2],
) -> Result<CertificateFiles, Problem> {
    if key.is_empty() {
        return Err(alone(its_field, key_field));
    }
    if certificate.is_empty() {
        return Err(alone(key_field, its_field));
    }
    let certificate = absolute(its_field, certificate)?;
    Ok(CertificateFiles { certificate, private_key: absolute(key_field, key)? })
}

fn alone(given: &str, missing: &str) -> Problem {
    invalid(given, format!("`{missing}` is missing: a certificate and its key come together"))
}
