//! Values of flags that the model has no type for, parsed where they come in.
//!
//! What both binaries speak of (names, hosts, weights, targets) is parsed by `model` itself.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use model::duration::{self, InvalidDuration};
use model::protocol::RevocationReason;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidValue {
    #[error(transparent)]
    Duration(#[from] InvalidDuration),
    #[error("`{0}` is no time at all: write more than zero, such as `1s`")]
    Zero(String),
    #[error("`{0}` is longer than a day, the longest wait that the agent takes: check the unit")]
    TooLong(String),
    #[error("`{0}` is not a path to probe: write it as in a URL, such as `/up`, without `#` or blanks")]
    ProbePath(String),
    #[error(
        "`{0}` is not a header or cookie name: write letters, digits and `-` or `_`, such as `x-user-id`"
    )]
    Token(String),
    #[error("`{0}` is not NAME=VALUE: write a name and an exact value, such as `x-canary=1`")]
    Pair(String),
    #[error("`{0}` is not a network: write an address or a CIDR block, such as `10.0.0.0/8` or `fd00::/8`")]
    Network(String),
    #[error("the identity is empty or has control characters: write it as the visitor header or cookie does")]
    Identity,
    #[error("`{0}` is not a rollout: write up to 128 letters, digits or signs without blanks")]
    Rollout(String),
    #[error("cannot tell which folder the relative path `{0}` starts from: write an absolute path")]
    NoFolder(String),
}

/// The agent's own bound.
const TIME_MAX: Duration = Duration::from_secs(24 * 60 * 60);

fn time(text: &str) -> Result<Duration, InvalidValue> {
    let time = duration::parse(text)?;
    if time > TIME_MAX { Err(InvalidValue::TooLong(text.to_owned())) } else { Ok(time) }
}

/// A time that may be zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AnyTime(Duration);

impl FromStr for AnyTime {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        Ok(Self(time(text)?))
    }
}

impl fmt::Display for AnyTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&duration::print(self.0))
    }
}

/// A time above zero: an interval of 0 s would probe without pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SomeTime(Duration);

impl FromStr for SomeTime {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let time = time(text)?;
        if time.is_zero() { Err(InvalidValue::Zero(text.to_owned())) } else { Ok(Self(time)) }
    }
}

impl fmt::Display for SomeTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&duration::print(self.0))
    }
}

/// A setting that an empty text takes back; it prints as what the protocol wants: the value, or nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Clearable<T> {
    Cleared,
    To(T),
}

impl<T> Clearable<T> {
    pub(crate) fn value(&self) -> Option<&T> {
        match self {
            Self::Cleared => None,
            Self::To(value) => Some(value),
        }
    }
}

impl<T: FromStr> FromStr for Clearable<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        if text.is_empty() { Ok(Self::Cleared) } else { text.parse().map(Self::To) }
    }
}

impl<T: fmt::Display> fmt::Display for Clearable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value().map_or(Ok(()), |value| value.fmt(f))
    }
}

/// The path and query of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProbePath(String);

impl FromStr for ProbePath {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let sane = text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'#' | b'\\' | b'"'));
        if text.starts_with('/') && sane && text.len() <= 1024 {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidValue::ProbePath(text.to_owned()))
        }
    }
}

impl fmt::Display for ProbePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a header field or a cookie (RFC 9110 §5.6.2: a token).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token(String);

impl FromStr for Token {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if !text.is_empty() && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidValue::Token(text.to_owned()))
        }
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `NAME=VALUE`, both present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pair {
    name: Token,
    value: String,
}

impl FromStr for Pair {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let invalid = || InvalidValue::Pair(text.to_owned());
        let (name, value) = text.split_once('=').ok_or_else(invalid)?;
        if value.is_empty() || value.chars().any(char::is_control) {
            return Err(invalid());
        }
        Ok(Self { name: name.parse().map_err(|_| invalid())?, value: value.to_owned() })
    }
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.value)
    }
}

/// A CIDR block; a lone address is the block of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Network(IpNet);

impl FromStr for Network {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        network.map(Self).map_err(|_| InvalidValue::Network(text.to_owned()))
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

pub(crate) fn identity(text: &str) -> Result<String, InvalidValue> {
    let sane = !text.is_empty() && !text.chars().any(char::is_control);
    if sane { Ok(text.to_owned()) } else { Err(InvalidValue::Identity) }
}

pub(crate) fn rollout(text: &str) -> Result<String, InvalidValue> {
    let sane = (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    if sane { Ok(text.to_owned()) } else { Err(InvalidValue::Rollout(text.to_owned())) }
}

/// The daemon opens the file, and its working directory is not the operator's. An empty text stays empty: it
/// takes the files back.
pub(crate) fn absolute_path(text: &str) -> Result<String, InvalidValue> {
    if text.is_empty() {
        return Ok(String::new());
    }
    let path = std::path::absolute(text).ok().and_then(|path| path.into_os_string().into_string().ok());
    path.ok_or_else(|| InvalidValue::NoFolder(text.to_owned()))
}

/// Why a certificate is revoked, as authorities know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Reason {
    Unspecified,
    KeyCompromise,
}

impl From<Reason> for RevocationReason {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Unspecified => Self::Unspecified,
            Reason::KeyCompromise => Self::KeyCompromise,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `T` prints after parsing; `None` if it refuses.
    fn printed<T: FromStr + fmt::Display>(text: &str) -> Option<String> {
        text.parse::<T>().ok().map(|value| value.to_string())
    }

    #[test]
    fn values() {
        for (parse, text, want) in [
            (printed::<AnyTime> as fn(&str) -> Option<String>, "0", Some("0s")),
            (printed::<AnyTime>, "90s", Some("1m30s")),
            (printed::<AnyTime>, "90", None),
            (printed::<SomeTime>, "250ms", Some("250ms")),
            (printed::<SomeTime>, "0s", None),
            (printed::<AnyTime>, "24h", Some("24h")),
            (printed::<AnyTime>, "25h", None),
            (printed::<ProbePath>, "/up?full=1", Some("/up?full=1")),
            (printed::<ProbePath>, "up", None),
            (printed::<ProbePath>, "/u p", None),
            (printed::<Clearable<Token>>, "", Some("")),
            (printed::<Clearable<Token>>, "X-User-Id", Some("X-User-Id")),
            (printed::<Clearable<Token>>, "user id", None),
            (printed::<Pair>, "x-canary=a=b, c", Some("x-canary=a=b, c")),
            (printed::<Pair>, "x-canary", None),
            (printed::<Pair>, "=1", None),
            (printed::<Pair>, "x-canary=", None),
            (printed::<Network>, "10.0.0.0/8", Some("10.0.0.0/8")),
            (printed::<Network>, "10.1.2.3", Some("10.1.2.3/32")),
            (printed::<Network>, "fd00::/8", Some("fd00::/8")),
            (printed::<Network>, "10.0.0.0/33", None),
        ] {
            assert_eq!(parse(text).as_deref(), want, "{text:?}");
        }
    }

    #[test]
    fn paths_become_absolute() {
        let here = std::env::current_dir().unwrap();
        assert_eq!(absolute_path("/etc/shop.pem").unwrap(), "/etc/shop.pem");
        assert_eq!(absolute_path("shop.pem").unwrap(), here.join("shop.pem").to_str().unwrap());
        assert_eq!(absolute_path("").unwrap(), "");
    }
}
