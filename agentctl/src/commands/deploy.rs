//! `agentctl deploy`: from flags to a `DeployRequest`.

use model::name::ServiceName;
use model::protocol::{DeployRequest, PolicyPatch};

use super::{Context, operation, service_path, texts};
use crate::cli::DeployArgs;
use crate::client::Call;
use crate::failure::Failure;
use crate::values::Clearable;

pub(crate) async fn run(context: &mut Context, arguments: &DeployArgs) -> Result<(), Failure> {
    let service: &ServiceName = &arguments.service;
    let call = Call::post(format!("{}/deploy", service_path(service))).with(&request(arguments));
    operation::run(context, service, call).await
}

pub(crate) fn request(arguments: &DeployArgs) -> DeployRequest {
    DeployRequest {
        targets: texts(&arguments.release.targets),
        release: text(arguments.release.release.as_ref()),
        replace_canary: arguments.replace_canary,
        policy: policy(arguments),
        read_targets: texts(&arguments.release.read_targets),
        force: arguments.force,
        wait_tls: text(arguments.wait_tls.as_ref()),
    }
}

/// A flag that was not given stays `None`: the service keeps its setting.
fn policy(arguments: &DeployArgs) -> PolicyPatch {
    let DeployArgs { routing, tls, gate, timeouts, concurrency, visitors, .. } = arguments;
    let DeployArgs { pages, recording, client, buffering, readers, .. } = arguments;
    PolicyPatch {
        hosts: routing.hosts.as_deref().map(given),
        path_prefixes: routing.path_prefixes.as_deref().map(texts),
        strip_path_prefix: routing.strip_path_prefix,
        canonical_host: text(routing.canonical_host.as_ref()),
        tls: tls.tls,
        tls_redirect: tls.tls_redirect,
        tls_certificate_path: tls.tls_certificate_path.clone(),
        tls_private_key_path: tls.tls_private_key_path.clone(),
        health_check_path: text(gate.health_check_path.as_ref()),
        health_check_port: gate.health_check_port,
        health_check_host: text(gate.health_check_host.as_ref()),
        health_check_interval: text(gate.health_check_interval.as_ref()),
        health_check_timeout: text(gate.health_check_timeout.as_ref()),
        deploy_timeout: text(gate.deploy_timeout.as_ref()),
        drain_timeout: text(timeouts.drain_timeout.as_ref()),
        socket_drain_timeout: text(timeouts.socket_drain_timeout.as_ref()),
        bake: text(timeouts.bake.as_ref()),
        connect_timeout: text(timeouts.connect_timeout.as_ref()),
        target_timeout: text(timeouts.target_timeout.as_ref()),
        body_idle_timeout: text(timeouts.body_idle_timeout.as_ref()),
        max_in_flight: concurrency.max_in_flight,
        queue_max: concurrency.queue_max,
        queue_timeout: text(concurrency.queue_timeout.as_ref()),
        slow_start: text(concurrency.slow_start.as_ref()),
        max_request_body_bytes: routing.max_request_body,
        visitor_header: text(visitors.visitor_header.as_ref()),
        visitor_cookie: text(visitors.visitor_cookie.as_ref()),
        visitor_set_cookie: visitors.visitor_set_cookie,
        error_pages: pages.error_pages.clone(),
        scope_cookie_paths: pages.scope_cookie_paths,
        log_request_headers: recording.log_request_headers.as_deref().map(given),
        log_response_headers: recording.log_response_headers.as_deref().map(given),
        exclude_metrics_paths: recording.exclude_metrics_paths.as_deref().map(given),
        forward_headers: client.forward_headers,
        client_ip_header: text(client.client_ip_header.as_ref()),
        buffer_requests: buffering.buffer_requests,
        buffer_responses: buffering.buffer_responses,
        buffer_memory_bytes: buffering.buffer_memory,
        max_response_body_bytes: buffering.max_response_body,
        writer_affinity_timeout: text(readers.writer_affinity_timeout.as_ref()),
        read_target_websockets: readers.read_target_websockets,
        tls_one_certificate: tls.tls_one_certificate,
        tls_staging: tls.tls_staging,
    }
}

fn text<T: ToString>(value: Option<&T>) -> Option<String> {
    value.map(ToString::to_string)
}

/// The values of a list; an empty one (`--host ''`, a stray comma) adds nothing to it.
fn given<T: ToString>(values: &[Clearable<T>]) -> Vec<String> {
    values.iter().filter_map(Clearable::value).map(ToString::to_string).collect()
}
