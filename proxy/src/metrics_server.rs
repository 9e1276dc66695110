//! `GET /metrics` for Prometheus, on a listener of its own.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::task::JoinSet;

use crate::snapshot::Published;
use crate::telemetry::metrics::Metrics;

/// A scraper opens one or two.
const CONNECTIONS_MAX: usize = 16;
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves scrapes until it is dropped; without a socket it waits for ever.
pub async fn serve(
    socket: Option<(SocketAddr, Vec<TcpListener>)>,
    metrics: Arc<Metrics>,
    published: Published,
) {
    let listener = socket.and_then(|(_, mut sockets)| sockets.pop()).map(tokio::net::TcpListener::from_std);
    let listener = match listener {
        Some(Ok(listener)) => listener,
        Some(Err(error)) => {
            tracing::error!(%error, "cannot use the metrics listener");
            return std::future::pending().await;
        }
        None => return std::future::pending().await,
    };
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if connections.len() < CONNECTIONS_MAX => {
                    connections.spawn(scrapes(stream, Arc::clone(&metrics), published.clone()));
                }
                Ok(_) => {}
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn scrapes(stream: tokio::net::TcpStream, metrics: Arc<Metrics>, published: Published) {
    let answer = service_fn(move |request: Request<Incoming>| {
        let response = respond(&request, &metrics, &published);
        async move { Ok::<_, Infallible>(response) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), answer);
    // A scraper that breaks off comes again.
    let _ = serving.await;
}

fn respond(
    request: &Request<Incoming>,
    metrics: &Arc<Metrics>,
    published: &Published,
) -> Response<Full<Bytes>> {
    let text = || metrics.render(published.load().gauges());
    let (status, content_type, text) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => {
            (StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", text())
        }
        _ => (StatusCode::NOT_FOUND, "text/plain", "the metrics are at /metrics\n".to_owned()),
    };
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, content_type)
        .body(Full::new(Bytes::from(text)))
        .unwrap_or_default()
}
