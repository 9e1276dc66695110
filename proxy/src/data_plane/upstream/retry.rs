//! How many requests may be sent a second time: a tenth of all, so that trouble does not double itself.

use std::cell::Cell;

/// Counts in tenths of a retry.
pub struct RetryBudget {
    tenths: Cell<u32>,
}

const RETRY: u32 = 10;
/// Quiet times save up for a burst of this many retries.
const SAVED_MAX: u32 = 10 * RETRY;

impl Default for RetryBudget {
    fn default() -> Self {
        Self { tenths: Cell::new(SAVED_MAX) }
    }
}

impl RetryBudget {
    /// Every request earns a tenth.
    pub fn earn(&self) {
        self.tenths.set((self.tenths.get() + 1).min(SAVED_MAX));
    }

    /// Whether a retry may be made; if so, it is paid for.
    pub fn spend(&self) -> bool {
        let left = self.tenths.get().checked_sub(RETRY);
        self.tenths.set(left.unwrap_or(self.tenths.get()));
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_of_the_requests_may_be_retried() {
        let budget = RetryBudget::default();
        while budget.spend() {}
        let retried = (0..1000)
            .filter(|_| {
                budget.earn();
                budget.spend()
            })
            .count();
        assert_eq!(retried, 100);
    }
}
