//! HTTPS to an authority: with deadlines, limits, our own roots, and an eye on `Retry-After`.

use std::error::Error as StdError;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{HeaderValue, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::error::{AcmeError, Refusal, speaks_of_nonces, words};
use crate::config::Authority;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The requests of an order follow each other closely. A connection from before may be dead without our knowing, and
/// what is lost on it must not be sent again: nobody knows whether it was an order.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// For one request, from connecting to the last byte of the answer. Some authorities think for long.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(45);
/// Far above any chain or directory.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Where an authority tells nothing of when to ask again for its renewal window (RFC 9773 §4.3.3).
const ASK_AGAIN_SECONDS: u64 = 6 * 3600;
const OUR_NAME: &str = concat!("portcullis/", env!("CARGO_PKG_VERSION"));

#[derive(Clone)]
pub(super) struct Http {
    client: HyperClient<HttpsConnector<HttpConnector>, BodyWrapper<Bytes>>,
    authority: Arc<str>,
}

impl Http {
    pub(super) fn new(authority: &Authority) -> Result<Self, AcmeError> {
        let fail = |why: String| unreachable(&authority.directory, why);
        let roots = roots(authority.root.as_ref()).map_err(fail)?;
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| fail(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut tcp = HttpConnector::new();
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        tcp.enforce_http(false);
        let https = HttpsConnectorBuilder::new().with_tls_config(config).https_only().enable_http1();
        let mut client = HyperClient::builder(TokioExecutor::new());
        client.pool_idle_timeout(IDLE_TIMEOUT);
        let client = client.build(https.wrap_connector(tcp));
        Ok(Self { client, authority: authority.directory.as_str().into() })
    }

    /// A success, or that a nonce was refused. All other problems are errors.
    pub(super) async fn send(
        &self,
        mut request: Request<BodyWrapper<Bytes>>,
    ) -> Result<Response<Bytes>, AcmeError> {
        request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(OUR_NAME));
        let is_get = request.method() == Method::GET;
        let exchange = async {
            let response = self.client.request(request).await.map_err(|error| chain(&error))?;
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, BODY_BYTES_MAX).collect().await;
            let body = body.map_err(|error| chain(error.as_ref()))?.to_bytes();
            Ok(Response::from_parts(parts, body))
        };
        let timeout = tokio::time::timeout(REQUEST_TIMEOUT, exchange).await;
        let slow = || format!("no answer within {} s", REQUEST_TIMEOUT.as_secs());
        let answered: Result<_, String> = timeout.unwrap_or_else(|_| Err(slow()));
        let mut response = answered.map_err(|why| unreachable(&self.authority, why))?;
        let status = response.status();
        if status.is_client_error() || status.is_server_error() {
            self.check(status, response.headers(), response.body())?;
        } else if is_get {
            // `instant-acme` insists on it.
            response.headers_mut().entry(RETRY_AFTER).or_insert(ASK_AGAIN_SECONDS.into());
        }
        Ok(response)
    }

    fn check(&self, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Result<(), AcmeError> {
        let retry_after = retry_after(headers, SystemTime::now());
        if status == StatusCode::BAD_REQUEST && speaks_of_nonces(body) {
            return Ok(());
        }
        let refusal = Refusal::from_answer(status, body, retry_after);
        let is_away = status.is_server_error();
        let why = match &refusal {
            Some(refusal) => format!("it answered {status}: {refusal}"),
            None => format!("it answered {status}"),
        };
        match refusal {
            Some(refusal) if !is_away || refusal.is("rateLimited") => Err(refusal.into_error()),
            _ if is_away => {
                Err(AcmeError::Unreachable { authority: self.authority.to_string(), why, retry_after })
            }
            _ => {
                let refusal =
                    Refusal { detail: why, status: status.as_u16(), retry_after, ..Refusal::default() };
                Err(refusal.into_error())
            }
        }
    }
}

impl HttpClient for Http {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let http = self.clone();
        Box::pin(async move {
            let response = http.send(request).await.map_err(|error| Error::Other(Box::new(error)))?;
            Ok(BytesResponse::from(response.map(Full::new)))
        })
    }
}

fn unreachable(authority: &str, why: String) -> AcmeError {
    AcmeError::Unreachable { authority: authority.to_owned(), why: words(&why), retry_after: None }
}

/// Errors of connections say what happened in their causes.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// The file's roots alone, or the system's.
fn roots(file: Option<&PathBuf>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = file {
        let unreadable = |error| format!("cannot read its roots from {}: {error}", path.display());
        let pem = std::fs::read(path).map_err(|error| unreadable(error.to_string()))?;
        for root in CertificateDer::pem_slice_iter(&pem) {
            let root = root.map_err(|error| unreadable(error.to_string()))?;
            roots.add(root).map_err(|error| unreadable(error.to_string()))?;
        }
    } else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    if roots.is_empty() {
        return Err("no roots to check its certificate against; install the package `ca-certificates`, or \
                    name a file of roots"
            .to_owned());
    }
    Ok(roots)
}

/// Seconds or a date (RFC 9110 §10.2.3).
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?;
    let now = jiff::Timestamp::try_from(now).ok()?;
    Duration::try_from(date.timestamp().duration_since(now)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_to_come_back() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        for (text, want) in [
            ("120", Some(120)),
            (" 7 ", Some(7)),
            ("Tue, 14 Nov 2023 22:15:00 GMT", Some(100)),
            ("Tue, 14 Nov 2023 22:10:00 GMT", None),
            ("soon", None),
            ("-5", None),
            ("", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_str(text).unwrap());
            assert_eq!(retry_after(&headers, now).map(|d| d.as_secs()), want, "{text}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
