//! Answers that Portcullis makes itself: a status, a reason, a page for people or JSON for programs.

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::Full;
use model::page::{self, Template, Values};
use model::reason::{Fault, Reason};

use super::body::AnswerBody;

/// Seconds after which a client may try again what failed for want of a target.
const RETRY_AFTER_S: u32 = 5;

/// The same while an operator has the service stopped: that takes minutes, not seconds.
const STOPPED_RETRY_AFTER_S: u32 = 30;

/// How an answer looks to people, and what it can say.
#[derive(Default)]
pub struct Page<'p> {
    /// `None`: a plain page.
    pub template: Option<&'p Template>,
    /// Plain text from the operator, for this occasion.
    pub message: Option<&'p str>,
    pub request_id: &'p str,
}

/// The answer for `reason`; `accept` is the request's field, `tell` whether clients see the reason.
pub fn refuse(
    reason: Reason,
    accept: Option<&HeaderValue>,
    tell: bool,
    look: &Page<'_>,
) -> Response<AnswerBody> {
    let status = StatusCode::from_u16(reason.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let title = status.canonical_reason().unwrap_or("Error");
    let (content_type, text) = if prefers_json(accept) {
        let mut detail = if tell { format!(",\"reason\":\"{}\"", reason.code()) } else { String::new() };
        if let Some(message) = look.message {
            detail.push_str(&format!(",\"message\":{}", serde_json::Value::from(message)));
        }
        ("application/json", format!("{{\"status\":{},\"error\":\"{title}\"{detail}}}\n", status.as_u16()))
    } else {
        let values = Values {
            message: look.message.unwrap_or_default(),
            status: status.as_u16(),
            request_id: look.request_id,
        };
        let title = if reason == Reason::Stopped { "Down for maintenance" } else { title };
        let text = match look.template {
            Some(template) => template.render(&values),
            None => plain(status.as_u16(), title, look.message.unwrap_or_else(|| explain(reason))),
        };
        ("text/html; charset=utf-8", text)
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
        let seconds = if reason == Reason::Stopped { STOPPED_RETRY_AFTER_S } else { RETRY_AFTER_S };
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if closes(reason) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// 200 without a body, for whoever asks whether anybody is there.
pub fn healthy(reason: Reason, tell: bool) -> Response<AnswerBody> {
    let mut response = Response::new(AnswerBody::empty());
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if tell {
        headers.insert("x-portcullis-reason", HeaderValue::from_static(reason.code()));
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
        Err(_) => return refuse(Reason::BadTarget, None, tell, &Page::default()),
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
        Reason::UnknownHost | Reason::UnknownPath | Reason::UnknownChallenge => {
            "There is nothing at this address."
        }
        Reason::BodyTooLarge => "What you sent is too large.",
        Reason::Stopped => "We are working on this application. Please try again later.",
        Reason::PauseTimeout | Reason::PauseFull => {
            "We are working on this application. Please try again shortly."
        }
        _ => match reason.fault() {
            Fault::Client => "The server cannot answer this request as it was sent.",
            Fault::Upstream => "The application does not answer at the moment. Please try again shortly.",
            Fault::Us | Fault::Nobody => "Something went wrong. Please try again shortly.",
        },
    }
}

fn plain(status: u16, title: &str, text: &str) -> String {
    let mut escaped = String::new();
    page::escape(text, &mut escaped);
    let escaped = escaped.replace('\n', "<br>");
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>{status} {title}</title>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <style>body{{font:16px/1.5 system-ui,sans-serif;margin:15vh auto;max-width:32em;padding:0 1em;color:#333}}\
         h1{{font-size:1.5em}}</style></head>\n<body><h1>{title}</h1><p>{escaped}</p></body>\n</html>\n"
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
            let response =
                refuse(Reason::ConnectFailed, Some(&HeaderValue::from_static(value)), true, &Page::default());
            assert_eq!(response.headers()[header::CONTENT_TYPE], content_type, "{value}");
            assert_eq!(response.headers()["x-portcullis-reason"], "connect_failed");
            assert_eq!(response.headers()[header::RETRY_AFTER], "5");
        }
    }

    async fn text(response: Response<AnswerBody>) -> String {
        let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap();
        String::from_utf8(body.to_bytes().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn what_the_operator_says_is_text_and_nothing_else() {
        let message = "Back at <b>noon</b> & \"not\" later.\nSorry!";
        let said = |accept: Option<&'static str>| {
            let accept = accept.map(HeaderValue::from_static);
            let look = Page { message: Some(message), ..Page::default() };
            refuse(Reason::Stopped, accept.as_ref(), true, &look)
        };
        assert_eq!(said(None).headers()[header::RETRY_AFTER], "30");
        let page = text(said(None)).await;
        let escaped = "<p>Back at &lt;b&gt;noon&lt;/b&gt; &amp; &#34;not&#34; later.<br>Sorry!</p>";
        assert!(page.contains(escaped) && page.contains("Down for maintenance"), "{page}");
        let json: serde_json::Value =
            serde_json::from_str(&text(said(Some("application/json"))).await).unwrap();
        assert_eq!((json["message"].as_str(), json["reason"].as_str()), (Some(message), Some("stopped")));
        let plain = text(refuse(Reason::Stopped, None, true, &Page::default())).await;
        assert!(plain.contains("We are working on this application."), "{plain}");
    }

    #[test]
    fn a_page_says_what_it_is_given() {
        use http_body_util::BodyExt;
        let template = Template::parse("<h1>{{ .Status }}</h1>{{ .Message }} ({{ .RequestId }})").unwrap();
        for (template, accept, want) in [
            (Some(&template), "text/html", "<h1>502</h1>back at &lt;9&gt; (r-1)"),
            (Some(&template), "application/json", r#","reason":"connect_failed","message":"back at <9>"}"#),
            (None, "text/html", "<h1>Bad Gateway</h1><p>back at &lt;9&gt;</p>"),
        ] {
            let look = Page { template, message: Some("back at <9>"), request_id: "r-1" };
            let accept = HeaderValue::from_static(accept);
            let body = refuse(Reason::ConnectFailed, Some(&accept), true, &look).into_body();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let bytes = runtime.block_on(body.collect()).unwrap().to_bytes();
            let text = String::from_utf8(bytes.to_vec()).unwrap();
            assert!(text.contains(want), "{text}");
        }
    }

    #[test]
    fn clients_are_not_told_more_than_they_should() {
        let response = refuse(Reason::UnknownHost, None, false, &Page::default());
        assert!(!response.headers().contains_key("x-portcullis-reason"));
        assert!(!response.headers().contains_key(header::RETRY_AFTER));
    }
}
