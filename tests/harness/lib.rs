//! What the stories stand on: the real binaries, real Pumas, clients that notice everything, and a few
//! peers that misbehave on purpose. What Portcullis promises is written in the stories, not here.
//!
//! Stories are plain `#[test]` functions. Whatever must go on meanwhile (load, sockets) runs on one runtime
//! of the harness, so that a story that waits for a command never holds it up.

mod acme_front;
mod agentctl;
mod binaries;
mod browser;
mod certificates;
mod clock;
mod crowd;
mod daemon;
mod descriptors;
mod echo;
mod exchange;
mod flock;
mod forwarder;
mod frames;
mod load;
mod patient;
mod pebble;
mod ports;
mod puma;
mod raw;
mod recorder;
mod redis;
mod rogue;
mod runtime;
mod tls;
mod uploads;
mod visitor;
mod wait;
mod websocket;
mod world;

pub use acme_front::{AcmeFront, Fault, SuggestedWindow};
pub use agentctl::{Agentctl, Ran};
pub use binaries::{binaries_dir, binary_for_everybody, workspace_root};
pub use browser::Browser;
pub use certificates::{Files, Made, Make, shown_chain};
pub use clock::now_ms;
pub use crowd::{Crowd, Manner};
pub use daemon::{Daemon, DaemonOptions};
pub use descriptors::raise_descriptor_limit;
pub use echo::Echo;
pub use exchange::{Answer, Ask, Begun};
pub use flock::{End, Flock};
pub use forwarder::Forwarder;
pub use frames::{Fields, Frame, Frames, block, frame, headers, headers_of_block};
pub use load::{Load, LoadPlan, Sample, Summary};
pub use patient::Patient;
pub use pebble::{Pebble, PebbleOptions};
pub use ports::free_address;
pub use puma::{App, Puma};
pub use raw::Raw;
pub use recorder::{Received, Recorder};
pub use redis::Redis;
pub use rogue::Rogue;
pub use runtime::until_interrupted;
pub use tls::{Authority, ClientAuthority, Handshake, handshake};
pub use uploads::Uploads;
pub use visitor::{Visit, Visitor};
pub use wait::{PATIENCE, eventually};
pub use websocket::{Socket, SocketEvent};
pub use world::World;
