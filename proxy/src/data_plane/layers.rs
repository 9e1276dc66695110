//! The middleware of every request, as `tower` layers composed at compile time.

pub mod access_log;
pub mod request_id;
