//! What speaks on a port that did not answer a plain request: TLS, Redis, or HTTP/2 alone? Each is asked in its own
//! words, over a connection of its own, for at most a second.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use model::diagnosis::Protocol;
use model::probe::guess_protocol;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use super::recording::Recording;
use crate::release::Endpoint;

const TIMEOUT: Duration = Duration::from_secs(1);

/// The preface of a client (RFC 9113 §3.4) and its empty SETTINGS frame.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const FRAME_HEADER_BYTES: usize = 9;

/// Whether these bytes begin a TLS record: an alert or a handshake, version 3.x (RFC 8446 §5.1).
pub(super) fn is_tls_record(first: &[u8]) -> bool {
    matches!(first, [0x15 | 0x16, 3, 0..=4, ..])
}

/// Whether the answer to a ClientHello is a TLS record.
///
/// The handshake need not succeed, and cannot: no root is trusted, so nothing is ever sent to a server that
/// nobody has verified. Its first record tells all.
pub(super) async fn speaks_tls(endpoint: &Endpoint) -> bool {
    let deadline = Instant::now() + TIMEOUT;
    let Ok(stream) = super::connect(endpoint, deadline).await else { return false };
    let Some(config) = config() else { return false };
    let Ok(name) = ServerName::try_from("localhost") else { return false };
    let (stream, trace) = Recording::new(stream);
    let _ = timeout_at(deadline, TlsConnector::from(config).connect(name, stream)).await;
    is_tls_record(&trace.take().first)
}

fn config() -> Option<Arc<ClientConfig>> {
    static CONFIG: OnceLock<Option<Arc<ClientConfig>>> = OnceLock::new();
    let build = || {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().ok()?;
        let config = builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
        Some(Arc::new(config))
    };
    CONFIG.get_or_init(build).clone()
}

/// Redis hangs up without a word on what looks like HTTP (against cross-protocol scripting), and answers a
/// command of its own.
pub(super) async fn speaks_redis(endpoint: &Endpoint) -> bool {
    let deadline = Instant::now() + TIMEOUT;
    let asking = async {
        let mut stream = super::connect(endpoint, deadline).await.ok()?;
        stream.write_all(b"PING\r\n").await.ok()?;
        let mut first = [0; b"-NOAUTH".len()];
        stream.read_exact(&mut first).await.ok()?;
        Some(&first == b"+PONG\r\n" || guess_protocol(&first) == Some(Protocol::Named("Redis")))
    };
    timeout_at(deadline, asking).await.ok().flatten().unwrap_or(false)
}

pub(super) async fn speaks_http2(endpoint: &Endpoint) -> bool {
    let deadline = Instant::now() + TIMEOUT;
    let asking = async {
        let mut stream = super::connect(endpoint, deadline).await.ok()?;
        stream.write_all(HTTP2_PREFACE).await.ok()?;
        let mut first = [0; FRAME_HEADER_BYTES];
        stream.read_exact(&mut first).await.ok()?;
        Some(guess_protocol(&first) == Some(Protocol::Http2))
    };
    timeout_at(deadline, asking).await.ok().flatten().unwrap_or(false)
}
