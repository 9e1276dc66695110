//! A directory as the store, and VMs that write to it and die at any moment: never half a value, never a lost one, never a step
//! back, and nothing left behind that holds up the others.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use portcullis::adapters::store::dir::Timing;
use portcullis::adapters::store::{Dir, Expected, Store, StoreError};

/// Makes a process of this test one of the VMs.
const DIRECTORY: &str = "PORTCULLIS_TEST_STORE";
const KILLS: usize = 50;
/// So short that holders sleep through it now and then, too.
const TTL: Duration = Duration::from_millis(5);

fn store(root: &Path) -> Store {
    let timing = Timing { deadline: Duration::from_secs(30), poll: Duration::from_secs(60) };
    Store::Dir(Dir::shared(root, timing))
}

/// Many times the number: half of it would not be noticed in a short one.
fn value(number: u64) -> Vec<u8> {
    format!("{number:020}").repeat(1000).into_bytes()
}

/// Every part says the same.
fn number(value: &[u8]) -> u64 {
    let number = std::str::from_utf8(&value[..20]).unwrap().parse().unwrap();
    assert!(value == self::value(number), "a value is not whole: {} bytes", value.len());
    number
}

/// One VM: counts on, without a lease in `account` and under one in `certificates/shop.test`, until it is killed.
#[tokio::test]
async fn one_that_is_going_to_be_killed() {
    let Some(root) = std::env::var_os(DIRECTORY) else { return };
    let (store, owner) = (store(Path::new(&root)), std::process::id().to_string());
    println!("it writes");
    loop {
        let found = store.get("account").await.unwrap();
        let next = found.as_ref().map_or(0, |stored| number(&stored.bytes)) + 1;
        let expected = found.map_or(Expected::Absent, |stored| Expected::Version(stored.version));
        match store.put("account", &value(next), expected).await {
            Ok(_) | Err(StoreError::Conflict { .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
        let Some(lease) = store.acquire("shop.test", &owner, TTL).await.unwrap() else { continue };
        let found = store.get("certificates/shop.test").await.unwrap();
        let next = found.map_or(0, |stored| number(&stored.bytes)) + 1;
        match store.put_fenced(&lease, "certificates/shop.test", &value(next)).await {
            Ok(_) | Err(StoreError::Fenced { .. } | StoreError::Conflict { .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
        store.release(lease).await.unwrap();
    }
}

fn start(root: &Path) -> Child {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(std::env::current_exe().unwrap());
    command.args(["--exact", "one_that_is_going_to_be_killed", "--nocapture"]).env(DIRECTORY, root);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line.contains("it writes")), "it ended before it began");
    child
}

#[tokio::test]
async fn killed_at_random_moments_nothing_is_lost_or_half_there() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let mut vms: Vec<Child> = (0..2).map(|_| start(dir.path())).collect();
    let mut before = [0; 2];
    for kill in 0..KILLS {
        // The moment is what is random here; nothing waits for it.
        tokio::time::sleep(Duration::from_micros(fastrand::u64(0..20_000))).await;
        let vm = &mut vms[kill % 2];
        assert!(vm.try_wait().unwrap().is_none(), "it ended by itself");
        vm.kill().unwrap();
        vm.wait().unwrap();
        for (before, key) in before.iter_mut().zip(["account", "certificates/shop.test"]) {
            let now = store.get(key).await.unwrap().map_or(0, |stored| number(&stored.bytes));
            assert!(now >= *before, "{key} went from {before} back to {now}");
            *before = now;
        }
        vms[kill % 2] = start(dir.path());
    }
    assert!(before.iter().all(|number| *number > 0), "{before:?}");
    for mut vm in vms {
        vm.kill().unwrap();
        vm.wait().unwrap();
    }

    // Whoever comes next is not held up by what the dead left.
    let lease = loop {
        match store.acquire("shop.test", "the next", TTL).await.unwrap() {
            Some(lease) => break lease,
            None => tokio::time::sleep(TTL).await,
        }
    };
    store.put_fenced(&lease, "certificates/shop.test", &value(before[1] + 1)).await.unwrap();
    let stored = store.get("certificates/shop.test").await.unwrap().unwrap();
    assert_eq!(number(&stored.bytes), before[1] + 1);
}
