//! `agentctl certs`: what certificates there are, and how far those that are wanted have come.

use model::certificate::CertificateName;
use model::name::HostPattern;
use model::protocol::{CertificateStatus, Certificates, RevokeRequest};

use super::{Context, now_ms, operation};
use crate::cli::CertsVerb;
use crate::client::Call;
use crate::failure::Failure;
use crate::output::Output;
use crate::render::certificates;

pub(crate) async fn run(context: &mut Context, verb: CertsVerb) -> Result<(), Failure> {
    match verb {
        CertsVerb::List => {
            let render =
                |all: &Certificates, output: &Output| certificates::list(all, now_ms(), output.data_paint);
            context.show(Call::get("/v1/certificates"), render).await
        }
        CertsVerb::Show { name } => {
            let render = |one: &CertificateStatus, output: &Output| {
                certificates::one(one, now_ms(), output.data_paint)
            };
            context.show(Call::get(path(&name)), render).await
        }
        CertsVerb::Renew { name } => {
            let call = Call::post(format!("{}/renew", path(&name)));
            operation::run_certificate(context, &name.to_string(), call).await
        }
        CertsVerb::Revoke { name, reason } => {
            let request = RevokeRequest { reason: reason.into() };
            let call = Call::post(format!("{}/revoke", path(&name))).with(&request);
            operation::run_certificate(context, &name.to_string(), call).await
        }
    }
}

fn path(name: &HostPattern) -> String {
    format!("/v1/certificates/{}", CertificateName::of(name))
}
