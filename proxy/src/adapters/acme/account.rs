//! Our account: one key for all authorities, so that every token has one answer (RFC 8555 §8.1).
//!
//! `instant-acme` registers accounts with keys that it makes itself, or without an external account; with our key
//! and an external account it cannot. So registering is done here, and all the rest is left to it.

use std::fmt;

use ::http::header::{CONTENT_TYPE, HeaderValue, LOCATION};
use ::http::{HeaderMap, Method, Request, Response, StatusCode};
use aws_lc_rs::digest;
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::prelude::{BASE64_URL_SAFE_NO_PAD as BASE64URL, Engine};
use bytes::Bytes;
use instant_acme::BodyWrapper;
use rustls_pki_types::PrivatePkcs8KeyDer;
use serde::Deserialize;
use serde_json::{Value, json};

use super::NONCES_MAX;
use super::error::{AcmeError, Refusal, words};
use super::http::Http;
use crate::config::{Authority, ExternalAccount};

/// ECDSA on P-256, which all authorities take.
pub struct AccountKey {
    pair: EcdsaKeyPair,
    pkcs8: Vec<u8>,
    thumbprint: String,
}

#[derive(Debug, thiserror::Error)]
#[error("this is no account key: it must be an ECDSA key on P-256, in PKCS #8")]
pub struct InvalidAccountKey;

impl AccountKey {
    pub fn generate() -> Result<Self, InvalidAccountKey> {
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
        Self::from_pkcs8(pkcs8.map_err(|_| InvalidAccountKey)?.as_ref())
    }

    pub fn from_pkcs8(der: &[u8]) -> Result<Self, InvalidAccountKey> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der);
        let pair = pair.map_err(|_| InvalidAccountKey)?;
        let [x, y] = coordinates(&pair);
        // RFC 7638 §3: these members, in this order, without spaces.
        let canonical = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
        let thumbprint = BASE64URL.encode(digest::digest(&digest::SHA256, canonical.as_bytes()));
        Ok(Self { pair, pkcs8: der.to_vec(), thumbprint })
    }

    /// For the vault.
    pub fn to_pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// What answers a token: `token.thumbprint`.
    pub fn thumbprint(&self) -> &str {
        &self.thumbprint
    }

    pub(super) fn pkcs8(&self) -> PrivatePkcs8KeyDer<'_> {
        self.pkcs8.as_slice().into()
    }

    fn jwk(&self) -> Value {
        let [x, y] = coordinates(&self.pair);
        json!({"crv": "P-256", "kty": "EC", "x": x, "y": y})
    }

    fn sign(&self, header: &Value, payload: &Value) -> Result<Vec<u8>, AcmeError> {
        jws(header, payload, |text| {
            let signature = self.pair.sign(&SystemRandom::new(), text);
            signature.map(|signature| signature.as_ref().to_vec()).ok()
        })
    }
}

impl fmt::Debug for AccountKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccountKey").field("thumbprint", &self.thumbprint).finish_non_exhaustive()
    }
}

/// Of the public point, which is written uncompressed.
fn coordinates(pair: &EcdsaKeyPair) -> [String; 2] {
    let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
    [x, y].map(|number| BASE64URL.encode(number))
}

pub(super) struct Registered {
    pub(super) url: String,
    /// The authority knows us by other addresses.
    pub(super) wants_new_contact: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Directory {
    new_nonce: String,
    new_account: String,
}

#[derive(Deserialize)]
struct Account {
    status: String,
    #[serde(default)]
    contact: Vec<String>,
}

/// Finds the account of `key`, or makes it (RFC 8555 §7.3).
pub(super) async fn register(
    http: &Http,
    authority: &Authority,
    key: &AccountKey,
) -> Result<Registered, AcmeError> {
    let answer = http.send(request(Method::GET, &authority.directory, None)?).await?;
    let directory: Directory = serde_json::from_slice(answer.body()).map_err(|error| {
        AcmeError::Malformed(format!("{} is no ACME directory: {error}", authority.directory))
    })?;
    let mut payload = json!({"termsOfServiceAgreed": true, "contact": authority.contact});
    if let Some(external) = &authority.external_account {
        payload["externalAccountBinding"] = bind(external, key, &directory.new_account)?;
    }
    let answer = post(http, &directory, key, &payload).await.map_err(|error| match error {
        // There is nothing else at this resource that could be unauthorized.
        AcmeError::Refused(refusal) if refusal.is("unauthorized") => AcmeError::Account(refusal),
        other => other,
    })?;
    let malformed = |what: &str| AcmeError::Malformed(format!("a new account {what}"));
    let account: Account =
        serde_json::from_slice(answer.body()).map_err(|_| malformed("without a status"))?;
    if account.status != "valid" {
        let detail = format!("its status is `{}`", words(&account.status));
        return Err(AcmeError::Account(Refusal { detail, ..Refusal::default() }));
    }
    let url = answer.headers().get(LOCATION).and_then(|url| url.to_str().ok());
    let url = url.ok_or_else(|| malformed("without a URL"))?.to_owned();
    let is_known = answer.status() != StatusCode::CREATED;
    let wants_new_contact = is_known && !authority.contact.is_empty() && account.contact != authority.contact;
    Ok(Registered { url, wants_new_contact })
}

async fn post(
    http: &Http,
    directory: &Directory,
    key: &AccountKey,
    payload: &Value,
) -> Result<Response<Bytes>, AcmeError> {
    let mut known = None;
    for _ in 0..NONCES_MAX {
        let nonce = match known.take() {
            Some(nonce) => nonce,
            None => {
                let answer = http.send(request(Method::HEAD, &directory.new_nonce, None)?).await?;
                nonce(answer.headers()).ok_or_else(|| AcmeError::Malformed("no nonce".to_owned()))?
            }
        };
        let header = json!({"alg": "ES256", "jwk": key.jwk(), "nonce": nonce, "url": directory.new_account});
        let body = key.sign(&header, payload)?;
        let answer = http.send(request(Method::POST, &directory.new_account, Some(body))?).await?;
        if answer.status() != StatusCode::BAD_REQUEST {
            return Ok(answer);
        }
        known = self::nonce(answer.headers());
    }
    Err(AcmeError::BadNonce)
}

fn nonce(headers: &HeaderMap) -> Option<String> {
    Some(headers.get("replay-nonce")?.to_str().ok()?.to_owned())
}

/// Shows that our key belongs to an account that the operator has there (RFC 8555 §7.3.4).
fn bind(external: &ExternalAccount, key: &AccountKey, url: &str) -> Result<Value, AcmeError> {
    let unusable = |_| AcmeError::Unusable("the key of the external account is no base64url".to_owned());
    let secret = BASE64URL.decode(&external.hmac_key).map_err(unusable)?;
    let secret = hmac::Key::new(hmac::HMAC_SHA256, &secret);
    let header = json!({"alg": "HS256", "kid": external.key_id, "url": url});
    let bound = jws(&header, &key.jwk(), |text| Some(hmac::sign(&secret, text).as_ref().to_vec()))?;
    serde_json::from_slice(&bound).map_err(|error| AcmeError::Malformed(error.to_string()))
}

/// Flattened JSON (RFC 7515 §7.2.2).
fn jws(
    header: &Value,
    payload: &Value,
    sign: impl FnOnce(&[u8]) -> Option<Vec<u8>>,
) -> Result<Vec<u8>, AcmeError> {
    let (protected, payload) = (BASE64URL.encode(header.to_string()), BASE64URL.encode(payload.to_string()));
    let signature = sign(format!("{protected}.{payload}").as_bytes());
    let signature = signature.ok_or_else(|| AcmeError::Unusable("the account key cannot sign".to_owned()))?;
    let signature = BASE64URL.encode(signature);
    let whole = json!({"protected": protected, "payload": payload, "signature": signature});
    Ok(whole.to_string().into_bytes())
}

fn request(
    method: Method,
    url: &str,
    body: Option<Vec<u8>>,
) -> Result<Request<BodyWrapper<Bytes>>, AcmeError> {
    let body = body.map(BodyWrapper::from).unwrap_or_default();
    let request = Request::builder().method(method).uri(url).body(body);
    let mut request = request.map_err(|error| AcmeError::Malformed(format!("{url}: {error}")))?;
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/jose+json"));
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_back_from_the_vault() {
        let key = AccountKey::generate().unwrap();
        let again = AccountKey::from_pkcs8(key.to_pkcs8()).unwrap();
        assert_eq!(key.thumbprint(), again.thumbprint());
        assert_eq!(key.thumbprint().len(), 43);
        assert_ne!(key.thumbprint(), AccountKey::generate().unwrap().thumbprint());
        assert!(AccountKey::from_pkcs8(b"no key").is_err());
        assert!(!format!("{key:?}").contains("pkcs8"), "{key:?}");
    }
}
