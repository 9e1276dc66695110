//! Lists of networks as operators write them: networks, addresses, names of presets, files.
//!
//! Presets are the public lists of CDNs, as data files beside this one. They age, so a file can take the place of
//! each: the same lines, kept up to date by whoever needs that.

use std::path::Path;

use ipnet::IpNet;
use model::networks::Networks;

use super::ConfigError;

/// By name. To bring one up to date, change its file: the lines, and the date in its second line.
const PRESETS: [(&str, &str); 4] = [
    ("cloudflare", include_str!("presets/cloudflare.txt")),
    ("cloudfront", include_str!("presets/cloudfront.txt")),
    ("fastly", include_str!("presets/fastly.txt")),
    ("private", include_str!("presets/private.txt")),
];

/// The networks that `entries` name, all together.
pub(super) fn resolve(key: &'static str, entries: &[String]) -> Result<Networks, ConfigError> {
    let value = |message| ConfigError::Value { key, message };
    let mut networks = Vec::new();
    for entry in entries {
        networks.extend(resolve_one(entry).map_err(value)?);
    }
    if let Some(all) = networks.iter().find(|network| network.prefix_len() == 0) {
        tracing::warn!("`{key}` has {all}: everybody may say who they are");
    }
    Ok(networks.into_iter().collect())
}

fn resolve_one(entry: &str) -> Result<Vec<IpNet>, String> {
    if Path::new(entry).is_absolute() {
        let text = std::fs::read_to_string(entry).map_err(|error| format!("cannot read {entry}: {error}"))?;
        return parse_lines(&text).map_err(|error| format!("{entry}, {error}"));
    }
    if let Some(network) = parse_network(entry) {
        return Ok(vec![network]);
    }
    let preset = PRESETS.iter().find(|(name, _)| *name == entry);
    let (_, text) = preset.ok_or_else(|| {
        let known = PRESETS.map(|(name, _)| name).join("`, `");
        format!(
            "`{entry}` is not a network: write an address or CIDR such as 10.0.0.0/8, the absolute path of a file with \
             one on each line, or one of `{known}`"
        )
    })?;
    parse_lines(text)
}

/// A bare address is a network of one.
fn parse_network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<std::net::IpAddr>().ok().map(IpNet::from))
}

/// One network on each line; `#` begins a comment.
fn parse_lines(text: &str) -> Result<Vec<IpNet>, String> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim()).zip(1..);
    let networks: Vec<IpNet> = lines
        .filter(|(line, _)| !line.is_empty())
        .map(|(line, number)| {
            parse_network(line).ok_or_else(|| format!("line {number}: `{line}` is not a network"))
        })
        .collect::<Result<_, _>>()?;
    if networks.is_empty() { Err("no network is in it".to_owned()) } else { Ok(networks) }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn networks(entries: &[&str]) -> Result<Networks, String> {
        let entries: Vec<String> = entries.iter().map(|entry| (*entry).to_owned()).collect();
        resolve("trusted_proxies", &entries).map_err(|error| error.to_string())
    }

    #[test]
    fn entries_of_every_kind() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cdn.txt");
        std::fs::write(&file, "# ours\n\n198.51.100.0/24  # all of it\r\n2001:db8::7\n").unwrap();
        let set = networks(&["10.0.0.0/8", "192.0.2.7", file.to_str().unwrap(), "cloudflare"]).unwrap();
        for (address, is_in) in [
            ("10.1.2.3", true),
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("198.51.100.9", true),
            ("2001:db8::7", true),
            ("104.27.255.255", true),
            ("104.28.0.0", false),
            ("2606:4700::1", true),
            ("151.101.0.1", false),
        ] {
            assert_eq!(set.contains(address.parse().unwrap()), is_in, "{address}");
        }
        assert!(networks(&[]).unwrap().is_empty());
    }

    #[test]
    fn what_is_no_list_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        // What `curl -s …/ips-v4 …/ips-v6` makes of two lists without a line end between them.
        let fused = file("fused.txt", "131.0.72.0/222400:cb00::/32\n");
        let (empty, missing) = (file("empty.txt", "# nothing\n"), format!("{}/none", dir.path().display()));
        for (entry, wants) in [
            ("cloudflair", "one of `cloudflare`, `cloudfront`, `fastly`, `private`"),
            ("Cloudflare", "`Cloudflare` is not a network"),
            ("10.0.0.0/33", "`10.0.0.0/33` is not a network"),
            ("", "`` is not a network"),
            (&fused, "fused.txt, line 1: `131.0.72.0/222400:cb00::/32` is not a network"),
            (&empty, "no network is in it"),
            (&missing, "cannot read"),
        ] {
            let error = networks(&[entry]).unwrap_err();
            assert!(error.contains("trusted_proxies") && error.contains(wants), "{entry:?} gave {error:?}");
        }
    }

    #[test]
    fn presets_are_whole_dated_and_sourced() {
        for ((name, text), count) in PRESETS.into_iter().zip([22, 49, 21, 6]) {
            let networks = parse_lines(text).unwrap();
            assert_eq!(networks.len(), count, "{name}");
            assert!(networks.iter().all(|network| network.network() == network.addr()), "{name}");
            let lines: Vec<&str> = text.lines().collect();
            let date = lines[1].strip_prefix("# As of: ").unwrap();
            assert!(date.parse::<jiff::civil::Date>().is_ok(), "{name}: {date}");
            assert!(lines[2].starts_with("# Source: "), "{name}");
        }
    }

    proptest! {
        #[test]
        fn the_preset_private_is_what_the_rule_says(bits in any::<u128>(), short in any::<[u8; 4]>()) {
            let set = networks(&["private"]).unwrap();
            for address in [IpAddr::from(Ipv6Addr::from_bits(bits)), IpAddr::from(short)] {
                prop_assert_eq!(set.contains(address), model::networks::is_private(address), "{}", address);
            }
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,60}") {
            let _ = parse_lines(&text);
        }
    }
}
