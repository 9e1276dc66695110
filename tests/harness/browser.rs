//! A client that keeps its cookies, as a visitor's browser does.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::exchange::{Answer, Ask};

pub struct Browser {
    address: SocketAddr,
    host: String,
    headers: Vec<(String, String)>,
    pub cookies: BTreeMap<String, String>,
}

impl Browser {
    pub fn new(address: SocketAddr, host: &str, user_agent: &str) -> Self {
        let headers = vec![("user-agent".to_owned(), user_agent.to_owned())];
        Self { address, host: host.to_owned(), headers, cookies: BTreeMap::new() }
    }

    /// Sends what it sends to another door of the same house.
    pub fn moves_to(&mut self, address: SocketAddr) {
        self.address = address;
    }

    #[track_caller]
    pub fn get(&mut self, path: &str) -> Answer {
        let mut ask = Ask::get(&self.host, path);
        for (name, value) in &self.headers {
            ask = ask.header(name, value);
        }
        if !self.cookies.is_empty() {
            ask = ask.header("cookie", &self.cookie_header());
        }
        let answer = ask.at(self.address);
        self.keep_cookies(&answer);
        answer
    }

    pub fn cookie_header(&self) -> String {
        let pairs: Vec<_> = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        pairs.join("; ")
    }

    fn keep_cookies(&mut self, answer: &Answer) {
        for cookie in answer.headers.get_all("set-cookie") {
            let cookie = cookie.to_str().expect("a cookie is text");
            let pair = cookie.split(';').next().and_then(|pair| pair.split_once('='));
            let (name, value) = pair.expect("a cookie is a name and a value");
            self.cookies.insert(name.trim().to_owned(), value.trim().to_owned());
        }
    }
}
