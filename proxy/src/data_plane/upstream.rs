//! Towards the targets: connections, the pool of idle ones, sending, probing.

pub mod connect;
pub mod connection;
pub mod framing;
pub mod kept;
pub mod pool;
pub mod probe;
pub mod request_head;
pub mod response_head;
pub mod retry;
pub mod send;
pub mod stream;
pub mod timing;
pub mod upload;
