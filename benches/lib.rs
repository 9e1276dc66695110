//! Benches of the hot path, one file per question. Run them with `cargo bench`.
