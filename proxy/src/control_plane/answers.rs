//! One quick look at a release that is to get the traffic without a gate: whether anybody is there at all.
//! Its health over time is the monitor's business.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use model::diagnosis::ProbeOutcome;
use model::service::Policy;
use tokio::time::timeout;

use super::activations::Activation;
use super::gate::probe_host;
use crate::data_plane::upstream::probe::{Look, probe};

/// Whoever takes longer is no place to go back to in a hurry.
const LIMIT: Duration = Duration::from_secs(1);

/// Ready as soon as one target passes; what a probe saw if none does.
pub async fn look(activation: &Activation, policy: &Policy) -> Result<(), String> {
    let limit = policy.gate.timeout.min(LIMIT);
    // While it drains, requests that it still works on may occupy all of its threads.
    let is_busy = activation.all().any(|release| release.in_flight().total() > 0);
    let targets = activation.record.targets.iter().zip(&activation.release.targets);
    let mut probes: FuturesUnordered<_> = targets
        .map(|(address, target)| async move {
            let host = probe_host(policy, address);
            let probing = probe(&target.endpoint, &policy.gate, &host, limit, Look::Quick);
            let seen = timeout(limit, probing).await.unwrap_or(ProbeOutcome::Timeout { after: limit });
            (address, seen)
        })
        .collect();
    let mut failure = String::new();
    while let Some((address, seen)) = probes.next().await {
        if seen.passed() || (is_busy && matches!(seen, ProbeOutcome::Timeout { .. })) {
            return Ok(());
        }
        failure = format!("target `{address}`: {seen}");
    }
    Err(failure)
}

#[cfg(test)]
mod tests {
    use model::canary::Cohort;
    use model::service::Release as Record;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::task::JoinSet;

    use super::super::activations::Factory;
    use super::*;
    use crate::release::Endpoint;
    use crate::telemetry::metrics::Metrics;

    const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    const ERROR: &[u8] = b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n";
    const SILENCE: &[u8] = b"";

    /// Answers every connection with these bytes; without any, it waits.
    async fn target(answer: &'static [u8], tasks: &mut JoinSet<()>) -> Endpoint {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tasks.spawn(async move {
            let mut kept = Vec::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                if !answer.is_empty() {
                    let _ = stream.read(&mut [0; 1024]).await;
                    let _ = stream.write_all(answer).await;
                }
                kept.push(stream);
            }
        });
        Endpoint::Tcp(address)
    }

    fn activation(endpoints: Vec<Endpoint>) -> Activation {
        let address = |endpoint: &Endpoint| endpoint.to_string().parse().unwrap();
        let targets = endpoints.iter().map(address).collect();
        let record = Record { id: "r1".parse().unwrap(), targets, created_ms: 0, readers: Vec::new() };
        let factory = Factory::new(Metrics::new(1), 1);
        factory.activate(&"shop".parse().unwrap(), Cohort::Stable, &record, endpoints)
    }

    #[tokio::test]
    async fn one_target_that_passes_is_enough() {
        let (mut tasks, mut ended) = (JoinSet::new(), JoinSet::new());
        let gone = target(OK, &mut ended).await;
        let (good, bad) = (target(OK, &mut tasks).await, target(ERROR, &mut tasks).await);
        ended.shutdown().await;
        for (endpoints, want) in [
            (vec![good.clone()], None),
            (vec![gone.clone(), bad.clone(), good], None),
            (vec![gone], Some("connection refused")),
            (vec![bad], Some("500")),
        ] {
            let seen = look(&activation(endpoints.clone()), &Policy::default()).await;
            match want {
                None => assert_eq!(seen, Ok(()), "{endpoints:?}"),
                Some(want) => assert!(seen.clone().unwrap_err().contains(want), "{seen:?}"),
            }
        }
    }

    #[tokio::test]
    async fn silence_is_forgiven_while_it_still_works() {
        let mut tasks = JoinSet::new();
        let mut policy = Policy::default();
        policy.gate.timeout = Duration::from_millis(50);
        let silent = activation(vec![target(SILENCE, &mut tasks).await]);
        assert!(look(&silent, &policy).await.unwrap_err().contains("no answer"));
        let _request = silent.release.enter(&silent.release.targets[0], 0).unwrap();
        assert_eq!(look(&silent, &policy).await, Ok(()));
    }
}
