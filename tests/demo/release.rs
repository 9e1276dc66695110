//! The demo's releases: real Pumas where Puma is installed, else an app that is built in.

use std::io::Write;
use std::process::{Command, Stdio};

use harness::{App, Puma, Recorder, now_ms};

/// A release that runs; it stops when dropped.
pub(crate) enum Release {
    Puma(Puma),
    BuiltIn(Recorder),
}

/// The classic: the app redirects the health check to HTTPS.
const REDIRECTED: &[u8] =
    b"HTTP/1.1 301 Moved Permanently\r\nLocation: https://shop.test/up\r\nContent-Length: 0\r\n\r\n";
const UP: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nup";

pub(crate) fn puma_is_installed() -> bool {
    let mut puma = Command::new("puma");
    puma.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    puma.status().is_ok_and(|status| status.success())
}

impl Release {
    pub(crate) fn good(name: &'static str, with_puma: bool) -> Self {
        if with_puma { Self::Puma(Puma::start(App::Rack, name)) } else { Self::built_in(name, UP) }
    }

    pub(crate) fn broken(name: &'static str, with_puma: bool) -> Self {
        if with_puma {
            Self::Puma(Puma::misbehaving(App::Rack, name, &[("BAD", "redirect")]))
        } else {
            Self::built_in(name, REDIRECTED)
        }
    }

    fn built_in(name: &'static str, health: &'static [u8]) -> Self {
        Self::BuiltIn(Recorder::with_health(health, move |_, stream| {
            let fields = format!("X-Release: {name}\r\nX-Served-At-Ms: {}\r\n", now_ms());
            let answer = format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: {}\r\n\r\n{name}", name.len());
            // A client that has left is not the app's affair.
            let _ = stream.write_all(answer.as_bytes());
        }))
    }

    pub(crate) fn target(&self) -> String {
        match self {
            Self::Puma(puma) => puma.target(),
            Self::BuiltIn(app) => app.target(),
        }
    }
}
