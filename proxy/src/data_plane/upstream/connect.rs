//! Opens a connection to a target.

use std::io;
use std::time::Duration;

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::pool::{Connection, Lease, Pool};
use crate::release::{Endpoint, Release, Target};

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    #[error("cannot connect")]
    Io(#[source] io::Error),
    #[error("cannot speak HTTP on a new connection")]
    Handshake(#[source] hyper::Error),
}

/// More fields than a request may have: apps set many cookies and hints.
const RESPONSE_FIELDS_MAX: usize = 256;
const BUFFER_BYTES_MAX: usize = 256 * 1024;

/// Connects to `target` and lends the connection out. The pool's task drives it; it ends with its release.
pub async fn connect(
    pool: &Pool,
    release: &Release,
    target: &Target,
    limit: Duration,
) -> Result<Lease, ConnectError> {
    match &target.endpoint {
        Endpoint::Tcp(address) => {
            let stream = within(limit, TcpStream::connect(address)).await?;
            // Small writes must not wait for an acknowledgement; failing to say so is harmless.
            let _ = stream.set_nodelay(true);
            speak_http(pool, release, target, TokioIo::new(stream)).await
        }
        Endpoint::Unix(path) => {
            let stream = within(limit, UnixStream::connect(path)).await?;
            speak_http(pool, release, target, TokioIo::new(stream)).await
        }
    }
}

async fn within<S>(limit: Duration, connect: impl Future<Output = io::Result<S>>) -> Result<S, ConnectError> {
    timeout(limit, connect).await.map_err(|_| ConnectError::Timeout(limit))?.map_err(ConnectError::Io)
}

async fn speak_http<I>(pool: &Pool, release: &Release, target: &Target, io: I) -> Result<Lease, ConnectError>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (sender, connection) = http1::Builder::new()
        .max_headers(RESPONSE_FIELDS_MAX)
        .max_buf_size(BUFFER_BYTES_MAX)
        .handshake(io)
        .await
        .map_err(ConnectError::Handshake)?;
    let driver = pool.drive(connection.with_upgrades(), release.ending());
    Ok(pool.lend(target.id, Connection::new(sender, driver)))
}
