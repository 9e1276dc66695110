//! Portcullis, the daemon: a host-side edge proxy and health gateway.
//!
//! Imports run one way: `app → control_plane → data_plane → adapters → snapshot, release, config,
//! telemetry → model`. See `docs/ARCHITECTURE.md`.

pub mod adapters;
pub mod config;
pub mod data_plane;
pub mod release;
pub mod snapshot;
pub mod telemetry;
