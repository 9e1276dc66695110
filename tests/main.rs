//! Black-box stories: each file keeps one promise of Portcullis, with the real binaries and real Pumas.

mod answers;
mod buffering;
mod canary;
mod certificates;
mod cli;
mod cutover;
mod declared;
mod dependencies;
mod documents;
mod gate;
mod harness_itself;
mod limits;
mod parity;
mod pausing;
mod protection;
mod proxying;
mod readers;
mod rollback;
mod shutdown;
mod sockets;
mod spoofing;
mod state;
mod strictness;
mod tls;
