//! The adapter for authorities, against real Pebble: what the control plane can rely on.

#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use harness::{Pebble, PebbleOptions};
use portcullis::adapters::acme::{
    AccountKey, AcmeError, Challenge, Client, Issued, Wanted, certified, challenge_certificate, facts,
};
use portcullis::config::{Authority, ChallengeKind, ExternalAccount};
use rustls::ServerConfig;
use rustls::sign::SingleCertAndKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn authority(pebble: &Pebble) -> Authority {
    Authority {
        directory: pebble.directory(),
        root: Some(pebble.root()),
        contact: vec!["mailto:ops@shop.test".to_owned()],
        profile: None,
        external_account: None,
    }
}

fn wanted(hosts: &[&str], challenge: ChallengeKind) -> Wanted {
    let hosts = hosts.iter().map(|host| host.parse().unwrap()).collect();
    Wanted { hosts, replaces: None, challenge }
}

/// Answers every token, as the data plane does: with the thumbprint and no memory.
async fn answer_tokens(pebble: &Pebble, thumbprint: &str) -> JoinSet<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    pebble.validate_at(&[listener.local_addr().unwrap()], &[]);
    let thumbprint = thumbprint.to_owned();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = vec![0; 4096];
            let n = stream.read(&mut head).await.unwrap_or(0);
            let head = String::from_utf8_lossy(&head[..n]).into_owned();
            let path = head.split(' ').nth(1).unwrap_or_default();
            let token = path.strip_prefix("/.well-known/acme-challenge/").unwrap_or_default();
            let body = format!("{token}.{thumbprint}");
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    tasks
}

async fn at_once(_: Challenge) -> Result<(), String> {
    Ok(())
}

fn serves(issued: &Issued, hosts: &[&str]) {
    certified(&issued.chain_pem, &issued.key_pem).unwrap();
    let facts = facts(&issued.chain_pem).unwrap();
    let names: HashSet<&str> = facts.names.iter().map(String::as_str).collect();
    assert_eq!(names, hosts.iter().copied().collect());
    assert_eq!((facts.not_before_ms, facts.not_after_ms), (issued.not_before_ms, issued.not_after_ms));
    assert_eq!(issued.key_pem.expose().matches("PRIVATE KEY").count(), 2);
    assert!(!format!("{issued:?}").contains("PRIVATE KEY"), "keys stay out of logs");
}

#[test]
fn a_certificate_by_http_01() {
    runtime().block_on(async {
        let pebble = Pebble::with(PebbleOptions { validity_seconds: 3600, ..PebbleOptions::default() });
        let key = AccountKey::generate().unwrap();
        let _answers = answer_tokens(&pebble, key.thumbprint()).await;
        let client = Client::open(&authority(&pebble), &key).await.unwrap();

        let hosts = ["shop.test", "www.shop.test"];
        let told = Arc::new(Mutex::new(Vec::new()));
        let ready = |challenge: Challenge| {
            told.lock().unwrap().push(challenge);
            at_once(told.lock().unwrap().last().unwrap().clone())
        };
        let issued = client.order(&wanted(&hosts, ChallengeKind::Http01), ready).await.unwrap();

        serves(&issued, &hosts);
        let lifetime_ms = issued.not_after_ms - issued.not_before_ms;
        assert!((3_590_000..=3_610_000).contains(&lifetime_ms), "{lifetime_ms}");
        let told = told.lock().unwrap().clone();
        let challenged: HashSet<&str> = told.iter().map(|one| one.host.as_str()).collect();
        assert_eq!(challenged, hosts.into(), "each host once: {told:?}");
        for one in told.iter() {
            assert_eq!(one.key_authorization, format!("{}.{}", one.token, key.thumbprint()));
        }
        assert_eq!((pebble.orders(), pebble.issued()), (1, 1));

        // Whoever has the key has the account.
        let again = Client::open(&authority(&pebble), &key).await.unwrap();
        assert_eq!(again.account_url(), client.account_url());
        assert_eq!(client.renewal_info(&issued.id.unwrap()).await, Ok(None), "Pebble 2.4 has no opinion");
    });
}

#[test]
fn a_certificate_by_tls_alpn_01() {
    runtime().block_on(async {
        let pebble = Pebble::start();
        let key = AccountKey::generate().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        pebble.validate_at(&[], &[listener.local_addr().unwrap()]);
        let client = Client::open(&authority(&pebble), &key).await.unwrap();
        let shown = Arc::new(Mutex::new(None));
        let mut answers = JoinSet::new();
        answers.spawn({
            let shown = Arc::clone(&shown);
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let certified = shown.lock().unwrap().clone().unwrap();
                    let mut config = ServerConfig::builder_with_provider(
                        rustls::crypto::aws_lc_rs::default_provider().into(),
                    )
                    .with_safe_default_protocol_versions()
                    .unwrap()
                    .with_no_client_auth()
                    .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
                    config.alpn_protocols = vec![b"acme-tls/1".to_vec()];
                    let _ = TlsAcceptor::from(Arc::new(config)).accept(stream).await;
                }
            }
        });
        let ready = |challenge: Challenge| {
            let certificate = challenge_certificate(&challenge.host, &challenge.key_authorization).unwrap();
            *shown.lock().unwrap() = Some((*certificate).clone());
            at_once(challenge)
        };
        let issued = client.order(&wanted(&["alpn.test"], ChallengeKind::TlsAlpn01), ready).await.unwrap();
        serves(&issued, &["alpn.test"]);
    });
}

#[test]
fn half_of_all_nonces_may_be_refused() {
    runtime().block_on(async {
        let pebble = Pebble::with(PebbleOptions { nonce_reject: 50, ..PebbleOptions::default() });
        let key = AccountKey::generate().unwrap();
        let _answers = answer_tokens(&pebble, key.thumbprint()).await;
        for n in 0..8 {
            let client = Client::open(&authority(&pebble), &key).await.unwrap();
            let host = format!("shop{n}.test");
            let issued = client.order(&wanted(&[&host], ChallengeKind::Http01), at_once).await.unwrap();
            serves(&issued, &[&host]);
        }
        assert_eq!(pebble.orders(), 8);
    });
}

#[test]
fn an_order_is_finished_by_whoever_has_it() {
    runtime().block_on(async {
        let pebble = Pebble::start();
        let key = AccountKey::generate().unwrap();
        let _answers = answer_tokens(&pebble, key.thumbprint()).await;
        let wanted = wanted(&["shop.test"], ChallengeKind::Http01);
        let first = Client::open(&authority(&pebble), &key).await.unwrap();
        let begun = first.begin(&wanted).await.unwrap();
        drop(first);

        let second = Client::open(&authority(&pebble), &key).await.unwrap();
        let issued = second.finish(&wanted, &begun, at_once).await.unwrap();
        serves(&issued, &["shop.test"]);
        let third = Client::open(&authority(&pebble), &key).await.unwrap();
        let again = third.finish(&wanted, &begun, at_once).await.unwrap();
        assert_eq!(again, issued, "a finished order yields what it has yielded");
        assert_eq!((pebble.orders(), pebble.issued()), (1, 1));
    });
}

#[test]
fn what_the_authority_says_is_passed_on() {
    runtime().block_on(async {
        let blocked = vec!["blocked.test".to_owned()];
        let pebble = Pebble::with(PebbleOptions { blocked, ..PebbleOptions::default() });
        let key = AccountKey::generate().unwrap();
        let client = Client::open(&authority(&pebble), &key).await.unwrap();

        let refused = client.order(&wanted(&["blocked.test"], ChallengeKind::Http01), at_once).await;
        let error = refused.unwrap_err();
        assert!(matches!(&error, AcmeError::Refused(r) if r.is("rejectedIdentifier")), "{error:?}");
        assert!(error.to_string().contains("blocked.test"), "{error}");

        // Nobody answers there.
        let hosts = ["a.test", "b.test"];
        let invalid = client.order(&wanted(&hosts, ChallengeKind::Http01), at_once).await.unwrap_err();
        let AcmeError::Invalid { host, .. } = &invalid else { panic!("{invalid:?}") };
        assert!(hosts.contains(&host.as_str()), "{invalid}");
        assert!(invalid.ends_the_order());

        let unready = |_| async { Err::<(), _>("the store is away") };
        let error = client.order(&wanted(&["c.test"], ChallengeKind::Http01), unready).await.unwrap_err();
        assert_eq!(error.to_string(), "the challenge for c.test could not be made ready: the store is away");
        assert!(!error.ends_the_order());
    });
}

#[test]
fn an_authority_that_is_away_or_is_none() {
    runtime().block_on(async {
        let mut pebble = Pebble::start();
        let key = AccountKey::generate().unwrap();
        let good = authority(&pebble);
        let client = Client::open(&good, &key).await.unwrap();

        let stranger = Authority { root: None, ..good.clone() };
        let error = Client::open(&stranger, &key).await.unwrap_err();
        assert!(matches!(error, AcmeError::Unreachable { .. }), "a root of ours alone: {error:?}");
        let elsewhere = Authority { directory: format!("{}/nowhere", good.directory), ..good.clone() };
        let error = Client::open(&elsewhere, &key).await.unwrap_err();
        assert!(matches!(&error, AcmeError::Refused(r) if r.status == 404), "{error:?}");

        pebble.start_again();
        // The connection from before is dead.
        let _ = client.begin(&wanted(&["shop.test"], ChallengeKind::Http01)).await;
        let error = client.begin(&wanted(&["shop.test"], ChallengeKind::Http01)).await.unwrap_err();
        assert!(matches!(error, AcmeError::Account(_)), "it has forgotten us: {error:?}");
        let known_again = Client::open(&good, &key).await.unwrap();
        known_again.begin(&wanted(&["shop.test"], ChallengeKind::Http01)).await.unwrap();

        pebble.stop();
        let error = known_again.begin(&wanted(&["shop.test"], ChallengeKind::Http01)).await.unwrap_err();
        assert!(matches!(error, AcmeError::Unreachable { .. }), "{error:?}");
        let error = Client::open(&good, &key).await.unwrap_err();
        assert!(error.to_string().contains("Connection refused"), "{error}");
    });
}

#[test]
fn external_accounts() {
    runtime().block_on(async {
        let hmac_key = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W".to_owned();
        let external = Some(("kid-1".to_owned(), hmac_key.clone()));
        let pebble = Pebble::with(PebbleOptions { external_account: external, ..PebbleOptions::default() });
        let key = AccountKey::generate().unwrap();
        let _answers = answer_tokens(&pebble, key.thumbprint()).await;
        let bound = |key_id: &str, hmac_key: &str| {
            let (key_id, hmac_key) = (key_id.to_owned(), hmac_key.to_owned());
            Authority { external_account: Some(ExternalAccount { key_id, hmac_key }), ..authority(&pebble) }
        };

        let error = Client::open(&authority(&pebble), &key).await.unwrap_err();
        assert!(matches!(&error, AcmeError::Refused(r) if r.is("externalAccountRequired")), "{error:?}");
        for wrong in [bound("kid-2", &hmac_key), bound("kid-1", "d3Jvbmc")] {
            Client::open(&wrong, &key).await.unwrap_err();
        }
        let client = Client::open(&bound("kid-1", &hmac_key), &key).await.unwrap();
        let issued = client.order(&wanted(&["shop.test"], ChallengeKind::Http01), at_once).await.unwrap();
        serves(&issued, &["shop.test"]);
    });
}

#[test]
fn revoking() {
    runtime().block_on(async {
        let pebble = Pebble::start();
        let key = AccountKey::generate().unwrap();
        let _answers = answer_tokens(&pebble, key.thumbprint()).await;
        let client = Client::open(&authority(&pebble), &key).await.unwrap();
        let issued = client.order(&wanted(&["shop.test"], ChallengeKind::Http01), at_once).await.unwrap();
        let stranger = Client::open(&authority(&pebble), &AccountKey::generate().unwrap()).await.unwrap();
        stranger.revoke(&issued.chain_pem, true).await.unwrap_err();
        client.revoke(&issued.chain_pem, false).await.unwrap();
        client.revoke(&issued.chain_pem, false).await.expect("what is revoked stays revoked");
    });
}

#[test]
fn a_frozen_authority_does_not_hold_us_up_for_ever() {
    runtime().block_on(async {
        let pebble = Pebble::start();
        let key = AccountKey::generate().unwrap();
        let client = Client::open(&authority(&pebble), &key).await.unwrap();
        pebble.freeze();
        // Nothing but a deadline can end this.
        tokio::time::pause();
        let error = client.begin(&wanted(&["shop.test"], ChallengeKind::Http01)).await.unwrap_err();
        pebble.thaw();
        assert!(matches!(error, AcmeError::Unreachable { .. }), "{error:?}");
    });
}
