//! A request's way through the proxy: checked, routed, assigned to a cohort, sent to a target, answered.

use std::rc::Rc;
use std::sync::Arc;

use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use model::canary::{COOKIE_PLAIN, COOKIE_SECURE, Cohort, Visit};
use model::reason::Reason;
use model::route::Lookup;
use model::service::Policy;

use super::admit::{self, CUTOVERS_MAX, Entrance, InLine};
use super::answer;
use super::body::{AnswerBody, EventStream, TargetBody};
use super::buffering::requests::Intake;
use super::buffering::responses::{self, Coming};
use super::exchange::{Exchange, Facts};
use super::forwarded::Forwarded;
use super::headers;
use super::hygiene;
use super::layers::request_id::RequestId;
use super::upgrade::{Farewell, tunnel};
use super::upstream::pool::Lease;
use super::upstream::request_head::{BodyFraming, RequestHead};
use super::upstream::response_head::ResponseHead;
use super::upstream::send::{self, Route, Sent};
use super::upstream::stream::Ahead;
use super::upstream::upload::Upload;
use crate::clock;
use crate::release::InFlight;
use crate::snapshot::{Service, Slot, Snapshot};

/// Answers one request. Never fails: what goes wrong becomes an answer with a reason.
pub async fn serve(exchange: Exchange) -> Response<AnswerBody> {
    let Exchange { body, facts } = exchange;
    let checked = hygiene::check(&mut facts.head.borrow_mut());
    let answered = match checked {
        Ok(()) => route(body, &facts).await,
        Err(reason) => Err(reason),
    };
    let mut response = answered.unwrap_or_else(|reason| {
        facts.note(|known| known.reason = Some(reason));
        let head = facts.head.borrow();
        let accept = head.headers.get(header::ACCEPT);
        answer::refuse(reason, accept, facts.connection.worker.config.reason_header)
    });
    if may_have_swallowed(&facts) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// A trailer section may swallow what comes behind it, because hyper takes a bare line feed there: where one has
/// come, or may still come, nothing more is read from this client.
fn may_have_swallowed(facts: &Facts) -> bool {
    let body = &facts.request_body;
    let is_open = || !body.is_read() && facts.head.borrow().headers.contains_key(header::TRANSFER_ENCODING);
    !facts.connection.activity.is_http2() && (body.had_trailers.get() || is_open())
}

/// Decides where the request goes, waits there for a seat if none is free, and sends it.
async fn route(body: Incoming, facts: &Rc<Facts>) -> Result<Response<AnswerBody>, Reason> {
    let worker = &facts.connection.worker;
    let mut body = Intake::Coming(body);
    loop {
        let (plan, entrance) = match decide(facts, &body)? {
            Decision::Redirect(location, reason) => {
                facts.note(|known| known.reason = Some(reason));
                let keep_method = !matches!(facts.head.borrow().method, Method::GET | Method::HEAD);
                return Ok(answer::redirect(&location, keep_method, reason, worker.config.reason_header));
            }
            // No seat is taken meanwhile, and the release may have changed by then. Boxed like the wait below.
            Decision::Keep(service) => {
                body = Box::pin(body.keep(&service.policy, facts)).await?;
                continue;
            }
            Decision::Forward(plan, in_flight) => (plan, Some(in_flight)),
            // Boxed, so that requests that need not wait are not larger for it.
            Decision::Wait(plan, line) => {
                let entered = Box::pin(line.wait(worker, &plan.service.policy.concurrency, facts)).await?;
                (plan, entered)
            }
        };
        // `None`: the release ended while the request stood in line, so all is decided anew.
        if let Some(in_flight) = entrance {
            return forward(body, plan, in_flight, facts).await;
        }
    }
}

/// Everything that is decided before the first await, on one snapshot.
enum Decision {
    Redirect(String, Reason),
    Forward(Plan, InFlight),
    /// As planned, once there is a seat.
    Wait(Plan, InLine),
    /// The service wants the body whole; then all is decided anew.
    Keep(Arc<Service>),
}

/// Where a request goes.
struct Plan {
    service: Arc<Service>,
    cohort: Cohort,
    /// Of the path, to be removed.
    strip: usize,
    visitor_cookie: Option<String>,
    forwarded: Forwarded,
}

fn decide(facts: &Facts, body: &Intake) -> Result<Decision, Reason> {
    let connection = &facts.connection;
    let worker = &connection.worker;
    let https = connection.tls.is_some();
    facts.note(|known| known.https = https);
    let head = facts.head.borrow();
    let host = hygiene::host(&head)?;
    let forwarded = Forwarded::read(&head.headers, connection.peer, https, &worker.config.trusted_proxies);
    facts.note(|known| (known.client, known.https) = (Some(forwarded.client), forwarded.https));
    for _ in 0..CUTOVERS_MAX {
        let snapshot = worker.published.load();
        check_certificate(&snapshot, &host, facts)?;
        let (prefix, service) = match snapshot.routes.lookup(&host, head.uri.path()) {
            Lookup::Found { prefix, route } => (prefix, route),
            Lookup::UnknownHost => return Err(Reason::UnknownHost),
            Lookup::UnknownPath => return Err(Reason::UnknownPath),
        };
        facts.note(|known| known.service = Some(Arc::clone(&service.name)));
        if let Some((location, reason)) = redirect(&head, service, &host, forwarded.https, worker.https_port)
        {
            return Ok(Decision::Redirect(location, reason));
        }
        let (slot, visitor_cookie, overridden) = choose_slot(&head.headers, service, &forwarded);
        facts.note(|known| {
            known.release = Some(Arc::clone(&slot.release.id));
            known.cohort = Some(slot.cohort);
            known.overridden = overridden;
        });
        let policy = &service.policy;
        if body.length().is_some_and(|bytes| bytes > policy.request_body_bytes_max) {
            facts.note(|known| known.unseated = Some(Arc::clone(&slot.release.unseated)));
            return Err(Reason::BodyTooLarge);
        }
        if body.is_to_be_kept(policy, &head) {
            facts.note(|known| known.unseated = Some(Arc::clone(&slot.release.unseated)));
            return Ok(Decision::Keep(Arc::clone(service)));
        }
        let entrance = admit::enter(worker, slot, &policy.concurrency, facts)?;
        let strip = if policy.strip_path_prefix && !prefix.is_root() { prefix.as_str().len() } else { 0 };
        let (service, cohort) = (Arc::clone(service), slot.cohort);
        let plan = Plan { service, cohort, strip, visitor_cookie, forwarded: forwarded.clone() };
        match entrance {
            Entrance::In(in_flight) => return Ok(Decision::Forward(plan, in_flight)),
            Entrance::Line(line) => return Ok(Decision::Wait(plan, line)),
            Entrance::Closed => {}
        }
    }
    Err(Reason::Internal)
}

/// A TLS connection serves the hosts of the certificate that it showed (RFC 9110 §7.4).
fn check_certificate(snapshot: &Snapshot, host: &str, facts: &Facts) -> Result<(), Reason> {
    let Some(tls) = &facts.connection.tls else { return Ok(()) };
    let certificate = snapshot.certificates.best(host).and_then(Option::as_ref);
    let same_name = tls.server_name.as_deref() == Some(host);
    match certificate {
        Some(certificate) if same_name || Arc::ptr_eq(certificate, &tls.certificate) => Ok(()),
        _ => Err(Reason::Misdirected),
    }
}

/// One hop to the right scheme and host, if either is wrong.
fn redirect(
    head: &Parts,
    service: &Service,
    host: &str,
    https: bool,
    https_port: Option<u16>,
) -> Option<(String, Reason)> {
    let canonical = service.policy.canonical_host.as_ref().map(|name| name.as_str());
    let wrong_host = canonical.is_some_and(|name| name != host);
    let wrong_scheme = service.redirect_to_https && !https;
    let reason = match (wrong_scheme, wrong_host) {
        (false, false) => return None,
        (true, _) => Reason::RedirectToHttps,
        (false, true) => Reason::RedirectToCanonicalHost,
    };
    let target = head.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let name = canonical.unwrap_or(host);
    let location = if https || wrong_scheme {
        match https_port {
            Some(port) if port != 443 => format!("https://{name}:{port}{target}"),
            _ => format!("https://{name}{target}"),
        }
    } else {
        let sent = head.headers.get(header::HOST).and_then(|value| value.to_str().ok());
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
        day: clock::unix_time().as_secs() / 86_400,
        user_agent: fields.get(header::USER_AGENT).map_or(&b""[..], HeaderValue::as_bytes),
    };
    let assigned = canary.assignment.assign(&visit, forwarded.https);
    let slot = if assigned.cohort == Cohort::Canary { &canary.slot } else { &service.stable };
    (slot, assigned.set_cookie, assigned.overridden)
}

async fn forward(
    body: Intake,
    plan: Plan,
    in_flight: InFlight,
    facts: &Rc<Facts>,
) -> Result<Response<AnswerBody>, Reason> {
    let worker = &facts.connection.worker;
    let policy = &plan.service.policy;
    let client_upgrade = client_upgrade(&mut facts.head.borrow_mut(), &body);
    let upload = upload(body, &plan, facts, client_upgrade.is_some());

    facts.set_waiting_for_app(true);
    let route = Route { service: &plan.service, cohort: plan.cohort };
    let sent = send::send(worker, upload, &route, in_flight, facts).await;
    facts.set_waiting_for_app(false);
    let Sent { head, mut lease, in_flight } = sent?;
    facts.note(|known| known.first_byte = Some(clock::now() - facts.arrived));

    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        let client = client_upgrade.ok_or(Reason::UpstreamProtocol)?;
        return switch_protocols(head, client, (lease, in_flight), facts);
    }
    let ResponseHead { status, mut fields, framing, keep_alive } = head;
    let bytes_max = policy.response_body_bytes_max;
    if framing.length().is_some_and(|bytes| bytes > bytes_max) {
        return Err(Reason::ResponseTooLarge);
    }
    let body = match lease.take_whole(&framing) {
        // The target has done its part: its seat and its connection are free while the client reads.
        Some(whole) => {
            if keep_alive {
                lease.give_back();
            }
            AnswerBody::Whole(Full::new(whole))
        }
        None if policy.buffering.responses && may_be_kept(&fields) => {
            lease.hold(in_flight);
            let coming = Coming::new(lease, framing, keep_alive, policy);
            facts.set_waiting_for_app(true);
            let kept = Box::pin(responses::keep(coming, policy, facts)).await;
            facts.set_waiting_for_app(false);
            kept?
        }
        None => {
            let is_events = is_event_stream(&fields);
            let event_stream = is_events.then(|| {
                EventStream::new(Farewell::new(in_flight.release(), worker), &facts.connection.activity)
            });
            let (held, idle) = ((lease, in_flight), policy.timeouts.body_idle);
            // Nobody can say how long a stream of events is.
            let bytes_max = if is_events { Policy::UNLIMITED } else { bytes_max };
            let body = TargetBody::new(framing, keep_alive, idle, held, event_stream, bytes_max, facts);
            AnswerBody::Target(Box::new(body))
        }
    };
    if let Some(id) = &plan.visitor_cookie {
        set_visitor_cookie(&mut fields, id, plan.forwarded.https);
    }
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = fields;
    Ok(response)
}

/// The client's side of a WebSocket, if that is what it asks for.
fn client_upgrade(head: &mut Parts, body: &Intake) -> Option<OnUpgrade> {
    // hyper puts it there for whatever asks for an upgrade; for others it has no effect.
    let upgrade = head.extensions.remove::<OnUpgrade>()?;
    headers::is_websocket(head, body.is_something()).then_some(upgrade)
}

/// The request as the target gets it, with the client's body behind its head.
fn upload(body: Intake, plan: &Plan, facts: &Rc<Facts>, websocket: bool) -> Upload {
    let framing = if websocket { BodyFraming::AsSent } else { body.framing() };
    let mut out = facts.connection.worker.pool.buffer();
    let (known, head) = (facts.known.borrow(), facts.head.borrow());
    RequestHead {
        method: &head.method,
        uri: &head.uri,
        fields: &head.headers,
        forwarded: &plan.forwarded,
        peer: &facts.connection.peer_text,
        port: facts.connection.port,
        strip: plan.strip,
        request_id: known.request_id.as_ref().map_or(&b""[..], RequestId::as_bytes),
        // Time in line is queue time too, for whoever scales by it.
        now_ms: clock::unix_time().saturating_sub(known.queue.unwrap_or_default()).as_millis() as u64,
        body: framing,
        websocket,
    }
    .write(&mut out);
    let policy = &plan.service.policy;
    Upload::new(out, body.into_body(policy, facts), framing)
}

fn is_event_stream(fields: &HeaderMap) -> bool {
    let content_type = fields.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    content_type.get(..17).is_some_and(|start| start.eq_ignore_ascii_case(b"text/event-stream"))
}

fn may_be_kept(fields: &HeaderMap) -> bool {
    !is_event_stream(fields) && !responses::is_unwanted_for(fields)
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

/// Answers 101 and connects both ends once the client has switched.
fn switch_protocols(
    head: ResponseHead,
    client: OnUpgrade,
    (lease, in_flight): (Lease, InFlight),
    facts: &Rc<Facts>,
) -> Result<Response<AnswerBody>, Reason> {
    let farewell = Farewell::new(in_flight.release(), &facts.connection.worker);
    let held = (in_flight.into_tunnel(), Rc::clone(facts));
    let (target, ahead) = lease.into_stream().ok_or(Reason::UpstreamProtocol)?;
    facts.connection.worker.tasks.spawn_local(async move {
        let Ok(client) = client.await else { return };
        let target = Ahead::new(ahead, target);
        let carried = tunnel(hyper_util::rt::TokioIo::new(client), target, farewell).await;
        let (_in_flight, facts) = held;
        facts.request_body.bytes.set(carried.from_client);
        facts.response_body_bytes.set(carried.to_client);
    });
    let mut response = Response::new(AnswerBody::empty());
    *response.headers_mut() = head.fields;
    if facts.connection.activity.is_http2() {
        // On a stream success is 200, and there is no key to accept (RFC 8441 §5).
        response.headers_mut().remove(header::SEC_WEBSOCKET_ACCEPT);
    } else {
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

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
