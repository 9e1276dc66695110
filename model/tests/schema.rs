//! The published JSON Schema of `agentctl status --json` is the one that `protocol::Status` generates.

use std::path::Path;

#[test]
fn the_published_schema_is_the_generated_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/schema/status.schema.json");
    let schema = schemars::schema_for!(model::protocol::Status);
    let generated = serde_json::to_string_pretty(&schema).unwrap() + "\n";
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &generated).unwrap();
    }
    let published = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        published == generated,
        "docs/schema/status.schema.json is not what model::protocol::Status generates. If the change is \
         meant, run `UPDATE_SCHEMA=1 cargo test -p model --test schema` and commit the file; a field that \
         went away or changed its type needs a new API version."
    );
}
