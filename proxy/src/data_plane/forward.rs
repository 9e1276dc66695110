//! A request's way through the proxy: checked, routed, assigned to a cohort, sent to a target, answered.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use model::canary::{COOKIE_PLAIN, COOKIE_SECURE, Cohort, Visit};
use model::reason::Reason;
use model::route::Lookup;

use super::answer;
use super::body::{AnswerBody, EventStream, RequestBody, TargetBody};
use super::exchange::{Exchange, Facts};
use super::headers::{self, Forwarded};
use super::hygiene::{self, Host};
use super::upgrade::{Farewell, tunnel};
use super::upstream::pool::Lease;
use super::upstream::send::{self, Sent};
use crate::release::InFlight;
use crate::snapshot::{Service, Slot, Snapshot};

/// Releases that closed between loading the snapshot and entering; each time a newer snapshot is there.
const CUTOVERS_MAX: usize = 100;

/// Answers one request. Never fails: what goes wrong becomes an answer with a reason.
pub async fn serve(exchange: Exchange) -> Response<AnswerBody> {
    let Exchange { request, facts } = exchange;
    let accept = request.headers().get(header::ACCEPT).cloned();
    match answer_or_reason(request, &facts).await {
        Ok(response) => response,
        Err(reason) => {
            facts.note(|known| known.reason = Some(reason));
            answer::refuse(reason, accept.as_ref(), facts.connection.worker.config.reason_header)
        }
    }
}

async fn answer_or_reason(
    mut request: Request<Incoming>,
    facts: &Rc<Facts>,
) -> Result<Response<AnswerBody>, Reason> {
    let connection = &facts.connection;
    let worker = &connection.worker;
    let https = connection.tls.is_some();
    facts.note(|known| known.https = https);
    let host = hygiene::check(&mut request)?;
    let trusted = &worker.config.trusted_proxies;
    let forwarded = headers::read_forwarded(request.headers(), connection.peer, https, trusted);
    facts.note(|known| (known.client, known.https) = (Some(forwarded.client), forwarded.https));
    match decide(&request, &host, &forwarded, facts)? {
        Decision::Redirect(location, reason) => {
            facts.note(|known| known.reason = Some(reason));
            let keep_method = !matches!(*request.method(), Method::GET | Method::HEAD);
            Ok(answer::redirect(&location, keep_method, reason, worker.config.reason_header))
        }
        Decision::Forward(plan) => forward(request, plan, &forwarded, facts).await,
    }
}

/// Everything that is decided before the first await, on one snapshot.
enum Decision {
    Redirect(String, Reason),
    Forward(Plan),
}

/// Where a request goes.
struct Plan {
    service: Arc<Service>,
    cohort: Cohort,
    in_flight: InFlight,
    /// Of the path, to be removed.
    strip: usize,
    visitor_cookie: Option<String>,
}

fn decide<B>(
    request: &Request<B>,
    host: &Host,
    forwarded: &Forwarded,
    facts: &Facts,
) -> Result<Decision, Reason> {
    let worker = &facts.connection.worker;
    for _ in 0..CUTOVERS_MAX {
        let snapshot = worker.published.load();
        check_certificate(&snapshot, host, facts)?;
        let (prefix, service) = match snapshot.routes.lookup(host.as_str(), request.uri().path()) {
            Lookup::Found { prefix, route } => (prefix, route),
            Lookup::UnknownHost => return Err(Reason::UnknownHost),
            Lookup::UnknownPath => return Err(Reason::UnknownPath),
        };
        facts.note(|known| known.service = Some(Arc::clone(&service.name)));
        if let Some((location, reason)) = redirect(request, service, host, forwarded.https, worker.https_port)
        {
            return Ok(Decision::Redirect(location, reason));
        }
        let (slot, visitor_cookie, overridden) = choose_slot(request.headers(), service, forwarded);
        let target = worker.next_target(slot);
        let Some(in_flight) = slot.release.enter(target, worker.index) else { continue };
        facts.note(|known| {
            known.release = Some(Arc::clone(&slot.release.id));
            known.cohort = Some(slot.cohort);
            known.target = Some(Arc::clone(target));
            known.overridden = overridden;
        });
        let strip =
            if service.policy.strip_path_prefix && !prefix.is_root() { prefix.as_str().len() } else { 0 };
        let (service, cohort) = (Arc::clone(service), slot.cohort);
        return Ok(Decision::Forward(Plan { service, cohort, in_flight, strip, visitor_cookie }));
    }
    Err(Reason::Internal)
}

/// A TLS connection serves the hosts of the certificate that it showed (RFC 9110 §7.4).
fn check_certificate(snapshot: &Snapshot, host: &Host, facts: &Facts) -> Result<(), Reason> {
    let Some(tls) = &facts.connection.tls else { return Ok(()) };
    let certificate = snapshot.certificates.best(host.as_str()).and_then(Option::as_ref);
    let same_name = tls.server_name.as_deref() == Some(host.as_str());
    match certificate {
        Some(certificate) if same_name || Arc::ptr_eq(certificate, &tls.certificate) => Ok(()),
        _ => Err(Reason::Misdirected),
    }
}

/// One hop to the right scheme and host, if either is wrong.
fn redirect<B>(
    request: &Request<B>,
    service: &Service,
    host: &Host,
    https: bool,
    https_port: Option<u16>,
) -> Option<(String, Reason)> {
    let canonical = service.policy.canonical_host.as_ref().map(|name| name.as_str());
    let wrong_host = canonical.is_some_and(|name| name != host.as_str());
    let wrong_scheme = service.redirect_to_https && !https;
    let reason = match (wrong_scheme, wrong_host) {
        (false, false) => return None,
        (true, _) => Reason::RedirectToHttps,
        (false, true) => Reason::RedirectToCanonicalHost,
    };
    let target = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
    let name = canonical.unwrap_or(host.as_str());
    let location = if https || wrong_scheme {
        match https_port {
            Some(port) if port != 443 => format!("https://{name}:{port}{target}"),
            _ => format!("https://{name}{target}"),
        }
    } else {
        let sent = request.headers().get(header::HOST).and_then(|value| value.to_str().ok());
        let port =
            sent.and_then(|sent| sent.rsplit_once(':')).map(|(_, port)| port).filter(|p| !p.ends_with(']'));
        match port {
            Some(port) => format!("http://{name}:{port}{target}"),
            None => format!("http://{name}{target}"),
        }
    };
    Some((location, reason))
}

/// Stable or canary, with the cookie that keeps the visitor there and whether an override decided.
fn choose_slot<'s>(
    fields: &HeaderMap,
    service: &'s Service,
    forwarded: &Forwarded,
) -> (&'s Slot, Option<String>, bool) {
    let Some(canary) = &service.canary else { return (&service.stable, None, false) };
    let visit = Visit {
        header: |name: &str| fields.get(name).map(HeaderValue::as_bytes),
        cookie: |name: &str| headers::cookie(fields, name),
        client: forwarded.client,
        day: unix_time().as_secs() / 86_400,
        user_agent: fields.get(header::USER_AGENT).map_or(&b""[..], HeaderValue::as_bytes),
    };
    let assigned = canary.assignment.assign(&visit, forwarded.https);
    let slot = if assigned.cohort == Cohort::Canary { &canary.slot } else { &service.stable };
    (slot, assigned.set_cookie, assigned.overridden)
}

fn unix_time() -> std::time::Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

async fn forward(
    mut request: Request<Incoming>,
    plan: Plan,
    forwarded: &Forwarded,
    facts: &Rc<Facts>,
) -> Result<Response<AnswerBody>, Reason> {
    let worker = &facts.connection.worker;
    let policy = &plan.service.policy;
    if request.body().size_hint().exact().is_some_and(|bytes| bytes > policy.request_body_bytes_max) {
        return Err(Reason::BodyTooLarge);
    }
    let client_upgrade = headers::is_websocket(&request).then(|| hyper::upgrade::on(&mut request));
    let client_version = request.version();
    let mut request = to_target(request, &plan, forwarded, facts, client_upgrade.is_some());
    if client_version == Version::HTTP_11 {
        pass_interim_responses(&mut request, facts);
    }

    facts.set_waiting_for_app(true);
    let sent = send::send(worker, request, &plan.service, plan.cohort, plan.in_flight, facts).await;
    facts.set_waiting_for_app(false);
    let Sent { response, lease, in_flight } = sent?;
    facts.note(|known| known.first_byte = Some(facts.arrived.elapsed()));

    hygiene::check_response(&response)?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let client = client_upgrade.ok_or(Reason::UpstreamProtocol)?;
        return Ok(switch_protocols(response, client, (lease, in_flight), facts));
    }
    let event_stream = is_event_stream(response.headers())
        .then(|| EventStream::new(Farewell::new(in_flight.release(), worker), &facts.connection.activity));
    let mut response = response.map(|body| {
        AnswerBody::Target(TargetBody::new(body, policy.timeouts.body_idle, lease, in_flight, event_stream))
    });
    // A target's HTTP/1.0 is its own: this hop can say where a body ends, so a cut one looks cut.
    *response.version_mut() = Version::HTTP_11;
    clean_response(response.headers_mut());
    if let Some(id) = &plan.visitor_cookie {
        set_visitor_cookie(response.headers_mut(), id, forwarded.https);
    }
    // A trailer section may have swallowed what came behind it (hyper takes a bare line feed there), so
    // nothing more is read from this client.
    if facts.request_body.had_trailers.get() && client_version == Version::HTTP_11 {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// The head as the target gets it, with the client's body behind it.
fn to_target(
    request: Request<Incoming>,
    plan: &Plan,
    forwarded: &Forwarded,
    facts: &Facts,
    websocket: bool,
) -> Request<RequestBody> {
    let (mut parts, body) = request.into_parts();
    let fields = &mut parts.headers;
    let wants_trailers = headers::lists(fields, header::TE, "trailers");
    headers::strip_hop_by_hop(fields);
    fields.remove(header::EXPECT);
    let now_ms = unix_time().as_millis() as u64;
    headers::write_forwarded(fields, forwarded, facts.connection.peer, facts.connection.port, now_ms);
    if wants_trailers {
        fields.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if websocket {
        headers::ask_for_websocket(fields);
        parts.method = Method::GET;
    } else if !body.is_end_stream() && body.size_hint().exact().is_none() {
        // hyper's client would drop the body of a GET without this field.
        fields.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    if plan.strip > 0 {
        let prefix = &parts.uri.path()[..plan.strip];
        if let Ok(prefix) = HeaderValue::from_str(prefix) {
            fields.insert(HeaderName::from_static("x-forwarded-prefix"), prefix);
        }
    }
    let uri = strip_prefix(&parts.uri, plan.strip);
    let policy = &plan.service.policy;
    let body = RequestBody::new(body, facts, policy.request_body_bytes_max, policy.timeouts.body_idle);
    let mut request = Request::new(body);
    *request.method_mut() = parts.method;
    *request.uri_mut() = uri;
    *request.headers_mut() = parts.headers;
    request
}

/// Removes the first `length` bytes of the path, byte by byte: `%2F` stays `%2F`.
fn strip_prefix(uri: &Uri, length: usize) -> Uri {
    let Some(target) = uri.path_and_query() else { return Uri::from_static("/") };
    if length == 0 {
        return target.clone().into();
    }
    let rest = &target.as_str()[length..];
    let rooted = if rest.starts_with('/') { rest.to_owned() } else { format!("/{rest}") };
    // A suffix of a valid target is valid.
    rooted.parse().unwrap_or_else(|_| Uri::from_static("/"))
}

/// 103 and 102 reach HTTP/1.1 clients; hyper has no way to send them to others.
fn pass_interim_responses(request: &mut Request<RequestBody>, facts: &Facts) {
    let interim = Arc::clone(&facts.connection.interim);
    hyper::ext::on_informational(request, move |response| {
        if matches!(response.status().as_u16(), 102 | 103) {
            let mut fields = response.headers().clone();
            headers::strip_hop_by_hop(&mut fields);
            interim.push(&interim_head(response.status(), &fields));
        }
    });
}

fn interim_head(status: StatusCode, fields: &HeaderMap) -> Vec<u8> {
    let mut head =
        format!("HTTP/1.1 {} {}\r\n", status.as_u16(), status.canonical_reason().unwrap_or("")).into_bytes();
    for (name, value) in fields {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            head.extend_from_slice(part);
        }
    }
    head.extend_from_slice(b"\r\n");
    head
}

fn is_event_stream(fields: &HeaderMap) -> bool {
    let content_type = fields.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    content_type.get(..17).is_some_and(|start| start.eq_ignore_ascii_case(b"text/event-stream"))
}

/// What the client sees of the target's head.
fn clean_response(fields: &mut HeaderMap) {
    if fields.contains_key(header::TRANSFER_ENCODING) {
        // The encoding has decided the length (RFC 9112 §6.3); the other field is wrong or superfluous.
        fields.remove(header::CONTENT_LENGTH);
    }
    headers::strip_hop_by_hop(fields);
}

fn set_visitor_cookie(fields: &mut HeaderMap, id: &str, secure: bool) {
    let public = headers::lists(fields, header::CACHE_CONTROL, "public");
    if public {
        // A shared cache would hand one visitor's cookie to everybody; the next answer will do.
        return;
    }
    let (name, secure) = if secure { (COOKIE_SECURE, "; Secure") } else { (COOKIE_PLAIN, "") };
    let cookie = format!("{name}={id}; Path=/; Max-Age=7776000; HttpOnly; SameSite=Lax{secure}");
    if let Ok(cookie) = HeaderValue::from_str(&cookie) {
        fields.append(header::SET_COOKIE, cookie);
    }
}

/// Answers 101 and connects both ends once both have switched.
fn switch_protocols(
    mut response: Response<Incoming>,
    client: OnUpgrade,
    (lease, in_flight): (Lease, InFlight),
    facts: &Rc<Facts>,
) -> Response<AnswerBody> {
    let target = hyper::upgrade::on(&mut response);
    let farewell = Farewell::new(in_flight.release(), &facts.connection.worker);
    let held = (in_flight.into_socket(), Rc::clone(facts));
    facts.connection.worker.tasks.spawn_local(async move {
        let (Ok(client), Ok(target)) = tokio::join!(client, target) else { return };
        // Until here it drove the connection; now the connection is ours.
        drop(lease);
        let (client, target) = (hyper_util::rt::TokioIo::new(client), hyper_util::rt::TokioIo::new(target));
        let carried = tunnel(client, target, farewell).await;
        let (_in_flight, facts) = held;
        facts.request_body.bytes.set(carried.from_client);
        facts.response_body_bytes.set(carried.to_client);
    });
    let mut response = response.map(|_| AnswerBody::empty());
    headers::strip_hop_by_hop(response.headers_mut());
    if facts.connection.activity.is_http2() {
        // On a stream success is 200, and there is no key to accept (RFC 8441 §5).
        *response.status_mut() = StatusCode::OK;
        response.headers_mut().remove(header::SEC_WEBSOCKET_ACCEPT);
    } else {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_removed_without_decoding() {
        for (target, length, want) in [
            ("/app/show?q=1", 4, "/show?q=1"),
            ("/app", 4, "/"),
            ("/app?q=1", 4, "/?q=1"),
            ("/app/", 4, "/"),
            ("/app/x%2Fy", 4, "/x%2Fy"),
            ("/app//x", 4, "//x"),
            ("/x?a;b&%zz", 0, "/x?a;b&%zz"),
        ] {
            assert_eq!(strip_prefix(&target.parse().unwrap(), length), want, "{target}");
        }
    }

    #[test]
    fn event_streams() {
        for (content_type, is) in [
            ("text/event-stream", true),
            ("Text/Event-Stream; charset=utf-8", true),
            ("text/html", false),
            ("", false),
        ] {
            let fields =
                HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(content_type))]);
            assert_eq!(is_event_stream(&fields), is, "{content_type}");
        }
    }
}
