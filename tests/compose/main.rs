//! Three pods in containers of one image, beside a PostgreSQL in another: the owner of running runs is killed, a second
//! pod is stopped, and each run ends once. Twice in a row, on the same cluster.
//!
//! `make compose-test` makes the images and a project of containers of its own, which it removes afterwards, and runs
//! this. Nothing here speaks to a container that is not of that project.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod project;
mod records;
mod round;
#[path = "../common/sse.rs"]
mod sse;

use std::time::Duration;

use crate::project::{Project, within};

/// Far more than it takes, and less than the patience of whoever waits for it.
const TEST: Duration = Duration::from_secs(360);

#[test]
#[ignore = "needs a Docker engine and images: make compose-test"]
fn runs_outlive_a_killed_and_a_stopped_container_twice() {
    within(TEST, async {
        let project = Project::from_env();
        project.up().await;
        let first = round::play(&project, 1).await;
        // What a round left behind is left as it is, but for the two pods: they come back under their names.
        project.up().await;
        let second = round::play(&project, 2).await;
        assert_eq!(second.survivor, first.survivor, "the pod that nobody touched lives through both rounds");
        assert_ne!(second.killed, first.killed, "a pod that was killed comes back as another incarnation");
        assert_ne!(second.stopped, first.stopped, "a pod that was stopped comes back as another incarnation");
    });
}
