//! What one probe of a target saw, and the text of an answer made fit for people.
//!
//! Sending probes is the daemon's business; what a row of outcomes means is `diagnosis`'s.

use std::fmt;
use std::time::Duration;

use crate::duration;

/// At most so much of a body is kept, in bytes.
pub const BODY_HEAD_BYTES_MAX: usize = 2048;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeOutcome {
    /// Nothing listens.
    Refused,
    /// The connection was made and then reset, without an answer.
    Reset,
    /// No connection within its deadline.
    ConnectTimeout,
    /// Connected, but no response head within `after`.
    Timeout {
        after: Duration,
    },
    /// The connection ended in order, without a byte of answer.
    Closed,
    /// The port speaks TLS.
    Tls,
    NotHttp(Protocol),
    Answer(Answer),
    /// No route to the host, no rights on the socket, …
    Unreachable(String),
}

/// What speaks on the port instead of HTTP/1.1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/2 without its older brother.
    Http2,
    /// By its usual name, such as `SSH`.
    Named(&'static str),
    /// The first bytes of what came.
    Unknown(String),
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub location: Option<String>,
    pub server: Option<String>,
    pub content_type: Option<String>,
    /// As `body_head` makes it; empty when the answer passed, because nobody reads it then.
    pub body_head: String,
    pub elapsed: Duration,
}

impl ProbeOutcome {
    pub fn passed(&self) -> bool {
        matches!(self, Self::Answer(answer) if (200..300).contains(&answer.status))
    }

    /// Nothing speaks on the port yet, as while an app boots.
    pub fn is_silence_of_a_boot(&self) -> bool {
        match self {
            Self::Refused | Self::Reset | Self::Closed => true,
            Self::Answer(answer) => answer.status == 503,
            _ => false,
        }
    }

    /// In a few words, without what differs from probe to probe, so that repeats can be folded.
    pub fn summary(&self) -> String {
        match self {
            Self::Refused => "connection refused".to_owned(),
            Self::Reset => "connection reset".to_owned(),
            Self::ConnectTimeout => "connect timed out".to_owned(),
            Self::Timeout { .. } => "no answer".to_owned(),
            Self::Closed => "closed without an answer".to_owned(),
            Self::Tls => "TLS on the port".to_owned(),
            Self::NotHttp(protocol) => format!("not HTTP/1.1 but {protocol}"),
            Self::Answer(Answer { status, location: Some(location), .. }) => {
                format!("{status} to {}", printable(location, 200))
            }
            Self::Answer(answer) => answer.status.to_string(),
            Self::Unreachable(text) => printable(text, 200),
        }
    }
}

/// The summary with its time, such as `200 in 3ms`.
impl fmt::Display for ProbeOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.summary())?;
        match self {
            Self::Timeout { after } => write!(f, " within {}", print_rounded(*after)),
            Self::Answer(answer) => write!(f, " in {}ms", answer.elapsed.as_millis()),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http2 => f.write_str("HTTP/2"),
            Self::Named(name) => f.write_str(name),
            Self::Unknown(bytes) => write!(f, "`{}`", printable(bytes, 40)),
        }
    }
}

/// To two or three figures: a deadline that was cut short is 1.9997 s, and means 2 s.
pub(crate) fn print_rounded(duration: Duration) -> String {
    let step: u128 = if duration < Duration::from_secs(1) { 10 } else { 100 };
    let rounded = (duration.as_millis() + step / 2) / step * step;
    duration::print(Duration::from_millis(u64::try_from(rounded).unwrap_or(u64::MAX)))
}

/// The protocol that begins like this; `None` if it may be HTTP/1.
///
/// Servers that speak first are known by their greeting, the others by how they refuse our request line.
pub fn guess_protocol(first: &[u8]) -> Option<Protocol> {
    const OPENINGS: [(&[u8], &str); 9] = [
        (b"SSH-", "SSH"),
        (b"-ERR", "Redis"),
        (b"-DENIED", "Redis"),
        (b"-NOAUTH", "Redis"),
        (b"220 ", "SMTP or FTP"),
        (b"220-", "SMTP or FTP"),
        (b"+OK ", "POP3"),
        (b"* OK", "IMAP"),
        (b"ERROR\r\n", "memcached"),
    ];
    // A SETTINGS frame (RFC 9113 §6.5) or GOAWAY on stream 0: length, type 4 or 7, flags, stream id.
    if let [_, _, _, 4 | 7, _, 0, 0, 0, 0, ..] = first {
        return Some(Protocol::Http2);
    }
    // MySQL greets with a packet: length (3 bytes), sequence 0, protocol version 10.
    if let [_, _, 0, 0, 10, ..] = first {
        return Some(Protocol::Named("MySQL"));
    }
    // PostgreSQL takes a request line for a packet of absurd length: `E`, length, then fields.
    if let [b'E', 0, 0, _, _, b'S', ..] = first {
        return Some(Protocol::Named("PostgreSQL"));
    }
    let known = OPENINGS.iter().find(|(opening, _)| first.starts_with(opening));
    match known {
        Some((_, name)) => Some(Protocol::Named(name)),
        None if b"HTTP/1.".starts_with(&first[..first.len().min(7)]) => None,
        None => Some(Protocol::Unknown(printable(&String::from_utf8_lossy(first), 40))),
    }
}

/// The part of a body that says something: without style sheets, scripts, comments and control characters,
/// blanks folded, at most `BODY_HEAD_BYTES_MAX`. Rails's error pages carry 4 KiB of style before their first word.
pub fn body_head(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let mut head = String::new();
    let mut rest = text.as_ref();
    while let Some((before, end)) = next_noise(rest) {
        head.push_str(before);
        rest = end;
    }
    head.push_str(rest);
    let lines = head.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    let folded = lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n");
    cut(&without_controls(&folded), BODY_HEAD_BYTES_MAX).to_owned()
}

/// What stands before the next style sheet, script or comment, and what follows it.
fn next_noise(text: &str) -> Option<(&str, &str)> {
    const NOISE: [(&str, &str); 4] =
        [("<style", "</style>"), ("<script", "</script>"), ("<svg", "</svg>"), ("<!--", "-->")];
    let (start, close) = NOISE
        .iter()
        .filter_map(|(open, close)| find_ignoring_case(text, open).map(|at| (at, *close)))
        .min()?;
    let inside = &text[start..];
    let end = find_ignoring_case(inside, close).map_or(inside.len(), |at| at + close.len());
    Some((&text[..start], &inside[end..]))
}

fn find_ignoring_case(text: &str, needle: &str) -> Option<usize> {
    text.as_bytes().windows(needle.len()).position(|window| window.eq_ignore_ascii_case(needle.as_bytes()))
}

/// What the page says of itself: its `h1`, else its `title`, else its first line.
pub fn headline(body_head: &str) -> Option<String> {
    let text = ["h1", "title"]
        .iter()
        .find_map(|tag| inside(body_head, tag).map(without_tags).filter(|text| !text.trim().is_empty()))
        .unwrap_or_else(|| without_tags(body_head).trim().lines().next().unwrap_or("").to_owned());
    let text = printable(&text, 160);
    (!text.is_empty()).then_some(text)
}

fn inside<'t>(text: &'t str, tag: &str) -> Option<&'t str> {
    let start = find_ignoring_case(text, &format!("<{tag}"))?;
    let content = start + text[start..].find('>')? + 1;
    let end = find_ignoring_case(&text[content..], &format!("</{tag}"))?;
    Some(&text[content..content + end])
}

/// The words of a page, one line per line that has some.
pub fn words(body_head: &str) -> String {
    let text = without_tags(body_head);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    cut(&without_controls(&lines.collect::<Vec<_>>().join("\n")), BODY_HEAD_BYTES_MAX).to_owned()
}

fn without_tags(html: &str) -> String {
    let mut text = String::with_capacity(html.len());
    let mut rest = html;
    while let Some(open) = rest.find('<') {
        let (before, from) = rest.split_at(open);
        text.push_str(before);
        // `<` opens a tag only before a letter or `/`, so that "a < b" stays.
        let is_tag = from[1..].starts_with(|c: char| c.is_ascii_alphabetic() || matches!(c, '/' | '!'));
        match from.find('>') {
            Some(close) if is_tag => rest = &from[close + 1..],
            None if is_tag => rest = "",
            _ => {
                text.push('<');
                rest = &from[1..];
            }
        }
    }
    text.push_str(rest);
    [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&amp;", "&")]
        .iter()
        .fold(text, |text, (entity, plain)| text.replace(entity, plain))
}

/// One line for a terminal or a log: what a target sent must not move the cursor or forge a second line.
pub fn printable(text: &str, bytes_max: usize) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let line: String = line.chars().map(|c| if is_control(c) { '·' } else { c }).collect();
    cut(&line, bytes_max).to_owned()
}

fn without_controls(text: &str) -> String {
    text.chars().filter(|c| *c == '\n' || !is_control(*c)).collect()
}

/// Controls, and the invisible ones that turn text around (Unicode bidi, UAX #9) or hide it.
fn is_control(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries() {
        let answer = |status, location: Option<&str>| {
            ProbeOutcome::Answer(Answer {
                status,
                location: location.map(str::to_owned),
                elapsed: Duration::from_micros(3_900),
                ..Answer::default()
            })
        };
        for (outcome, want) in [
            (ProbeOutcome::Refused, "connection refused"),
            (ProbeOutcome::Timeout { after: Duration::from_micros(1_999_700) }, "no answer within 2s"),
            (ProbeOutcome::Timeout { after: Duration::from_secs(2) }, "no answer within 2s"),
            (ProbeOutcome::NotHttp(Protocol::Named("SSH")), "not HTTP/1.1 but SSH"),
            (ProbeOutcome::NotHttp(Protocol::Unknown("\u{1b}[2J".into())), "not HTTP/1.1 but `·[2J`"),
            (answer(200, None), "200 in 3ms"),
            (answer(301, Some("https://a/\r\nx")), "301 to https://a/ x in 3ms"),
        ] {
            assert_eq!(outcome.to_string(), want, "{outcome:?}");
        }
        for (status, passes) in
            [(199, false), (200, true), (204, true), (299, true), (300, false), (404, false)]
        {
            assert_eq!(answer(status, None).passed(), passes, "{status}");
        }
    }

    #[test]
    fn protocols() {
        for (first, want) in [
            (&b"HTTP/1.1 200 OK"[..], None),
            (b"HT", None),
            (b"", None),
            (b"SSH-2.0-OpenSSH_9.2\r\n", Some(Protocol::Named("SSH"))),
            (b"-ERR unknown command", Some(Protocol::Named("Redis"))),
            (b"220 mail ESMTP", Some(Protocol::Named("SMTP or FTP"))),
            (b"\0\0\x12\x04\0\0\0\0\0\0\x03", Some(Protocol::Http2)),
            (b"\0\0\x08\x07\0\0\0\0\0", Some(Protocol::Http2)),
            (b"\x4a\0\0\0\x0a8.0.36", Some(Protocol::Named("MySQL"))),
            (b"E\0\0\0\x8fSFATAL", Some(Protocol::Named("PostgreSQL"))),
            (b"hello", Some(Protocol::Unknown("hello".into()))),
        ] {
            assert_eq!(guess_protocol(first), want, "{first:?}");
        }
    }

    #[test]
    fn a_rails_error_page_is_cut_down_to_its_words() {
        let style = format!("<style>\n{}\n</style>", "body { color: red }\n".repeat(300));
        let page = format!(
            "<!DOCTYPE html>\n<head>\n<title>Action Controller: Exception caught</title>\n{style}\n</head><body>\n\
             <header><h1>\n  ActiveRecord::PendingMigrationError\n</h1></header>\n<!-- x -->\
             <div class=\"message\">Migrations are pending. a &lt; b</div>"
        );
        let head = body_head(page.as_bytes());
        assert!(head.contains("Migrations are pending") && !head.contains("color"), "{head}");
        assert_eq!(headline(&head).unwrap(), "ActiveRecord::PendingMigrationError");
        let want = "Action Controller: Exception caught\nActiveRecord::PendingMigrationError\nMigrations are pending. a < b";
        assert_eq!(words(&head), want);
    }

    #[test]
    fn headlines() {
        for (body, want) in [
            ("", None),
            ("plain text\nmore", Some("plain text")),
            ("<title>We're sorry (500)</title>", Some("We're sorry (500)")),
            ("<TITLE>a</TITLE><H1 class=x>b</H1>", Some("b")),
            ("<h1></h1><title>t</title>", Some("t")),
            ("<h1>open", Some("open")),
            ("1 < 2", Some("1 < 2")),
        ] {
            assert_eq!(headline(body).as_deref(), want, "{body:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic_and_nothing_unprintable_comes_out(
            bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..5000),
            html in "(<[a-zé/!-]{0,8}>?|&[a-z]{0,4};|\\PC|style|script|\u{1b}|\u{202e}){0,60}",
        ) {
            let _ = guess_protocol(&bytes);
            for body in [bytes.as_slice(), html.as_bytes()] {
                let head = body_head(body);
                let text = words(&head);
                let line = headline(&head).unwrap_or_default();
                proptest::prop_assert!(head.len() <= BODY_HEAD_BYTES_MAX && text.len() <= BODY_HEAD_BYTES_MAX);
                proptest::prop_assert!(!text.chars().any(|c| c != '\n' && is_control(c)));
                proptest::prop_assert!(!line.chars().any(is_control));
            }
        }
    }
}
