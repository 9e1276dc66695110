//! Policies that were declared: one change of several services.

use std::sync::Arc;

use model::declared;
use model::name::ServiceName;
use model::protocol::{DeclaredState, DifferenceBody, LoggedEvent, Problem, ServicePlan};
use model::provenance::Mark;

use super::super::super::files::Files;
use super::super::super::{apply, declarations, now_ms, pages};
use super::super::Declaration;
use super::Keeper;

impl Keeper {
    /// The generation, and whether anything was new. Certificates that were read anew are shown in any case.
    pub(super) async fn declare(&mut self, declaration: Declaration) -> Result<(u64, bool), Problem> {
        let Declaration { policies, actor, generation, mut files } = declaration;
        let before = Arc::clone(&self.current.state);
        declarations::check_generation(&before, Some(generation))?;
        let mark = Mark { actor, at_ms: now_ms(), by: apply::VERB.to_owned() };
        let next = declarations::declare(&before, &policies, &mark)?;
        let changed = next.is_some();
        for (name, read) in &files {
            if let Some(pages) = &read.pages {
                pages::keep(pages, name, self.parts.file.dir()).await?;
            }
        }
        let state = match next {
            Some(next) => self.save(next).await?,
            None => Arc::clone(&before),
        };
        let mut live = self.current.live.clone();
        for name in policies.keys() {
            let (Some(service), Some(live)) = (state.services.get(name), live.get_mut(name)) else {
                continue;
            };
            let read = files.remove(name).unwrap_or_default();
            let now = Files::current(service, read, Files::of(live), self.parts.file.dir()).await;
            now.put_into(live);
        }
        self.swap(self.next(state, live));
        let new = declarations::undeclared(&before, &policies);
        let plans = declarations::plan(&before, &policies).into_iter().zip(policies.keys());
        for (plan, name) in plans.filter(|(_, name)| new.contains(name)) {
            self.tell_declared(name, &plan, &mark);
        }
        Ok((self.current.state.generation, changed))
    }

    fn tell_declared(&self, name: &ServiceName, plan: &ServicePlan, mark: &Mark) {
        let or_none = |text: String| if text.is_empty() { "none".to_owned() } else { text };
        let one = |one: &DifferenceBody| {
            let [old, new] = [&one.running, &one.declared].map(|value| or_none(declared::text(value)));
            format!("{} {old} → {new}", one.setting)
        };
        let changes: Vec<String> = plan.differences.iter().map(one).collect();
        let message = match plan.state {
            DeclaredState::Absent => "it is declared, and waits for its first release".to_owned(),
            _ if changes.is_empty() => "its policy is as declared".to_owned(),
            _ => format!("its policy was declared: {}", changes.join(", ")),
        };
        let service = self.current.state.services.get(name);
        self.parts.audit.record(LoggedEvent {
            at_ms: mark.at_ms,
            generation: self.current.state.generation,
            kind: apply::VERB.to_owned(),
            service: Some(name.to_string()),
            release: service.map(|service| service.stable.id.to_string()),
            target: None,
            actor: mark.actor.clone(),
            message,
        });
    }
}
