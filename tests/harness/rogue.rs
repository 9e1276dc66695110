//! Peers on the target's port that are not an app at all.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use socket2::SockRef;

/// A listener that treats every connection alike.
pub struct Rogue {
    address: SocketAddr,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Rogue {
    /// Greets like an SSH server and waits.
    pub fn speaking_ssh() -> Self {
        let mut kept = Vec::new();
        Self::that(move |mut stream| {
            let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n");
            kept.push(stream);
        })
    }

    /// Cuts every connection with a reset.
    pub fn resetting() -> Self {
        Self::that(|stream| {
            // Closing with a linger time of zero sends RST (tcp(7), SO_LINGER).
            let _ = SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO));
        })
    }

    /// Accepts and says nothing, ever.
    pub fn mute() -> Self {
        let mut kept = Vec::new();
        Self::that(move |stream| kept.push(stream))
    }

    fn that(mut treat: impl FnMut(TcpStream) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
        let address = listener.local_addr().expect("a bound listener has an address");
        let over = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                stream.into_iter().for_each(&mut treat);
            }
        });
        Self { address, over, thread: Some(thread) }
    }

    pub fn target(&self) -> String {
        self.address.to_string()
    }
}

impl Drop for Rogue {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // Wakes the accept.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
