//! A wall clock that a test sets, for a program and its children (`clock.c`). The monotonic clocks stay what they are,
//! as they do on a host whose time is stepped.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use podlock::throwaway::{Builder, Server};

const SOURCE: &str = include_str!("clock.c");

/// The clock; whoever was started with its variables reads it at each look at the time.
pub(crate) struct Clock {
    file: PathBuf,
    library: PathBuf,
    dir: tempfile::TempDir,
}

impl Clock {
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("podlock-clock-").tempdir().expect("a directory");
        // The server's account reads it.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("rights");
        let (source, library) = (dir.path().join("clock.c"), dir.path().join("clock.so"));
        fs::write(&source, SOURCE).expect("the source");
        // The compiler that Rust itself links with.
        let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
        let options = ["-shared", "-fPIC", "-O2", "-o"];
        let compiled = Command::new(compiler).args(options).args([&library, &source]).output().expect("a C compiler");
        assert!(compiled.status.success(), "clock.c: {}", String::from_utf8_lossy(&compiled.stderr));
        let clock = Self { file: dir.path().join("offset"), library, dir };
        clock.set(0);
        clock
    }

    /// Steps it to this many seconds beside the true time.
    pub(crate) fn set(&self, seconds: i64) {
        // Renamed into its place, so that nobody reads half of it.
        let new = self.dir.path().join("new");
        fs::write(&new, format!("{seconds:+}\n")).expect("the offset");
        fs::rename(&new, &self.file).expect("the offset");
    }

    pub(crate) fn variables(&self) -> [(&'static str, String); 2] {
        [("LD_PRELOAD", self.library.display().to_string()), ("CHAOS_CLOCK", self.file.display().to_string())]
    }

    /// Programs of a server that goes by this clock, for [`Builder::bin_dir`].
    pub(crate) fn programs(&self, real: &Path) -> PathBuf {
        let programs = self.dir.path().join("bin");
        fs::create_dir(&programs).expect("a directory");
        symlink(real.join("initdb"), programs.join("initdb")).expect("initdb");
        let variables: String = self.variables().map(|(name, value)| format!("{name}='{value}' ")).concat();
        let script = format!("#!/bin/sh\nexec env {variables}'{}' \"$@\"\n", real.join("postgres").display());
        let postgres = programs.join("postgres");
        fs::write(&postgres, script).expect("a script");
        fs::set_permissions(&postgres, fs::Permissions::from_mode(0o755)).expect("rights");
        programs
    }

    /// What starts a server that goes by this clock.
    pub(crate) fn server(&self, like: &Server) -> Builder {
        crate::inherited::postgres().bin_dir(self.programs(like.bin_dir()))
    }
}
