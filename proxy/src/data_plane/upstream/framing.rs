//! Where the body of an answer ends (RFC 9112 §6.3), as pure steps over the bytes that have come.

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

/// Extensions and trailers that nobody asked for must not be collected without end.
const EXTENSION_BYTES_MAX: usize = 4 * 1024;
const TRAILER_BYTES_MAX: usize = 16 * 1024;
const TRAILERS_MAX: usize = 64;

/// How much of a body is still to come, and how its end is told.
#[derive(Debug)]
pub enum Framing {
    /// So many bytes.
    Length(u64),
    Chunked(Chunked),
    /// All that comes until the target closes the connection.
    UntilClose,
}

/// The next thing that a body holds.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
    /// Nothing more without more bytes.
    Wanting,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FramingError {
    #[error("the connection closed before the body was complete")]
    Incomplete,
    #[error("a chunk's head is not one")]
    BadChunk,
    #[error("the trailer section is not one")]
    BadTrailers,
}

impl Framing {
    /// Takes the next piece out of `bytes`.
    pub fn next(&mut self, bytes: &mut Bytes) -> Result<Piece, FramingError> {
        match self {
            Self::Length(0) => Ok(Piece::End),
            Self::Length(_) | Self::UntilClose if bytes.is_empty() => Ok(Piece::Wanting),
            Self::Length(left) => {
                let data = up_to(bytes, *left);
                *left -= data.len() as u64;
                Ok(Piece::Data(data))
            }
            Self::UntilClose => Ok(Piece::Data(std::mem::take(bytes))),
            Self::Chunked(chunked) => chunked.next(bytes),
        }
    }

    /// What the end of the stream means here.
    pub fn close(&mut self) -> Result<(), FramingError> {
        match self {
            Self::UntilClose | Self::Length(0) | Self::Chunked(Chunked { place: Place::Ended, .. }) => {
                *self = Self::Length(0);
                Ok(())
            }
            Self::Length(_) | Self::Chunked(_) => Err(FramingError::Incomplete),
        }
    }

    /// Known only where it is announced.
    pub fn length(&self) -> Option<u64> {
        match self {
            Self::Length(left) => Some(*left),
            Self::Chunked(_) | Self::UntilClose => None,
        }
    }

    pub fn has_ended(&self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunked(Chunked { place: Place::Ended, .. }))
    }
}

fn up_to(bytes: &mut Bytes, length: u64) -> Bytes {
    let n = usize::try_from(length).unwrap_or(usize::MAX).min(bytes.len());
    bytes.split_to(n)
}

/// The chunked coding (RFC 9112 §7.1), wherever the reads fall.
#[derive(Debug, Default)]
pub struct Chunked {
    place: Place,
    size: u64,
    digits: u8,
    extension_bytes: usize,
    /// The trailer section so far, with its line ends.
    trailers: Vec<u8>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Place {
    #[default]
    Size,
    Extension,
    /// Behind the carriage return of a size line.
    SizeLineFeed,
    Data,
    DataReturn,
    DataLineFeed,
    Trailers,
    Ended,
}

impl Chunked {
    fn next(&mut self, bytes: &mut Bytes) -> Result<Piece, FramingError> {
        loop {
            match self.place {
                Place::Ended => return Ok(Piece::End),
                _ if bytes.is_empty() => return Ok(Piece::Wanting),
                Place::Data => {
                    let data = up_to(bytes, self.size);
                    self.size -= data.len() as u64;
                    if self.size == 0 {
                        self.place = Place::DataReturn;
                        self.skip_line_end(bytes)?;
                    }
                    return Ok(Piece::Data(data));
                }
                Place::Trailers => {
                    if let Some(trailers) = self.take_trailers(bytes)? {
                        return Ok(trailers);
                    }
                }
                Place::Size
                | Place::Extension
                | Place::SizeLineFeed
                | Place::DataReturn
                | Place::DataLineFeed => {
                    let byte = bytes.get_u8();
                    self.place = self.step(byte)?;
                }
            }
        }
    }

    /// Goes on behind the data as far as the bytes that are there allow, so that the last piece of a body is
    /// known to be the last.
    fn skip_line_end(&mut self, bytes: &mut Bytes) -> Result<(), FramingError> {
        if bytes.starts_with(b"\r\n0\r\n\r\n") {
            bytes.advance(7);
            self.place = Place::Ended;
        } else if bytes.starts_with(b"\r\n") {
            bytes.advance(2);
            self.begin_size();
        }
        Ok(())
    }

    fn begin_size(&mut self) {
        (self.place, self.size, self.digits) = (Place::Size, 0, 0);
    }

    fn step(&mut self, byte: u8) -> Result<Place, FramingError> {
        match (self.place, byte) {
            (Place::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') if self.digits < 16 => {
                let digit = (byte as char).to_digit(16).unwrap_or_default();
                self.size = self.size << 4 | u64::from(digit);
                self.digits += 1;
                Ok(Place::Size)
            }
            (Place::Size, b'\r') if self.digits > 0 => Ok(Place::SizeLineFeed),
            (Place::Size, b';' | b' ' | b'\t') if self.digits > 0 => Ok(Place::Extension),
            (Place::Extension, b'\r') => Ok(Place::SizeLineFeed),
            (Place::Extension, b'\n') => Err(FramingError::BadChunk),
            (Place::Extension, _) if self.extension_bytes < EXTENSION_BYTES_MAX => {
                self.extension_bytes += 1;
                Ok(Place::Extension)
            }
            (Place::SizeLineFeed, b'\n') if self.size > 0 => Ok(Place::Data),
            (Place::SizeLineFeed, b'\n') => Ok(Place::Trailers),
            (Place::DataReturn, b'\r') => Ok(Place::DataLineFeed),
            (Place::DataLineFeed, b'\n') => {
                self.begin_size();
                Ok(Place::Size)
            }
            _ => Err(FramingError::BadChunk),
        }
    }

    /// Gathers the trailer section up to its empty line.
    fn take_trailers(&mut self, bytes: &mut Bytes) -> Result<Option<Piece>, FramingError> {
        while bytes.has_remaining() {
            self.trailers.push(bytes.get_u8());
            if self.trailers == b"\r\n" {
                self.place = Place::Ended;
                return Ok(Some(Piece::End));
            }
            if self.trailers.ends_with(b"\r\n\r\n") {
                self.place = Place::Ended;
                return parse_trailers(&self.trailers).map(Piece::Trailers).map(Some);
            }
            if self.trailers.len() >= TRAILER_BYTES_MAX {
                return Err(FramingError::BadTrailers);
            }
        }
        Ok(None)
    }
}

fn parse_trailers(section: &[u8]) -> Result<HeaderMap, FramingError> {
    let mut fields = [httparse::EMPTY_HEADER; TRAILERS_MAX];
    let parsed = httparse::parse_headers(section, &mut fields).map_err(|_| FramingError::BadTrailers)?;
    let httparse::Status::Complete((_, fields)) = parsed else { return Err(FramingError::BadTrailers) };
    let mut trailers = HeaderMap::with_capacity(fields.len());
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| FramingError::BadTrailers)?;
        let value = HeaderValue::from_bytes(field.value).map_err(|_| FramingError::BadTrailers)?;
        trailers.append(name, value);
    }
    Ok(trailers)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The body, its trailers and what is left, however the reads fall; or why it is none.
    fn decode(framing: impl Fn() -> Framing, text: &[u8], closes: bool) -> Result<String, FramingError> {
        let whole = decode_in(framing(), &[text], closes);
        for split in 0..=text.len() {
            let (a, b) = text.split_at(split);
            assert_eq!(decode_in(framing(), &[a, b], closes), whole, "{text:?} split at {split}");
        }
        let bytes: Vec<&[u8]> = text.chunks(1).collect();
        assert_eq!(decode_in(framing(), &bytes, closes), whole, "{text:?} byte by byte");
        whole
    }

    fn decode_in(mut framing: Framing, reads: &[&[u8]], closes: bool) -> Result<String, FramingError> {
        let (mut out, mut ended) = (String::new(), false);
        let mut rest = Vec::new();
        for read in reads {
            let mut bytes = Bytes::copy_from_slice(read);
            loop {
                match framing.next(&mut bytes)? {
                    Piece::Data(data) => {
                        assert!(!data.is_empty(), "an empty piece would end an HTTP/1.1 body");
                        out.push_str(&String::from_utf8_lossy(&data));
                    }
                    Piece::Trailers(trailers) => out.push_str(&format!("{trailers:?}")),
                    Piece::End => {
                        ended = true;
                        rest.extend_from_slice(&bytes);
                        break;
                    }
                    Piece::Wanting => break,
                }
            }
        }
        if !ended && closes {
            framing.close()?;
            ended = true;
        }
        assert!(!ended || framing.has_ended());
        let rest = String::from_utf8_lossy(&rest).into_owned();
        Ok(format!("{out}{}{rest}", if ended { "|" } else { "…" }))
    }

    fn chunked(text: &str) -> Result<String, FramingError> {
        decode(|| Framing::Chunked(Chunked::default()), text.as_bytes(), true)
    }

    #[test]
    fn lengths() {
        for (length, text, want) in [
            (5, "hello", Ok("hello|")),
            (5, "helloHTTP", Ok("hello|HTTP")),
            (0, "", Ok("|")),
            (0, "x", Ok("|x")),
            (6, "hello", Err(FramingError::Incomplete)),
            (u64::MAX, "hello", Err(FramingError::Incomplete)),
        ] {
            let got = decode(|| Framing::Length(length), text.as_bytes(), true);
            assert_eq!(got, want.map(str::to_owned), "{length} {text}");
        }
        assert_eq!(decode(|| Framing::UntilClose, b"hello", true), Ok("hello|".to_owned()));
    }

    #[test]
    fn chunks() {
        for (text, want) in [
            ("0\r\n\r\n", Ok("|")),
            ("5\r\nhello\r\n0\r\n\r\n", Ok("hello|")),
            ("5\r\nhello\r\n0\r\n\r\nHTTP", Ok("hello|HTTP")),
            ("1\r\na\r\nA\r\n0123456789\r\n000\r\n\r\n", Ok("a0123456789|")),
            ("5;a=b\r\nhello\r\n0;c\r\n\r\n", Ok("hello|")),
            ("5 \r\nhello\r\n0\r\n\r\n", Ok("hello|")),
            ("5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n", Ok("hello{\"x-sum\": \"1\"}|")),
            ("5\r\nhello\r\n", Err(FramingError::Incomplete)),
            ("5\r\nhel", Err(FramingError::Incomplete)),
            ("0\r\n", Err(FramingError::Incomplete)),
            ("5\r\nhelloX", Err(FramingError::BadChunk)),
            ("5\nhello", Err(FramingError::BadChunk)),
            ("5;x\nhello", Err(FramingError::BadChunk)),
            (" 5\r\nhello", Err(FramingError::BadChunk)),
            ("\r\nhello", Err(FramingError::BadChunk)),
            ("0x5\r\nhello", Err(FramingError::BadChunk)),
            ("-5\r\nhello", Err(FramingError::BadChunk)),
            ("11111111111111111\r\n", Err(FramingError::BadChunk)),
            ("0\r\nbad trailer\r\n\r\n", Err(FramingError::BadTrailers)),
        ] {
            assert_eq!(chunked(text), want.map(str::to_owned), "{text:?}");
        }
        let long = "x".repeat(EXTENSION_BYTES_MAX);
        assert_eq!(chunked(&format!("1;{long}\r\na\r\n1;{long}\r\n")), Err(FramingError::BadChunk), "in all");
    }

    #[test]
    fn trailers_have_a_limit() {
        let mut framing = Framing::Chunked(Chunked::default());
        let mut bytes = Bytes::from(format!("0\r\nX: {}\r\n\r\n", "x".repeat(TRAILER_BYTES_MAX)));
        assert_eq!(framing.next(&mut bytes), Err(FramingError::BadTrailers));
    }

    proptest::proptest! {
        #[test]
        fn what_is_encoded_is_decoded(
            pieces in proptest::collection::vec(proptest::collection::vec(0u8..=255, 1..50), 0..10),
            cuts in proptest::collection::vec(1usize..40, 1..20),
        ) {
            let mut encoded = Vec::new();
            for piece in &pieces {
                encoded.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                encoded.extend_from_slice(piece);
                encoded.extend_from_slice(b"\r\n");
            }
            encoded.extend_from_slice(b"0\r\n\r\nnext");
            let mut framing = Framing::Chunked(Chunked::default());
            let (mut out, mut at, mut cuts) = (Vec::new(), 0, cuts.into_iter().cycle());
            let rest = 'reading: loop {
                let end = encoded.len().min(at + cuts.next().unwrap());
                let mut bytes = Bytes::copy_from_slice(&encoded[at..end]);
                at = end;
                loop {
                    match framing.next(&mut bytes).unwrap() {
                        Piece::Data(data) => out.extend_from_slice(&data),
                        Piece::Wanting => break,
                        Piece::End => break 'reading bytes.len() + encoded.len() - at,
                        Piece::Trailers(_) => panic!("there are none"),
                    }
                }
            };
            proptest::prop_assert_eq!(out, pieces.concat());
            proptest::prop_assert_eq!(rest, 4);
        }

        #[test]
        fn no_bytes_panic(text in proptest::collection::vec(0u8..=255, 0..200)) {
            let mut framing = Framing::Chunked(Chunked::default());
            let mut bytes = Bytes::from(text);
            while matches!(framing.next(&mut bytes), Ok(Piece::Data(_) | Piece::Trailers(_))) {}
        }
    }
}
