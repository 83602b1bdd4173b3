//! How fast jobs go through a system: put into its queue, worked from it, and both at the same time.

use std::time::{Duration, Instant};

use crate::child::{Child, SOON};
use crate::roles::Part;
use crate::server::{Counted, Database, Server};
use crate::system::{Setting, System};
use crate::{Args, Result};

/// How long a worker of the third phase has been idle when the first job comes.
const IDLE: Duration = Duration::from_secs(2);

/// A phase: how many jobs went through it, how long that took, and what it cost the server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Phase {
    pub(crate) jobs: u64,
    pub(crate) took: Duration,
    pub(crate) statements: f64,
    pub(crate) commits: f64,
}

/// The phases of a round. A system that has no queue has only the last one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    pub(crate) enqueue: Option<Phase>,
    pub(crate) in_batches: Option<Phase>,
    pub(crate) work: Option<Phase>,
    pub(crate) both: Phase,
}

/// Measures all phases, each but the second in a database of its own.
pub(crate) async fn throughput(
    args: &Args,
    server: &Server,
    system: System,
    setting: Setting,
    round: usize,
) -> Result<Figures> {
    let bench = Bench { args, server, system, setting };
    let (mut enqueue, mut in_batches, mut work) = (None, None, None);
    if system.has_queue() {
        let database = bench.database(&format!("queue_{round}")).await?;
        enqueue = Some(bench.enqueue(&database, Part::Enqueue).await?);
        work = Some(bench.work(&database).await?);
        server.drop(database).await?;
        if system.has_batches() {
            let database = bench.database(&format!("batches_{round}")).await?;
            in_batches = Some(bench.enqueue(&database, Part::EnqueueBatches).await?);
            server.drop(database).await?;
        }
    }
    let database = bench.database(&format!("both_{round}")).await?;
    let both = if system.has_queue() { bench.both(&database).await? } else { bench.start(&database).await? };
    server.drop(database).await?;
    Ok(Figures { enqueue, in_batches, work, both })
}

/// What a measurement needs to know.
pub(crate) struct Bench<'a> {
    pub(crate) args: &'a Args,
    pub(crate) server: &'a Server,
    pub(crate) system: System,
    pub(crate) setting: Setting,
}

impl Bench<'_> {
    /// A database that has the system's tables.
    pub(crate) async fn database(&self, what: &str) -> Result<Database> {
        let name = format!("{}_{}_{what}", self.system.word(), self.setting);
        let database = self.server.database(&name).await?;
        self.child(Part::Install, &database, 0).await?.end().await?;
        self.server.rest().await?;
        Ok(database)
    }

    pub(crate) async fn child(&self, part: Part, database: &Database, jobs: u64) -> Result<Child> {
        Child::start(self.args, self.system, self.setting, part, &database.url, jobs).await
    }

    async fn enqueue(&self, database: &Database, part: Part) -> Result<Phase> {
        let before = self.server.counted(database).await?;
        let mut producer = self.child(part, database, self.args.jobs).await?;
        let began = producer.go().await?;
        let ended = producer.reaches("done", SOON).await?;
        producer.end().await?;
        self.phase(database, before, Ended { jobs: self.args.jobs, took: ended - began, asked: 0 }).await
    }

    /// Waits until the jobs of a worker have ended in the database, or until the time for that is over.
    async fn ended(&self, worker: &mut Child, database: &Database, began: Instant) -> Result<Ended> {
        let limit = Duration::from_secs(self.args.phase_limit);
        if worker.reaches("handled", limit.saturating_sub(began.elapsed())).await.is_ok() {
            let (ended, asked) = database.wait_for_the_end(self.system).await?;
            database.check(self.system, self.args.jobs).await?;
            return Ok(Ended { jobs: self.args.jobs, took: ended - began, asked: asked + 1 });
        }
        let took = began.elapsed();
        let jobs = self.args.jobs - database.left(self.system).await?;
        Ok(Ended { jobs, took, asked: 1 })
    }

    /// From the moment when a process that is connected may take jobs until the last one has ended in the database.
    async fn work(&self, database: &Database) -> Result<Phase> {
        self.server.rest().await?;
        let before = self.server.counted(database).await?;
        let mut worker = self.child(Part::Work, database, self.args.jobs).await?;
        let began = worker.go().await?;
        let ended = self.ended(&mut worker, database, began).await?;
        worker.end().await?;
        self.phase(database, before, ended).await
    }

    /// From the first job that is put into the queue until the last one has ended, while a worker works them.
    async fn both(&self, database: &Database) -> Result<Phase> {
        let before = self.server.counted(database).await?;
        let mut worker = self.child(Part::Work, database, self.args.jobs).await?;
        worker.go().await?;
        tokio::time::sleep(IDLE).await;
        let mut producer = self.child(Part::Enqueue, database, self.args.jobs).await?;
        let began = producer.go().await?;
        producer.reaches("done", SOON).await?;
        let ended = self.ended(&mut worker, database, began).await?;
        producer.end().await?;
        worker.end().await?;
        self.phase(database, before, ended).await
    }

    /// The same in one process, which starts each job where it runs.
    async fn start(&self, database: &Database) -> Result<Phase> {
        let before = self.server.counted(database).await?;
        let mut pod = self.child(Part::Start, database, self.args.jobs).await?;
        tokio::time::sleep(IDLE).await;
        let began = pod.go().await?;
        // The last job may end before the call that started it returns, so this waits for the jobs alone.
        let ended = self.ended(&mut pod, database, began).await?;
        pod.end().await?;
        self.phase(database, before, ended).await
    }

    /// The benchmark's own statements are not among those of the system.
    async fn phase(&self, database: &Database, before: Counted, ended: Ended) -> Result<Phase> {
        let after = self.server.counted(database).await?;
        Ok(Phase {
            jobs: ended.jobs,
            took: ended.took,
            statements: after.statements - before.statements,
            commits: after.commits - before.commits - f64::from(ended.asked),
        })
    }
}

/// How a phase ended.
struct Ended {
    jobs: u64,
    took: Duration,
    /// The benchmark's own statements.
    asked: u32,
}
