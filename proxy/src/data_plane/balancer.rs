//! Connections that a balancer brings: each begins with a header that says for whom (`model::proxy_protocol`).
//!
//! From then on the client is the peer: for limits, the log, canaries, and for what is believed of chains.

use std::io;
use std::net::IpAddr;
use std::rc::Rc;

use model::proxy_protocol::{InvalidHeader, LENGTH_MAX, Origin, Parsed, parse};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::server::{self, Accepted};
use super::worker::Worker;
use crate::telemetry::connections::Refused;

/// Enough for most headers.
const LOOK_BYTES: usize = 512;

/// Reads the header, and serves the connection for whom it names.
pub async fn serve(worker: Rc<Worker>, mut stream: TcpStream, mut accepted: Accepted, tls: bool) {
    let read = timeout(worker.config.limits.request_head_timeout, read_header(&mut stream));
    let read = tokio::select! {
        () = worker.shutdown.cancelled() => return,
        _ = accepted.place.told() => return,
        read = read => read.unwrap_or(Err(Unread::Late)),
    };
    match read {
        // The balancer itself: it looks whether we are there.
        Ok(None) => {}
        Ok(Some(Origin { client, port })) => {
            if let Err(why) = accepted.place.is_of(client) {
                return worker.roster.count_refused(why);
            }
            (accepted.peer, accepted.port) = (client, port);
        }
        // It may have come to see whether the port is open.
        Err(Unread::Gone) => return,
        Err(why) => {
            let count = worker.roster.count_turned_away(Refused::ProxyHeader);
            return warn(accepted.peer, &why, count);
        }
    }
    let owner = Rc::clone(&worker);
    if tls {
        worker.tasks.spawn_local(server::serve_tls(owner, stream, accepted));
    } else {
        worker.tasks.spawn_local(server::serve_plain(owner, stream, accepted));
    }
}

/// Why there is no header to go by.
#[derive(Debug, thiserror::Error)]
enum Unread {
    #[error("the connection ended before it said anything")]
    Gone,
    #[error(transparent)]
    Invalid(#[from] InvalidHeader),
    #[error("the connection ended within its PROXY header")]
    Cut,
    #[error("the PROXY header took too long")]
    Late,
}

/// Takes the header off the stream and leaves there what is behind it.
async fn read_header(stream: &mut TcpStream) -> Result<Option<Origin>, Unread> {
    let mut header = vec![0; LOOK_BYTES];
    let mut taken = 0;
    loop {
        if taken == header.len() {
            header.resize(LENGTH_MAX, 0);
        }
        let gone = |_: io::Error| if taken == 0 { Unread::Gone } else { Unread::Cut };
        let seen = taken + stream.peek(&mut header[taken..]).await.map_err(gone)?;
        if seen == taken {
            return Err(gone(io::ErrorKind::UnexpectedEof.into()));
        }
        // An unfinished header is all that has been seen.
        let (length, parsed) = match parse(&header[..seen])? {
            Parsed::Unfinished => (seen, None),
            Parsed::Header { length, origin } => (length, Some(origin)),
        };
        stream.read_exact(&mut header[taken..length]).await.map_err(gone)?;
        match parsed {
            Some(origin) => return Ok(origin),
            None => taken = length,
        }
    }
}

/// A balancer that is set up another way than we are loses every connection: that is said, ever more seldom.
fn warn(peer: IpAddr, why: &Unread, count: u64) {
    if count.is_power_of_two() {
        tracing::warn!(
            %peer, %why, count,
            "closed a connection of a balancer: those of networks under [proxy_protocol] have to begin with a PROXY header"
        );
    }
}
