//! A balancer for TCP: hands each connection to the next of its targets, which can change at any time.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::runtime::runtime;

/// Listens from the start, so that its port can be told to others before there is a target. Closes at once what it
/// cannot hand on.
pub struct Forwarder {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    targets: Mutex<Vec<SocketAddr>>,
    connections: AtomicUsize,
}

impl Forwarder {
    pub fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
        listener.set_nonblocking(true).expect("a socket can be made non-blocking");
        let address = listener.local_addr().expect("a bound listener has an address");
        let shared = Arc::new(Shared::default());
        let task = runtime().spawn(accept(listener, Arc::clone(&shared)));
        Self { address, shared, task }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on. Connections that are open stay where they are.
    pub fn forward_to(&self, targets: &[SocketAddr]) {
        *self.shared.targets.lock().expect("no holder panics") = targets.to_vec();
    }

    /// How many connections have come so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: std::net::TcpListener, shared: Arc<Shared>) {
    let listener = TcpListener::from_std(listener).expect("a runtime with I/O");
    // Out of descriptors: the story fails by itself.
    while let Ok((mut stream, _)) = listener.accept().await {
        let n = shared.connections.fetch_add(1, Ordering::SeqCst);
        let target = {
            let targets = shared.targets.lock().expect("no holder panics");
            targets.get(n % targets.len().max(1)).copied()
        };
        let Some(target) = target else { continue };
        runtime().spawn(async move {
            if let Ok(mut upstream) = TcpStream::connect(target).await {
                // Who broke it off is seen by both ends.
                let _ = copy_bidirectional(&mut stream, &mut upstream).await;
            }
        });
    }
}
