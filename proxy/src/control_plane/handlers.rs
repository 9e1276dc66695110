//! One handler per request of the control API: what it needs, what it does, what it answers.

mod body;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, ORIGIN};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use model::certificate::CertificateName;
use model::name::ServiceName;
use model::protocol::{Problem, ProblemCode, RevokeRequest, SSH_CONNECTION_HEADER, Status};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use self::body::Answer;
use super::access::{Caller, Peer, Role};
use super::audit::FOLLOWERS_MAX;
use super::context::{Context, invalid};
use super::{apply, canary, certificates, deploy, pause, remove, rollback, status};
use crate::config::Groups;

const BODY_BYTES_MAX: usize = 1 << 20;
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// What the handlers know.
pub struct Api {
    pub context: Arc<Context>,
    pub groups: Groups,
    pub version: String,
    pub started_ms: u64,
    pub workers: usize,
}

const ROUTES: &str = "GET /v1/status, GET /v1/events, GET /v1/services/NAME, GET /v1/services/NAME/history, \
    POST /v1/services/NAME/deploy, POST /v1/services/NAME/rollback, POST /v1/services/NAME/canary/start, \
    POST /v1/services/NAME/canary/set, POST /v1/services/NAME/canary/promote, \
    POST /v1/services/NAME/canary/abort, POST /v1/services/NAME/pause, POST /v1/services/NAME/stop, \
    POST /v1/services/NAME/resume, DELETE /v1/services/NAME, POST /v1/plan, POST /v1/apply, \
    GET /v1/certificates, GET /v1/certificates/NAME, POST /v1/certificates/NAME/renew, \
    POST /v1/certificates/NAME/revoke";

/// A path of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resource<'p> {
    Status,
    Events,
    Service(&'p str),
    History(&'p str),
    Deploy(&'p str),
    Rollback(&'p str),
    CanaryStart(&'p str),
    CanarySet(&'p str),
    CanaryPromote(&'p str),
    CanaryAbort(&'p str),
    Pause(&'p str),
    Stop(&'p str),
    Resume(&'p str),
    Plan,
    Apply,
    Certificates,
    Certificate(&'p str),
    Renew(&'p str),
    Revoke(&'p str),
}

impl<'p> Resource<'p> {
    fn parse(path: &'p str) -> Option<Self> {
        let rest = path.strip_prefix("/v1/")?;
        Some(match rest.split('/').collect::<Vec<_>>().as_slice() {
            ["status"] => Self::Status,
            ["events"] => Self::Events,
            ["plan"] => Self::Plan,
            ["apply"] => Self::Apply,
            ["certificates"] => Self::Certificates,
            ["certificates", name] => Self::Certificate(name),
            ["certificates", name, "renew"] => Self::Renew(name),
            ["certificates", name, "revoke"] => Self::Revoke(name),
            ["services", name] => Self::Service(name),
            ["services", name, "history"] => Self::History(name),
            ["services", name, "deploy"] => Self::Deploy(name),
            ["services", name, "rollback"] => Self::Rollback(name),
            ["services", name, "canary", "start"] => Self::CanaryStart(name),
            ["services", name, "canary", "set"] => Self::CanarySet(name),
            ["services", name, "canary", "promote"] => Self::CanaryPromote(name),
            ["services", name, "canary", "abort"] => Self::CanaryAbort(name),
            ["services", name, "pause"] => Self::Pause(name),
            ["services", name, "stop"] => Self::Stop(name),
            ["services", name, "resume"] => Self::Resume(name),
            _ => return None,
        })
    }

    fn methods(self) -> &'static [Method] {
        match self {
            Self::Status | Self::Events | Self::History(_) | Self::Certificates | Self::Certificate(_) => {
                &[Method::GET]
            }
            Self::Service(_) => &[Method::GET, Method::DELETE],
            _ => &[Method::POST],
        }
    }
}

/// A problem with the status that it has here; most have that of their code.
struct Refusal {
    status: u16,
    allow: Option<String>,
    problem: Problem,
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self { status: problem.code.http_status(), allow: None, problem }
    }
}

pub async fn answer(api: &Api, caller: &Caller, peer: &Peer, request: Request<Incoming>) -> Response<Answer> {
    let what = format!("{} {}", request.method(), request.uri().path());
    match handle(api, caller, request).await {
        Ok(response) => response,
        Err(refusal) => {
            if refusal.problem.code == ProblemCode::Denied {
                let Peer { uid, gid, pid } = peer;
                tracing::warn!(target: "audit", kind = "denied", uid, gid, pid, request = what, "{}", refusal.problem.message);
            }
            refused(&refusal)
        }
    }
}

/// Too many want something of the agent.
pub fn busy(message: String) -> Response<Answer> {
    refused(&too_many(message).into())
}

fn too_many(message: String) -> Problem {
    Problem::new(ProblemCode::Busy, message).hint(
        "try again in a moment; `ss -xp | grep control.sock` shows whose they are, and the end of an \
         `agentctl events --follow` makes room",
    )
}

fn refused(refusal: &Refusal) -> Response<Answer> {
    let mut response = json(&refusal.problem);
    *response.status_mut() =
        StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if let Some(allow) = refusal.allow.as_deref().and_then(|allow| HeaderValue::from_str(allow).ok()) {
        response.headers_mut().insert(ALLOW, allow);
    }
    response
}

async fn handle(api: &Api, caller: &Caller, request: Request<Incoming>) -> Result<Response<Answer>, Refusal> {
    refuse_browsers(&request)?;
    let (head, body) = request.into_parts();
    let resource = Resource::parse(head.uri.path());
    let only_looks = head.method == Method::GET || resource == Some(Resource::Plan);
    let needed = match resource {
        // Other services may share the certificate, and other VMs do.
        Some(Resource::Revoke(_)) => Role::Admin,
        _ if only_looks => Role::Read,
        _ => Role::Operate,
    };
    caller.require(needed, &api.groups)?;
    let resource = resource.ok_or_else(|| unknown_path(head.uri.path()))?;
    if !resource.methods().contains(&head.method) {
        return Err(wrong_method(&head.method, resource));
    }
    let ssh = head.headers.get(SSH_CONNECTION_HEADER).and_then(|value| value.to_str().ok());
    let call = Call { context: &api.context, actor: caller.actor(ssh), body };
    match resource {
        Resource::Status => Ok(json(&agent_status(api))),
        Resource::Events => Ok(events(&api.context, follows(head.uri.query())?)?),
        Resource::Plan => Ok(json(&apply::plan(&api.context, &call.read().await?).await?)),
        Resource::Apply => {
            let actor = call.actor.clone();
            Ok(json(&apply::apply(&api.context, actor, &call.read().await?).await?))
        }
        Resource::Certificates => Ok(json(&certificates::report::all(&api.context))),
        Resource::Certificate(name) => {
            Ok(json(&certificates::report::one(&api.context, &certificate_name(name)?)?))
        }
        Resource::Renew(name) => {
            let (context, name) = (Arc::clone(&api.context), certificate_name(name)?);
            let events = certificates::waiting::renew(context, name, call.actor).await?;
            Ok(ndjson(Answer::operation(events)))
        }
        Resource::Revoke(name) => {
            let (context, name, actor) =
                (Arc::clone(&api.context), certificate_name(name)?, call.actor.clone());
            let RevokeRequest { reason } = call.read().await?;
            let events = certificates::waiting::revoke(context, name, actor, reason).await?;
            Ok(ndjson(Answer::operation(events)))
        }
        _ => Ok(call.service(resource, &head.method).await?),
    }
}

/// A web page can make a browser send requests to whatever answers HTTP; the browser says so in these.
fn refuse_browsers(request: &Request<Incoming>) -> Result<(), Problem> {
    let fields = request.headers();
    if !fields.contains_key(ORIGIN) && !fields.contains_key("sec-fetch-mode") {
        return Ok(());
    }
    Err(Problem::new(ProblemCode::Denied, "requests of web pages are refused")
        .hint("use `agentctl`, or leave `Origin` and `Sec-Fetch-Mode` out"))
}

fn unknown_path(path: &str) -> Refusal {
    let path = path.chars().take(200).collect::<String>();
    let problem = Problem::new(ProblemCode::NotFound, format!("the control API has no `{path}`"));
    problem.hint(format!("it has {ROUTES}")).into()
}

fn wrong_method(method: &Method, resource: Resource<'_>) -> Refusal {
    let known: Vec<&str> = resource.methods().iter().map(Method::as_str).collect();
    let known = known.join(", ");
    let problem = Problem::new(ProblemCode::Invalid, format!("this path does not know {method}"))
        .hint(format!("it knows {known}"));
    Refusal { status: 405, allow: Some(known), problem }
}

fn agent_status(api: &Api) -> Status {
    let context = &api.context;
    let view = context.registry.view();
    Status {
        version: api.version.clone(),
        pid: std::process::id(),
        started_ms: api.started_ms,
        generation: view.state.generation,
        listeners: context.listeners.clone(),
        workers: u32::try_from(api.workers).unwrap_or(u32::MAX),
        services: status::services(&view, context),
        declared: status::declared(&view),
    }
}

fn follows(query: Option<&str>) -> Result<bool, Problem> {
    match query.unwrap_or_default() {
        "" | "follow=false" => Ok(false),
        "follow=true" => Ok(true),
        _ => Err(Problem::new(ProblemCode::Invalid, "this query is not known")
            .hint("write `follow=true`, `follow=false` or nothing")),
    }
}

fn events(context: &Context, follow: bool) -> Result<Response<Answer>, Problem> {
    let answer = if follow {
        let (past, follower) = context.audit.follow().ok_or_else(|| {
            too_many(format!("{FOLLOWERS_MAX} others follow the events of this agent already"))
        })?;
        Answer::following(past, follower, context.shutdown.clone())
    } else {
        Answer::lines(&context.audit.recent())
    };
    Ok(ndjson(answer))
}

/// A request for one service.
struct Call<'c> {
    context: &'c Arc<Context>,
    actor: String,
    body: Incoming,
}

impl Call<'_> {
    async fn service(self, resource: Resource<'_>, method: &Method) -> Result<Response<Answer>, Problem> {
        let context = Arc::clone(self.context);
        let actor = self.actor.clone();
        let events = match resource {
            Resource::Service(name) if *method == Method::DELETE => {
                remove::start(context, parse(name)?, actor).await?
            }
            Resource::Service(name) => return self.show(&parse(name)?),
            Resource::History(name) => {
                let view = context.registry.view();
                return Ok(json(&status::history(view.service(&parse(name)?)?.0)));
            }
            Resource::CanarySet(name) => {
                let done = canary::set(&context, &parse(name)?, actor, &self.read().await?).await?;
                return Ok(json(&done));
            }
            Resource::Resume(name) => {
                return Ok(json(&pause::resume(&context, &parse(name)?, actor).await?));
            }
            Resource::Pause(name) => pause::pause(context, parse(name)?, actor, &self.read().await?)?,
            Resource::Stop(name) => pause::stop(context, parse(name)?, actor, &self.read().await?)?,
            Resource::Deploy(name) => deploy::start(context, parse(name)?, actor, self.read().await?).await?,
            Resource::Rollback(name) => {
                rollback::start(context, parse(name)?, actor, self.read().await?).await?
            }
            Resource::CanaryStart(name) => {
                canary::start(context, parse(name)?, actor, self.read().await?).await?
            }
            Resource::CanaryPromote(name) => canary::promote(context, parse(name)?, actor).await?,
            Resource::CanaryAbort(name) => canary::abort(context, parse(name)?, actor).await?,
            Resource::Status
            | Resource::Events
            | Resource::Plan
            | Resource::Apply
            | Resource::Certificates
            | Resource::Certificate(_)
            | Resource::Renew(_)
            | Resource::Revoke(_) => {
                return Err(Problem::new(ProblemCode::Internal, "this path belongs to no service"));
            }
        };
        Ok(ndjson(Answer::operation(events)))
    }

    fn show(&self, name: &ServiceName) -> Result<Response<Answer>, Problem> {
        let view = self.context.registry.view();
        let (service, live) = view.service(name)?;
        Ok(json(&status::service(service, live, &view, self.context)))
    }

    /// The JSON of the request; an empty body is an empty object.
    async fn read<T: DeserializeOwned>(self) -> Result<T, Problem> {
        let wrong = |message: String| Problem::new(ProblemCode::Invalid, message);
        let reading = Limited::new(self.body, BODY_BYTES_MAX).collect();
        let bytes = match tokio::time::timeout(BODY_TIMEOUT, reading).await {
            Err(_) => return Err(wrong("the request's body did not come within 5s".to_owned())),
            Ok(Err(error)) => return Err(wrong(format!("cannot read the request's body: {error}"))),
            Ok(Ok(body)) => body.to_bytes(),
        };
        let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        // serde says where, and which fields there are.
        serde_json::from_slice(text).map_err(|error| wrong(format!("the request's JSON is wrong: {error}")))
    }
}

fn parse(name: &str) -> Result<ServiceName, Problem> {
    name.parse().map_err(|error| invalid(&error))
}

fn certificate_name(name: &str) -> Result<CertificateName, Problem> {
    name.parse().map_err(|error| invalid(&error))
}

fn json(value: &impl Serialize) -> Response<Answer> {
    let mut text = serde_json::to_vec(value).expect("the protocol's shapes have text keys only");
    text.push(b'\n');
    typed("application/json", Answer::whole(Bytes::from(text)))
}

fn ndjson(answer: Answer) -> Response<Answer> {
    typed("application/x-ndjson", answer)
}

fn typed(content_type: &'static str, answer: Answer) -> Response<Answer> {
    let mut response = Response::new(answer);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        for (path, want) in [
            ("/v1/status", Some(Resource::Status)),
            ("/v1/services/shop", Some(Resource::Service("shop"))),
            ("/v1/services/shop/canary/set", Some(Resource::CanarySet("shop"))),
            ("/v1/services/shop/pause", Some(Resource::Pause("shop"))),
            ("/v1/plan", Some(Resource::Plan)),
            ("/v1/certificates", Some(Resource::Certificates)),
            ("/v1/certificates/_.shop.test/renew", Some(Resource::Renew("_.shop.test"))),
            ("/v1/services/shop/canary", None),
            ("/v1/services", None),
            ("/v1/status/", None),
            ("/v2/status", None),
            ("/", None),
        ] {
            assert_eq!(Resource::parse(path), want, "{path}");
        }
    }
}
