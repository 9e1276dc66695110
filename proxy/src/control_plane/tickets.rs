//! Keeps the ring of ticket keys: turned with the periods.

use aws_lc_rs::rand;
use model::tickets::{self, TicketKey};
use tokio_util::sync::CancellationToken;

use super::now_ms;
use crate::ticket_keys::TicketKeys;

/// Fills an empty ring, or turns it.
pub fn turn(keys: &TicketKeys) {
    let now_ms = now_ms();
    let turned = keys.ring().turned(now_ms, fresh);
    keys.replace(turned, now_ms);
}

/// Turns the ring at the beginning of each period, until `shutdown`.
pub async fn keep(keys: TicketKeys, shutdown: CancellationToken) {
    while shutdown
        .run_until_cancelled(tokio::time::sleep(tickets::until_next_period(now_ms())))
        .await
        .is_some()
    {
        turn(&keys);
    }
}

fn fresh(period: u64) -> TicketKey {
    let mut key = TicketKey { period, id: Default::default(), secret: Default::default() };
    let filled = rand::fill(&mut key.id).and_then(|()| rand::fill(&mut key.secret));
    filled.expect("the system gives random bytes, or there would be no TLS at all");
    key
}
