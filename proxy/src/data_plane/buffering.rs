//! Bodies that are kept here, so that a slow client holds no thread of the app: requests until they are whole,
//! answers from when their target sends them until their client reads them.
//!
//! A body is in memory up to its share, and goes through a file beyond it (`spool`); how much all of them may take
//! together is `room`'s business.

pub mod requests;
pub mod responses;
pub mod room;
pub mod spool;
