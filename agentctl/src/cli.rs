//! The whole command tree: every verb, flag, default and example that `--help` shows.
//!
//! What the flags mean to the agent (their place in a request) lives in `commands`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use model::forwarded::ClientIpHeader;
use model::name::{HostName, HostPattern, PathPrefix, ReleaseId, ServiceName, TargetAddress};
use model::weight::Weight;

use crate::values::{
    self, AnyTime, Clearable, Network, Pair, ProbePath, SomeTime, Token, absolute_path, identity,
};

#[derive(Debug, Parser)]
#[command(
    name = "agentctl",
    version,
    about = "Deploys, rolls back and watches the services of this machine's Portcullis agent",
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "\
Examples:
  agentctl deploy shop --target 127.0.0.1:3001 --host shop.example.com
  agentctl status shop
  agentctl rollback shop

Exit codes:
  0 done · 1 other failure · 2 wrong usage · 3 agent unreachable · 4 conflict
  5 gate failed, traffic unchanged · 6 reverted or aborted · 7 done, but no certificate yet
  8 denied · 10 plan found differences · 130 interrupted"
)]
pub(crate) struct Cli {
    /// Control socket of the agent
    #[arg(
        long,
        global = true,
        env = "PORTCULLIS_CONTROL",
        hide_env_values = true,
        value_name = "PATH",
        default_value = "/run/portcullis/control.sock",
        help_heading = "Global options"
    )]
    pub(crate) control: PathBuf,

    /// Print the agent's reply as JSON (one event per line for operations)
    #[arg(long, global = true, help_heading = "Global options")]
    pub(crate) json: bool,

    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Bring a new release into service, once every target of it is healthy
    #[command(
        override_usage = "agentctl deploy <SERVICE> --target <TARGET>... [OPTIONS]",
        after_help = "\
A flag that is not given leaves the service's setting as it is. An empty value (--canonical-host '')
takes a setting back. Nothing changes for visitors unless the gate opens.

Examples:
  agentctl deploy shop --target 127.0.0.1:3001 --host shop.example.com
  agentctl deploy shop --target 10.0.0.5:3000,10.0.0.6:3000 --release \"$GITHUB_SHA\"
  agentctl deploy shop --target unix:/run/shop/puma.sock --health-check-path /healthz --bake 2m
  agentctl deploy shop --target 127.0.0.1:3001 --buffer-requests --buffer-responses
  agentctl deploy shop --target 127.0.0.1:3001 --host shop.example.com --tls --wait-tls
  agentctl deploy shop --target 127.0.0.1:3001 --tls \\
      --tls-certificate-path shop.pem --tls-private-key-path shop.key"
    )]
    Deploy(Box<DeployArgs>),

    /// Give the traffic back to the held release, or to an older one
    #[command(after_help = "\
Without RELEASE, the traffic goes back to the held release at once. An older release of the history
passes the gate again first.

Examples:
  agentctl rollback shop
  agentctl rollback shop 3f9c2ab")]
    Rollback {
        /// Name of the service
        service: ServiceName,
        /// Release to go back to, as `agentctl history` names it [default: the held one]
        release: Option<ReleaseId>,
    },

    /// Show the releases of a service, the newest first
    #[command(after_help = "\
Examples:
  agentctl history shop
  agentctl history shop --json | jq -r '.entries[0].release'")]
    History {
        /// Name of the service
        service: ServiceName,
    },

    /// Show the agent, or one service in detail
    #[command(after_help = "\
Examples:
  agentctl status
  agentctl status shop
  agentctl status --json | jq .listeners.http")]
    Status {
        /// Name of the service [default: the whole agent]
        service: Option<ServiceName>,
    },

    /// List the services
    #[command(
        visible_alias = "ls",
        after_help = "\
Examples:
  agentctl list
  agentctl ls --json | jq -r '.services[].name'"
    )]
    List,

    /// Show the targets of every service, or of one: state, load, last probe
    #[command(after_help = "\
Examples:
  agentctl targets
  agentctl targets shop")]
    Targets {
        /// Name of the service [default: all of them]
        service: Option<ServiceName>,
    },

    /// Take a service out of the agent, after its requests have ended
    #[command(
        visible_alias = "rm",
        after_help = "\
The app itself is left running.

Examples:
  agentctl remove shop"
    )]
    Remove {
        /// Name of the service
        service: ServiceName,
    },

    /// Give a second release a share of the visitors
    #[command(
        subcommand,
        after_help = "\
Examples:
  agentctl canary start shop --target 127.0.0.1:3002 --weight 5%
  agentctl canary set shop 25%
  agentctl canary promote shop"
    )]
    Canary(CanaryVerb),

    /// Let the requests of a service wait, until `resume`: for a migration or a move
    #[command(after_help = "\
New requests wait at once; the command ends when nothing is in flight any more, so that what follows
it meets an app that nobody uses. If somebody resumes or stops the service before, it ends with 6.
Deploys go on as ever and do not resume the service.

Examples:
  agentctl pause shop && bin/migrate && agentctl resume shop
  agentctl pause shop --max-pause 2m --bypass-header x-team=1
  agentctl pause shop --drain-timeout 10s --bypass-network 192.0.2.0/24")]
    Pause(PauseArgs),

    /// Let the requests of a paused or stopped service through again, those that wait first
    #[command(after_help = "\
At any moment, also while the pause still drains. A service that runs is left as it is.

Examples:
  agentctl resume shop")]
    Resume {
        /// Name of the service
        service: ServiceName,
    },

    /// Show visitors of a service a maintenance page, until `resume`
    #[command(after_help = "\
New requests are answered 503 at once, and so are those that wait in a pause; the command ends when
nothing is in flight any more. Programs that ask for JSON get JSON.

Examples:
  agentctl stop shop
  agentctl stop shop --message 'We are moving to a larger machine and are back at 6:00 UTC.'
  agentctl stop shop --bypass-cookie team=4f1c")]
    Stop(StopArgs),

    /// Print what changed and who did it, the oldest first
    #[command(after_help = "\
Examples:
  agentctl events
  agentctl events --follow --json")]
    Events {
        /// Go on printing as things happen, until interrupted
        #[arg(long, short)]
        follow: bool,
    },

    /// Print a script that teaches a shell to complete agentctl's verbs and flags
    #[command(after_help = "\
Examples:
  agentctl completions bash > /etc/bash_completion.d/agentctl
  agentctl completions zsh > \"${fpath[1]}/_agentctl\"
  agentctl completions fish > ~/.config/fish/completions/agentctl.fish")]
    Completions {
        /// Shell that the script is for
        shell: Shell,
    },

    /// Set the policy of services as a file declares it: all of the file, or nothing
    #[command(after_help = "\
A file has a table for each service; a setting that it leaves out becomes the default. Settings
are named as the flags of `deploy`, with `_` for `-`:

  [service.shop]
  hosts = [\"shop.example.com\"]
  tls = true
  max_in_flight = 15

Asks only on a terminal. Changes no release: a service that has none yet waits, declared, for its
first `deploy`. What changes after FILE was compared and before it is applied is not overwritten
(exit code 4).

Examples:
  agentctl apply policy.toml
  agentctl apply policy.toml --yes --generation 17
  agentctl export shop | sed 's/5s/10s/' | agentctl apply -")]
    Apply(ApplyArgs),

    /// Show where what runs differs from what a file declares, and who changed it by hand
    #[command(after_help = "\
Prints nothing and ends with 0 if nothing differs; ends with 10 if something does. A running canary
is declared by no file, so it is always shown.

Examples:
  agentctl plan policy.toml
  agentctl plan policy.toml --json | jq -r '.services[].differences[].setting'")]
    Plan {
        /// TOML file with the policy of services; `-` is standard input
        file: PathBuf,
    },

    /// Print the policy that runs as a file for `apply`
    #[command(after_help = "\
Settings that have their default are left out.

Examples:
  agentctl export > policy.toml
  agentctl export shop blog")]
    Export {
        /// Names of services [default: all of them]
        services: Vec<ServiceName>,
    },

    /// Show, renew and revoke the certificates that HTTPS shows
    #[command(
        subcommand,
        after_help = "\
Examples:
  agentctl certs list
  agentctl certs show shop.example.com
  agentctl certs renew shop.example.com"
    )]
    Certs(CertsVerb),
}

#[derive(Debug, Subcommand)]
pub(crate) enum CertsVerb {
    /// List the certificates: their state, how long they hold, what keeps others from being issued
    #[command(
        visible_alias = "ls",
        after_help = "\
Examples:
  agentctl certs list
  agentctl certs list --json | jq -r '.certificates[] | select(.state == \"failing\") | .name'"
    )]
    List,

    /// Show one certificate in detail
    #[command(after_help = "\
Examples:
  agentctl certs show shop.example.com")]
    Show {
        /// Name of the certificate: its first host
        name: HostPattern,
    },

    /// Have an automatic certificate issued now, whether it is due or not
    #[command(after_help = "\
Waits for the authority's answer. What serves now goes on serving until the new one is there, and if
it does not come. Counts towards the authority's rate limits.

Examples:
  agentctl certs renew shop.example.com")]
    Renew {
        /// Name of the certificate: its first host
        name: HostPattern,
    },

    /// Tell the authority that a certificate is not to be trusted any more, and have another one issued
    #[command(after_help = "\
For a private key that became known. The revoked certificate serves until its replacement is there.
Only for administrators.

Examples:
  agentctl certs revoke shop.example.com --reason key-compromise")]
    Revoke {
        /// Name of the certificate: its first host
        name: HostPattern,
        /// Why
        #[arg(long, value_enum, default_value = "unspecified")]
        reason: values::Reason,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum CanaryVerb {
    /// Start a canary: a second release behind its own gate, with a share of the visitors
    #[command(
        override_usage = "agentctl canary start <SERVICE> --target <TARGET>... --weight <PERCENT> [OPTIONS]",
        after_help = "\
A visitor keeps the release that they were given. Overrides come before the weight, so that
`--weight 0%` shows the canary to nobody else.

Examples:
  agentctl canary start shop --target 127.0.0.1:3002 --weight 5%
  agentctl canary start shop --target 127.0.0.1:3002 --weight 0% --header x-canary=1
  agentctl canary start shop --target 127.0.0.1:3002 --weight 1% --network 10.0.0.0/8"
    )]
    Start(CanaryStartArgs),

    /// Change the canary's share; raising it moves nobody back
    #[command(after_help = "\
Examples:
  agentctl canary set shop 25%
  agentctl canary set shop 0.5%")]
    Set {
        /// Name of the service
        service: ServiceName,
        /// Share of the visitors: 0% to 100% in steps of 0.01%
        weight: Weight,
    },

    /// Show the canary: release, share, overrides, targets
    #[command(after_help = "\
Examples:
  agentctl canary status shop
  agentctl canary status shop --json | jq -r .weight")]
    Status {
        /// Name of the service
        service: ServiceName,
    },

    /// Make the canary the stable release, and hold the old one
    #[command(after_help = "\
Examples:
  agentctl canary promote shop")]
    Promote {
        /// Name of the service
        service: ServiceName,
    },

    /// Give the canary up: the stable release gets all visitors
    #[command(after_help = "\
Examples:
  agentctl canary abort shop")]
    Abort {
        /// Name of the service
        service: ServiceName,
    },
}

#[derive(Debug, Args)]
pub(crate) struct DeployArgs {
    /// Name of the service
    pub(crate) service: ServiceName,
    #[command(flatten)]
    pub(crate) release: ReleaseArgs,
    /// Give a running canary up instead of refusing the deploy
    #[arg(long, help_heading = "Release")]
    pub(crate) replace_canary: bool,
    #[command(flatten)]
    pub(crate) routing: RoutingArgs,
    #[command(flatten)]
    pub(crate) tls: TlsArgs,
    #[command(flatten)]
    pub(crate) gate: GateArgs,
    #[command(flatten)]
    pub(crate) timeouts: TimeoutArgs,
    #[command(flatten)]
    pub(crate) concurrency: ConcurrencyArgs,
    #[command(flatten)]
    pub(crate) visitors: VisitorArgs,
    #[command(flatten)]
    pub(crate) pages: PageArgs,
    #[command(flatten)]
    pub(crate) recording: RecordingArgs,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
    #[command(flatten)]
    pub(crate) buffering: BufferingArgs,
    #[command(flatten)]
    pub(crate) readers: ReaderArgs,
    /// Give the release the traffic at once, without waiting until it is healthy; bake and rollback stay
    #[arg(long, help_heading = "Release")]
    pub(crate) force: bool,
    /// Wait until the automatic certificates serve too, at most TIME [2m if none is given]; exit code 7 if they do not
    #[arg(
        long,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "2m",
        value_name = "TIME",
        help_heading = "Release"
    )]
    pub(crate) wait_tls: Option<SomeTime>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Release")]
pub(crate) struct ReleaseArgs {
    // Not a doc comment: rustdoc would take the brackets for a link, and clap would show their escapes.
    #[arg(
        long = "target",
        required = true,
        value_delimiter = ',',
        value_name = "TARGET",
        help = "Where the app listens, such as 127.0.0.1:3000, [::1]:3000 or unix:/run/app.sock; repeatable, commas"
    )]
    pub(crate) targets: Vec<TargetAddress>,
    /// Name of the release, such as a git sha [default: r1, r2, …]
    #[arg(long, value_name = "LABEL")]
    pub(crate) release: Option<ReleaseId>,
    /// Where the app listens for reads alone: GET and HEAD go there while one of these is well; repeatable,
    /// commas
    #[arg(long = "read-target", value_delimiter = ',', value_name = "TARGET")]
    pub(crate) read_targets: Vec<TargetAddress>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Routing")]
pub(crate) struct RoutingArgs {
    /// Host that the service answers for, such as shop.example.com or *.example.com; repeatable, commas
    /// [at first: any host]
    #[arg(long = "host", value_delimiter = ',', value_name = "HOST")]
    pub(crate) hosts: Option<Vec<Clearable<HostPattern>>>,
    /// Path that the service answers for, with all below it; repeatable, commas [at first: /]
    #[arg(long = "path-prefix", value_delimiter = ',', value_name = "PATH")]
    pub(crate) path_prefixes: Option<Vec<PathPrefix>>,
    /// Take the prefix off before the app sees the path [at first: true]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) strip_path_prefix: Option<bool>,
    /// Redirect every other host of the service to this one [at first: none]
    #[arg(long, value_name = "HOST")]
    pub(crate) canonical_host: Option<Clearable<HostName>>,
    /// Largest request body in bytes; 0: any length [at first: 1073741824]
    #[arg(long, value_name = "BYTES")]
    pub(crate) max_request_body: Option<u64>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "TLS")]
pub(crate) struct TlsArgs {
    /// Serve the service over HTTPS, with automatic certificates unless files are named [at first: false]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) tls: Option<bool>,
    /// Redirect plain HTTP to HTTPS [at first: true with --tls]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) tls_redirect: Option<bool>,
    /// PEM file with the certificate chain, read by the agent [at first: an automatic certificate]
    #[arg(long, value_name = "FILE", value_parser = absolute_path, requires = "tls_private_key_path")]
    pub(crate) tls_certificate_path: Option<String>,
    /// PEM file with the certificate's private key, read by the agent
    #[arg(long, value_name = "FILE", value_parser = absolute_path, requires = "tls_certificate_path")]
    pub(crate) tls_private_key_path: Option<String>,
    /// Ask for one automatic certificate with all hosts, instead of one each [at first: false]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) tls_one_certificate: Option<bool>,
    /// Ask the authority's staging area, for trials: browsers do not trust it [at first: false]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) tls_staging: Option<bool>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Gate")]
pub(crate) struct GateArgs {
    /// Path that tells whether a target is healthy (200 to 299) [at first: /up]
    #[arg(long, value_name = "PATH")]
    pub(crate) health_check_path: Option<ProbePath>,
    /// Port to probe; 0 is the target's own [at first: 0]
    #[arg(long, value_name = "PORT")]
    pub(crate) health_check_port: Option<u16>,
    /// Host that probes ask for [at first: the service's first host]
    #[arg(long, value_name = "HOST")]
    pub(crate) health_check_host: Option<Clearable<HostName>>,
    /// Longest time between two probes of a release that boots [at first: 1s]
    #[arg(long, value_name = "TIME")]
    pub(crate) health_check_interval: Option<SomeTime>,
    /// Time for one probe, but for the very first [at first: 2s]
    #[arg(long, value_name = "TIME")]
    pub(crate) health_check_timeout: Option<SomeTime>,
    /// Time for all targets to become healthy [at first: 1m]
    #[arg(long, value_name = "TIME")]
    pub(crate) deploy_timeout: Option<SomeTime>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Times")]
pub(crate) struct TimeoutArgs {
    /// Time for the old release to finish the requests that it holds [at first: 30s]
    #[arg(long, value_name = "TIME")]
    pub(crate) drain_timeout: Option<AnyTime>,
    /// Time in which WebSockets and event streams of the old release are closed, evenly [at first: 1m]
    #[arg(long, value_name = "TIME")]
    pub(crate) socket_drain_timeout: Option<AnyTime>,
    /// Time to watch the new release for errors, with a way back; 0 skips it [at first: 1m]
    #[arg(long, value_name = "TIME")]
    pub(crate) bake: Option<AnyTime>,
    /// Time to connect to a target [at first: 2s]
    #[arg(long, value_name = "TIME")]
    pub(crate) connect_timeout: Option<SomeTime>,
    /// Time for a target to begin its answer [at first: 30s]
    #[arg(long, value_name = "TIME")]
    pub(crate) target_timeout: Option<SomeTime>,
    /// Time that a body may make no progress, either way [at first: 30s]
    #[arg(long, value_name = "TIME")]
    pub(crate) body_idle_timeout: Option<SomeTime>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Concurrency")]
pub(crate) struct ConcurrencyArgs {
    /// Requests that a target holds at most, such as the number of Puma's threads; 0: any number [at first: 0]
    #[arg(long, value_name = "N")]
    pub(crate) max_in_flight: Option<u32>,
    /// Requests that may wait for one of these places; 0: none [at first: 1000]
    #[arg(long, value_name = "N")]
    pub(crate) queue_max: Option<u32>,
    /// Time that a request may wait for a place, after which it is answered 503 [at first: 5s]
    #[arg(long, value_name = "TIME")]
    pub(crate) queue_timeout: Option<SomeTime>,
    /// Time over which a target that joins others grows to its full share; 0: at once [at first: 15s]
    #[arg(long, value_name = "TIME")]
    pub(crate) slow_start: Option<AnyTime>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Visitors of a canary")]
pub(crate) struct VisitorArgs {
    /// Request header that names the visitor, such as x-user-id [at first: none]
    #[arg(long, value_name = "NAME")]
    pub(crate) visitor_header: Option<Clearable<Token>>,
    /// Cookie of the app that names the visitor, such as user_id [at first: none]
    #[arg(long, value_name = "NAME")]
    pub(crate) visitor_cookie: Option<Clearable<Token>>,
    /// Give visitors whom nothing names a cookie while a canary runs [at first: true]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) visitor_set_cookie: Option<bool>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Answers")]
pub(crate) struct PageArgs {
    /// Directory with pages for what Portcullis answers itself, such as 503.html and 5xx.html, read by the agent [at first:
    /// plain ones]
    #[arg(long, value_name = "DIR", value_parser = absolute_path)]
    pub(crate) error_pages: Option<String>,
    /// Bind cookies of the app to the path prefix that is taken off [at first: false]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) scope_cookie_paths: Option<bool>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Log and metrics")]
pub(crate) struct RecordingArgs {
    /// Request header that the access log shows, too, as req_NAME; repeatable, commas [at first: none]
    #[arg(long = "log-request-header", value_delimiter = ',', value_name = "NAME")]
    pub(crate) log_request_headers: Option<Vec<Clearable<Token>>>,
    /// Response header that the access log shows, too, as resp_NAME; repeatable, commas [at first: none]
    #[arg(long = "log-response-header", value_delimiter = ',', value_name = "NAME")]
    pub(crate) log_response_headers: Option<Vec<Clearable<Token>>>,
    /// Path, as the app sees it, whose requests are not counted in the metrics; repeatable, commas [at first: none]
    #[arg(long = "exclude-metrics-path", value_delimiter = ',', value_name = "PATH")]
    pub(crate) exclude_metrics_paths: Option<Vec<Clearable<ProbePath>>>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Who the client is")]
pub(crate) struct ClientArgs {
    /// Believe X-Forwarded-* of peers in private networks too, not only of the agent's trusted_proxies
    /// [at first: false]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) forward_headers: Option<bool>,
    /// Request header in which trusted proxies name the client, such as CF-Connecting-IP [at first: as the
    /// agent's configuration says]
    #[arg(long, value_name = "NAME")]
    pub(crate) client_ip_header: Option<Clearable<ClientIpHeader>>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Buffering")]
pub(crate) struct BufferingArgs {
    /// Keep a request's body until it is whole before a target is given it, so that slow uploads hold no
    /// thread of the app [at first: false]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) buffer_requests: Option<bool>,
    /// Take an answer from its target as fast as it comes, so that slow readers hold no thread of the app
    /// [at first: false]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) buffer_responses: Option<bool>,
    /// Bytes of one buffered body in memory; the rest goes to disk [at first: 1048576]
    #[arg(long, value_name = "BYTES")]
    pub(crate) buffer_memory: Option<u64>,
    /// Largest response body in bytes, buffered or not; 0: any length [at first: 0]
    #[arg(long, value_name = "BYTES")]
    pub(crate) max_response_body: Option<u64>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Read targets")]
pub(crate) struct ReaderArgs {
    /// Time for which a visitor who has written reads from the other targets; 0s: none [at first: 1s]
    #[arg(long, value_name = "TIME")]
    pub(crate) writer_affinity_timeout: Option<AnyTime>,
    /// Open WebSockets to read targets, too [at first: false]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) read_target_websockets: Option<bool>,
}

#[derive(Debug, Args)]
pub(crate) struct CanaryStartArgs {
    /// Name of the service
    pub(crate) service: ServiceName,
    #[command(flatten)]
    pub(crate) release: ReleaseArgs,
    /// Share of the visitors: 0% to 100% in steps of 0.01%
    #[arg(long, value_name = "PERCENT", help_heading = "Visitors")]
    pub(crate) weight: Weight,
    /// Text that decides who is picked; the same on every machine [default: the release]
    #[arg(long, value_name = "ID", value_parser = values::rollout, help_heading = "Visitors")]
    pub(crate) rollout: Option<String>,
    /// Requests with this header get the canary; repeatable
    #[arg(long = "header", value_name = "NAME=VALUE", help_heading = "Overrides")]
    pub(crate) headers: Vec<Pair>,
    /// Requests with this cookie get the canary; repeatable
    #[arg(long = "cookie", value_name = "NAME=VALUE", help_heading = "Overrides")]
    pub(crate) cookies: Vec<Pair>,
    /// Clients of this network get the canary; repeatable, commas
    #[arg(long = "network", value_name = "CIDR", value_delimiter = ',', help_heading = "Overrides")]
    pub(crate) networks: Vec<Network>,
    /// This visitor gets the canary, as the visitor header or cookie names them; repeatable
    #[arg(long = "visitor", value_name = "ID", value_parser = identity, help_heading = "Overrides")]
    pub(crate) visitors: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct PauseArgs {
    /// Name of the service
    pub(crate) service: ServiceName,
    /// Time for what is in flight to finish; then it is cut [default: as at a deploy]
    #[arg(long, value_name = "TIME")]
    pub(crate) drain_timeout: Option<AnyTime>,
    /// Time that a request waits at most, from its own arrival; then it is answered 504 [default: 30s]
    #[arg(long, value_name = "TIME")]
    pub(crate) max_pause: Option<SomeTime>,
    /// Requests that may wait at a time; more are answered 503 [default: half of the agent's connections]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) max_waiting: Option<u32>,
    #[command(flatten)]
    pub(crate) bypass: BypassArgs,
}

#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    /// Name of the service
    pub(crate) service: ServiceName,
    /// Time for what is in flight to finish; then it is cut [default: as at a deploy]
    #[arg(long, value_name = "TIME")]
    pub(crate) drain_timeout: Option<AnyTime>,
    /// Plain text for the page
    #[arg(long, value_name = "TEXT")]
    pub(crate) message: Option<String>,
    #[command(flatten)]
    pub(crate) bypass: BypassArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Let through all the same")]
pub(crate) struct BypassArgs {
    /// Requests with exactly this header; repeatable
    #[arg(long = "bypass-header", value_name = "NAME=VALUE")]
    pub(crate) headers: Vec<Pair>,
    /// Requests with exactly this cookie; repeatable
    #[arg(long = "bypass-cookie", value_name = "NAME=VALUE")]
    pub(crate) cookies: Vec<Pair>,
    /// Clients of this network; repeatable, commas
    #[arg(long = "bypass-network", value_name = "CIDR", value_delimiter = ',')]
    pub(crate) networks: Vec<Network>,
}

#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    /// TOML file with the policy of services; `-` is standard input
    pub(crate) file: PathBuf,
    /// Refuse unless the agent is at this generation, as `plan` tells it
    #[arg(long, value_name = "N")]
    pub(crate) generation: Option<u64>,
    /// Do not ask
    #[arg(long, short)]
    pub(crate) yes: bool,
}

impl Cli {
    /// What a failure's annotation is headed with, such as `agentctl deploy shop`.
    pub(crate) fn title(&self) -> String {
        let (verb, service) = match &self.verb {
            Verb::Deploy(deploy) => ("deploy", Some(&deploy.service)),
            Verb::Rollback { service, .. } => ("rollback", Some(service)),
            Verb::History { service } => ("history", Some(service)),
            Verb::Status { service } => ("status", service.as_ref()),
            Verb::List => ("list", None),
            Verb::Targets { service } => ("targets", service.as_ref()),
            Verb::Remove { service } => ("remove", Some(service)),
            Verb::Canary(CanaryVerb::Start(start)) => ("canary start", Some(&start.service)),
            Verb::Canary(CanaryVerb::Set { service, .. }) => ("canary set", Some(service)),
            Verb::Canary(CanaryVerb::Status { service }) => ("canary status", Some(service)),
            Verb::Canary(CanaryVerb::Promote { service }) => ("canary promote", Some(service)),
            Verb::Canary(CanaryVerb::Abort { service }) => ("canary abort", Some(service)),
            Verb::Pause(pause) => ("pause", Some(&pause.service)),
            Verb::Resume { service } => ("resume", Some(service)),
            Verb::Stop(stop) => ("stop", Some(&stop.service)),
            Verb::Events { .. } => ("events", None),
            Verb::Completions { .. } => ("completions", None),
            Verb::Apply(_) => ("apply", None),
            Verb::Plan { .. } => ("plan", None),
            Verb::Export { .. } => ("export", None),
            Verb::Certs(CertsVerb::List) => ("certs list", None),
            Verb::Certs(CertsVerb::Show { .. }) => ("certs show", None),
            Verb::Certs(CertsVerb::Renew { .. }) => ("certs renew", None),
            Verb::Certs(CertsVerb::Revoke { .. }) => ("certs revoke", None),
        };
        match service {
            Some(service) => format!("agentctl {verb} {service}"),
            None => format!("agentctl {verb}"),
        }
    }
}

#[cfg(test)]
mod tests;
