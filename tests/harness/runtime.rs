//! The one runtime on which the harness's own clients run.

use std::sync::LazyLock;

use tokio::runtime::{Builder, Runtime};

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("harness")
        .enable_all()
        .build()
        .expect("a runtime needs two threads and an epoll descriptor")
});

pub(crate) fn runtime() -> &'static Runtime {
    &RUNTIME
}

/// Returns at Ctrl-C.
pub fn until_interrupted() {
    // Where signals cannot be watched, there is nothing to wait for.
    let _ = runtime().block_on(tokio::signal::ctrl_c());
}
