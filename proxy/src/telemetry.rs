//! What the daemon tells about itself: the access log and the metrics.
//!
//! Events of the control plane (audit log) and the daemon's own log go through `tracing`.

pub mod access_log;
pub mod buffers;
pub mod connections;
pub mod metrics;
