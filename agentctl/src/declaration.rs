//! Policy files: TOML that declares services, read with the line of everything that is wrong in it, and printed.
//!
//! Which settings there are and what they may say is `model::declared`'s business.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use model::declared;
use model::name::ServiceName;
use model::protocol::{PolicyFile, PolicyPatch};
use model::service::Policy;
use serde::Deserialize;
use serde_json::{Map, Value};
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

/// The only table of a file.
const SERVICE: &str = "service";
/// Below it, two names have only letters in common.
const SIMILARITY_MIN: f64 = 0.8;

/// Something wrong in a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Wrong {
    /// From 1.
    line: usize,
    message: String,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.line, self.message)
    }
}

/// The policies that `text` declares, or all that is wrong with it in the order of its lines.
pub(crate) fn parse(text: &str) -> Result<BTreeMap<String, PolicyPatch>, Vec<Wrong>> {
    let mut reader = Reader { text, names: declared::names(), wrong: Vec::new() };
    let services = reader.document();
    let mut wrong = reader.wrong;
    wrong.sort();
    if wrong.is_empty() { Ok(services) } else { Err(wrong) }
}

/// A file that declares `policies`, with the settings that are not the default.
pub(crate) fn print<'p>(policies: impl IntoIterator<Item = (&'p str, &'p Policy)>) -> PolicyFile {
    let one = |(name, policy): (&str, &Policy)| (name.to_owned(), declared::shortest(policy));
    PolicyFile { service: policies.into_iter().map(one).collect() }
}

struct Reader<'t> {
    text: &'t str,
    /// Of all settings.
    names: Vec<String>,
    wrong: Vec<Wrong>,
}

impl Reader<'_> {
    fn document(&mut self) -> BTreeMap<String, PolicyPatch> {
        let (document, errors) = DeTable::parse_recoverable(self.text);
        for error in &errors {
            self.note(error.span(), format!("not TOML: {}", error.message()));
        }
        // What is left of a broken document would be misread.
        if !errors.is_empty() {
            return BTreeMap::new();
        }
        let mut services = BTreeMap::new();
        for (key, value) in document.into_inner() {
            if key.get_ref() != SERVICE {
                self.note(Some(key.span()), self.stray(key.get_ref()));
            } else if let Some(tables) = self.table(value, "write a table for each service: `[service.shop]`")
            {
                services =
                    tables.into_iter().filter_map(|(name, value)| self.service(&name, value)).collect();
                if services.is_empty() && self.wrong.is_empty() {
                    self.note(Some(key.span()), "no service is declared".to_owned());
                }
            }
        }
        if services.is_empty() && self.wrong.is_empty() {
            self.note(None, "no service is declared: write a table `[service.NAME]` for each".to_owned());
        }
        services
    }

    fn service(
        &mut self,
        name: &Spanned<impl AsRef<str>>,
        value: Spanned<DeValue<'_>>,
    ) -> Option<(String, PolicyPatch)> {
        let (at, name) = (name.span(), name.get_ref().as_ref());
        if let Err(error) = name.parse::<ServiceName>() {
            self.note(Some(at.clone()), error.to_string());
        }
        let table = self.table(value, "a service is a table: `[service.shop]`")?;
        let (mut settings, mut lines, wrong_before) = (Map::new(), BTreeMap::new(), self.wrong.len());
        for (key, value) in table {
            let (key_at, key) = (key.span(), key.into_inner());
            match self.setting(&key, value) {
                Ok(value) => {
                    lines.insert(key.to_string(), key_at);
                    settings.insert(key.into_owned(), value);
                }
                Err(message) => self.note(Some(key_at), message),
            }
        }
        let is_whole = self.wrong.len() == wrong_before;
        let patch = patch_of(settings.clone())?;
        for found in declared::check(&patch) {
            let setting = found.setting.as_deref();
            // What a misspelled key would have said is missing here: only what is wrong by itself is sure.
            if !is_whole && !setting.is_some_and(|setting| is_wrong_alone(setting, &settings, &found)) {
                continue;
            }
            let at = setting.and_then(|setting| lines.get(setting)).unwrap_or(&at);
            let message = match setting {
                Some(setting) => format!("`{setting}`: {}", found.message),
                None => found.message,
            };
            self.note(Some(at.clone()), message);
        }
        Some((name.to_owned(), patch))
    }

    /// The value of one setting, of the kind that the setting has.
    fn setting(&self, key: &str, value: Spanned<DeValue<'_>>) -> Result<Value, String> {
        if !self.names.iter().any(|name| name == key) {
            return Err(format!("`{key}` is not a setting{}", self.guess(key)));
        }
        let value = Value::deserialize(ValueDeserializer::from(value))
            .map_err(|error| format!("`{key}`: {}", error.message()))?;
        let alone = Value::Object(Map::from_iter([(key.to_owned(), value.clone())]));
        match serde_json::from_value::<PolicyPatch>(alone) {
            Ok(_) => Ok(value),
            Err(error) => Err(format!("`{key}`: {error}{}", example(key))),
        }
    }

    /// What is said of a key beside the tables.
    fn stray(&self, key: &str) -> String {
        if self.names.iter().any(|name| name == key) {
            return format!("`{key}` belongs to a service: write it below `[service.NAME]`");
        }
        let guess = if similarity(key, SERVICE) >= SIMILARITY_MIN { "; did you mean `service`?" } else { "" };
        format!("`{key}` is not known here{guess}: a file has a table `[service.NAME]` for each service")
    }

    fn guess(&self, key: &str) -> String {
        let scored = self.names.iter().map(|name| (similarity(key, name), name));
        match scored.max_by(|one, other| one.0.total_cmp(&other.0)) {
            Some((score, name)) if score >= SIMILARITY_MIN => format!("; did you mean `{name}`?"),
            _ => String::new(),
        }
    }

    fn table<'v>(&mut self, value: Spanned<DeValue<'v>>, otherwise: &str) -> Option<DeTable<'v>> {
        let at = value.span();
        match value.into_inner() {
            DeValue::Table(table) => Some(table),
            _ => {
                self.note(Some(at), otherwise.to_owned());
                None
            }
        }
    }

    fn note(&mut self, at: Option<Range<usize>>, message: String) {
        let before = at.and_then(|at| self.text.get(..at.start)).unwrap_or_default();
        self.wrong.push(Wrong { line: 1 + before.matches('\n').count(), message });
    }
}

/// Of settings that have their kinds.
fn patch_of(settings: Map<String, Value>) -> Option<PolicyPatch> {
    serde_json::from_value(Value::Object(settings)).ok()
}

/// Whether the setting would be wrong in the same way if nothing else were said.
fn is_wrong_alone(setting: &str, settings: &Map<String, Value>, found: &declared::Wrong) -> bool {
    let said = settings.get(setting).map(|value| Map::from_iter([(setting.to_owned(), value.clone())]));
    said.and_then(patch_of).is_some_and(|patch| declared::check(&patch).contains(found))
}

/// From 0 to 1. Flags have dashes where settings have underscores.
fn similarity(key: &str, name: &str) -> f64 {
    let key = key.to_lowercase().replace('-', "_");
    // In a short name one slip weighs too much.
    let slip = if strsim::damerau_levenshtein(&key, name) == 1 { 0.9 } else { 0.0 };
    strsim::jaro_winkler(&key, name).max(slip)
}

/// How the setting is written, by its default.
fn example(key: &str) -> String {
    let default = declared::settings(&Policy::default());
    default.get(key).map_or_else(String::new, |value| format!("; write it as in `{key} = {value}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_declares_services() {
        let services = parse(
            "# ours\n[service.shop]\nhosts = ['shop.test']\ntls = true\nbake = '5m'\n\n[service.\"blog\"]\nmax_in_flight = 5\n",
        )
        .unwrap();
        assert_eq!(services.keys().collect::<Vec<_>>(), ["blog", "shop"]);
        assert_eq!(services["shop"].hosts, Some(vec!["shop.test".into()]));
        assert_eq!((services["shop"].tls, services["blog"].max_in_flight), (Some(true), Some(5)));
        assert!(parse("service = { shop = { bake = '0s' } }").is_ok() && parse("[service.shop]").is_ok());
    }

    #[test]
    fn all_that_is_wrong_is_said_with_its_line() {
        for (text, want) in [
            ("", &["1: no service is declared"][..]),
            ("[service]\n", &["1: no service is declared"]),
            ("\n[services.shop]", &["2: `services` is not known here; did you mean `service`?"]),
            ("bake = '0s'", &["1: `bake` belongs to a service: write it below `[service.NAME]`"]),
            ("service = 1", &["1: write a table for each service"]),
            ("[service]\nshop = 1", &["2: a service is a table"]),
            ("[service.'b c']\n", &["1: `b c` is not a service name"]),
            ("[service.shop]\nbake = 1m", &["2: not TOML: "]),
            ("[service.shop]\nbake = '1m'\nbake = '2m'", &["3: not TOML: duplicate key"]),
            (
                "[service.shop]\nhost = ['a.test']\nmax-inflight = 5\nDrain-Timeout = '1s'\nssl = true\nmax-request-body = 5\n",
                &[
                    "2: `host` is not a setting; did you mean `hosts`?",
                    "3: `max-inflight` is not a setting; did you mean `max_in_flight`?",
                    "4: `Drain-Timeout` is not a setting; did you mean `drain_timeout`?",
                    "5: `ssl` is not a setting",
                    "6: `max-request-body` is not a setting; did you mean `max_request_body_bytes`?",
                ],
            ),
            (
                "[service.shop]\nbake = 0\nhosts = 'a.test'\ntls = 'yes'\nhealth_check_port = 70000\n[service.blog]\nbake = 'soon'\n",
                &[
                    "2: `bake`: invalid type: integer `0`, expected a string; write it as in `bake = \"1m\"`",
                    "3: `hosts`: invalid type: string \"a.test\", expected a sequence; write it as in `hosts = []`",
                    "4: `tls`: invalid type: string \"yes\", expected a boolean; write it as in `tls = false`",
                    "5: `health_check_port`: invalid value: integer `70000`, expected u16",
                    "7: `bake`: `soon` is not a duration",
                ],
            ),
            (
                "[service.shop]\ntsl = true\ntls_certificate_path = '/c'\ntls_private_key_path = '/k'\nbake = 'soon'\n",
                &["2: `tsl` is not a setting; did you mean `tls`?", "5: `bake`: `soon` is not a duration"],
            ),
            (
                "[service.shop]\nbake = '25h'\nhosts = [\n  'a.test',\n]\ncanonical_host = 'b.test'\n",
                &[
                    "2: `bake`: `25h` is too long",
                    "6: `canonical_host`: `b.test` is not one of the service's hosts",
                ],
            ),
        ] {
            let found: Vec<String> = parse(text).unwrap_err().iter().map(ToString::to_string).collect();
            assert_eq!(found.len(), want.len(), "{text:?}: {found:#?}");
            for (found, want) in found.iter().zip(want) {
                assert!(found.starts_with(want), "{text:?}: {found:?}, not {want:?}");
            }
        }
    }

    #[test]
    fn every_setting_reads_as_it_is_printed() {
        let text = "[service.shop]\nhosts = [\"shop.test\"]\ntls = true\ntls_redirect = false\nbake = \"0s\"\n\
                    max_request_body_bytes = 0\n";
        let policy = declared::policy(&parse(text).unwrap()["shop"]).unwrap();
        let printed = toml::to_string(&print([("shop", &policy)])).unwrap();
        assert_eq!(printed, text);
        assert_eq!(toml::to_string(&print([("blog", &Policy::default())])).unwrap(), "[service.blog]\n");
    }
}
