//! Waiting: a condition, a deadline, and a message that shows what was seen instead.

use std::time::{Duration, Instant};

/// How long a story waits for what must come. Generous: machines are slow, and a story that fails for
/// want of patience is a flaky one. It bounds a failing run, not a passing one.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Polls until `attempt` gives a value; panics with its last complaint after [`PATIENCE`].
#[track_caller]
pub fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(complaint) if Instant::now() > deadline => {
                panic!("{what}: not within {PATIENCE:?}; at last: {complaint}")
            }
            // Between two looks: conditions of other processes wake nobody here.
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}
