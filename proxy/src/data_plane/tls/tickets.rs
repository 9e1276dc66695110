//! Session tickets as rustls wants them (RFC 5077, RFC 8446 §4.6.1).

use rustls::server::ProducesTickets;

use crate::ticket_keys::{Purpose, TicketKeys};

/// Of connections that ask no client for a certificate.
pub const ANYBODY: Purpose = [0; 32];

/// For configurations that ask the same of their clients: a session that began with less is not resumed by more.
#[derive(Debug)]
pub struct Tickets {
    pub keys: TicketKeys,
    pub purpose: Purpose,
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    /// Every ticket is good for so long; most are for longer.
    fn lifetime(&self) -> u32 {
        u32::try_from(model::tickets::PERIOD.as_secs()).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.keys.seal(plain, &self.purpose)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.keys.open(ticket, &self.purpose)
    }
}
