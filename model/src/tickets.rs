//! Keys of TLS session tickets: which of them there are at a time, and how those of several VMs become one ring.
//!
//! A ticket lets a client resume its session at any VM of a fleet that has the key. Whoever gets hold of a key can read
//! what was said in the sessions of its tickets (TLS 1.2) or take part in them, so keys live shortly and are forgotten.

use std::fmt;
use std::time::Duration;

/// How long a key seals new tickets. It opens them for one period more, and is there one period ahead, so that a VM
/// whose clock is behind opens what another one has sealed.
pub const PERIOD: Duration = Duration::from_secs(8 * 60 * 60);

/// Of one period: VMs that could not see each other have made one each. More than a fleet has is none of its making.
const PER_PERIOD_MAX: usize = 64;

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TicketKey {
    /// Since the Unix epoch, in periods.
    pub period: u64,
    /// Random; tickets begin with it.
    pub id: [u8; Self::ID_BYTES],
    pub secret: [u8; Self::SECRET_BYTES],
}

impl TicketKey {
    pub const ID_BYTES: usize = 8;
    pub const SECRET_BYTES: usize = 32;
}

impl fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TicketKey")
            .field("period", &self.period)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// The keys that a VM has: sorted, each once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ring(Vec<TicketKey>);

impl Ring {
    pub fn new(mut keys: Vec<TicketKey>) -> Self {
        keys.sort();
        keys.dedup();
        Self(keys)
    }

    pub fn keys(&self) -> &[TicketKey] {
        &self.0
    }

    /// What both have. In whichever order rings meet, all end with the same.
    pub fn joined(&self, other: &Self) -> Self {
        Self::new([self.keys(), other.keys()].concat())
    }

    /// Without what is over, and with a key for this period and the next.
    pub fn turned(&self, now_ms: u64, mut fresh: impl FnMut(u64) -> TicketKey) -> Self {
        let now = period(now_ms);
        let wanted = now.saturating_sub(1)..=now.saturating_add(1);
        let mut keys: Vec<TicketKey> = Vec::with_capacity(self.0.len() + 2);
        for key in self.0.iter().filter(|key| wanted.contains(&key.period)) {
            let same = keys.iter().rev().take_while(|kept| kept.period == key.period);
            if same.count() < PER_PERIOD_MAX {
                keys.push(key.clone());
            }
        }
        for period in now..=*wanted.end() {
            if !keys.iter().any(|key| key.period == period) {
                keys.push(fresh(period));
            }
        }
        Self::new(keys)
    }

    /// The key for new tickets: the same one for all who have the same ring.
    pub fn sealing(&self, now_ms: u64) -> Option<&TicketKey> {
        self.0.iter().find(|key| key.period == period(now_ms))
    }
}

/// How long it is until another key seals.
pub fn until_next_period(now_ms: u64) -> Duration {
    let period_ms = period_ms();
    Duration::from_millis(period_ms - now_ms % period_ms)
}

fn period(now_ms: u64) -> u64 {
    now_ms / period_ms()
}

fn period_ms() -> u64 {
    PERIOD.as_secs() * 1000
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: u64 = 60 * 60 * 1000;

    fn key(period: u64, id: u8) -> TicketKey {
        TicketKey { period, id: [id; TicketKey::ID_BYTES], secret: [id; TicketKey::SECRET_BYTES] }
    }

    /// Each fresh key has the next id.
    fn maker(first: u8) -> impl FnMut(u64) -> TicketKey {
        let mut id = first;
        move |period| {
            id += 1;
            key(period, id - 1)
        }
    }

    fn brief(ring: &Ring) -> Vec<(u64, u8)> {
        ring.keys().iter().map(|key| (key.period, key.id[0])).collect()
    }

    #[test]
    fn a_ring_turns_with_the_periods() {
        for (label, before, now_ms, want, seals) in [
            ("the first of all", vec![], 0, vec![(0, 50), (1, 51)], 50),
            ("within the period", vec![(0, 1), (1, 2)], 8 * HOUR - 1, vec![(0, 1), (1, 2)], 1),
            ("the next period", vec![(0, 1), (1, 2)], 8 * HOUR, vec![(0, 1), (1, 2), (2, 50)], 2),
            ("and one more", vec![(0, 1), (1, 2), (2, 3)], 16 * HOUR, vec![(1, 2), (2, 3), (3, 50)], 3),
            ("after a long sleep", vec![(0, 1), (1, 2)], 80 * HOUR, vec![(10, 50), (11, 51)], 50),
            ("the clock went back", vec![(9, 1), (10, 2)], 16 * HOUR, vec![(2, 50), (3, 51)], 50),
            ("made apart", vec![(0, 9), (0, 4), (1, 5)], HOUR, vec![(0, 4), (0, 9), (1, 5)], 4),
        ] {
            let ring = Ring::new(before.into_iter().map(|(period, id)| key(period, id)).collect());
            let turned = ring.turned(now_ms, maker(50));
            assert_eq!(brief(&turned), want, "{label}");
            assert_eq!(turned.sealing(now_ms).map(|key| key.id[0]), Some(seals), "{label}");
        }
    }

    #[test]
    fn a_ticket_opens_for_a_period_at_least_and_two_at_most() {
        let made = Ring::default().turned(0, maker(1));
        for (sealed_ms, last_ms, gone_ms) in
            [(0, 16 * HOUR - 1, 16 * HOUR), (8 * HOUR - 1, 16 * HOUR - 1, 16 * HOUR)]
        {
            let sealing = made.sealing(sealed_ms).unwrap().clone();
            let has =
                |now_ms| made.turned(8 * HOUR, maker(50)).turned(now_ms, maker(60)).keys().contains(&sealing);
            assert!(has(last_ms) && !has(gone_ms), "sealed at {sealed_ms}");
        }
        assert_eq!(until_next_period(0), PERIOD);
        assert_eq!(until_next_period(8 * HOUR - 1), Duration::from_millis(1));
    }

    #[test]
    fn nobody_fills_a_ring() {
        let flood = Ring::new((0..=255).map(|id| key(0, id)).collect());
        assert_eq!(flood.turned(0, maker(0)).keys().len(), PER_PERIOD_MAX + 1);
    }

    #[test]
    fn secrets_are_not_printed() {
        let text = format!("{:?}", Ring::new(vec![key(7, 42)]));
        assert!(text.contains("period: 7") && !text.contains("secret"), "{text}");
    }

    fn rings() -> impl Strategy<Value = Ring> {
        let keys = proptest::collection::vec((0u64..4, any::<u8>()), 0..8);
        keys.prop_map(|keys| Ring::new(keys.into_iter().map(|(period, id)| key(period, id)).collect()))
    }

    proptest! {
        /// However VMs meet, they end with one ring and seal with one key.
        #[test]
        fn rings_that_meet_agree(a in rings(), b in rings(), c in rings(), now_ms in 0..32 * HOUR) {
            let one = a.joined(&b).joined(&c);
            let other = c.joined(&a.joined(&a)).joined(&b);
            prop_assert_eq!(&one, &other);
            prop_assert_eq!(one.sealing(now_ms), other.sealing(now_ms));
            let turned = one.turned(now_ms, maker(0));
            prop_assert_eq!(&turned.turned(now_ms, maker(100)), &turned, "turning twice is turning once");
        }
    }
}
