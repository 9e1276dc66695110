//! How much of a store that clients share one of them may take: no more than is then left for the others.
//!
//! Alone, a client may take half; two greedy ones get a third each, and a third stays free; and so on. Nobody has to
//! know how many will come, and there is always room for one more (dynamic thresholds with a factor of one:
//! Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet switches", 1998).

/// Whether a client that holds `held_by_client` of the `held_by_all` that are taken may take `more`.
pub fn may_take(more: u64, held_by_client: u64, held_by_all: u64, total: u64) -> bool {
    let left = total.checked_sub(held_by_all).and_then(|free| free.checked_sub(more));
    left.is_some_and(|left| held_by_client.saturating_add(more) <= left)
}

/// What one client may take while there is no other.
pub fn alone(total: u64) -> u64 {
    total / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_leaves_room_for_the_next() {
        for (more, held_by_client, held_by_all, total, may) in [
            (50, 0, 0, 100, true),
            (51, 0, 0, 100, false),
            (1, 50, 50, 100, false),
            (25, 0, 50, 100, true),
            (26, 0, 50, 100, false),
            (0, 0, 0, 0, true),
            (1, 0, 0, 0, false),
            (1, 0, 101, 100, false),
            (u64::MAX, 1, 0, u64::MAX, false),
            (1, 0, 0, u64::MAX, true),
        ] {
            assert_eq!(
                may_take(more, held_by_client, held_by_all, total),
                may,
                "{more} for one with {held_by_client} of {held_by_all}, {total} in all"
            );
        }
        assert!(may_take(alone(101), 0, 0, 101) && !may_take(alone(101) + 1, 0, 0, 101));
    }

    #[test]
    fn greedy_ones_share_alike() {
        let mut held = [0u64; 3];
        // Each in turn takes as much as it may, one by one.
        while let Some(client) =
            (0..3).filter(|n| may_take(1, held[*n], held.iter().sum(), 1000)).min_by_key(|n| held[*n])
        {
            held[client] += 1;
        }
        assert_eq!(held, [250; 3]);
    }
}
