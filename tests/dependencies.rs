//! The lock file stays above the versions with known holes: a check that works without a network.

use harness::workspace_root;

/// The first version without the hole, and which hole it was.
const FLOORS: &[(&str, &str, &str)] = &[
    ("bytes", "1.11.1", "RUSTSEC-2026-0007"),
    ("h2", "0.4.16", "RUSTSEC-2026-0258"),
    ("idna", "1.0.0", "RUSTSEC-2024-0421"),
    ("lru", "0.16.3", "RUSTSEC-2026-0002"),
    ("rustls", "0.23.45", "RUSTSEC-2026-0285"),
    ("rustls-webpki", "0.103.13", "RUSTSEC-2026-0049, -0098, -0099, -0104"),
    ("time", "0.3.47", "RUSTSEC-2026-0009"),
    ("tracing-subscriber", "0.3.20", "RUSTSEC-2025-0055"),
];

/// Single versions that must not be there.
const BANNED: &[(&str, &str, &str)] = &[("hashbrown", "0.15.0", "RUSTSEC-2024-0402")];

#[test]
fn no_locked_version_has_a_known_hole() {
    let lock = std::fs::read_to_string(workspace_root().join("Cargo.lock")).unwrap();
    let packages = packages(&lock);
    assert!(packages.len() > 50, "the lock file was not understood");
    for (name, version) in packages {
        for (_, floor, hole) in FLOORS.iter().filter(|row| row.0 == name) {
            assert!(numbers(version) >= numbers(floor), "{name} {version} has {hole}: need {floor}");
        }
        for (_, banned, hole) in BANNED.iter().filter(|row| row.0 == name) {
            assert_ne!(version, *banned, "{name} {version} has {hole}");
        }
    }
}

/// Name and version of every `[[package]]`.
fn packages(lock: &str) -> Vec<(&str, &str)> {
    let blocks = lock.split("[[package]]").skip(1);
    blocks.filter_map(|block| Some((value(block, "name")?, value(block, "version")?))).collect()
}

fn value<'b>(block: &'b str, key: &str) -> Option<&'b str> {
    block.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"'))
}

/// `1.2.3-pre+build` → 1, 2, 3.
fn numbers(version: &str) -> Vec<u64> {
    let release = version.split(['-', '+']).next().unwrap_or(version);
    release.split('.').map(|number| number.parse().expect("a number")).collect()
}
