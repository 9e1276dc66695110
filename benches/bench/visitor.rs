//! What visitors send: a browser's fields, a session of the app, and the cookie by which Portcullis knows them
//! again. All proxies get the same bytes.

use model::canary::{Assignment, COOKIE_PLAIN, COOKIE_SECURE, FleetSecret, Overrides, Visit, VisitorSource};
use model::weight::Weight;

use crate::origin::Body;

pub(crate) const HOST: &str = "app.test";
/// Of every Portcullis of the bench, so that each knows the visitors' cookies.
pub(crate) const FLEET_SECRET: &str = "bench";

const USER_AGENT: &str =
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36";

pub(crate) struct Visitor {
    /// Portcullis's cookie without its name.
    id: String,
    session: String,
}

impl Visitor {
    /// The same number is the same visitor.
    pub(crate) fn new(number: usize) -> Self {
        let secret = FleetSecret::new(FLEET_SECRET.as_bytes());
        let anyone = Assignment::new(
            &secret,
            "app",
            "bench",
            Weight::default(),
            VisitorSource::default(),
            Overrides::default(),
        );
        // Who has no cookie yet is told apart by the browser.
        let browser = format!("browser {number}");
        let visit = Visit {
            header: |_: &str| None,
            cookie: |_: &str| None,
            client: [127, 0, 0, 1].into(),
            day: 20_000,
            user_agent: browser.as_bytes(),
        };
        let id = anyone.assign(&visit, true).set_cookie.unwrap_or_default();
        let session = format!("{:0>88}", format!("Zk3Jq1bX0vL9dW2mT7yR5uP8aQ4sE6hG{number}"));
        Self { id, session }
    }

    /// Name and value, in the order of a browser; `host` is not among them.
    fn fields(&self, is_secure: bool) -> [(&'static str, String); 8] {
        let ours = if is_secure { COOKIE_SECURE } else { COOKIE_PLAIN };
        let scheme = if is_secure { "https" } else { "http" };
        [
            ("User-Agent", USER_AGENT.to_owned()),
            ("Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8".to_owned()),
            ("Accept-Language", "en-GB,en;q=0.9".to_owned()),
            ("Accept-Encoding", "gzip, deflate, br, zstd".to_owned()),
            ("Referer", format!("{scheme}://{HOST}/orders")),
            ("Cookie", format!("_shop_session={}; {ours}={}", self.session, self.id)),
            ("Upgrade-Insecure-Requests", "1".to_owned()),
            ("Cache-Control", "max-age=0".to_owned()),
        ]
    }

    /// A whole HTTP/1.1 request.
    pub(crate) fn http1(&self, body: Body, is_secure: bool, closes: bool) -> Vec<u8> {
        let mut request = format!("GET {} HTTP/1.1\r\nHost: {HOST}\r\n", body.path());
        for (name, value) in self.fields(is_secure) {
            request += &format!("{name}: {value}\r\n");
        }
        request += if closes { "Connection: close\r\n\r\n" } else { "\r\n" };
        request.into_bytes()
    }

    /// The header blocks of HTTP/2, for the first request of a connection and for all others.
    ///
    /// As browsers do: the first puts every field into the decoder's table, the others name its entries. They
    /// are whole blocks, so no encoder has to run. The table must have its default size of 4 096 bytes.
    pub(crate) fn http2(&self, body: Body) -> HeaderBlocks {
        let mut first = vec![METHOD_GET, SCHEME_HTTPS];
        first.push(INCREMENTAL | AUTHORITY);
        text(&mut first, HOST);
        first.push(INCREMENTAL | PATH);
        text(&mut first, body.path());
        let fields = self.fields(true);
        for (name, value) in &fields {
            first.push(INCREMENTAL);
            text(&mut first, &name.to_ascii_lowercase());
            text(&mut first, value);
        }
        let entries = u8::try_from(fields.len() + 2).expect("a few fields");
        let others = [METHOD_GET, SCHEME_HTTPS]
            .into_iter()
            .chain((0..entries).rev().map(|age| INDEXED | (FIRST_DYNAMIC + age)));
        HeaderBlocks { first, others: others.collect() }
    }
}

pub(crate) struct HeaderBlocks {
    pub first: Vec<u8>,
    pub others: Vec<u8>,
}

// RFC 7541, section 6 and appendix A.
const INDEXED: u8 = 0x80;
const INCREMENTAL: u8 = 0x40;
const METHOD_GET: u8 = INDEXED | 2;
const SCHEME_HTTPS: u8 = INDEXED | 7;
const AUTHORITY: u8 = 1;
const PATH: u8 = 4;
const FIRST_DYNAMIC: u8 = 62;

/// A string without Huffman's code.
fn text(block: &mut Vec<u8>, text: &str) {
    integer(block, 0x7f, text.len());
    block.extend_from_slice(text.as_bytes());
}

/// RFC 7541, section 5.1; the bits above the prefix are zero.
fn integer(block: &mut Vec<u8>, prefix_max: u8, mut value: usize) {
    if value < usize::from(prefix_max) {
        block.push(value as u8);
        return;
    }
    block.push(prefix_max);
    value -= usize::from(prefix_max);
    while value >= 0x80 {
        block.push(0x80 | (value & 0x7f) as u8);
        value >>= 7;
    }
    block.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_as_in_the_rfc() {
        // Appendix C.1 has them with a prefix of five bits.
        for (value, prefix_max, wants) in
            [(10, 0x1f, &[10][..]), (1337, 0x1f, &[31, 154, 10]), (42, 0xff, &[42]), (127, 0x7f, &[127, 0])]
        {
            let mut block = Vec::new();
            integer(&mut block, prefix_max, value);
            assert_eq!(block, wants, "{value}");
        }
    }

    #[test]
    fn visitors_differ_and_stay_who_they_are() {
        let request = |number| Visitor::new(number).http1(Body::Small, false, false);
        assert_ne!(request(1), request(2));
        assert_eq!(request(1), request(1));
        assert!(request(1).ends_with(b"\r\n\r\n"));
        let text = String::from_utf8(request(3)).unwrap();
        assert!(
            text.contains("; portcullis-visitor=") && !text.contains("portcullis-visitor=\r\n"),
            "{text}"
        );
    }

    #[test]
    fn later_blocks_name_every_field_once() {
        let blocks = Visitor::new(0).http2(Body::Small);
        assert_eq!(blocks.others, [0x82, 0x87, 199, 198, 197, 196, 195, 194, 193, 192, 191, 190]);
        assert!(blocks.first.len() > 400 && blocks.first.len() < 4096);
    }
}
