//! What is asked of the proxies, and how much of the peers' cost Portcullis may need for it.

use crate::client_http1::{Http1, Reuse};
use crate::client_http2::Http2;
use crate::failure::Outcome;
use crate::origin::Body;
use crate::peers::Addresses;
use crate::poll::Poll;
use crate::transport::{Dial, client_config};
use crate::world::Load;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Cell {
    pub name: &'static str,
    protocol: Protocol,
    body: Body,
    /// First step: CPU time as a share of that peer's.
    pub haproxy_max: f64,
    pub nginx_max: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Plain,
    Tls,
    Http2,
    Handshake,
    Resumption,
}

pub(crate) const CELLS: [Cell; 10] = [
    cell("h1-plain-small", Protocol::Plain, Body::Small, 1.10, 1.05),
    cell("h1-plain-10k", Protocol::Plain, Body::TenKilobytes, 1.05, 0.95),
    cell("h1-plain-1m", Protocol::Plain, Body::Megabyte, 0.70, 0.45),
    cell("h1-tls-small", Protocol::Tls, Body::Small, 0.95, 0.95),
    cell("h1-tls-10k", Protocol::Tls, Body::TenKilobytes, 1.00, 0.90),
    cell("h1-tls-1m", Protocol::Tls, Body::Megabyte, 0.75, 0.80),
    cell("h2-tls-small", Protocol::Http2, Body::Small, 1.25, 0.85),
    cell("h2-tls-10k", Protocol::Http2, Body::TenKilobytes, 1.10, 0.75),
    cell("tls-handshake", Protocol::Handshake, Body::Small, 0.45, 0.50),
    cell("tls-resume", Protocol::Resumption, Body::Small, 1.00, 1.00),
];

/// In `h1-plain-small`, against the bare relay.
pub(crate) const FLOOR_MAX: f64 = 1.7;

const fn cell(name: &'static str, protocol: Protocol, body: Body, haproxy_max: f64, nginx_max: f64) -> Cell {
    Cell { name, protocol, body, haproxy_max, nginx_max }
}

const VISITORS: usize = 64;
/// Of large bodies: more would only queue.
const VISITORS_OF_MEGABYTES: usize = 16;
const SHAKING_HANDS: usize = 32;
/// rustls keeps eight tickets of a server, and each of these needs one.
const RESUMING: usize = 8;
const HTTP2_CONNECTIONS: usize = 16;
const HTTP2_STREAMS: usize = 16;

impl Cell {
    pub(crate) fn is_plain(&self) -> bool {
        self.protocol == Protocol::Plain
    }

    /// Kept-alive HTTP/1.1, of which requests can be sent at a fixed rate.
    pub(crate) fn can_be_paced(&self) -> bool {
        matches!(self.protocol, Protocol::Plain | Protocol::Tls)
    }

    pub(crate) fn body(&self) -> Body {
        self.body
    }

    /// Where and how to speak to a proxy; `None` if it does not do this.
    pub(crate) fn dial(&self, addresses: Addresses) -> Outcome<Option<Dial>> {
        let alpn: &[u8] = match self.protocol {
            Protocol::Plain => return Ok(Some(Dial { address: addresses.plain, tls: None })),
            Protocol::Tls | Protocol::Handshake | Protocol::Resumption => b"http/1.1",
            Protocol::Http2 => b"h2",
        };
        let Some(address) = addresses.tls else { return Ok(None) };
        Ok(Some(Dial { address, tls: Some(client_config(alpn, self.protocol == Protocol::Resumption)?) }))
    }

    /// Visitors who ask again as soon as they have their answer.
    pub(crate) fn closed_loop(&self, poll: &Poll, dial: &Dial) -> Outcome<Box<dyn Load>> {
        let visitors = if self.body == Body::Megabyte { VISITORS_OF_MEGABYTES } else { VISITORS };
        Ok(match self.protocol {
            Protocol::Plain | Protocol::Tls => {
                Box::new(Http1::start(poll, dial, self.body, visitors, Reuse::KeepAlive)?)
            }
            Protocol::Handshake => {
                Box::new(Http1::start(poll, dial, self.body, SHAKING_HANDS, Reuse::OneRequest)?)
            }
            Protocol::Resumption => Box::new(Http1::start(poll, dial, self.body, RESUMING, Reuse::Session)?),
            Protocol::Http2 => {
                Box::new(Http2::start(poll, dial, self.body, HTTP2_CONNECTIONS, HTTP2_STREAMS)?)
            }
        })
    }
}
