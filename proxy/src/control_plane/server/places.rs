//! Who may have a connection to the control socket when there are many.
//!
//! Those that have not brought a request give way to newcomers, and root finds a place when others have
//! none left: somebody who only holds connections open must not lock operators out.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

/// An operator, a pipeline, a few followers: more is a mistake or an attack.
pub(super) const CONNECTIONS_MAX: usize = 32;
/// Beyond them, for root and the daemon's own user.
pub(super) const RESERVED: usize = 4;

/// Connections that have not brought a request yet, oldest first.
#[derive(Clone, Default)]
pub(super) struct Idle(Arc<Mutex<Vec<Place>>>);

#[derive(Clone, Default)]
pub(super) struct Place {
    busy: Arc<AtomicBool>,
    evicted: CancellationToken,
}

impl Place {
    /// From now on it is not taken away.
    pub(super) fn has_request(&self) {
        self.busy.store(true, Ordering::Relaxed);
    }

    pub(super) async fn evicted(&self) {
        self.evicted.cancelled().await;
    }

    fn is_idle(&self) -> bool {
        // The list and the connection hold a place; alone, the list holds one that has ended.
        Arc::strong_count(&self.busy) > 1 && !self.busy.load(Ordering::Relaxed)
    }
}

impl Idle {
    pub(super) fn enter(&self) -> Place {
        let place = Place::default();
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        places.retain(Place::is_idle);
        places.push(place.clone());
        place
    }

    /// `connections`: how many there are. Takes the place of the oldest idle one where there is none left.
    pub(super) fn has_room(&self, connections: usize, privileged: bool) -> bool {
        let reserved = if privileged { RESERVED } else { 0 };
        connections < CONNECTIONS_MAX + reserved || self.evict_oldest()
    }

    fn evict_oldest(&self) -> bool {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        places.retain(Place::is_idle);
        if places.is_empty() {
            return false;
        }
        places.remove(0).evicted.cancel();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_idle_give_way_and_root_finds_a_place() {
        let idle = Idle::default();
        let places: Vec<Place> = (0..3).map(|_| idle.enter()).collect();
        assert!(idle.has_room(CONNECTIONS_MAX - 1, false));
        assert!(places.iter().all(|place| !place.evicted.is_cancelled()));
        places[0].has_request();
        drop(places[1].clone());
        assert!(idle.has_room(CONNECTIONS_MAX, false));
        let evicted: Vec<bool> = places.iter().map(|place| place.evicted.is_cancelled()).collect();
        assert_eq!(evicted, [false, true, false], "the oldest without a request");
        assert!(idle.has_room(CONNECTIONS_MAX, false));
        assert!(!idle.has_room(CONNECTIONS_MAX, false), "all are busy or gone");
        assert!(idle.has_room(CONNECTIONS_MAX, true) && !idle.has_room(CONNECTIONS_MAX + RESERVED, true));
        let gone = idle.enter();
        drop(gone);
        assert!(!idle.has_room(CONNECTIONS_MAX, false), "one that has ended gives no place");
    }
}
