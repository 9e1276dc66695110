//! What every store promises, asked of each kind; and what only a directory can show.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use super::dir::Timing;
use super::seal::{SealError, StoreKey};
use super::*;

const TTL: Duration = Duration::from_secs(60);
const TIMING: Timing = Timing { deadline: Duration::from_secs(30), poll: Duration::from_secs(60) };

fn shared(root: &Path) -> Store {
    Store::Dir(Dir::shared(root, TIMING))
}

#[tokio::test]
async fn a_value_is_read_as_it_was_written_and_changed_only_as_expected() {
    let dir = tempfile::tempdir().unwrap();
    let store = shared(dir.path());
    assert_eq!(store.get("account").await.unwrap(), None);
    let first = store.put("account", b"1", Expected::Absent).await.unwrap();
    let refused = store.put("account", b"2", Expected::Absent).await.unwrap_err();
    assert!(matches!(refused, StoreError::Conflict { .. }), "{refused}");
    let second = store.put("account", b"2", Expected::Version(first.clone())).await.unwrap();
    assert_eq!(store.get("account").await.unwrap(), Some(Stored { bytes: b"2".into(), version: second }));
    let refused = store.put("account", b"3", Expected::Version(first)).await.unwrap_err();
    assert!(matches!(refused, StoreError::Conflict { .. }), "{refused}");
    store.put("account", b"", Expected::Anything).await.unwrap();
    assert_eq!(store.get("account").await.unwrap().unwrap().bytes, b"");
    store.delete("account").await.unwrap();
    store.delete("account").await.unwrap();
    assert_eq!(store.get("account").await.unwrap(), None);
}

#[tokio::test]
async fn keys_are_listed_by_prefix() {
    let dir = tempfile::tempdir().unwrap();
    let store = shared(dir.path());
    assert!(store.list("certificates/").await.unwrap().is_empty());
    for key in ["account", "certificates/b.test", "certificates/_.a.test", "certificates/[::1]", "budgets/b"]
    {
        store.put(key, b"x", Expected::Absent).await.unwrap();
    }
    let listed = store.list("certificates/").await.unwrap();
    assert_eq!(listed, ["certificates/[::1]", "certificates/_.a.test", "certificates/b.test"]);
    store.delete("certificates/b.test").await.unwrap();
    assert_eq!(store.list("certificates/").await.unwrap().len(), 2);
    let long = format!("certificates/{}", ["a".repeat(63).as_str(); 4].join(".")[..253].to_owned());
    store.put(&long, b"x", Expected::Absent).await.unwrap();
    assert_eq!(store.get(&long).await.unwrap().unwrap().bytes, b"x");
}

#[tokio::test]
async fn keys_that_could_lead_elsewhere_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = shared(dir.path());
    for key in ["", "/", "a//b", "../a", "a/../b", "a/.b", "a/@1", "a b", "ü", "a\0", &"a".repeat(256)] {
        let refused = store.put(key, b"x", Expected::Anything).await.unwrap_err();
        assert!(matches!(refused, StoreError::Key { .. }), "{key:?}: {refused}");
        assert!(store.get(key).await.is_err() && store.list(key).await.is_err(), "{key:?}");
    }
    let large = vec![0; VALUE_BYTES_MAX + 1];
    assert!(store.put("a", &large, Expected::Anything).await.is_err());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_value_that_expires_is_gone_and_others_sweep_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = shared(dir.path());
    store.put_expiring("challenges/a.test", b"1", Duration::ZERO).await.unwrap();
    store.put_expiring("challenges/b.test", b"2", TTL).await.unwrap();
    assert_eq!(store.get("challenges/b.test").await.unwrap().unwrap().bytes, b"2");
    store.put_expiring("challenges/b.test", b"3", Duration::ZERO).await.unwrap();
    assert_eq!(store.get("challenges/b.test").await.unwrap(), None);
    assert_eq!(store.list("challenges/").await.unwrap(), ["challenges/b.test"], "the other was swept");
    store.put("challenges/b.test", b"4", Expected::Absent).await.unwrap();
    assert_eq!(store.get("challenges/b.test").await.unwrap().unwrap().bytes, b"4", "and stays");
}

#[tokio::test]
async fn of_many_writers_one_wins_each_round() {
    let dir = tempfile::tempdir().unwrap();
    let stores: Vec<_> = (0..8).map(|_| Arc::new(shared(dir.path()))).collect();
    let mut expected = Expected::Absent;
    for round in 0..20 {
        let mut writers = tokio::task::JoinSet::new();
        for (index, store) in stores.iter().enumerate() {
            let (store, expected) = (Arc::clone(store), expected.clone());
            writers.spawn(async move {
                let text = format!("{round} {index}");
                (text.clone(), store.put("account", text.as_bytes(), expected).await)
            });
        }
        let mut won = Vec::new();
        for (text, result) in writers.join_all().await {
            match result {
                Ok(version) => won.push((text, version)),
                Err(error) => assert!(matches!(error, StoreError::Conflict { .. }), "{error}"),
            }
        }
        assert_eq!(won.len(), 1, "round {round}: {won:?}");
        let (text, version) = won.pop().unwrap();
        let stored = stores[0].get("account").await.unwrap().unwrap();
        assert_eq!((String::from_utf8(stored.bytes).unwrap(), &stored.version), (text, &version));
        expected = Expected::Version(version);
    }
}

#[tokio::test]
async fn a_lease_has_one_holder_and_ends_when_nobody_renews_it() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (shared(dir.path()), shared(dir.path()));
    let ttl = Duration::from_millis(50);
    let first = one.acquire("shop.test", "one", ttl).await.unwrap().unwrap();
    assert!(two.acquire("shop.test", "two", ttl).await.unwrap().is_none());
    assert_eq!(two.holder("shop.test").await.unwrap().as_deref(), Some("one"));
    assert!(one.renew(&first).await.unwrap());
    let second = loop {
        // Nobody renews it any more.
        match two.acquire("shop.test", "two", ttl).await.unwrap() {
            Some(lease) => break lease,
            None => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    assert!(second.number > first.number);
    assert!(!one.renew(&first).await.unwrap());
    one.release(first.clone()).await.unwrap();
    assert_eq!(
        one.holder("shop.test").await.unwrap().as_deref(),
        Some("two"),
        "not the first one's any more"
    );

    // The first wakes, and wants to write.
    let refused = one.put_fenced(&first, "certificates/shop.test", b"old").await.unwrap_err();
    assert!(matches!(refused, StoreError::Fenced { .. }), "{refused}");
    two.put_fenced(&second, "certificates/shop.test", b"new").await.unwrap();
    two.release(second.clone()).await.unwrap();
    let third = one.acquire("shop.test", "one", ttl).await.unwrap().expect("released, so at once");
    assert!(third.number > second.number);
}

#[tokio::test]
async fn a_later_number_is_never_overwritten_by_an_earlier_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = shared(dir.path());
    let lease = store.acquire("shop.test", "one", TTL).await.unwrap().unwrap();
    store.put_fenced(&lease, "certificates/shop.test", b"1").await.unwrap();
    // As when the look at the lease came before another VM took it, and the write after that one's.
    let Store::Dir(files) = &store else { unreachable!("it is one") };
    let written = conditional::put_fenced(files, "certificates/shop.test", b"2", lease.number - 1).await;
    assert_eq!(written.unwrap(), None);
    assert_eq!(store.get("certificates/shop.test").await.unwrap().unwrap().bytes, b"1");
    // An ordinary write keeps the number.
    store.put("certificates/shop.test", b"3", Expected::Anything).await.unwrap();
    let written = conditional::put_fenced(files, "certificates/shop.test", b"4", lease.number - 1).await;
    assert_eq!(written.unwrap(), None);

    // The record of the lease is lost; the numbers go on all the same.
    store.delete("locks/shop.test").await.unwrap();
    let next = store.acquire("shop.test", "one", TTL).await.unwrap().unwrap();
    store.put_fenced(&next, "certificates/shop.test", b"5").await.unwrap();
}

#[tokio::test]
async fn a_lease_of_before_a_restart_is_taken_at_once_where_nobody_else_is() {
    let dir = tempfile::tempdir().unwrap();
    for owner in ["before", "after"] {
        let store = Store::Dir(Dir::private(&dir.path().join("certs"), TIMING));
        store.acquire("shop.test", owner, TTL).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn only_the_owner_can_read_and_nothing_unfinished_stays() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("certs");
    let left = dir.join(".unfinished/left");
    fs::create_dir_all(left.parent().unwrap()).unwrap();
    fs::write(&left, "half").unwrap();
    let store = Store::Dir(Dir::private(&dir, TIMING));
    for bytes in [b"1", b"2", b"3"] {
        store.put("certificates/shop.test", bytes, Expected::Anything).await.unwrap();
    }
    let mut unseen = vec![dir.clone()];
    let mut files = Vec::new();
    while let Some(path) = unseen.pop() {
        let metadata = fs::metadata(&path).unwrap();
        let mode = metadata.permissions().mode() & 0o777;
        if metadata.is_dir() {
            unseen.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            files.push((path.strip_prefix(&dir).unwrap().display().to_string(), mode));
        }
    }
    assert_eq!(files, [("certificates/shop.test/@3".to_owned(), 0o600)]);
}

#[tokio::test]
async fn a_folder_that_is_not_mounted_is_said_to_be_so() {
    let root = tempfile::tempdir().unwrap();
    let store = shared(&root.path().join("share"));
    for error in [
        store.get("account").await.unwrap_err(),
        store.put("account", b"x", Expected::Anything).await.unwrap_err(),
        store.acquire("shop.test", "one", TTL).await.unwrap_err(),
    ] {
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(error.is_outage() && cause.contains("is its file system mounted?"), "{error}: {cause}");
    }
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0, "nothing was made in its place");
}

#[tokio::test]
async fn a_notice_wakes_those_who_watch_and_none_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (shared(dir.path()), shared(dir.path()));
    let mut watch = two.watch();
    watch.changed().await;
    for _ in 0..2 {
        one.notify("certificates").await;
        tokio::time::timeout(TIMING.deadline, watch.changed()).await.expect("long before the poll");
    }
}

#[tokio::test]
async fn a_vault_is_clear_inside_and_sealed_outside() {
    let dir = tempfile::tempdir().unwrap();
    let vault = |key: u8| Vault::new(shared(dir.path()), Arc::new(StoreKey::new(&[key; 32])));
    vault(1).put("account", b"the account's key", Expected::Absent).await.unwrap();
    assert_eq!(vault(1).get("account").await.unwrap().unwrap().bytes, b"the account's key");
    let sealed = fs::read(dir.path().join("account/@1")).unwrap();
    assert!(!sealed.windows(7).any(|part| part == b"account"), "{sealed:?}");

    let error = vault(2).get("account").await.unwrap_err();
    assert!(matches!(&error, StoreError::Sealed { reason: SealError::OtherKey, .. }), "{error}");
    assert!(error.to_string().contains("If that key is lost"), "{error}");
    // One value under the name of another.
    fs::create_dir(dir.path().join("tickets")).unwrap();
    fs::copy(dir.path().join("account/@1"), dir.path().join("tickets/@1")).unwrap();
    let error = vault(1).get("tickets").await.unwrap_err();
    assert!(matches!(error, StoreError::Sealed { reason: SealError::Damaged, .. }), "{error}");
}
