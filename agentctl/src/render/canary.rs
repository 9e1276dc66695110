//! A service's canary.

use model::protocol::{CanaryStatus, OverridesBody};

use super::age::age;
use super::clean;
use super::paint::{Paint, Tone};
use super::status::release_targets;

pub(crate) fn text(service: &str, canary: Option<&CanaryStatus>, now_ms: u64, paint: Paint) -> String {
    let Some(canary) = canary else {
        return format!("`{}` has no canary\n", clean::line(service));
    };
    let head = format!("{} canary {}", clean::line(service), clean::line(&canary.release.release));
    let mut text = format!("{}\n", paint.paint(Tone::Strong, &head));
    let mut add = |name: &str, value: &str| text.push_str(&format!("  {name:<10}{}\n", clean::line(value)));
    add("weight", &canary.weight);
    add("rollout", &canary.rollout);
    add("age", &age(now_ms, canary.release.created_ms));
    for (kind, values) in overrides(&canary.overrides) {
        add(kind, &values.join(", "));
    }
    format!("{text}\n{}", release_targets(&canary.release, paint))
}

fn overrides(overrides: &OverridesBody) -> impl Iterator<Item = (&'static str, &Vec<String>)> {
    let OverridesBody { headers, cookies, networks, visitors } = overrides;
    let all = [("headers", headers), ("cookies", cookies), ("networks", networks), ("visitors", visitors)];
    all.into_iter().filter(|(_, values)| !values.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples::{self, NOW_MS};

    #[test]
    fn with_overrides() {
        let text = text("shop", Some(&samples::canary()), NOW_MS, Paint::new(false));
        insta::assert_snapshot!(text, @r"
        shop canary c0ffee1
          weight    0.25%
          rollout   c0ffee1
          age       5m
          headers   x-canary=1
          networks  10.0.0.0/8, fd00::/8

        TARGET          STATE  IN FLIGHT  LAST PROBE
        127.0.0.1:3003  ready  4          200 in 4ms
        ");
    }

    #[test]
    fn none() {
        assert_eq!(text("shop", None, NOW_MS, Paint::new(false)), "`shop` has no canary\n");
    }
}
