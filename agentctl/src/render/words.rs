//! The words and tones of the protocol's closed sets, and of counts.

use model::protocol::{CertificateState, DeploymentPhase, ServiceState, TargetStateName};

use super::paint::Tone;
use super::table::Cell;

pub(crate) fn yes_or_no(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

/// `1 socket`, `2 sockets`.
pub(crate) fn counted(count: u64, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}

/// A target for reads alone.
pub(crate) fn reader(target: &str) -> String {
    format!("{target} (reads)")
}

pub(crate) fn service_state(state: ServiceState) -> Cell {
    let tone = match state {
        ServiceState::Serving => Tone::Good,
        ServiceState::Degraded => Tone::Bad,
        ServiceState::Paused | ServiceState::Stopped => Tone::Warning,
    };
    Cell::toned(tone, state_text(state))
}

pub(crate) fn state_text(state: ServiceState) -> &'static str {
    match state {
        ServiceState::Serving => "serving",
        ServiceState::Degraded => "degraded",
        ServiceState::Paused => "paused",
        ServiceState::Stopped => "stopped",
    }
}

pub(crate) fn phase_text(phase: DeploymentPhase) -> &'static str {
    match phase {
        DeploymentPhase::Planned => "planned",
        DeploymentPhase::Gating => "gating",
        DeploymentPhase::Warming => "warming",
        DeploymentPhase::Switching => "switching",
        DeploymentPhase::Draining => "draining",
        DeploymentPhase::Baking => "baking",
        DeploymentPhase::Committed => "committed",
        DeploymentPhase::Aborted => "aborted",
        DeploymentPhase::Reverted => "reverted",
    }
}

pub(crate) fn certificate_state(state: CertificateState) -> Cell {
    let tone = match state {
        CertificateState::Valid | CertificateState::Own => Tone::Good,
        CertificateState::Issuing | CertificateState::Renewing => Tone::Plain,
        CertificateState::Placeholder => Tone::Warning,
        CertificateState::Failing => Tone::Bad,
    };
    Cell::toned(tone, certificate_text(state))
}

pub(crate) fn certificate_text(state: CertificateState) -> &'static str {
    match state {
        CertificateState::Placeholder => "placeholder",
        CertificateState::Issuing => "issuing",
        CertificateState::Valid => "valid",
        CertificateState::Renewing => "renewing",
        CertificateState::Failing => "failing",
        CertificateState::Own => "own",
    }
}

pub(crate) fn target_state(state: TargetStateName) -> &'static str {
    match state {
        TargetStateName::Pending => "pending",
        TargetStateName::Booting => "booting",
        TargetStateName::Probing => "probing",
        TargetStateName::Warming => "warming",
        TargetStateName::Ready => "ready",
        TargetStateName::Serving => "serving",
        TargetStateName::Suspect => "suspect",
        TargetStateName::Ejected => "ejected",
        TargetStateName::Draining => "draining",
        TargetStateName::Held => "held",
        TargetStateName::Retired => "retired",
        TargetStateName::Failed => "failed",
    }
}

pub(crate) fn target_tone(state: TargetStateName) -> Tone {
    match state {
        TargetStateName::Ready | TargetStateName::Serving => Tone::Good,
        TargetStateName::Suspect | TargetStateName::Draining => Tone::Warning,
        TargetStateName::Ejected | TargetStateName::Failed => Tone::Bad,
        TargetStateName::Held | TargetStateName::Retired => Tone::Faint,
        _ => Tone::Plain,
    }
}
