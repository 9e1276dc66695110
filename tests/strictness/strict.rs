//! Parsers by the letter of RFC 9112: what they do not accept, two parties may understand in two ways.

use harness::Received;

/// A request that has one meaning.
#[derive(Debug)]
pub(super) struct Request {
    pub line: String,
    pub fields: Vec<(String, String)>,
    pub body: String,
}

impl Request {
    pub(super) fn parse(received: &Received) -> Result<Self, String> {
        if !received.complete {
            return Err("it broke off".to_owned());
        }
        let lines = received.head.strip_suffix("\r\n").ok_or("the head has no end")?;
        let mut lines = lines.split("\r\n");
        let line = lines.next().unwrap_or_default();
        request_line(line)?;
        let fields: Vec<_> = lines.map(field).collect::<Result<_, _>>()?;
        let hosts = values(&fields, "host");
        let [host] = hosts[..] else { return Err(format!("hosts: {hosts:?}")) };
        if host.is_empty() || !host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.:[]".contains(&b)) {
            return Err(format!("the host {host:?}"));
        }
        let (lengths, codings) = (values(&fields, "content-length"), values(&fields, "transfer-encoding"));
        let body = match (&lengths[..], &codings[..]) {
            ([], []) if received.body.is_empty() => Vec::new(),
            ([length], []) => {
                let normal = length.parse::<usize>().map(|n| n.to_string()).ok();
                if normal.as_deref() != Some(*length) || length.parse() != Ok(received.body.len()) {
                    return Err(format!("length {length:?} for {} bytes", received.body.len()));
                }
                received.body.clone()
            }
            ([], ["chunked"]) => dechunk(&received.body)?.0,
            other => return Err(format!("framing {other:?}")),
        };
        Ok(Self { line: line.to_owned(), fields, body: String::from_utf8_lossy(&body).into_owned() })
    }

    pub(super) fn values(&self, name: &str) -> Vec<&str> {
        values(&self.fields, name)
    }

    /// Whether `text` is anywhere in the head.
    pub(super) fn mentions(&self, text: &str) -> bool {
        self.line.contains(text)
            || self.fields.iter().any(|(name, value)| name.contains(text) || value.contains(text))
    }
}

fn request_line(line: &str) -> Result<(), String> {
    let parts: Vec<&str> = line.split(' ').collect();
    let [method, target, "HTTP/1.1"] = parts[..] else { return Err(format!("the line {line:?}")) };
    let sound = !method.is_empty()
        && method.bytes().all(is_token)
        && target.starts_with('/')
        && target.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
    if sound { Ok(()) } else { Err(format!("the line {line:?}")) }
}

fn field(line: &str) -> Result<(String, String), String> {
    let (name, value) = line.split_once(':').ok_or(format!("the field {line:?}"))?;
    let sound = !name.is_empty()
        && name.bytes().all(is_token)
        && value.bytes().all(|b| b == b'\t' || (b' '..=b'~').contains(&b) || b >= 0x80);
    if sound {
        Ok((name.to_ascii_lowercase(), value.trim_matches([' ', '\t']).to_owned()))
    } else {
        Err(format!("the field {line:?}"))
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn values<'f>(fields: &'f [(String, String)], name: &str) -> Vec<&'f str> {
    fields.iter().filter(|(n, _)| n == name).map(|(_, value)| value.as_str()).collect()
}

/// The content of a chunked body and how many bytes it took; sizes only, no extensions; trailers are well-formed.
fn dechunk(bytes: &[u8]) -> Result<(Vec<u8>, usize), String> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let line = line(bytes, &mut at)?;
        let sound = !line.is_empty() && line.bytes().all(|b| b.is_ascii_hexdigit());
        let size = usize::from_str_radix(line, 16).ok().filter(|_| sound);
        let size = size.ok_or(format!("the chunk size {line:?}"))?;
        if size == 0 {
            break;
        }
        let data = bytes.get(at..).and_then(|rest| rest.get(..size)).ok_or("a chunk is cut")?;
        body.extend_from_slice(data);
        at += size;
        if !self::line(bytes, &mut at)?.is_empty() {
            return Err("a chunk is longer than it says".to_owned());
        }
    }
    loop {
        let line = line(bytes, &mut at)?;
        if line.is_empty() {
            return Ok((body, at));
        }
        field(line)?;
    }
}

/// Up to the next CRLF.
fn line<'b>(bytes: &'b [u8], at: &mut usize) -> Result<&'b str, String> {
    let rest = bytes.get(*at..).unwrap_or_default();
    let end = rest.windows(2).position(|pair| pair == b"\r\n").ok_or("a line has no end")?;
    *at += end + 2;
    std::str::from_utf8(&rest[..end]).map_err(|_| format!("the line {}", rest[..end].escape_ascii()))
}

/// An answer as its client reads it.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub status: u16,
    pub fields: Vec<(String, String)>,
    pub body: String,
    /// Its end did not come.
    pub cut: bool,
}

impl Answer {
    pub(super) fn values(&self, name: &str) -> Vec<&str> {
        values(&self.fields, name)
    }
}

/// All answers in `bytes`; `ended`: nothing more will come. An answer that is not complete yet is left out.
pub(super) fn answers(bytes: &[u8], first_to_head: bool, ended: bool) -> Result<Vec<Answer>, String> {
    let (mut answers, mut at, mut to_head) = (Vec::new(), 0, first_to_head);
    while at < bytes.len() {
        match answer(&bytes[at..], to_head, ended)? {
            Some((answer, length)) => {
                // Only the first request is one for a head.
                to_head &= answer.status < 200;
                answers.push(answer);
                at += length;
            }
            None => break,
        }
    }
    Ok(answers)
}

fn answer(bytes: &[u8], to_head: bool, ended: bool) -> Result<Option<(Answer, usize)>, String> {
    let Some(head_end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return if ended { Err(format!("no answer: {}", bytes.escape_ascii())) } else { Ok(None) };
    };
    let head = std::str::from_utf8(&bytes[..head_end]).map_err(|_| "the head of an answer is no text")?;
    let mut lines = head.split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let digits = status_line.strip_prefix("HTTP/1.1 ").or(status_line.strip_prefix("HTTP/1.0 "));
    let digits = digits.and_then(|rest| rest.split(' ').next()).filter(|digits| digits.len() == 3);
    let status = digits.and_then(|digits| digits.parse::<u16>().ok());
    let status = status.ok_or(format!("the status line {status_line:?}"))?;
    let fields: Vec<_> = lines.map(field).collect::<Result<_, _>>()?;
    let rest = &bytes[head_end + 4..];
    let (lengths, codings) = (values(&fields, "content-length"), values(&fields, "transfer-encoding"));
    let (body, length, cut) = match (&lengths[..], &codings[..]) {
        (_, []) if to_head || status < 200 || matches!(status, 204 | 304) => (Vec::new(), 0, false),
        ([length], []) => {
            let normal = length.parse::<usize>().ok().filter(|n| n.to_string() == *length);
            let length = normal.ok_or(format!("the length {length:?}"))?;
            match rest.get(..length) {
                Some(body) => (body.to_vec(), length, false),
                None if ended => (rest.to_vec(), rest.len(), true),
                None => return Ok(None),
            }
        }
        ([], ["chunked"]) => match dechunk(rest) {
            Ok((body, length)) => (body, length, false),
            Err(_) if ended => (rest.to_vec(), rest.len(), true),
            Err(_) => return Ok(None),
        },
        ([], []) if ended => (rest.to_vec(), rest.len(), false),
        ([], []) => return Ok(None),
        other => return Err(format!("an answer is framed by {other:?}")),
    };
    let body = String::from_utf8_lossy(&body).into_owned();
    Ok(Some((Answer { status, fields, body, cut }, head_end + 4 + length)))
}

#[test]
fn the_parsers_are_strict() {
    let received = |head: &str, body: &str| Received {
        head: head.replace('\n', "\r\n"),
        body: body.replace('\n', "\r\n").into_bytes(),
        connection: 0,
        complete: true,
    };
    for (head, body, want) in [
        ("GET / HTTP/1.1\nHost: a\n", "", Some("")),
        ("POST / HTTP/1.1\nHost: a\nContent-Length: 2\n", "ok", Some("ok")),
        ("POST / HTTP/1.1\nHost: a\nContent-Length: 02\n", "ok", None),
        ("POST / HTTP/1.1\nHost: a\nContent-Length: 3\n", "ok", None),
        ("POST / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\n", "2\nok\n0\n\n", Some("ok")),
        ("POST / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\n", "2;x\nok\n0\n\n", None),
        ("POST / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\n", "3\nok\n0\n\n", None),
        ("POST / HTTP/1.1\nHost: a\nTransfer-Encoding: Chunked\n", "0\n\n", None),
        ("GET / HTTP/1.1\nHost: a\nHost: a\n", "", None),
        ("GET / HTTP/1.1\n", "", None),
        ("GET / HTTP/1.1\nHost: a\nX : y\n", "", None),
        ("GET http://a/ HTTP/1.1\nHost: a\n", "", None),
        ("GET / HTTP/1.0\nHost: a\n", "", None),
    ] {
        let got = Request::parse(&received(head, body)).map(|request| request.body).ok();
        assert_eq!(got.as_deref(), want, "{head:?} {body:?}");
    }
}
