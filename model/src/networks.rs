//! A set of networks: whether an address is in one of them.
//!
//! Lists of CDNs have dozens, so they are looked up by binary search. Which proxies they are is not known here.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

/// Ranges that neither overlap nor lie out of order, first and last address included.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Networks {
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
}

impl Networks {
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// An IPv4 address that is written as IPv6 is the IPv4 address.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => holds(&self.v4, address.to_bits()),
            IpAddr::V6(address) => holds(&self.v6, address.to_bits()),
        }
    }
}

/// RFC 1918, unique local addresses (RFC 4193) and loopback: what Rails, too, takes for proxies of its own.
pub fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => address.is_private() || address.is_loopback(),
        IpAddr::V6(address) => address.is_unique_local() || address.is_loopback(),
    }
}

impl FromIterator<IpNet> for Networks {
    fn from_iter<I: IntoIterator<Item = IpNet>>(networks: I) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for network in networks {
            let (first, last) = (network.network().to_canonical(), network.broadcast().to_canonical());
            match (first, last) {
                (IpAddr::V4(first), IpAddr::V4(last)) => v4.push((first.to_bits(), last.to_bits())),
                (first, last) => v6.push((as_v6(first).to_bits(), as_v6(last).to_bits())),
            }
        }
        Self { v4: merge(v4), v6: merge(v6) }
    }
}

/// A network that holds more than the mapped addresses begins or ends at one of them: `::/0` does not.
fn as_v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

fn merge<T: Ord + Copy>(mut ranges: Vec<(T, T)>) -> Box<[(T, T)]> {
    ranges.sort_unstable();
    let mut merged: Vec<(T, T)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            Some((_, end)) if first <= *end => *end = last.max(*end),
            _ => merged.push((first, last)),
        }
    }
    merged.into()
}

fn holds<T: Ord + Copy>(ranges: &[(T, T)], address: T) -> bool {
    let before = ranges.partition_point(|(first, _)| *first <= address);
    before.checked_sub(1).is_some_and(|index| address <= ranges[index].1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn networks(texts: &[&str]) -> Networks {
        texts.iter().map(|text| text.parse::<IpNet>().unwrap()).collect()
    }

    #[test]
    fn addresses_are_found() {
        let set = networks(&[
            "10.0.0.0/8",
            "10.1.0.0/16",
            "192.0.2.7/32",
            "2001:db8::/32",
            "::ffff:198.51.100.0/120",
        ]);
        for (address, is_in) in [
            ("10.0.0.0", true),
            ("10.255.255.255", true),
            ("11.0.0.0", false),
            ("9.255.255.255", false),
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("::ffff:192.0.2.7", true),
            ("198.51.100.9", true),
            ("2001:db8:ffff::1", true),
            ("2001:db9::", false),
            ("::1", false),
        ] {
            assert_eq!(set.contains(address.parse().unwrap()), is_in, "{address}");
        }
        assert!(!networks(&[]).contains("::".parse().unwrap()) && networks(&[]).is_empty());
        let everybody = networks(&["0.0.0.0/0", "::/0"]);
        assert!(
            ["255.255.255.255", "::", "ffff::"].iter().all(|all| everybody.contains(all.parse().unwrap()))
        );
    }

    const PRIVATE: [&str; 6] =
        ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8", "fc00::/7", "::1/128"];

    proptest! {
        #[test]
        fn private_is_what_the_list_says(bits in any::<u128>(), short in any::<u32>()) {
            let set = networks(&PRIVATE);
            for address in [IpAddr::from(Ipv6Addr::from_bits(bits)), IpAddr::from(short.to_be_bytes())] {
                prop_assert_eq!(set.contains(address), is_private(address), "{}", address);
            }
        }

        #[test]
        fn the_search_agrees_with_a_look_at_each(
            nets in proptest::collection::vec((0u32..64, 24u8..=32), 0..20),
            address in 0u32..64,
        ) {
            let spread = |n: u32| std::net::Ipv4Addr::from_bits(0x0a00_0000 | (n << 5));
            let nets: Vec<IpNet> = nets
                .into_iter()
                .map(|(n, length)| IpNet::new(spread(n).into(), length).unwrap())
                .collect();
            let address = IpAddr::from(spread(address));
            let set: Networks = nets.iter().copied().collect();
            prop_assert_eq!(set.contains(address), nets.iter().any(|net| net.contains(&address)));
        }
    }
}
