//! Answers that Portcullis makes itself: a status, a reason, a page for people or JSON for programs.

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::Full;
use model::reason::{Fault, Reason};

use super::body::AnswerBody;

/// Seconds after which a client may try again what failed for want of a target.
const RETRY_AFTER_S: u32 = 5;

/// The answer for `reason`; `accept` is the request's field, `tell` whether clients see the reason.
pub fn refuse(reason: Reason, accept: Option<&HeaderValue>, tell: bool) -> Response<AnswerBody> {
    let status = StatusCode::from_u16(reason.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let title = status.canonical_reason().unwrap_or("Error");
    let (content_type, text) = if prefers_json(accept) {
        let detail = if tell { format!(",\"reason\":\"{}\"", reason.code()) } else { String::new() };
        ("application/json", format!("{{\"status\":{},\"error\":\"{title}\"{detail}}}\n", status.as_u16()))
    } else {
        ("text/html; charset=utf-8", page(status.as_u16(), title, explain(reason)))
    };
    let mut response = Response::new(AnswerBody::Whole(Full::new(Bytes::from(text))));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if tell {
        headers.insert("x-portcullis-reason", HeaderValue::from_static(reason.code()));
    }
    if matches!(status.as_u16(), 502..=504) {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S));
    }
    if closes(reason) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// A redirect that keeps method and body (RFC 9110 §15.4.9), or the older one for those that have none.
pub fn redirect(location: &str, keep_method: bool, reason: Reason, tell: bool) -> Response<AnswerBody> {
    let mut response = Response::new(AnswerBody::empty());
    *response.status_mut() =
        if keep_method { StatusCode::PERMANENT_REDIRECT } else { StatusCode::MOVED_PERMANENTLY };
    match HeaderValue::from_str(location) {
        Ok(location) => response.headers_mut().insert(header::LOCATION, location),
        Err(_) => return refuse(Reason::BadTarget, None, tell),
    };
    if tell {
        response.headers_mut().insert("x-portcullis-reason", HeaderValue::from_static(reason.code()));
    }
    response
}

/// After these nobody knows where the next request on the connection begins, or whether it is worth it.
fn closes(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::AmbiguousFraming
            | Reason::BadBody
            | Reason::BadHost
            | Reason::BadTarget
            | Reason::BodyTimeout
            | Reason::BodyTooLarge
            | Reason::BuffersFull
            | Reason::MethodNotAllowed
            | Reason::TooManyFields
            | Reason::UnsupportedEncoding
    )
}

fn prefers_json(accept: Option<&HeaderValue>) -> bool {
    let accept = accept.and_then(|value| value.to_str().ok()).unwrap_or_default();
    match (accept.find("json"), accept.find("text/html")) {
        (Some(json), Some(html)) => json < html,
        (json, _) => json.is_some(),
    }
}

fn explain(reason: Reason) -> &'static str {
    match reason {
        Reason::UnknownHost | Reason::UnknownPath => "There is nothing at this address.",
        Reason::BodyTooLarge => "What you sent is too large.",
        _ => match reason.fault() {
            Fault::Client => "The server cannot answer this request as it was sent.",
            Fault::Upstream => "The application does not answer at the moment. Please try again shortly.",
            Fault::Us | Fault::Nobody => "Something went wrong. Please try again shortly.",
        },
    }
}

fn page(status: u16, title: &str, text: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>{status} {title}</title>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <style>body{{font:16px/1.5 system-ui,sans-serif;margin:15vh auto;max-width:32em;padding:0 1em;color:#333}}\
         h1{{font-size:1.5em}}</style></head>\n<body><h1>{title}</h1><p>{text}</p></body>\n</html>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_get_json_and_browsers_a_page() {
        for (value, content_type) in [
            ("application/json", "application/json"),
            ("application/problem+json, */*", "application/json"),
            ("text/html,application/json;q=0.9", "text/html; charset=utf-8"),
            ("*/*", "text/html; charset=utf-8"),
        ] {
            let response = refuse(Reason::ConnectFailed, Some(&HeaderValue::from_static(value)), true);
            assert_eq!(response.headers()[header::CONTENT_TYPE], content_type, "{value}");
            assert_eq!(response.headers()["x-portcullis-reason"], "connect_failed");
            assert_eq!(response.headers()[header::RETRY_AFTER], "5");
        }
    }

    #[test]
    fn clients_are_not_told_more_than_they_should() {
        let response = refuse(Reason::UnknownHost, None, false);
        assert!(!response.headers().contains_key("x-portcullis-reason"));
        assert!(!response.headers().contains_key(header::RETRY_AFTER));
    }
}
