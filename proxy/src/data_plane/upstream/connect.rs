//! Opens a connection to a target.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::pool::{Lease, Pool};
use super::stream::Stream;
use crate::release::{Endpoint, Release, Target};

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    #[error("cannot connect")]
    Io(#[source] io::Error),
}

/// Connects to `target` and lends the connection out. It ends with its release.
pub async fn connect(
    pool: &Pool,
    release: &Release,
    target: &Target,
    limit: Duration,
) -> Result<Lease, ConnectError> {
    let opening = open(&target.endpoint);
    let stream = timeout(limit, opening).await.map_err(|_| ConnectError::Timeout(limit))?;
    Ok(pool.adopt(target.pool, stream.map_err(ConnectError::Io)?, release.ending()))
}

async fn open(endpoint: &Endpoint) -> io::Result<Stream> {
    Ok(match endpoint {
        Endpoint::Tcp(address) => {
            let stream = TcpStream::connect(address).await?;
            // Small writes must not wait for an acknowledgement; failing to say so is harmless.
            let _ = stream.set_nodelay(true);
            Stream::Tcp(stream)
        }
        Endpoint::Unix(path) => Stream::Unix(connect_unix(path).await?),
    })
}

/// Where TCP waits for room in the listener's backlog, a unix socket says that there is none.
async fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tokio::time::sleep(BACKLOG_PAUSE).await
            }
            connected => return connected,
        }
    }
}

const BACKLOG_PAUSE: Duration = Duration::from_millis(5);
