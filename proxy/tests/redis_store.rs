//! The store in real Redis: one server with an ACL user, TLS, Sentinels that fail over, a cluster.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::time::Duration;

use harness::{Redis, eventually, free_address};
use portcullis::adapters::store::{Expected, RedisStore, Store, StoreError};
use portcullis::config::{Login, RedisConfig, Topology};
use tokio::time::timeout;

/// As docs/operations.md has it.
const ACL: &str = "ACL SETUSER edge on >hunter2 ~{portcullis}:* &{portcullis}:* +hmget +hset +hget +hdel +incr +del \
                   +persist +pexpire +zadd +zrem +zrangebylex +time +evalsha +script|load +publish +subscribe \
                   +unsubscribe +ping +select +role +cluster|slots";

const TTL: Duration = Duration::from_secs(60);
const DEADLINE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_secs(300);
const PATIENCE: Duration = Duration::from_secs(60);

fn config(ports: &[u16]) -> RedisConfig {
    RedisConfig {
        nodes: ports.iter().map(|port| ("127.0.0.1".to_owned(), *port)).collect(),
        tls: false,
        ca: None,
        login: Login::default(),
        database: 0,
        topology: Topology::Single,
        prefix: "portcullis".to_owned(),
    }
}

/// Makes the user on each server.
fn user(servers: &[&Redis]) -> Login {
    for server in servers {
        server.cli(&ACL.split_whitespace().collect::<Vec<_>>());
    }
    Login { username: Some("edge".to_owned()), password: Some("hunter2".to_owned()) }
}

fn store(config: &RedisConfig) -> Store {
    Store::Redis(Box::new(RedisStore::new(config, DEADLINE, POLL).unwrap()))
}

/// All that a store promises, between two VMs.
async fn keeps_its_promises(config: &RedisConfig) {
    let (one, two) = (store(config), store(config));
    let first = one.put("account", b"\0\xff1", Expected::Absent).await.unwrap();
    let stored = two.get("account").await.unwrap().unwrap();
    assert_eq!((stored.bytes.as_slice(), &stored.version), (&b"\0\xff1"[..], &first));
    for expected in [Expected::Absent, Expected::Version(first.clone())] {
        let written = two.put("account", b"2", expected.clone()).await;
        match expected {
            Expected::Absent => assert!(matches!(written, Err(StoreError::Conflict { .. })), "{written:?}"),
            _ => assert_ne!(written.unwrap(), first),
        }
    }
    let written = one.put("account", b"3", Expected::Version(first)).await;
    assert!(matches!(written, Err(StoreError::Conflict { .. })), "{written:?}");
    assert_eq!(one.get("nothing").await.unwrap(), None);

    for key in ["certificates/b.test", "certificates/a.test", "certificatesx"] {
        one.put(key, b"x", Expected::Anything).await.unwrap();
    }
    assert_eq!(two.list("certificates/").await.unwrap(), ["certificates/a.test", "certificates/b.test"]);
    two.delete("certificates/b.test").await.unwrap();
    assert_eq!(one.list("certificates/").await.unwrap(), ["certificates/a.test"]);

    one.put_expiring("challenges/a.test", b"x", TTL).await.unwrap();
    assert_eq!(two.get("challenges/a.test").await.unwrap().unwrap().bytes, b"x");
    one.put_expiring("challenges/a.test", b"x", Duration::from_millis(1)).await.unwrap();
    until("the challenge is gone", async || two.get("challenges/a.test").await.unwrap().is_none()).await;

    let lease = one.acquire("shop.test", "one", Duration::from_millis(200)).await.unwrap().unwrap();
    one.put_fenced(&lease, "certificates/shop.test", b"first").await.unwrap();
    let mut later = None;
    until("the lease is over", async || {
        later = two.acquire("shop.test", "two", TTL).await.unwrap();
        later.is_some()
    })
    .await;
    let later = later.unwrap();
    assert!(later.number > lease.number);
    assert!(one.acquire("shop.test", "one", TTL).await.unwrap().is_none());
    assert_eq!(one.holder("shop.test").await.unwrap().as_deref(), Some("two"));
    assert!(!one.renew(&lease).await.unwrap() && two.renew(&later).await.unwrap());
    let written = one.put_fenced(&lease, "certificates/shop.test", b"stale").await;
    assert!(matches!(written, Err(StoreError::Fenced { .. })), "{written:?}");
    two.put_fenced(&later, "certificates/shop.test", b"second").await.unwrap();
    one.release(lease).await.unwrap();
    assert_eq!(one.holder("shop.test").await.unwrap().as_deref(), Some("two"), "only its own");
    two.release(later).await.unwrap();
    assert!(one.acquire("shop.test", "one", TTL).await.unwrap().is_some(), "at once");
    assert_eq!(one.get("certificates/shop.test").await.unwrap().unwrap().bytes, b"second");

    let mut watch = two.watch();
    // A task of the daemon waits for it, on whatever thread.
    drop((
        send(watch.changed()),
        send(one.put("account", b"", Expected::Absent)),
        send(one.list("account/")),
    ));
    timeout(PATIENCE, watch.changed()).await.expect("it listens");
    for _ in 0..2 {
        one.notify("certificates").await;
        timeout(PATIENCE, watch.changed()).await.expect("long before the poll");
    }
}

fn send<T: Send>(future: T) -> T {
    future
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"));
}

#[tokio::test]
async fn a_server_with_an_acl_user() {
    let server = Redis::with(&["--requirepass", "everything"]);
    let mut arguments = vec!["-a", "everything"];
    arguments.extend(ACL.split_whitespace());
    server.cli(&arguments);
    let login = |username: Option<&str>, password: Option<&str>| RedisConfig {
        login: Login { username: username.map(str::to_owned), password: password.map(str::to_owned) },
        ..config(&[server.port()])
    };
    keeps_its_promises(&login(Some("edge"), Some("hunter2"))).await;

    for (config, want) in [
        (login(None, None), "password is wrong, or one is missing"),
        (login(Some("edge"), Some("wrong")), "password is wrong, or one is missing"),
        (RedisConfig { prefix: "other".into(), ..login(Some("edge"), Some("hunter2")) }, "may not do this"),
    ] {
        let error = store(&config).get("account").await.unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        let cause = format!("{error}: {cause}");
        assert!(cause.contains(want) && !cause.contains("hunter2"), "{cause}");
    }
}

#[tokio::test]
async fn a_server_behind_tls() {
    let dir = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
    let (pem, key_path) = (dir.path().join("c.pem"), dir.path().join("k.pem"));
    std::fs::write(&pem, certificate.pem()).unwrap();
    std::fs::write(&key_path, key.serialize_pem()).unwrap();
    let (pem_text, key_text) = (pem.to_str().unwrap(), key_path.to_str().unwrap());
    let port = free_address().port();
    let server = Redis::with(&[
        "--tls-port",
        &port.to_string(),
        "--tls-cert-file",
        pem_text,
        "--tls-key-file",
        key_text,
        "--tls-ca-cert-file",
        pem_text,
        "--tls-auth-clients",
        "no",
    ]);
    let trusting = RedisConfig { tls: true, ca: Some(std::fs::read(&pem).unwrap()), ..config(&[port]) };
    keeps_its_promises(&trusting).await;
    // The system's authorities have not signed it.
    let refused = store(&RedisConfig { ca: None, ..trusting }).get("account").await.unwrap_err();
    assert!(refused.is_outage(), "{refused}");
    drop(server);
}

#[tokio::test]
async fn a_server_that_goes_and_comes_back() {
    let mut server = Redis::with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let store = store(&config(&[server.port()]));
    store.put("account", b"1", Expected::Absent).await.unwrap();
    let mut watch = store.watch();
    watch.changed().await;
    server.kill();
    let error = store.get("account").await.unwrap_err();
    assert!(error.is_outage(), "{error}");
    server.start_again();
    until("it is found again", async || match store.get("account").await {
        Ok(stored) => stored.unwrap().bytes == b"1",
        Err(error) => {
            assert!(error.is_outage(), "{error}");
            false
        }
    })
    .await;
    timeout(PATIENCE, watch.changed())
        .await
        .expect("who listens is told that something may have been missed");
    store.notify("certificates").await;
    timeout(PATIENCE, watch.changed()).await.expect("and hears again");

    // One that hangs holds nobody up for longer than the deadline.
    let short = Store::Redis(Box::new(
        RedisStore::new(&config(&[server.port()]), Duration::from_millis(200), POLL).unwrap(),
    ));
    server.cli(&["client", "pause", "20000", "ALL"]);
    let error = short.get("account").await.unwrap_err();
    assert!(error.is_outage(), "{error}");
}

#[tokio::test]
async fn sentinels_that_fail_over() {
    let mut master = Redis::start();
    let replica = Redis::with(&["--replicaof", &format!("127.0.0.1 {}", master.port())]);
    let sentinels: Vec<_> = (0..3).map(|_| Redis::sentinel(&master)).collect();
    let ports: Vec<u16> = sentinels.iter().map(|sentinel| sentinel.port()).collect();
    let config = RedisConfig {
        topology: Topology::Sentinel { master: "main".to_owned(), login: Login::default() },
        login: user(&[&master, &replica]),
        ..config(&ports)
    };
    eventually("the Sentinels know the replica and each other", || {
        let about = sentinels[0].cli(&["sentinel", "master", "main"]).replace('\n', " ");
        let all = about.contains("num-slaves 1") && about.contains("num-other-sentinels 2");
        if all { Ok(()) } else { Err(about) }
    });
    keeps_its_promises(&config).await;
    let store = store(&config);
    store.put("tickets", b"before", Expected::Absent).await.unwrap();
    eventually("the replica has it", || {
        match replica.cli(&["hget", "{portcullis}:store:tickets", "v"]).trim() {
            "before" => Ok(()),
            other => Err(other.to_owned()),
        }
    });
    master.kill();
    until("the replica is the master", async || {
        store.put("tickets", b"after", Expected::Anything).await.is_ok()
    })
    .await;
    assert_eq!(replica.cli(&["hget", "{portcullis}:store:tickets", "v"]).trim(), "after");
}

#[tokio::test]
async fn a_cluster() {
    let members: Vec<_> = (0..3).map(|_| Redis::with(&["--cluster-enabled", "yes"])).collect();
    let addresses: Vec<String> =
        members.iter().map(|member| format!("127.0.0.1:{}", member.port())).collect();
    let mut create = vec!["--cluster", "create"];
    create.extend(addresses.iter().map(String::as_str));
    create.push("--cluster-yes");
    members[0].cli(&create);
    for member in &members {
        eventually("the cluster is up", || {
            let info = member.cli(&["cluster", "info"]);
            if info.contains("cluster_state:ok") { Ok(()) } else { Err(info) }
        });
    }
    let ports: Vec<u16> = members.iter().map(|member| member.port()).collect();
    let login = user(&members.iter().collect::<Vec<_>>());
    for seeds in [&ports[..1], &ports] {
        let config = RedisConfig { topology: Topology::Cluster, login: login.clone(), ..config(seeds) };
        keeps_its_promises(&config).await;
        for key in ["account", "certificates/shop.test", "locks/shop.test"] {
            store(&config).delete(key).await.unwrap();
        }
    }

    let mut hints = Vec::new();
    for port in ports {
        if let Err(error) = store(&config(&[port])).get("account").await {
            hints.push(std::error::Error::source(&error).unwrap().to_string());
        }
    }
    assert!(hints.len() == 2 && hints.iter().all(|hint| hint.contains("`cluster = true`")), "{hints:?}");
}
