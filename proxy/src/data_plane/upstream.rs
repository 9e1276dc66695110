//! Towards the targets: connections, the pool of idle ones, sending, probing.

pub mod connect;
pub mod pool;
pub mod probe;
pub mod retry;
pub mod send;
