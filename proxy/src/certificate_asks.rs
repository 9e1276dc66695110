//! Handshakes that need a certificate which no snapshot holds: the data plane asks, the control plane answers.
//!
//! An ask ends within a time of its own, and costs a place in a short line: where the line is full, or nobody answers,
//! there is no certificate. So strangers who invent names can hold up each other, and nobody else.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use model::name::HostName;
use rustls::sign::CertifiedKey;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// What a certificate is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AskKind {
    /// To prove to a CA that the name is ours (RFC 8737): only for the length of an order, and for nothing else.
    Challenge,
    /// To serve a name for which none has been issued yet.
    OnDemand,
}

impl AskKind {
    /// A CA waits longer than this; whoever answers may have to look into a store on another machine.
    const CHALLENGE_WAIT: Duration = Duration::from_secs(2);
    /// Longer than most orders take. Browsers would wait longer, but each of them holds a place of the handshakes.
    const ON_DEMAND_WAIT: Duration = Duration::from_secs(10);
    /// Of one kind, of all workers.
    const LINE_MAX: usize = 256;

    /// How long a handshake waits for the answer.
    pub fn wait(self) -> Duration {
        match self {
            Self::Challenge => Self::CHALLENGE_WAIT,
            Self::OnDemand => Self::ON_DEMAND_WAIT,
        }
    }
}

/// One handshake that waits.
pub struct CertificateAsk {
    pub kind: AskKind,
    pub name: HostName,
    pub client: IpAddr,
    /// Closed once nobody waits any more.
    pub answer: oneshot::Sender<Option<Arc<CertifiedKey>>>,
}

/// The side that asks.
#[derive(Clone)]
pub struct CertificateAsks {
    challenges: mpsc::Sender<CertificateAsk>,
    on_demand: mpsc::Sender<CertificateAsk>,
}

/// The side that answers. Each kind has a line of its own, so that no flood of invented names keeps a CA waiting.
pub struct Asked {
    pub challenges: mpsc::Receiver<CertificateAsk>,
    pub on_demand: mpsc::Receiver<CertificateAsk>,
}

impl CertificateAsks {
    pub fn new() -> (Self, Asked) {
        let (challenges, challenges_asked) = mpsc::channel(AskKind::LINE_MAX);
        let (on_demand, on_demand_asked) = mpsc::channel(AskKind::LINE_MAX);
        (Self { challenges, on_demand }, Asked { challenges: challenges_asked, on_demand: on_demand_asked })
    }

    /// Waits for an answer, at most `kind.wait()`.
    pub async fn ask(&self, kind: AskKind, name: HostName, client: IpAddr) -> Option<Arc<CertifiedKey>> {
        let (answer, answered) = oneshot::channel();
        let line = match kind {
            AskKind::Challenge => &self.challenges,
            AskKind::OnDemand => &self.on_demand,
        };
        line.try_send(CertificateAsk { kind, name, client, answer }).ok()?;
        timeout(kind.wait(), answered).await.ok()?.ok()?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::certificate;

    fn ask(asks: &CertificateAsks, kind: AskKind) -> impl Future<Output = Option<Arc<CertifiedKey>>> {
        let asks = asks.clone();
        async move { asks.ask(kind, "shop.test".parse().unwrap(), [192, 0, 2, 7].into()).await }
    }

    #[tokio::test(start_paused = true)]
    async fn an_ask_ends_with_its_answer_or_with_its_time() {
        let (asks, mut asked) = CertificateAsks::new();
        let certified = certificate::self_signed(&["shop.test".parse().unwrap()]).unwrap();
        let answered = async {
            let one = asked.on_demand.recv().await.unwrap();
            assert_eq!((one.kind, one.name.as_str()), (AskKind::OnDemand, "shop.test"));
            one.answer.send(Some(Arc::clone(&certified))).unwrap();
        };
        let (got, ()) = tokio::join!(ask(&asks, AskKind::OnDemand), answered);
        assert!(Arc::ptr_eq(&got.unwrap(), &certified));

        // Nobody answers: it lies in the line, and whoever takes it out sees that nobody waits for it any more.
        assert!(ask(&asks, AskKind::Challenge).await.is_none());
        assert!(asked.challenges.recv().await.unwrap().answer.is_closed());

        drop(asked);
        assert!(ask(&asks, AskKind::OnDemand).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_line_refuses_its_own_kind_alone() {
        let (asks, mut asked) = CertificateAsks::new();
        let waiting = (0..AskKind::LINE_MAX).map(|_| ask(&asks, AskKind::OnDemand));
        let waiting = futures_util::future::join_all(waiting);
        let others = async {
            tokio::task::yield_now().await;
            let before = tokio::time::Instant::now();
            assert!(ask(&asks, AskKind::OnDemand).await.is_none());
            assert_eq!(before.elapsed(), Duration::ZERO, "at once");
            let answer = async { asked.challenges.recv().await.unwrap().answer.send(None).unwrap() };
            tokio::join!(ask(&asks, AskKind::Challenge), answer);
            assert_eq!(before.elapsed(), Duration::ZERO, "the others' line is free");
        };
        tokio::join!(waiting, others);
    }
}
