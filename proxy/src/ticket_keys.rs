//! The keys of session tickets at work: replaced by the control plane, used by every handshake.
//!
//! A ticket is sealed with AES-256-GCM-SIV, under the key of its period, for one purpose (`Purpose`): what was sealed for
//! another opens as little as rubbish does. The nonce is random; with plain GCM a busy fleet would have to fear that one
//! comes twice within a period.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use model::tickets::{Ring, TicketKey};

/// No ticket of ours is longer: what is longer is a client's chain of certificates, which it may show again.
const TICKET_BYTES_MAX: usize = 16 * 1024;

/// For whom tickets are good: the same bytes on all VMs for what asks the same of its clients.
pub type Purpose = [u8; 32];

#[derive(Clone, Default)]
pub struct TicketKeys(Arc<ArcSwap<AtWork>>);

#[derive(Default)]
struct AtWork {
    ring: Ring,
    keys: Vec<([u8; TicketKey::ID_BYTES], RandomizedNonceKey)>,
    /// Of `keys`.
    sealing: Option<usize>,
}

impl TicketKeys {
    /// Takes these keys instead; new tickets get the one that seals at `now_ms`.
    pub fn replace(&self, ring: Ring, now_ms: u64) {
        let sealing = ring.sealing(now_ms).map(|key| key.id);
        let prepared = |key: &TicketKey| {
            let prepared = RandomizedNonceKey::new(&AES_256_GCM_SIV, &key.secret);
            (key.id, prepared.expect("the secret has the length of the algorithm's key"))
        };
        let keys: Vec<_> = ring.keys().iter().map(prepared).collect();
        let sealing = sealing.and_then(|id| keys.iter().position(|(known, _)| *known == id));
        self.0.store(Arc::new(AtWork { ring, keys, sealing }));
    }

    pub fn ring(&self) -> Ring {
        self.0.load().ring.clone()
    }

    /// `None` without a key, and then the client gets no ticket.
    pub fn seal(&self, plain: &[u8], purpose: &Purpose) -> Option<Vec<u8>> {
        let at_work = self.0.load();
        let (id, key) = at_work.keys.get(at_work.sealing?)?;
        let mut sealed = Vec::with_capacity(plain.len() + AES_256_GCM_SIV.tag_len());
        sealed.extend_from_slice(plain);
        let nonce = key.seal_in_place_append_tag(Aad::from(purpose), &mut sealed).ok()?;
        let ticket = [&id[..], nonce.as_ref(), &sealed].concat();
        (ticket.len() <= TICKET_BYTES_MAX).then_some(ticket)
    }

    /// `None` for whatever was not sealed by one of these keys for `purpose`.
    pub fn open(&self, ticket: &[u8], purpose: &Purpose) -> Option<Vec<u8>> {
        if ticket.len() > TICKET_BYTES_MAX {
            return None;
        }
        let (id, rest) = ticket.split_at_checked(TicketKey::ID_BYTES)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE_LEN)?;
        let at_work = self.0.load();
        let (_, key) = at_work.keys.iter().find(|(known, _)| known == id)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut plain = sealed.to_vec();
        let length = key.open_in_place(nonce, Aad::from(purpose), &mut plain).ok()?.len();
        plain.truncate(length);
        Some(plain)
    }
}

impl fmt::Debug for TicketKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TicketKeys").field(&self.ring()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Purpose = [1; 32];
    const B: Purpose = [2; 32];

    fn key(period: u64, id: u8) -> TicketKey {
        TicketKey { period, id: [id; TicketKey::ID_BYTES], secret: [id; TicketKey::SECRET_BYTES] }
    }

    fn with(keys: &[TicketKey], period: u64) -> TicketKeys {
        let ticket_keys = TicketKeys::default();
        ticket_keys.replace(Ring::new(keys.to_vec()), period * 8 * 60 * 60 * 1000);
        ticket_keys
    }

    #[test]
    fn whoever_has_the_key_opens_what_was_sealed_for_the_same_purpose() {
        let (one, other) = (with(&[key(0, 1), key(1, 2)], 0), with(&[key(0, 1), key(1, 2), key(2, 3)], 1));
        let stranger = with(&[key(0, 9)], 0);
        let ticket = one.seal(b"session", &A).unwrap();
        assert_eq!(one.open(&ticket, &A).as_deref(), Some(&b"session"[..]));
        assert_eq!(other.open(&ticket, &A).as_deref(), Some(&b"session"[..]), "the period before");
        let ahead = other.seal(b"session", &A).unwrap();
        assert_eq!(one.open(&ahead, &A).as_deref(), Some(&b"session"[..]), "one whose clock is ahead");
        assert_eq!(one.open(&ticket, &B), None, "for another purpose");
        assert_eq!(stranger.open(&ticket, &A), None, "with another key");
        assert_ne!(one.seal(b"session", &A), Some(ticket), "no two are alike");
    }

    #[test]
    fn rubbish_opens_nothing() {
        let keys = with(&[key(0, 1)], 0);
        let ticket = keys.seal(b"session", &A).unwrap();
        for n in 0..ticket.len() {
            assert_eq!(keys.open(&ticket[..n], &A), None, "{n} bytes of it");
            let mut changed = ticket.clone();
            changed[n] ^= 1;
            assert_eq!(keys.open(&changed, &A), None, "byte {n}");
        }
        assert_eq!(keys.open(&vec![1; TICKET_BYTES_MAX + 1], &A), None);
        assert_eq!(keys.seal(&vec![1; TICKET_BYTES_MAX], &A), None, "too long to be opened again");
    }

    #[test]
    fn without_a_key_for_now_there_are_no_tickets() {
        assert_eq!(TicketKeys::default().seal(b"session", &A), None);
        let late = with(&[key(0, 1)], 1);
        assert_eq!(late.seal(b"session", &A), None);
    }
}
