//! The canary's share of a service's traffic.

use std::fmt;
use std::str::FromStr;

/// Share of a service's traffic, 0 ..= 10 000 basis points (steps of 0.01 %).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Weight(u16);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a weight: write a percentage from 0% to 100% in steps of 0.01%, such as `5%` or `0.25%`"
)]
pub struct InvalidWeight(pub String);

impl Weight {
    pub const NONE: Self = Self(0);
    pub const ALL: Self = Self(10_000);

    pub fn from_basis_points(basis_points: u16) -> Option<Self> {
        (basis_points <= 10_000).then_some(Self(basis_points))
    }

    pub fn basis_points(self) -> u16 {
        self.0
    }

    /// Whether a visitor in `bucket` (0 ..= 9 999) belongs to the canary.
    ///
    /// Raising the weight only ever adds buckets, so nobody moves back.
    pub fn admits(self, bucket: u16) -> bool {
        bucket < self.0
    }
}

impl FromStr for Weight {
    type Err = InvalidWeight;

    /// `5`, `5%`, `0.25`, `0.25%`: always per cent.
    fn from_str(text: &str) -> Result<Self, InvalidWeight> {
        let invalid = || InvalidWeight(text.to_owned());
        let number = text.strip_suffix('%').unwrap_or(text);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        let digits = |s: &str, longest: usize| {
            !s.is_empty() && s.len() <= longest && s.bytes().all(|b| b.is_ascii_digit())
        };
        if !digits(whole, 3) || !digits(fraction, 2) {
            return Err(invalid());
        }
        let whole: u16 = whole.parse().map_err(|_| invalid())?;
        let hundredths: u16 = format!("{fraction:0<2}").parse().map_err(|_| invalid())?;
        Self::from_basis_points(whole * 100 + hundredths).ok_or_else(invalid)
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0 / 100, self.0 % 100) {
            (whole, 0) => write!(f, "{whole}%"),
            (whole, hundredths) if hundredths % 10 == 0 => write!(f, "{whole}.{}%", hundredths / 10),
            (whole, hundredths) => write!(f, "{whole}.{hundredths:02}%"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights() {
        for (text, want) in [
            ("0", Some(0)),
            ("0%", Some(0)),
            ("5%", Some(500)),
            ("0.25%", Some(25)),
            ("0.5", Some(50)),
            ("99.99%", Some(9_999)),
            ("100%", Some(10_000)),
            ("100.01%", None),
            ("101", None),
            ("-1", None),
            ("0.001%", None),
            ("", None),
            ("%", None),
            ("5 %", None),
            ("1e1", None),
        ] {
            assert_eq!(text.parse::<Weight>().ok().map(Weight::basis_points), want, "{text:?}");
        }
    }

    #[test]
    fn prints_what_it_parses() {
        for basis_points in 0..=10_000 {
            let weight = Weight::from_basis_points(basis_points).unwrap();
            assert_eq!(weight.to_string().parse::<Weight>(), Ok(weight));
        }
    }

    #[test]
    fn zero_admits_nobody_and_all_admits_everybody() {
        for bucket in 0..10_000 {
            assert!(!Weight::NONE.admits(bucket) && Weight::ALL.admits(bucket));
        }
    }
}
