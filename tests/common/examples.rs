//! Programs of `examples/`, built as they are now.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

/// Has cargo build an example, which takes no time where it is built: what is tested is never an old one.
pub(crate) async fn example(name: &str) -> PathBuf {
    let profile = Path::new(env!("CARGO_BIN_EXE_podlock")).parent().unwrap();
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.current_dir(env!("CARGO_MANIFEST_DIR")).args(["build", "--all-features", "--example", name]);
    build.arg("--target-dir").arg(profile.parent().unwrap());
    if profile.ends_with("release") {
        build.arg("--release");
    }
    let built = build.stdin(Stdio::null()).output().await.unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    profile.join("examples").join(name)
}
