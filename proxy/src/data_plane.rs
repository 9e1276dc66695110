//! The fast half: moves bytes between clients and targets, on one thread per core, and believes the
//! snapshot.

pub mod activity;
pub mod admission;
pub mod admit;
pub mod answer;
pub mod balancer;
pub mod body;
pub mod buffering;
pub mod challenge;
pub mod client_io;
pub mod deadline;
pub mod exchange;
pub mod forward;
pub mod forwarded;
pub mod frame_guard;
pub mod halt;
pub mod head_guard;
pub mod headers;
pub mod health;
pub mod http2_stream;
pub mod hygiene;
pub mod interim;
pub mod layers;
pub mod lines;
pub mod listener;
pub mod pace;
pub mod roster;
pub mod server;
pub mod stack;
pub mod tls;
pub mod upgrade;
pub mod upstream;
pub mod wire;
pub mod worker;
#[cfg(test)]
mod worker_tests;
