//! Portcullis's names, rules and messages.
//!
//! What is *right* is decided here, by pure code: no network, no clock, no disk. Time is an argument. The
//! daemon and `agentctl` both speak these words; thin code around them does what they say.

pub mod balance;
pub mod canary;
pub mod certificate;
pub mod cookie_scope;
pub mod cutover;
pub mod declared;
pub mod diagnosis;
pub mod duration;
pub mod fair_share;
pub mod forwarded;
pub mod halt;
pub mod health;
pub mod holding;
pub mod issuing;
pub mod name;
pub mod networks;
pub mod own_certificates;
pub mod pace;
pub mod page;
pub mod policy_patch;
pub mod probe;
pub mod protocol;
pub mod provenance;
pub mod proxy_protocol;
pub mod readers;
pub mod reason;
pub mod reload;
pub mod renewal;
pub mod route;
pub mod service;
pub mod signatures;
pub mod slow_start;
pub mod weight;
