//! What the tests stand on: a running control plane, small HTTP targets, and a client of the socket.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use model::protocol::{DeploymentPhase, Done, Event, Listeners, Problem, ServiceStatus};
use model::route::Lookup;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, UnixStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::super::{ControlPlane, ControlPlaneConfig};
use crate::adapters::accounts::Accounts;
use crate::certificate_asks::CertificateAsks;
use crate::config::{Groups, KeySource, StoreConfig};
use crate::release::Release;
use crate::snapshot::{Published, Service};
use crate::telemetry::metrics::Metrics;
use crate::ticket_keys::TicketKeys;

const DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(5);

/// An app that answers everything with one status.
pub(super) struct Target {
    pub(super) address: String,
    tasks: JoinSet<()>,
}

impl Target {
    pub(super) async fn start(status: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let answer = service_fn(move |_: Request<Incoming>| async move {
                    let response = Response::builder().status(status).body(Empty::<Bytes>::new());
                    Ok::<_, Infallible>(response.unwrap())
                });
                connections.spawn(async move {
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ = http.serve_connection(TokioIo::new(stream), answer).await;
                });
            }
        });
        Self { address, tasks }
    }

    pub(super) async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

pub(super) struct World {
    dir: TempDir,
    published: Published,
    shutdown: CancellationToken,
    serving: JoinSet<()>,
}

impl World {
    pub(super) async fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap()).await
    }

    async fn start_in(dir: TempDir) -> Self {
        let groups = Groups { read: "none".into(), operate: "none".into(), admin: "none".into() };
        let config = ControlPlaneConfig {
            control_path: dir.path().join("control.sock"),
            state_dir: dir.path().join("state"),
            workers: 1,
            groups,
            fleet_secret: None,
            version: "test".into(),
            buffers: dir.path().join("state/buffers"),
            ticket_keys: TicketKeys::default(),
            store: StoreConfig {
                shared: None,
                key: KeySource::OwnOf(dir.path().join("state")),
                poll: Duration::from_secs(60),
                timeout: Duration::from_secs(10),
            },
            certificate_check_interval: std::time::Duration::from_secs(10),
            acme: None,
        };
        let published = Published::default();
        let shutdown = CancellationToken::new();
        let restored = ControlPlane::restore(config, published.clone(), Metrics::new(1));
        let mut restored = restored.await.unwrap();
        // These tests ask from within the process.
        restored.own.pid = None;
        let mut serving = JoinSet::new();
        let stop = shutdown.clone();
        let (_, asked) = CertificateAsks::new();
        serving.spawn(async move { restored.serve(Listeners::default(), asked, stop).await.unwrap() });
        let world = Self { dir, published, shutdown, serving };
        world.until(|| world.dir.path().join("control.sock").exists()).await;
        world
    }

    /// Stops, and starts anew in the same directory.
    pub(super) async fn restart(mut self) -> Self {
        self.shutdown.cancel();
        while let Some(ended) = self.serving.join_next().await {
            ended.unwrap();
        }
        assert!(!self.dir.path().join("control.sock").exists());
        Self::start_in(self.dir).await
    }

    pub(super) fn begin_to_stop(&self) {
        self.shutdown.cancel();
    }

    pub(super) fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// As whom the tests' requests are known.
    pub(super) fn actor(&self) -> String {
        use std::os::unix::fs::MetadataExt;
        let uid = std::fs::metadata("/proc/self").unwrap().uid();
        let accounts = Accounts::read().unwrap();
        format!("{} (uid {uid})", accounts.user_name(uid).unwrap_or("unknown"))
    }

    pub(super) async fn deploy(&self, service: &str, target: &Target, policy: Value) -> Done {
        let body = json!({ "targets": [target.address], "policy": policy });
        self.post(&format!("/v1/services/{service}/deploy"), &body).await.done()
    }

    pub(super) async fn get(&self, path: &str) -> Answered {
        self.send("GET", path, &[], String::new()).await
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> Answered {
        self.send("POST", path, &[], body.to_string()).await
    }

    pub(super) async fn delete(&self, path: &str) -> Answered {
        self.send("DELETE", path, &[], String::new()).await
    }

    pub(super) async fn send(
        &self,
        method: &str,
        path: &str,
        fields: &[(&str, &str)],
        body: String,
    ) -> Answered {
        let (response, _connection) = self.request(method, path, fields, body).await;
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let events = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        Answered { status, text, events }
    }

    async fn request(
        &self,
        method: &str,
        path: &str,
        fields: &[(&str, &str)],
        body: String,
    ) -> (Response<Incoming>, JoinSet<()>) {
        let stream = UnixStream::connect(self.dir.path().join("control.sock")).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let _ = connection.await;
        });
        let mut request = Request::builder().method(method).uri(path).header("host", "portcullis");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::from(body))).unwrap();
        (sender.send_request(request).await.unwrap(), tasks)
    }

    /// Goes away as soon as the operation has been accepted.
    pub(super) async fn post_and_hang_up(&self, path: &str, body: &Value) {
        let (response, mut connection) = self.request("POST", path, &[], body.to_string()).await;
        assert_eq!(response.status(), 200);
        drop(response);
        connection.shutdown().await;
    }

    pub(super) async fn follow(&self, path: &str) -> Follower {
        let (response, connection) = self.request("GET", path, &[], String::new()).await;
        Follower { response, _connection: connection }
    }

    /// An operation that is watched for as long as the result lives.
    pub(super) async fn post_and_watch(&self, path: &str, body: &Value) -> Follower {
        let (response, connection) = self.request("POST", path, &[], body.to_string()).await;
        Follower { response, _connection: connection }
    }

    /// Asks for `path`, and reads nothing of what comes.
    pub(super) async fn ask_only(&self, path: &str) -> UnixStream {
        let mut stream = UnixStream::connect(self.dir.path().join("control.sock")).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nhost: portcullis\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.readable().await.unwrap();
        stream
    }

    fn service(&self, host: &str) -> Option<Arc<Service>> {
        match self.published.load().routes.lookup(host, "/") {
            Lookup::Found { route, .. } => Some(Arc::clone(route)),
            _ => None,
        }
    }

    pub(super) fn release(&self, host: &str) -> Arc<Release> {
        Arc::clone(&self.service(host).unwrap().stable.release)
    }

    /// Release and first target of the stable slot.
    pub(super) fn served(&self, host: &str) -> Option<(String, String)> {
        let service = self.service(host)?;
        Some((service.stable.release.id.to_string(), service.stable.targets[0].label.to_string()))
    }

    pub(super) fn canary_weight(&self, host: &str) -> Option<String> {
        self.service(host)?.canary.as_ref().map(|canary| canary.assignment.weight.to_string())
    }

    pub(super) fn has_certificate(&self, host: &str) -> bool {
        self.published.load().certificates.best(host).is_some_and(Option::is_some)
    }

    pub(super) async fn until(&self, condition: impl Fn() -> bool) {
        self.until_async(async || condition()).await;
    }

    pub(super) async fn until_async(&self, condition: impl AsyncFn() -> bool) {
        let waiting = async {
            while !condition().await {
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::time::timeout(DEADLINE, waiting).await.expect("the condition holds before the deadline");
    }

    pub(super) async fn until_operation(&self, service: &str, phase: DeploymentPhase) {
        self.until_async(async || {
            let service: ServiceStatus = self.get(&format!("/v1/services/{service}")).await.json();
            service.operation.is_some_and(|operation| operation.phase == phase)
        })
        .await;
    }
}

pub(super) struct Answered {
    pub(super) status: u16,
    pub(super) text: String,
    pub(super) events: Vec<Event>,
}

impl Answered {
    pub(super) fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    pub(super) fn lines<T: DeserializeOwned>(&self) -> Vec<T> {
        self.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub(super) fn end(&self) -> Option<&Event> {
        self.events.last()
    }

    pub(super) fn done(&self) -> Done {
        match self.end() {
            Some(Event::Done(done)) => done.clone(),
            _ => panic!("{} {}", self.status, self.text),
        }
    }

    pub(super) fn failed(&self) -> Problem {
        match self.end() {
            Some(Event::Failed { problem }) => problem.clone(),
            _ => panic!("{} {}", self.status, self.text),
        }
    }
}

pub(super) struct Follower {
    response: Response<Incoming>,
    _connection: JoinSet<()>,
}

impl Follower {
    pub(super) fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    pub(super) async fn next_line<T: DeserializeOwned>(&mut self) -> T {
        let frame = tokio::time::timeout(DEADLINE, self.response.body_mut().frame());
        let frame = frame.await.expect("a line comes before the deadline").unwrap().unwrap();
        serde_json::from_slice(&frame.into_data().unwrap()).unwrap()
    }
}
