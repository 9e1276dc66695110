//! A server in front of Pebble that speaks what Debian's Pebble does not: renewal information (RFC 9773), profiles, and
//! the refusals of a busy authority. All the rest is Pebble's, byte for byte: it signs, validates and checks nonces.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::exchange::{collect, say};
use crate::pebble::Pebble;
use crate::runtime::runtime;
use crate::tls;

const RENEWAL_INFO: &str = "/renewal-info/";
/// Pebble's path of new orders.
const NEW_ORDER: &str = "/order-plz";

/// What the front answers by itself.
#[derive(Debug, Clone)]
pub enum Fault {
    /// With this status and `Retry-After`; the body is a problem document, or nothing.
    Answer { status: u16, retry_after: Option<String>, problem: Option<Value> },
    /// Nothing, ever.
    Hang,
}

impl Fault {
    /// As Let's Encrypt does when a name had too many certificates.
    pub fn rate_limited(seconds: u64) -> Self {
        let problem = json!({
            "type": "urn:ietf:params:acme:error:rateLimited",
            "detail": "too many certificates (5) already issued for this exact set of identifiers",
        });
        Self::Answer { status: 429, retry_after: Some(seconds.to_string()), problem: Some(problem) }
    }
}

/// A window of RFC 9773, and how many seconds it holds.
#[derive(Debug, Clone, Copy)]
pub struct SuggestedWindow {
    pub start_ms: u64,
    pub end_ms: u64,
    pub retry_after_seconds: u64,
}

pub struct AcmeFront {
    address: SocketAddr,
    root: PathBuf,
    shared: Arc<Shared>,
    _server: JoinSet<()>,
}

struct Shared {
    pebble: SocketAddr,
    address: SocketAddr,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    profiles: BTreeMap<String, String>,
    window: Option<SuggestedWindow>,
    faults: Vec<(String, Fault, usize)>,
    orders: Vec<Value>,
    replaced: Vec<String>,
    asked_for: Vec<String>,
}

impl AcmeFront {
    pub fn before(pebble: &Pebble) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
        listener.set_nonblocking(true).expect("a socket can be made non-blocking");
        let address = listener.local_addr().expect("a bound listener has an address");
        let shared = Shared { pebble: pebble.address(), address, state: Mutex::default() };
        let shared = Arc::new(shared);
        let acceptor = acceptor(pebble.root().parent().expect("it is in a directory"));
        let mut server = JoinSet::new();
        server.spawn_on(serve(listener, acceptor, Arc::clone(&shared)), runtime().handle());
        Self { address, root: pebble.root(), shared, _server: server }
    }

    pub fn directory(&self) -> String {
        format!("https://{}/dir", self.address)
    }

    /// The PEM file with the root of its HTTPS.
    pub fn root(&self) -> PathBuf {
        self.root.clone()
    }

    /// From now on its directory names these, and no other is taken.
    pub fn offer_profiles(&self, names: &[&str]) {
        let profiles = names.iter().map(|name| ((*name).to_owned(), format!("https://ca.test/{name}")));
        self.state().profiles = profiles.collect();
    }

    /// What it says of every certificate from now on. Its directory names renewal information once there is one.
    pub fn suggest(&self, window: SuggestedWindow) {
        self.state().window = Some(window);
    }

    /// Does this instead of asking Pebble, the next `times` times that a path begins with `path`.
    pub fn fail(&self, path: &str, fault: Fault, times: usize) {
        self.state().faults.push((path.to_owned(), fault, times));
    }

    /// The same for new orders.
    pub fn fail_orders(&self, fault: Fault, times: usize) {
        self.fail(NEW_ORDER, fault, times);
    }

    pub fn relent(&self) {
        self.state().faults.clear();
    }

    /// What was asked for in new orders, refused ones too, but for those whose nonce was.
    pub fn orders(&self) -> Vec<Value> {
        self.state().orders.clone()
    }

    /// For which certificates renewal information was asked.
    pub fn asked_for(&self) -> Vec<String> {
        self.state().asked_for.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }
}

fn acceptor(dir: &Path) -> TlsAcceptor {
    let chain = CertificateDer::pem_file_iter(dir.join("api.pem")).expect("Pebble has a certificate");
    let chain = chain.collect::<Result<Vec<_>, _>>().expect("PEM");
    let key = PrivateKeyDer::from_pem_file(dir.join("api.key")).expect("Pebble has a key");
    let config = ServerConfig::builder_with_provider(aws_lc_rs::default_provider().into())
        .with_safe_default_protocol_versions()
        .expect("the provider has the default versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("they belong together");
    TlsAcceptor::from(Arc::new(config))
}

async fn serve(listener: std::net::TcpListener, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    let listener = TcpListener::from_std(listener).expect("a runtime with I/O");
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, shared) = (acceptor.clone(), Arc::clone(&shared));
        connections.spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let answer = service_fn(|request| answer(&shared, request));
            // How it ends, the client tells.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), answer)
                .await;
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn answer(shared: &Shared, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, String> {
    let path = request.uri().path().to_owned();
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(say)?.to_bytes();
    let order = (path == NEW_ORDER).then(|| payload(&body));
    if let Some(order) = &order {
        shared.state().orders.push(order.clone());
    }
    match shared.next_fault(&path) {
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Answer { status, retry_after, problem }) => {
            let mut response = problem.map_or_else(Response::default, |problem| json_answer(200, &problem));
            *response.status_mut() = StatusCode::from_u16(status).expect("a status");
            if let Some(text) = retry_after {
                response.headers_mut().insert(RETRY_AFTER, HeaderValue::try_from(text).expect("a value"));
            }
            return Ok(response);
        }
        None => {}
    }
    if let Some(id) = path.strip_prefix(RENEWAL_INFO) {
        return Ok(shared.renewal_info(id));
    }
    if let Some(refusal) = order.as_ref().and_then(|order| shared.refuse(order)) {
        return Ok(refusal);
    }
    let mut response = pass_on(shared.pebble, Request::from_parts(head, Full::new(body))).await?;
    if let Some(order) = order.as_ref().filter(|_| response.status() == StatusCode::BAD_REQUEST) {
        let body = response.body().clone().collect().await.map_err(say)?.to_bytes();
        if String::from_utf8_lossy(&body).contains("badNonce") {
            shared.forget(order);
        }
    }
    if path == "/dir" {
        change(&mut response, |directory| shared.extend_directory(directory));
    }
    if let Some(order) = order.filter(|_| response.status() == StatusCode::CREATED) {
        shared.note_replaced(&order);
        change(&mut response, |answer| {
            for field in ["replaces", "profile"] {
                if !order[field].is_null() {
                    answer[field] = order[field].clone();
                }
            }
        });
    }
    Ok(response)
}

async fn pass_on(to: SocketAddr, request: Request<Full<Bytes>>) -> Result<Response<Full<Bytes>>, String> {
    debug_assert!(request.headers().contains_key(HOST), "it is in what was signed");
    let tcp = TcpStream::connect(to).await.map_err(say)?;
    let tls = tls::connect(tcp, "localhost", &[]).await?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await;
    let (mut sender, connection) = handshake.map_err(say)?;
    let mut driver = JoinSet::new();
    driver.spawn(async move { drop(connection.await) });
    let answer = collect(sender.send_request(request).await.map_err(say)?).await?;
    let mut response = Response::new(Full::new(answer.body));
    (*response.status_mut(), *response.headers_mut()) = (answer.status, answer.headers);
    Ok(response)
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    fn next_fault(&self, path: &str) -> Option<Fault> {
        let mut state = self.state();
        let at = state.faults.iter().position(|(begins, _, left)| *left > 0 && path.starts_with(begins))?;
        state.faults[at].2 -= 1;
        Some(state.faults[at].1.clone())
    }

    /// Pebble refuses good nonces at random, and the same order comes once more.
    fn forget(&self, order: &Value) {
        let orders = &mut self.state().orders;
        if let Some(at) = orders.iter().rposition(|one| one == order) {
            orders.remove(at);
        }
    }

    fn extend_directory(&self, directory: &mut Value) {
        let state = self.state();
        if state.window.is_some() {
            directory["renewalInfo"] =
                format!("https://{}{}", self.address, RENEWAL_INFO.trim_end_matches('/')).into();
        }
        if !state.profiles.is_empty() {
            directory["meta"]["profiles"] = json!(state.profiles);
        }
    }

    fn renewal_info(&self, id: &str) -> Response<Full<Bytes>> {
        let mut state = self.state();
        state.asked_for.push(id.to_owned());
        let Some(window) = state.window else {
            return json_answer(404, &problem("malformed", "no such certificate"));
        };
        let [start, end] = [window.start_ms, window.end_ms].map(timestamp);
        let info = json!({
            "suggestedWindow": {"start": start, "end": end},
            "explanationURL": "https://ca.test/why",
        });
        let mut response = json_answer(200, &info);
        response.headers_mut().insert(RETRY_AFTER, window.retry_after_seconds.into());
        response
    }

    fn refuse(&self, order: &Value) -> Option<Response<Full<Bytes>>> {
        let state = self.state();
        if let Some(profile) = order["profile"].as_str()
            && !state.profiles.contains_key(profile)
        {
            return Some(json_answer(400, &problem("invalidProfile", "this profile is not offered")));
        }
        let is_replaced = |id: &str| state.replaced.iter().any(|known| known == id);
        if order["replaces"].as_str().is_some_and(is_replaced) {
            return Some(json_answer(409, &problem("alreadyReplaced", "there is a replacement already")));
        }
        None
    }

    fn note_replaced(&self, order: &Value) {
        self.state().replaced.extend(order["replaces"].as_str().map(str::to_owned));
    }
}

/// What was signed. `Null` where it is no object.
fn payload(body: &[u8]) -> Value {
    let signed: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = signed["payload"].as_str().unwrap_or_default();
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

fn problem(kind: &str, detail: &str) -> Value {
    json!({"type": format!("urn:ietf:params:acme:error:{kind}"), "detail": detail})
}

fn json_answer(status: u16, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn change(response: &mut Response<Full<Bytes>>, edit: impl FnOnce(&mut Value)) {
    let body = std::mem::take(response.body_mut());
    // A whole body has no frames to wait for.
    let bytes = futures_util::FutureExt::now_or_never(body.collect()).and_then(Result::ok);
    let bytes = bytes.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let mut value: Value = serde_json::from_slice(&bytes).expect("Pebble speaks JSON");
    edit(&mut value);
    response.headers_mut().remove(CONTENT_LENGTH);
    *response.body_mut() = Full::new(Bytes::from(value.to_string()));
}

fn timestamp(ms: u64) -> String {
    let ms = i64::try_from(ms).expect("a time of our age");
    jiff::Timestamp::from_millisecond(ms).expect("a time of our age").to_string()
}
