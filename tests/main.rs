//! Black-box stories: each file keeps one promise of Portcullis, with the real binaries and real Pumas.

mod buffering;
mod canary;
mod cli;
mod cutover;
mod dependencies;
mod gate;
mod harness_itself;
mod hygiene;
mod limits;
mod protection;
mod proxying;
mod rollback;
mod shutdown;
mod state;
mod tls;
