//! The declaration of every setting. `docs/settings.md` is made from it: `make docs` renews the page.
//!
//! To add a setting, declare it here. `Config`, its default, its variable, the check of its bound, `Settings` (if the
//! declaration says `=>`) and the page follow. If the setting must be less than another one, add that condition to
//! `Settings::orders`. Bounds are checked in the order of the declarations: the lease first, because other times follow
//! from it.

use std::collections::BTreeMap;
use std::time::Duration;

use secrecy::SecretString;
use serde::de::{Error as _, MapAccess};

use super::declare::{Bound, Declared, amount, bound, settings, value, words};
use super::text::{self, Setting, Within as _};
use super::{Environment, OnDetach, OnStall, PasswordSource, Variables};

settings! {
    /// The settings of a pod. All times that are `None` follow from [`Config::lease`]. `docs/settings.md` lists each
    /// setting with its default, its bound and its variable.
    ///
    /// ```
    /// use std::time::Duration;
    /// let config = podlock::Config::new("postgres://app@db/app").name("web-0").lease(Duration::from_secs(10));
    /// assert_eq!(config.validate()?.self_fence, Duration::from_secs(8));
    /// # Ok::<(), podlock::Error>(())
    /// ```
    #[derive(Clone, Debug)]
    #[non_exhaustive]
    config;

    /// A [`Config`] with every open setting resolved and every bound and order checked.
    #[derive(Clone, Debug, PartialEq)]
    #[non_exhaustive]
    settings;

    group "Pod" {
        /// The pod's name: 1 to 128 characters, none of them a control character. It must be unique among
        /// living pods. If it is stable across restarts, a restarted pod resumes its own runs at once. It is
        /// required if `env` is `production`. Elsewhere a pod without a name gets a random one, which it logs.
        pod_name: Option<String> = [none] env "POD_NAME";
        /// The name of the environment. Only `production`, in any case, has an effect: a pod must have a name.
        env: Option<String> = [none] env "PODLOCK_ENV";
        /// The version of your service, shown to operators.
        version: String = [none] env "PODLOCK_VERSION";
        /// Free labels, shown to operators: `zone=a,tier=web`.
        labels: BTreeMap<String, String> = [none] env "PODLOCK_LABELS";
    }

    group "Timing" {
        /// The lease: how long the server lets a silent liveness session live. A shorter lease finds frozen and
        /// cut-off pods sooner, and tolerates shorter outages only. A killed process is found within
        /// milliseconds whatever the lease is. Give all pods of a service the same lease. While you change it,
        /// pods wait for each other for as long as the longer lease says (`docs/bounds.md`).
        lease: Duration => Duration = [10 s] in [from 2 s to 1 h] env "PODLOCK_LEASE";
        /// How often the liveness session is pinged. More often notices a lost connection sooner, and costs
        /// statements.
        ping_interval: Option<Duration> => Duration = [lease / 5] in [from 10 ms to 24 days]
            env "PODLOCK_PING_INTERVAL";
        /// How long a ping may go unanswered before the pod opens a new session. Too short takes a slow server
        /// for a broken connection.
        ping_timeout: Option<Duration> => Duration = [lease / 5] in [from 10 ms to 24 days] env "PODLOCK_PING_TIMEOUT";
        /// How long a pod may be silent before it does with its runs what `on_detach` says (L7). Longer
        /// tolerates a longer outage. It must end before the server can free the lock.
        self_fence: Option<Duration> => Duration = [lease / 5 * 4] in [at most 24 days] env "PODLOCK_SELF_FENCE";
        /// How long a pod must have held its lock without a break before it may bury a peer (L2). A pod also
        /// waits this long if many pods were lost at once.
        settle: Option<Duration> => Duration = [lease] in [at most 24 days] env "PODLOCK_SETTLE";
        /// How long a pod may take to come back, if its liveness session broke and its process lives. Longer
        /// spares more runs, and delays the takeover of those whose pod does not come back.
        reconnect_grace: Option<Duration> => Duration = [lease] in [at most 24 days] env "PODLOCK_RECONNECT_GRACE";
        /// The longest delay between two tries to reconnect, jittered.
        reconnect_backoff_max: Option<Duration> => Duration = [lease / 20] in [from 20 ms to 24 days]
            env "PODLOCK_RECONNECT_BACKOFF_MAX";
        /// How often a pod probes the peers whose burial waits. A pod that claimed orphans also looks within this time
        /// for those that others left.
        hold_probe_interval: Option<Duration> => Duration = [lease / 40] in [from 10 ms to 24 days]
            env "PODLOCK_HOLD_PROBE_INTERVAL";
        /// How often a pod probes all its peers and looks for orphans, jittered by a tenth. This is how long a
        /// death goes unnoticed if its push is lost.
        sweep_interval: Option<Duration> => Duration = [min(5 s, lease / 3)] in [from 10 ms to 24 days]
            env "PODLOCK_SWEEP_INTERVAL";
        /// How long one slice of the watch waits. The pod shortens it to 0.9 × the server's `deadlock_timeout`
        /// and to 0.9 × its `log_min_duration_statement`.
        watch_slice: Option<Duration> => Duration = [lease / 10] in [from 10 ms to 24 days] env "PODLOCK_WATCH_SLICE";
        /// How long a starting pod waits for the lock of a predecessor of its name that is still dying.
        acquire_timeout: Option<Duration> => Duration = [lease * 2] in [at most 24 days] env "PODLOCK_ACQUIRE_TIMEOUT";
        /// How often the pod writes the next beat, if it made progress, and checks the beats of its
        /// peers. A pod that beats less often than its peers check is suspected after as many of its own
        /// intervals.
        beat_interval: Option<Duration> => Duration = [lease] in [from 10 ms to 24 days] env "PODLOCK_BEAT_INTERVAL";
        /// After how many checks, a `beat_interval` apart, a peer whose beats have stopped is suspected. Fewer
        /// finds a stalled pod sooner, and may suspect a slow one.
        stall_cycles: u32 => u32 = [3] in [from 1 to 1000000] env "PODLOCK_STALL_CYCLES";
        /// What a pod does about a suspected peer. `report` says so in the log and the events. `evict` also
        /// ends the peer's sessions and buries it, so that its runs go on elsewhere. That is right if the fence
        /// makes runs safe, and if the progress that pods report is true.
        on_stall: OnStall => OnStall = [report] env "PODLOCK_ON_STALL";
        /// How long the application's runtime may go without running a task before the pod ends its sessions.
        stall_after: Option<Duration> => Duration = [lease] in [from 10 ms to 24 days] env "PODLOCK_STALL_AFTER";
    }

    group "Runs" {
        /// The most runs that this pod executes at a time. Further runs wait until another pod takes them, or
        /// until this pod has room.
        capacity: usize => usize = [100] in [from 1 to 1000000] env "PODLOCK_CAPACITY";
        /// The most runs of a kind at a time, if that is fewer than `capacity`: `big=1,small=5`. The bound
        /// holds for each kind.
        capacity_of: BTreeMap<String, usize> => BTreeMap<String, usize> = [none] in [from 1 to 1000000]
            env "PODLOCK_CAPACITY_OF";
        /// How long this pod leaves the orphans of a dead pod alone before it claims them. For services that
        /// want a gap between the old and the new owner, if a pod's sessions were ended under it (L7).
        claim_delay: Duration => Duration = [0 s] in [at most 24 days] env "PODLOCK_CLAIM_DELAY";
        /// What a pod that was silent for `self_fence` does with its runs. `cancel` stops them before the
        /// server can free the lock: right for runs with effects outside of the database. With `continue` they
        /// go on, and their writes are accepted only if the lock and the row are still there. Then a failover
        /// of the database disturbs no run.
        on_detach: OnDetach => OnDetach = [cancel] env "PODLOCK_ON_DETACH";
        /// A run under which this many owners in a row crashed, without a checkpoint in between, is quarantined
        /// instead of claimed. If it is lower, a run that kills its pods kills fewer. If it is higher, runs
        /// that make no progress for a long time survive on pods that are killed often. Keep it below the
        /// number of pods: the last pod that can take such a run gives it up after two. With 0 no run is
        /// quarantined, not even by the last pod. Give all pods of a service the same.
        max_crashes: u32 => u32 = [3] in [at most 1000000] env "PODLOCK_MAX_CRASHES";
        /// How many runs of this pod may be on their way to a less busy pod at a time. Only runs whose starter
        /// said `movable` are asked, and only if this pod has more than its share. If it is higher, runs are
        /// spread sooner after a rolling deploy, and more of them pause at a time. With 0 this pod moves no run.
        moves_at_once: usize => usize = [4] in [at most 1000000] env "PODLOCK_MOVES_AT_ONCE";
        /// How long this pod must have executed a run before it asks the run to move. So no run is moved twice
        /// within this time. Make it longer than a rolling deploy: otherwise a run moves to a pod that is
        /// replaced next. Longer leaves the pods unequally busy for longer.
        move_rest: Duration => Duration = [10 min] in [at most 24 days] env "PODLOCK_MOVE_REST";
    }

    group "Retention" {
        /// How long runs are kept that have succeeded or were cancelled, with their attempts. 0 keeps them for
        /// ever. After this time, by the server's clock, a pod deletes them in small batches. The output of a
        /// run belongs to your service, and only you know how long you need it. If pods have different
        /// settings, the shortest time wins (`docs/retention.md`).
        keep_runs: Duration => Duration = [0 s] in [0 or from 1 h to 1000 years] env "PODLOCK_KEEP_RUNS";
        /// How long runs are kept that have failed or were quarantined. 0 keeps them for ever. Operators want
        /// to see such runs for longer than those that succeeded.
        keep_failed_runs: Duration => Duration = [0 s] in [0 or from 1 h to 1000 years] env "PODLOCK_KEEP_FAILED_RUNS";
        /// How long the event log and the sessions of incarnations that have ended are kept. 0 keeps them for ever.
        /// Below 14 days, scores know only what is left. After a deletion the log begins with a snapshot of the
        /// roster. An incarnation that a running run names is kept.
        keep_events: Duration => Duration = [30 days] in [0 or from 1 h to 1000 years] env "PODLOCK_KEEP_EVENTS";
        /// How often a pod deletes what is older than the `keep_…` settings of this group say, jittered by a half. Samples
        /// are dropped hourly.
        prune_interval: Duration => Duration = [10 min] in [from 10 ms to 24 days] env "PODLOCK_PRUNE_INTERVAL";
    }

    group "History" {
        /// How often the pod takes a sample of itself for the history: processor, memory, runs, health. 0 takes none, and
        /// stops the gauges, details and counters of the service, `runs_served` and `last_heartbeat_at`. More often shows
        /// more, and takes more room: 1,000 pods write 8.6 million rows a day at 10 s.
        sample_interval: Duration => Duration = [10 s] in [0 or from 100 ms to 24 days] env "PODLOCK_SAMPLE_INTERVAL";
        /// How long samples are kept. 0 keeps them for ever. They are dropped a whole day (UTC) at a time. Hourly
        /// rows stay for 400 days, whatever this says.
        keep_samples: Duration => Duration = [28 days] in [0 or from 1 h to 1000 years] env "PODLOCK_KEEP_SAMPLES";
        /// How often the hourly rows and the scores are made, by one pod for all. Less often costs less, and
        /// endpoints and scores show older data.
        roll_up_interval: Duration => Duration = [5 min] in [from 100 ms to 24 days] env "PODLOCK_ROLL_UP_INTERVAL";
        /// The label by which scores are made, such as `node`, if the names of pods are random. By default, each
        /// name has a score of its own. Set `score_by` to the same label name on all pods.
        score_by: String => String = [none] env "PODLOCK_SCORE_BY";
    }

    group "Workers" {
        /// How often a pod reports its workers, and compares its copy of all workers with the store, jittered by a
        /// tenth. Changes are seen at once all the same. Less often costs less, and repairs a lost notice later.
        worker_report_interval: Duration => Duration = [30 s] in [from 100 ms to 24 days]
            env "PODLOCK_WORKER_REPORT_INTERVAL";
        /// After how many report intervals without a report a worker is inactive. The selection and the monitor use
        /// the same number.
        worker_stale_reports: u32 => u32 = [3] in [from 1 to 1000000] env "PODLOCK_WORKER_STALE_REPORTS";
        /// How often the monitor writes which workers are inactive, jittered by a tenth. One pod at a time does so.
        worker_monitor_interval: Duration => Duration = [60 s] in [from 100 ms to 24 days]
            env "PODLOCK_WORKER_MONITOR_INTERVAL";
        /// The most bytes of a worker's spec, as JSON text. A larger one is refused as `too_large`. Each pod that uses
        /// the registry holds the specs of all workers in memory.
        worker_spec_max_bytes: usize => usize = [64 KiB] in [at most 1 MiB] env "PODLOCK_WORKER_SPEC_MAX_BYTES";
        /// How many probes of workers a pod makes at a time. Fewer delay probes of slow workers; more take more
        /// sockets.
        worker_probes_at_once: usize => usize = [64] in [from 1 to 1000000] env "PODLOCK_WORKER_PROBES_AT_ONCE";
        /// Whether this pod also probes the workers of other pods. Then it chooses only those that it reaches itself.
        /// Each such pod probes each worker of the fleet. A worker whose probe needs a secret that this pod does not
        /// have is not probed here: it follows the health that its owner sees.
        worker_probe_imports: bool => bool = [false] env "PODLOCK_WORKER_PROBE_IMPORTS";
    }

    group "Output" {
        /// The most bytes of a run's result, or of its standard output, as they are stored. A larger one is
        /// refused as `too_large`, never cut.
        result_max_bytes: usize => usize = [16 MiB] in [at most 128 MiB] env "PODLOCK_RESULT_MAX_BYTES";
        /// The most bytes of a run's standard error, as they are stored. A larger one is refused as
        /// `too_large`.
        stderr_max_bytes: usize => usize = [1 MiB] in [at most 128 MiB] env "PODLOCK_STDERR_MAX_BYTES";
        /// The most bytes of a checkpoint, as JSON text. A larger one is refused as `too_large`. Each
        /// checkpoint replaces the one before it, whole, and the next attempt reads it before it begins. So a
        /// larger one costs the database and every takeover. Store large data elsewhere, and its location here.
        checkpoint_max_bytes: usize => usize = [16 MiB] in [at most 128 MiB] env "PODLOCK_CHECKPOINT_MAX_BYTES";
        /// The most bytes of the input that a run is started with, as JSON text. A larger one is refused as
        /// `too_large`.
        input_max_bytes: usize => usize = [16 MiB] in [at most 128 MiB] env "PODLOCK_INPUT_MAX_BYTES";
    }

    group "Connection" {
        /// Where PostgreSQL is: a URL or a key-value string in libpq's words (`docs/connections.md`). What it
        /// leaves out comes from libpq's variables, service file and defaults. A word that podlock cannot
        /// honour is an error that names the word. The URL may hold a password, so it never appears in `Debug`,
        /// logs or errors.
        database_url: SecretString = [none] env "DATABASE_URL";
        /// The schema of podlock's tables: 1 to 48 bytes, not a name of the server's own. Pods of different
        /// schemas know nothing of each other.
        schema: String = [public] env "PODLOCK_SCHEMA";
        /// Whether a starting pod brings the schema up to date. With `false`, run `podlock migrate up` before
        /// you roll out a version that needs it.
        migrate: bool = [true] env "PODLOCK_MIGRATE";
        /// Whether a watch session pushes deaths. `false` saves one connection, and finds deaths by the sweep
        /// alone.
        push: bool => bool = [true] env "PODLOCK_PUSH";
        /// The most connections of the pool, which opens them as needed. Beside the pool a pod has three
        /// dedicated sessions, and one more while readers are attached to streams. More connections let more
        /// statements run at a time, and take more of the server's `max_connections`.
        pool_size: usize => usize = [4] in [from 1 to 1000000] env "PODLOCK_POOL_SIZE";
        /// How long connecting to one host may take, handshake included. A `connect_timeout` in the connection
        /// string wins over the default. If there are several hosts, each must accept within lease / 10: a host
        /// that vanished must not keep a pod from the next one.
        connect_timeout: Option<Duration> => Duration = [min(5 s, lease / 2)] in [from 10 ms to 24 days]
            env "PODLOCK_CONNECT_TIMEOUT";
        /// How long a statement of podlock's may take, on the server and on the pod's side. The default is
        /// longer than the server lets a frozen transaction of another pod block it (1 s).
        statement_timeout: Option<Duration> => Duration = [max(1500 ms, lease / 2)] in [from 10 ms to 24 days]
            env "PODLOCK_STATEMENT_TIMEOUT";
    }

    beside {
        /// The newest version of the schema that the pod is to know: how tests make a binary of an older
        /// release.
        #[doc(hidden)]
        pub schema_knows: Option<i32>,
        /// libpq's variables that came with the rest; `None`: those of the process.
        pub(crate) environment: Option<Environment>,
        /// The podlock variables that were read, so that an error can name them.
        pub(super) variables: Variables,
        /// Where passwords are asked for.
        pub(crate) password_source: Option<PasswordSource>,
    }
}
