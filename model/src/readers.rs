//! Which targets of a release a request is for, where some are there for reads alone; and the cookie that lets a
//! visitor read what they have just written.
//!
//! A read replica lags behind. Whoever has written reads from the writers for a moment: the cookie says until when.
//! It is not signed, so it may say no more than a write of this moment would have set: a copy of one holds nobody
//! with the writers for longer.

use std::time::Duration;

use crate::service::ReaderPolicy;

/// What a target is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Everything.
    Writer,
    /// Reads.
    Reader,
}

/// The prefix keeps subdomains and plain HTTP from writing it (RFC 6265bis §4.1.3.2).
pub const COOKIE_SECURE: &str = "__Host-portcullis-writer";
pub const COOKIE_PLAIN: &str = "portcullis-writer";
/// Of an answer: `false` says that the request wrote nothing.
pub const ANSWER_FIELD: &str = "x-writer-affinity";

/// The clocks of a fleet's machines are that close; one machine reads the cookies of another.
const CLOCK_SKEW: Duration = Duration::from_secs(1);

pub fn cookie_name(secure: bool) -> &'static str {
    if secure { COOKIE_SECURE } else { COOKIE_PLAIN }
}

/// Whom a request is for, while both are there.
pub fn wanted(
    method: &str,
    policy: &ReaderPolicy,
    is_websocket: impl FnOnce() -> bool,
    has_written: impl FnOnce() -> bool,
) -> Role {
    let reads = match method {
        "GET" | "HEAD" => policy.websockets || !is_websocket(),
        // A WebSocket over HTTP/2 (RFC 8441).
        "CONNECT" => policy.websockets && is_websocket(),
        _ => false,
    };
    if reads && !has_written() { Role::Reader } else { Role::Writer }
}

/// Whether the request may change what others read (RFC 9110 §9.2.1).
pub fn may_write(method: &str) -> bool {
    !matches!(method, "GET" | "HEAD" | "OPTIONS" | "TRACE" | "CONNECT")
}

/// Whether `cookie`, a visitor's, sends their reads to the writers.
pub fn has_written(cookie: &str, now_ms: u64, affinity: Duration) -> bool {
    // `parse` alone would take a sign, too.
    let digits = !cookie.is_empty() && cookie.bytes().all(|byte| byte.is_ascii_digit());
    let until_ms: Option<u64> = cookie.parse().ok().filter(|_| digits && !affinity.is_zero());
    let latest_ms = now_ms.saturating_add(millis(affinity + CLOCK_SKEW));
    until_ms.is_some_and(|until| now_ms < until && until <= latest_ms)
}

/// The value of `Set-Cookie` after a write.
pub fn set_cookie(now_ms: u64, affinity: Duration, secure: bool) -> String {
    let until_ms = now_ms.saturating_add(millis(affinity));
    // Browsers know whole seconds only; the value knows better.
    let seconds = millis(affinity).div_ceil(1000);
    let (name, secure) = (cookie_name(secure), if secure { "; Secure" } else { "" });
    format!("{name}={until_ms}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}")
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn whom_a_request_is_for() {
        use Role::{Reader, Writer};
        for (method, is_websocket, has_written, want, with_websockets) in [
            ("GET", false, false, Reader, Reader),
            ("HEAD", false, false, Reader, Reader),
            ("GET", false, true, Writer, Writer),
            ("HEAD", false, true, Writer, Writer),
            ("GET", true, false, Writer, Reader),
            ("GET", true, true, Writer, Writer),
            ("CONNECT", true, false, Writer, Reader),
            ("POST", false, false, Writer, Writer),
            ("PUT", false, false, Writer, Writer),
            ("PATCH", false, false, Writer, Writer),
            ("DELETE", false, false, Writer, Writer),
            ("OPTIONS", false, false, Writer, Writer),
            ("get", false, false, Writer, Writer),
            ("PROPFIND", false, false, Writer, Writer),
        ] {
            for (websockets, want) in [(false, want), (true, with_websockets)] {
                let policy = ReaderPolicy { websockets, ..ReaderPolicy::default() };
                let got = wanted(method, &policy, || is_websocket, || has_written);
                assert_eq!(got, want, "{method} {is_websocket} {has_written} {websockets}");
            }
        }
    }

    #[test]
    fn who_may_have_written() {
        for (method, want) in [
            ("POST", true),
            ("PUT", true),
            ("PATCH", true),
            ("DELETE", true),
            ("PROPPATCH", true),
            ("get", true),
            ("GET", false),
            ("HEAD", false),
            ("OPTIONS", false),
            ("TRACE", false),
            ("CONNECT", false),
        ] {
            assert_eq!(may_write(method), want, "{method}");
        }
    }

    #[test]
    fn a_cookie_counts_until_its_time_and_never_for_longer_than_a_write_would() {
        const NOW: u64 = 1_750_000_000_000;
        for (cookie, affinity, want) in [
            ("1750000001000", SECOND, true),
            ("1750000000001", SECOND, true),
            ("1750000000000", SECOND, false),
            ("1749999999999", SECOND, false),
            // Another machine's clock may be ahead a little; nothing else writes such.
            ("1750000002000", SECOND, true),
            ("1750000002001", SECOND, false),
            ("1750000010000", 10 * SECOND, true),
            ("9999999999999", SECOND, false),
            ("9999999999999", Duration::from_secs(86_400), false),
            ("18446744073709551615", SECOND, false),
            ("18446744073709551616", SECOND, false),
            ("1750000001000", Duration::ZERO, false),
            ("+1750000001000", SECOND, false),
            (" 1750000001000", SECOND, false),
            ("1750000001000x", SECOND, false),
            ("", SECOND, false),
            ("soon", SECOND, false),
        ] {
            assert_eq!(has_written(cookie, NOW, affinity), want, "{cookie:?} {affinity:?}");
        }
    }

    #[test]
    fn what_a_write_sets() {
        for (affinity, secure, want) in [
            (SECOND, false, "portcullis-writer=1750000001000; Path=/; Max-Age=1; HttpOnly; SameSite=Lax"),
            (
                Duration::from_millis(1500),
                true,
                "__Host-portcullis-writer=1750000001500; Path=/; Max-Age=2; HttpOnly; SameSite=Lax; Secure",
            ),
        ] {
            assert_eq!(set_cookie(1_750_000_000_000, affinity, secure), want);
        }
    }

    proptest! {
        #[test]
        fn what_is_set_is_believed_for_its_time(
            now_ms in 0u64..1 << 42,
            affinity_ms in 1u64..86_400_000,
            later_ms in 0u64..200_000_000,
        ) {
            let affinity = Duration::from_millis(affinity_ms);
            let cookie = set_cookie(now_ms, affinity, false);
            let value = cookie.split_once('=').unwrap().1.split_once(';').unwrap().0;
            prop_assert_eq!(has_written(value, now_ms + later_ms, affinity), later_ms < affinity_ms);
        }

        #[test]
        fn no_value_holds_anybody_for_longer(cookie in "[0-9]{1,20}", now_ms in 0u64..1 << 42) {
            let longest = millis(SECOND + CLOCK_SKEW);
            let is_held = |now_ms| has_written(&cookie, now_ms, SECOND);
            prop_assert!(!(is_held(now_ms) && is_held(now_ms + longest)));
        }
    }
}
