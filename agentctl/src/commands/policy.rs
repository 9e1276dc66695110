//! `agentctl plan`, `apply` and `export`: policies in files.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use model::declared;
use model::name::ServiceName;
use model::protocol::{
    Applied, DeclareRequest, DeclaredState, Plan, PolicyPatch, Problem, ProblemCode, ServicePlan, Status,
};
use model::service::Policy;

use super::Context;
use crate::cli::ApplyArgs;
use crate::client::Call;
use crate::declaration;
use crate::failure::{DRIFT, Failure};
use crate::render::clean;
use crate::render::plan as render;
use crate::render::words::counted;

/// The agent takes no longer request.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Nothing is printed where nothing differs.
pub(crate) async fn plan(context: &mut Context, file: &Path) -> Result<(), Failure> {
    let request = match read(file) {
        Ok(services) => DeclareRequest { services, generation: None },
        Err(problem) => return context.refused(problem.into()),
    };
    let plan = match context.client.document::<Plan>(Call::post("/v1/plan").with(&request)).await {
        Ok(plan) => plan,
        Err(error) => return context.refused(error),
    };
    let Plan { generation, services } = &plan.value;
    if context.json {
        context.print_json(&plan.text)?;
    } else {
        let text = render::drift(services, context.output.data_paint);
        context.output.data(&text)?;
    }
    let (settings, undeclared) = (count(services, false), count(services, true));
    if settings + undeclared > 0 {
        context.exit_code = DRIFT;
    }
    if settings > 0 {
        let file = shown(file);
        let differ = if settings == 1 { "differs" } else { "differ" };
        context.output.talk(&format!(
            "{} {differ}; `agentctl apply {file}` makes it so, with `--generation {generation}` only if nothing \
             changes before\n",
            counted(settings, "setting"),
        ));
    }
    tell_undeclared(context, services);
    Ok(())
}

pub(crate) async fn apply(context: &mut Context, arguments: &ApplyArgs) -> Result<(), Failure> {
    let ApplyArgs { file, generation, yes } = arguments;
    let mut request = match read(file) {
        Ok(services) => DeclareRequest { services, generation: *generation },
        Err(problem) => return context.refused(problem.into()),
    };
    let plan = match context.client.document::<Plan>(Call::post("/v1/plan").with(&request)).await {
        Ok(plan) => plan.value,
        Err(error) => return context.refused(error),
    };
    let settings = count(&plan.services, false);
    let asks = context.output.asks && !yes && !context.json && settings > 0;
    if asks {
        let text = render::changes(&plan.services, context.output.data_paint);
        context.output.data(&text)?;
        if !context.output.confirm(&format!("Change {}?", counted(settings, "setting"))) {
            return Err(Problem::new(ProblemCode::Aborted, "not confirmed; nothing was changed").into());
        }
    }
    // What was shown is what is done, or nothing is.
    request.generation = Some(plan.generation);
    let applied = match context.client.document::<Applied>(Call::post("/v1/apply").with(&request)).await {
        Ok(applied) => applied,
        Err(error) => return context.refused(error),
    };
    if context.json {
        return context.print_json(&applied.text);
    }
    if !asks {
        let text = render::changes(&applied.value.services, context.output.data_paint);
        context.output.data(&text)?;
    }
    let Applied { generation, changed, services } = &applied.value;
    let what = match (count(services, false), changed) {
        (0, false) => "nothing had to change".to_owned(),
        (0, true) => "nothing had to change; what runs is known as declared now".to_owned(),
        (settings, _) => format!("{} changed", counted(settings, "setting")),
    };
    context.output.talk(&format!("{} is applied: {what} (generation {generation})\n", shown(file)));
    for service in services.iter().filter(|service| service.state != DeclaredState::Deployed) {
        let name = clean::line(&service.service);
        context
            .output
            .talk(&format!("`{name}` waits for its first release: `agentctl deploy {name} --target …`\n"));
    }
    tell_undeclared(context, services);
    Ok(())
}

/// What runs, as a file that declares it.
pub(crate) async fn export(context: &mut Context, names: &[ServiceName]) -> Result<(), Failure> {
    let status = match context.client.document::<Status>(Call::get("/v1/status")).await {
        Ok(status) => status.value,
        Err(error) => return context.refused(error),
    };
    let policies = match policies(&status, names) {
        Ok(policies) => policies,
        Err(problem) => return context.refused(problem.into()),
    };
    let file = declaration::print(policies.iter().map(|(name, policy)| (*name, policy)));
    if context.json {
        let text = serde_json::to_string(&file).expect("wire shapes cannot fail to print");
        return context.print_json(&text);
    }
    if file.service.is_empty() {
        context.output.talk("no services yet: `agentctl deploy NAME --target HOST:PORT` makes the first\n");
        return Ok(());
    }
    match toml::to_string(&file) {
        Ok(text) => context.output.data(&text),
        Err(error) => {
            let problem = Problem::new(ProblemCode::Internal, "what runs cannot be written as TOML");
            context.refused(problem.because(error.to_string()).into())
        }
    }
}

fn policies<'s>(status: &'s Status, names: &[ServiceName]) -> Result<BTreeMap<&'s str, Policy>, Problem> {
    let deployed = status.services.iter().map(|service| (service.name.as_str(), &service.policy));
    let declared = status.declared.iter().map(|declared| (declared.name.as_str(), &declared.policy));
    let all: BTreeMap<&str, &PolicyPatch> = deployed.chain(declared).collect();
    if let Some(missing) = names.iter().find(|name| !all.contains_key(name.as_str())) {
        let problem = Problem::new(ProblemCode::NotFound, format!("there is no service `{missing}`"));
        return Err(problem.hint("`agentctl list` shows the services"));
    }
    let wanted = |name: &str| names.is_empty() || names.iter().any(|one| one.as_str() == name);
    let wanted = all.into_iter().filter(|(name, _)| wanted(name));
    wanted.map(|(name, patch)| Ok((name, declared::policy(patch)?))).collect()
}

/// The services of a file; `-` is standard input.
fn read(path: &Path) -> Result<BTreeMap<String, PolicyPatch>, Problem> {
    let file = shown(path);
    let text = text_of(path).map_err(|error| {
        let message = format!("cannot read the policy file {file}");
        Problem::new(ProblemCode::Invalid, message).because(error.to_string())
    })?;
    declaration::parse(&text).map_err(|wrong| {
        let places = counted(wrong.len() as u64, "place");
        let mut problem =
            Problem::new(ProblemCode::Invalid, format!("{file} is wrong in {places}; nothing was sent"));
        problem.causes = wrong.iter().map(|one| format!("{file}:{one}")).collect();
        problem.hint(
            "settings are named as the flags of `agentctl deploy`, with `_` for `-`; `agentctl export` prints \
             what runs as such a file",
        )
    })
}

fn text_of(path: &Path) -> std::io::Result<String> {
    let source: Box<dyn Read> = if path == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(path)?)
    };
    let mut text = String::new();
    source.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(std::io::Error::other(format!("it is longer than {FILE_BYTES_MAX} bytes")));
    }
    Ok(text)
}

fn shown(path: &Path) -> String {
    if path == Path::new("-") { "standard input".to_owned() } else { clean::line(&path.to_string_lossy()) }
}

fn count(services: &[ServicePlan], undeclared: bool) -> u64 {
    let one = |service: &ServicePlan| {
        if undeclared { service.undeclared.len() } else { service.differences.len() }
    };
    services.iter().map(one).sum::<usize>() as u64
}

fn tell_undeclared(context: &mut Context, services: &[ServicePlan]) {
    for service in services {
        for one in &service.undeclared {
            let (name, what) = (clean::line(&service.service), clean::line(&one.setting));
            context.output.talk(&format!(
                "the {what} of `{name}` is declared by no file; `apply` leaves it alone (`agentctl status {name}`)\n"
            ));
        }
    }
}
