//! What no honest client and no sound app sends, byte for byte, and what becomes of it.
//!
//! Every case ends in one of two ways. *Refused*: the fitting status, a closed connection, and nothing complete
//! upstream. *Passed*: exactly one request upstream, in one normal form that a parser by the letter of RFC 9112
//! accepts, with the right body. After each, a request on the same connection (if it stayed open) and one on a fresh
//! connection get their own answers. Cases have names (B01, C05, …); `--nocapture` prints how many each chapter has.

mod answers;
mod chunks;
mod fields;
mod floods;
mod framing;
mod hosts;
mod house;
mod http2;
mod ideas;
mod patience;
mod strict;
mod targets;
mod upgrades;
