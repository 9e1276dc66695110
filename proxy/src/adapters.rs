//! What lies outside the process, each behind one module that speaks our words: files, accounts.

pub mod accounts;
pub mod acme;
pub mod buffer_dir;
pub mod certificate;
pub mod fleet_key;
pub mod page_files;
pub mod redis;
pub mod state_dir;
pub mod state_file;
pub mod store;
pub mod vaults;
