//! The published JSON Schemas are those that `protocol` generates: of `agentctl status --json`, `agentctl plan --json`
//! and the files of `agentctl apply`.

use std::path::Path;

use model::protocol::{Plan, PolicyFile, Status};
use schemars::{Schema, schema_for};

fn compare(name: &str, schema: &Schema) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/schema").join(name);
    let generated = serde_json::to_string_pretty(schema).expect("a schema is JSON") + "\n";
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        std::fs::create_dir_all(path.with_file_name("")).expect("docs can be written");
        std::fs::write(&path, &generated).expect("docs can be written");
    }
    let published = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        published == generated,
        "docs/schema/{name} is not what model::protocol generates. If the change is meant, run \
         `UPDATE_SCHEMA=1 cargo test -p model --test schema` and commit the file; a field that went away or \
         changed its type needs a new API version."
    );
}

#[test]
fn the_published_schema_is_the_generated_one() {
    compare("status.schema.json", &schema_for!(Status));
    compare("plan.schema.json", &schema_for!(Plan));
    compare("policy.schema.json", &schema_for!(PolicyFile));
}
