//! From replies to text, as pure functions: the time and whether colour is wanted are arguments.

pub(crate) mod age;
pub(crate) mod annotation;
pub(crate) mod canary;
pub(crate) mod certificates;
pub(crate) mod clean;
pub(crate) mod events;
pub(crate) mod history;
pub(crate) mod live;
pub(crate) mod paint;
pub(crate) mod plan;
pub(crate) mod problem;
pub(crate) mod status;
pub(crate) mod table;
pub(crate) mod words;

#[cfg(test)]
pub(crate) mod samples;
