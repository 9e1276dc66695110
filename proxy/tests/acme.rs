//! The adapter for authorities, against real Pebble: what the control plane can rely on.

#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use harness::{AcmeFront, Fault, Pebble, PebbleOptions, SuggestedWindow};
use model::issuing::Failure;
use model::own_certificates::KeyKind;
use model::renewal::Window;
use portcullis::adapters::acme::{
    AccountKey, AcmeError, Challenge, Client, Issued, Wanted, certified, challenge_certificate,
};
use portcullis::adapters::certificate::chain;
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
    let certified = certified(&issued.chain_pem, &issued.key_pem).unwrap();
    let facts = chain::facts(&certified.cert, KeyKind::Ecdsa).unwrap();
    let names: HashSet<String> = facts.names.iter().map(ToString::to_string).collect();
    assert_eq!(names, hosts.iter().map(ToString::to_string).collect());
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

/// An authority with what Debian's Pebble lacks.
fn in_front(front: &AcmeFront) -> Authority {
    Authority {
        directory: front.directory(),
        root: Some(front.root()),
        contact: Vec::new(),
        profile: None,
        external_account: None,
    }
}

#[test]
fn renewal_information() {
    runtime().block_on(async {
        let pebble = Pebble::start();
        let front = AcmeFront::before(&pebble);
        let window = SuggestedWindow {
            start_ms: 1_900_000_000_000,
            end_ms: 1_900_000_600_000,
            retry_after_seconds: 4321,
        };
        front.suggest(window);
        let key = AccountKey::generate().unwrap();
        let _answers = answer_tokens(&pebble, key.thumbprint()).await;
        let client = Client::open(&in_front(&front), &key).await.unwrap();
        let plain = wanted(&["shop.test"], ChallengeKind::Http01);
        let first = client.order(&plain, at_once).await.unwrap();
        let id = first.id.unwrap();

        let told = client.renewal_info(&id).await.unwrap().unwrap();
        assert_eq!(told.window, Window::new(window.start_ms, window.end_ms).unwrap());
        // What has gone by since is taken off.
        assert!((4000..=4321).contains(&told.retry_after.as_secs()), "{told:?}");
        assert_eq!(told.explanation.as_deref(), Some("https://ca.test/why"));
        assert_eq!(front.asked_for(), [id.as_str()]);

        let renewal = Wanted { replaces: Some(id.clone()), ..plain };
        let second = client.order(&renewal, at_once).await.unwrap();
        assert_ne!(second.id, Some(id.clone()));
        assert_eq!(front.orders().last().unwrap()["replaces"], id.as_str());
        // It is replaced by now, and that is no reason to go without a certificate.
        client.order(&renewal, at_once).await.unwrap();
        let replaces: Vec<bool> = front.orders().iter().map(|order| !order["replaces"].is_null()).collect();
        assert_eq!(replaces, [false, true, true, false]);

        let swapped = SuggestedWindow { start_ms: window.end_ms, end_ms: window.start_ms, ..window };
        front.suggest(swapped);
        assert_eq!(client.renewal_info(&id).await, Ok(None), "a window that ends before it starts is none");
        front.fail("/renewal-info", Fault::Answer { status: 404, retry_after: None, problem: None }, 1);
        client.renewal_info(&id).await.unwrap_err();
    });
}

#[test]
fn profiles() {
    runtime().block_on(async {
        let pebble = Pebble::start();
        let front = AcmeFront::before(&pebble);
        let key = AccountKey::generate().unwrap();
        let _answers = answer_tokens(&pebble, key.thumbprint()).await;
        let asking = Authority { profile: Some("shortlived".to_owned()), ..in_front(&front) };
        let shop = wanted(&["shop.test"], ChallengeKind::Http01);

        // An authority that has none is not asked for one.
        let client = Client::open(&asking, &key).await.unwrap();
        client.begin(&shop).await.unwrap();
        front.offer_profiles(&["classic", "tlsserver"]);
        let error = Client::open(&asking, &key).await.unwrap().begin(&shop).await.unwrap_err();
        let want = "the authority has no profile `shortlived`; it has classic, tlsserver";
        assert_eq!(error.to_string(), want);
        front.offer_profiles(&["classic", "shortlived"]);
        Client::open(&asking, &key).await.unwrap().order(&shop, at_once).await.unwrap();
        let asked: Vec<_> = front.orders().iter().map(|order| order["profile"].clone()).collect();
        assert_eq!(asked, [serde_json::Value::Null, "shortlived".into()]);
    });
}

#[test]
fn an_authority_that_is_busy() {
    runtime().block_on(async {
        let pebble = Pebble::start();
        let front = AcmeFront::before(&pebble);
        let key = AccountKey::generate().unwrap();
        let _answers = answer_tokens(&pebble, key.thumbprint()).await;
        let client = Client::open(&in_front(&front), &key).await.unwrap();
        let shop = wanted(&["shop.test"], ChallengeKind::Http01);

        front.fail_orders(Fault::rate_limited(1234), 1);
        let error = client.begin(&shop).await.unwrap_err();
        assert!(matches!(error, AcmeError::RateLimited(_)), "{error:?}");
        assert_eq!(error.retry_after().map(|wait| wait.as_secs()), Some(1234));
        assert_eq!(error.failure(), Failure::Limited);
        assert!(error.to_string().contains("too many certificates (5) already issued"), "{error}");

        for (status, problem) in [(429, None), (503, None), (503, Some("down for maintenance"))] {
            let problem = problem.map(|detail| serde_json::json!({ "detail": detail }));
            let away = Fault::Answer { status, retry_after: Some("77".to_owned()), problem: problem.clone() };
            front.fail_orders(away, 1);
            let error = client.begin(&shop).await.unwrap_err();
            assert_eq!(error.retry_after().map(|wait| wait.as_secs()), Some(77), "{status}: {error:?}");
            let want = if status == 429 { Failure::Limited } else { Failure::Away };
            assert_eq!(error.failure(), want, "{error:?}");
            assert!(error.to_string().contains(&status.to_string()), "{error}");
            assert!(problem.is_none() || error.to_string().contains("down for maintenance"), "{error}");
        }

        // In the middle of an order: what was begun is still good.
        let begun = client.begin(&shop).await.unwrap();
        front.fail("/finalize-order", Fault::Answer { status: 503, retry_after: None, problem: None }, 1);
        let error = client.finish(&shop, &begun, at_once).await.unwrap_err();
        assert!(!error.ends_the_order(), "{error:?}");
        let issued = client.finish(&shop, &begun, at_once).await.unwrap();
        serves(&issued, &["shop.test"]);
        assert_eq!(pebble.orders(), 1);
    });
}

#[test]
fn new_contacts_are_told() {
    runtime().block_on(async {
        let pebble = Pebble::start();
        let key = AccountKey::generate().unwrap();
        let silent = Authority { contact: Vec::new(), ..authority(&pebble) };
        let first = Client::open(&silent, &key).await.unwrap();
        let told = Client::open(&authority(&pebble), &key).await.unwrap();
        assert_eq!(first.account_url(), told.account_url());
        // Pebble has them now, so that there is nothing to tell any more.
        let before = pebble.log().lines().filter(|line| line.contains("POST /my-account/")).count();
        Client::open(&authority(&pebble), &key).await.unwrap();
        let after = pebble.log().lines().filter(|line| line.contains("POST /my-account/")).count();
        assert_eq!((before > 0, after), (true, before));
    });
}
