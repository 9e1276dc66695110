//! A certificate's subject as text (RFC 4514), of which nothing can end the line that it stands in.

use x509_parser::x509::{AttributeTypeAndValue, X509Name};

/// The most specific part first.
pub(super) fn print(name: &X509Name<'_>) -> String {
    let mut parts: Vec<String> =
        name.iter_rdn().map(|part| part.iter().map(attribute).collect::<Vec<_>>().join("+")).collect();
    parts.reverse();
    parts.join(",")
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let oid = attribute.attr_type().to_id_string();
    // RFC 4514 §3, and what OpenSSL says for an address.
    let name = match oid.as_str() {
        "2.5.4.3" => "CN",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "2.5.4.6" => "C",
        "2.5.4.9" => "STREET",
        "0.9.2342.19200300.100.1.25" => "DC",
        "0.9.2342.19200300.100.1.1" => "UID",
        "1.2.840.113549.1.9.1" => "emailAddress",
        _ => &oid,
    };
    match attribute.as_str() {
        Ok(text) => format!("{name}={}", escape(text)),
        Err(_) => {
            let hex: String = attribute.attr_value().data.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{name}=#{hex}")
        }
    }
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for (index, byte) in text.bytes().enumerate() {
        let is_edge = index == 0 || index + 1 == text.len();
        match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => escaped.extend(['\\', byte.into()]),
            b'#' if index == 0 => escaped.push_str("\\#"),
            b' ' if is_edge => escaped.push_str("\\ "),
            b' '..=b'~' => escaped.push(byte.into()),
            _ => escaped.push_str(&format!("\\{byte:02X}")),
        }
    }
    escaped
}
