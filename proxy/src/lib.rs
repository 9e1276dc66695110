//! Portcullis, the daemon: a host-side edge proxy and health gateway.
//!
//! Imports run one way: `app → control_plane → data_plane → adapters → certificate_asks, snapshot,
//! release, halt, config, telemetry → clock → model`. See `docs/ARCHITECTURE.md`.

pub mod adapters;
pub mod app;
pub mod certificate_asks;
pub mod clock;
pub mod config;
pub mod control_plane;
pub mod data_plane;
pub mod halt;
pub mod metrics_server;
pub mod release;
pub mod snapshot;
pub mod telemetry;
