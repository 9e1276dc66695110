//! HTTP Strict Transport Security (RFC 6797): how long browsers are told to use nothing but HTTPS for a host.

use std::fmt;
use std::time::Duration;

use crate::duration;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// What browsers are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hsts {
    /// In whole seconds; none at all tells browsers to forget what they were told.
    pub max_age: Duration,
    pub include_subdomains: bool,
    /// Its owner wants the host in the lists that browsers are shipped with.
    pub preload: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidHsts {
    #[error(
        "`{0}` is not a time: write one such as `1y`, `180d` or `24h`, or `0s` to have browsers forget it"
    )]
    MaxAge(String),
    #[error("`{0}` is too long: at most 10y")]
    TooLong(String),
    #[error("the lists of browsers take only hosts with `hsts_subdomains` and an `hsts` of at least `1y`")]
    Preload,
}

impl Hsts {
    const MAX_AGE_MAX: Duration = Duration::from_secs(10 * YEAR.as_secs());

    /// What `hstspreload.org` asks for is checked: a host that asks for the lists in vain helps nobody.
    pub fn new(max_age: &str, include_subdomains: bool, preload: bool) -> Result<Self, InvalidHsts> {
        let age = parse_max_age(max_age).ok_or_else(|| InvalidHsts::MaxAge(max_age.to_owned()))?;
        if age > Self::MAX_AGE_MAX {
            return Err(InvalidHsts::TooLong(max_age.to_owned()));
        }
        if preload && !(include_subdomains && age >= YEAR) {
            return Err(InvalidHsts::Preload);
        }
        Ok(Self { max_age: Duration::from_secs(age.as_secs()), include_subdomains, preload })
    }

    /// What `new` reads back as the same.
    pub fn print_max_age(&self) -> String {
        let seconds = self.max_age.as_secs();
        match (seconds % YEAR.as_secs(), seconds % DAY.as_secs()) {
            _ if seconds == 0 => duration::print(self.max_age),
            (0, _) => format!("{}y", seconds / YEAR.as_secs()),
            (_, 0) => format!("{}d", seconds / DAY.as_secs()),
            _ => duration::print(self.max_age),
        }
    }
}

/// The value of `Strict-Transport-Security`.
impl fmt::Display for Hsts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "max-age={}", self.max_age.as_secs())?;
        if self.include_subdomains {
            f.write_str("; includeSubDomains")?;
        }
        if self.preload {
            f.write_str("; preload")?;
        }
        Ok(())
    }
}

/// Days and years besides what other settings are written in: nobody counts these in hours.
fn parse_max_age(text: &str) -> Option<Duration> {
    for (unit, length) in [("d", DAY), ("y", YEAR)] {
        if let Some(count) = text.strip_suffix(unit) {
            let count = count.parse::<u16>().ok()?;
            return length.checked_mul(count.into());
        }
    }
    duration::parse(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_browsers_are_told() {
        for (max_age, include_subdomains, preload, value, printed) in [
            ("1y", false, false, "max-age=31536000", "1y"),
            ("730d", true, true, "max-age=63072000; includeSubDomains; preload", "2y"),
            ("180d", true, false, "max-age=15552000; includeSubDomains", "180d"),
            ("24h", false, false, "max-age=86400", "1d"),
            ("90m", false, false, "max-age=5400", "1h30m"),
            ("1500ms", false, false, "max-age=1", "1s"),
            ("0s", false, false, "max-age=0", "0s"),
            ("0", false, false, "max-age=0", "0s"),
        ] {
            let hsts = Hsts::new(max_age, include_subdomains, preload).unwrap();
            assert_eq!(
                (hsts.to_string().as_str(), hsts.print_max_age().as_str()),
                (value, printed),
                "{max_age}"
            );
            assert_eq!(Hsts::new(printed, include_subdomains, preload), Ok(hsts), "{max_age}");
        }
    }

    #[test]
    fn what_is_refused() {
        for (max_age, include_subdomains, preload, want) in [
            ("soon", false, false, "`soon` is not a time"),
            ("", false, false, "`` is not a time"),
            ("y", false, false, "`y` is not a time"),
            ("1.5y", false, false, "`1.5y` is not a time"),
            ("99999d", false, false, "`99999d` is not a time"),
            ("11y", false, false, "`11y` is too long"),
            ("1y", false, true, "the lists of browsers"),
            ("364d", true, true, "the lists of browsers"),
        ] {
            let error = Hsts::new(max_age, include_subdomains, preload).unwrap_err().to_string();
            assert!(error.starts_with(want), "{max_age}: {error}");
        }
    }
}
