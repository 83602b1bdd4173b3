//! The steps of the demo in order. A sentence announces each.

use std::time::{Duration, Instant};

use podlock::operator::{EventFilter, EventRow, Notices, PodFilter, RunFilter};
use podlock::{Config, Operator, RunId};
use rustix::process::Signal;
use serde::Deserialize;
use serde_json::json;
use tokio::time::MissedTickBehavior;

use super::board::{Board, PodState, ms};
use super::checks;
use super::fleet::{Recipe, What};
use super::report::{self, Report};
use super::screen::{Screen, Tone};
use super::stage::Stage;
use super::{Args, Fate};
use crate::failure::Failure;
use crate::output::Format;

/// How long the pods may take to register. On a quiet machine they take about a second; a slow one must not fail the
/// demo.
const BOOT: Duration = Duration::from_secs(60);
/// How often the table is redrawn. That looks smooth, and costs little beside what the pods do.
const REDRAW: Duration = Duration::from_millis(100);
/// How often a line is printed if there is no table. More often fills a log; more rarely, the demo seems to hang.
const SUMMARY: Duration = Duration::from_secs(1);
/// How long the audience watches the runs before a pod is struck: long enough to see them move. With short runs it is
/// less, so that some are left to lose their pod.
const PROLOGUE: Duration = Duration::from_millis(1500);
/// Added to every wait for an event that has a duration of its own. It is for slow machines: a shorter one fails the
/// demo there, a longer one only delays the report of a real failure.
const SLACK: Duration = Duration::from_secs(20);

/// The event log, and the notices that say when to read it.
struct Log {
    operator: Operator,
    notices: Notices,
    seen: i64,
    /// When to repeat a read that failed: for the notification of that moment.
    due: Option<Instant>,
}

impl Log {
    async fn open(operator: &Operator) -> podlock::Result<Self> {
        Ok(Self { operator: operator.clone(), notices: operator.notices().await?, seen: 0, due: None })
    }

    /// The events since the last call.
    async fn read(&mut self) -> podlock::Result<Vec<EventRow>> {
        let events = self.operator.events(EventFilter::new().after(self.seen)).await?;
        self.seen = events.last().map_or(self.seen, |last| last.idx);
        Ok(events)
    }
}

struct Story<'a> {
    stage: &'a mut Stage,
    args: &'a Args,
    screen: Screen,
    board: Board,
    log: Option<Log>,
    last_summary: Instant,
}

#[derive(Deserialize)]
struct StartedBody {
    run_id: RunId,
    fence: i64,
}

/// The whole demo.
pub(super) async fn tell(stage: &mut Stage, args: &Args) -> Result<(), Failure> {
    let names = (1..=args.pods).map(|n| format!("pod-{n}"));
    let board = Board::new(names, args.chunks);
    let screen = Screen::new(args.format);
    let mut story = Story { stage, args, screen, board, log: None, last_summary: Instant::now() };
    let operator = story.set_up().await?;
    story.start_runs().await?;
    story.strike().await?;
    story.aftermath().await?;
    story.wait_for_the_end(&operator).await?;
    let verdict = checks::check(&operator, &story.board, args).await?;
    let report = Report::new(&story.board, args, verdict);
    report::tell(&mut story.screen, &story.board, &report)?;
    match args.format {
        Format::Table => {}
        Format::Json => crate::output::line(&crate::output::json_text_pretty(&report)?)?,
        Format::Jsonl => crate::output::json_line(&report)?,
    }
    if report.ok { Ok(()) } else { Err(Failure::Failed("not every run finished exactly once".to_owned())) }
}

impl Story<'_> {
    /// Starts a server and the pods, and waits until the pods may bury.
    async fn set_up(&mut self) -> Result<Operator, Failure> {
        let Args { pods, runs, .. } = *self.args;
        self.heading(&format!(
            "{pods} pods share {runs} runs. One of them {}, and its runs go on elsewhere.",
            self.fate()
        ))?;
        if self.stage.is_given() {
            let schema = self.stage.schema().to_owned();
            self.say(&format!("Using the database of DATABASE_URL, in schema {schema}, which is dropped at the end."))?;
        } else {
            self.say("Starting a PostgreSQL server of its own, which is gone when the demo ends.")?;
        }
        let database_url = self.stage.database().await?;
        let schema = self.stage.schema().to_owned();
        let config = Config::new(&database_url).schema(&schema).lease(self.args.lease);
        let settle = config.validate()?.settle;
        self.stage.will_fill(&config);

        self.say(&format!("Starting {pods} pods, each a process of its own: `podlock pod`."))?;
        let recipe = Recipe { database_url, schema, lease: self.args.lease, capacity: usize::from(runs) };
        for pod in &self.board.pods {
            self.stage.fleet.start(&pod.name, &recipe)?;
        }
        let all_alive = |board: &Board| board.pods.iter().all(|pod| pod.state == PodState::Alive);
        self.until("every pod is registered", BOOT, all_alive).await?;
        let registered = Instant::now();

        let operator = Operator::connect(&config).await?;
        self.log = Some(Log::open(&operator).await?);
        for row in operator.pods(PodFilter::new()).await? {
            if let Some(pod) = self.board.pods.iter_mut().find(|pod| pod.name == row.pod_id) {
                pod.incarnation = Some(row.incarnation);
            }
        }
        self.say(&format!(
            "Waiting until every pod may bury: each must have held its lock for {} first.",
            humantime::format_duration(settle)
        ))?;
        self.for_a_while((registered + settle + settle / 10).saturating_duration_since(Instant::now())).await?;
        Ok(operator)
    }

    /// Starts the runs, spread over the pods through their HTTP interfaces.
    async fn start_runs(&mut self) -> Result<(), Failure> {
        let Args { runs, chunks, delay, .. } = *self.args;
        self.say(&format!(
            "Starting {runs} runs of {chunks} chunks, a chunk every {}.",
            humantime::format_duration(delay)
        ))?;
        let client = reqwest::Client::builder().no_proxy().timeout(SLACK).build().map_err(http)?;
        let input = json!({ "chunks": chunks, "delay_ms": delay.as_millis() as u64, "resume": "continue" });
        for n in 0..usize::from(runs) {
            let pod = n % self.board.pods.len();
            let url = self.stage.fleet.members[pod].url.clone().unwrap_or_default();
            let request = client.post(format!("{url}/v1/runs")).json(&json!({ "kind": "demo", "input": input }));
            let response = request.send().await.map_err(http)?;
            if response.status() != reqwest::StatusCode::CREATED {
                let (status, body) = (response.status(), response.text().await.map_err(http)?);
                return Err(Failure::Failed(format!("a run was not started: {status} {body}")));
            }
            let started: StartedBody = response.json().await.map_err(http)?;
            self.board.add_run(started.run_id, pod, started.fence);
        }
        let some_done = |board: &Board| board.runs.iter().all(|run| run.done > 0 || run.made);
        self.until("every run makes chunks", delay + SLACK, some_done).await?;
        self.for_a_while(PROLOGUE.min(delay * chunks / 4)).await
    }

    /// Sends the signal.
    async fn strike(&mut self) -> Result<(), Failure> {
        let (pod, left) = self.board.busiest();
        let member = &self.stage.fleet.members[pod];
        let (name, pid) = (member.name.clone(), member.pid.as_raw_nonzero());
        let (signal, word, state) = match self.args.kill {
            Fate::Kill => (Signal::KILL, "SIGKILL", PodState::Killed),
            Fate::Term => (Signal::TERM, "SIGTERM", PodState::Draining),
            Fate::Stop => (Signal::STOP, "SIGSTOP", PodState::Frozen),
        };
        let why = match self.args.kill {
            Fate::Kill => "Nothing in it can say goodbye.".to_owned(),
            Fate::Term => "It is asked to stop, and hands its runs over.".to_owned(),
            Fate::Stop => format!(
                "It freezes with its connections open. What tells is the lease: the server ends a session that has \
                 been silent for {}.",
                humantime::format_duration(self.args.lease)
            ),
        };
        let sentence = format!("{name} (process {pid}) has the most left to do: {left} runs. Sending it {word}. {why}");
        let painted = self.screen.paint(Tone::Strong, &sentence);
        self.say(&painted)?;
        let at = self.stage.fleet.signal(pod, signal)?;
        self.board.struck(pod, at, state);
        Ok(())
    }

    /// Waits until the end of the struck pod is known and its runs continue on other pods. If it was only frozen, also
    /// until it is back.
    async fn aftermath(&mut self) -> Result<(), Failure> {
        let Args { lease, kill, .. } = *self.args;
        let Some((pod, name)) = self.board.strike.as_ref().map(|s| (s.pod, self.board.pods[s.pod].name.clone())) else {
            return Ok(());
        };
        let limit = lease * 3 + SLACK;
        let buried = |board: &Board| board.strike.as_ref().is_some_and(|strike| strike.heard("buried").is_some());
        let elsewhere = move |board: &Board| board.runs.iter().all(|run| run.made || run.pod != pod);
        self.until("its peers have buried it", limit, buried).await?;
        self.until("its runs go on elsewhere", limit, elsewhere).await?;
        let moved = self.board.moved().count();
        match self.board.moved().map(|(_, _, moved)| moved.after).max() {
            Some(last) => {
                self.say(&format!(
                    "{moved} runs of {name} go on elsewhere, the last one {} after the signal.",
                    ms(last)
                ))?;
            }
            None => self.say(&format!("{name} had nothing left to do, so nothing has to go on elsewhere."))?,
        }
        match kill {
            Fate::Kill => Ok(()),
            Fate::Term => {
                let ended = |board: &Board| board.strike.as_ref().is_some_and(|strike| strike.ended.is_some());
                self.until("its process has ended", limit, ended).await?;
                let status = self.stage.fleet.ended(pod).await?;
                self.say(&format!("{name} has drained and ended ({status})."))?;
                if status.success() { Ok(()) } else { Err(Failure::Failed(format!("{name} did not drain: {status}"))) }
            }
            Fate::Stop => self.wake(pod, &name, limit).await,
        }
    }

    async fn wake(&mut self, pod: usize, name: &str, limit: Duration) -> Result<(), Failure> {
        self.say(&format!(
            "Waking {name} (SIGCONT). It does not know that it was away, and that its runs are others' now."
        ))?;
        let woken = self.stage.fleet.signal(pod, Signal::CONT)?;
        self.board.pods[pod].state = PodState::Woken;
        if let Some(strike) = &mut self.board.strike {
            strike.woken = Some(woken);
        }
        let back = |board: &Board| board.strike.as_ref().is_some_and(|strike| strike.back.is_some());
        self.until("it is back as a new incarnation", limit, back).await?;
        self.board.pods[pod].state = PodState::Alive;
        let Some(strike) = &self.board.strike else { return Ok(()) };
        let Some((incarnation, after)) = strike.back else { return Ok(()) };
        let since = after.saturating_sub(woken.duration_since(strike.at));
        let (told, refused) = (strike.told_to_stop, strike.refused);
        self.say(&format!(
            "{name} found that it had been buried: {told} of its runs were told to stop before they wrote anything, \
             {refused} late writes were refused by the fence. It is back as a new incarnation, {incarnation}, {} after \
             waking.",
            ms(since)
        ))
    }

    async fn wait_for_the_end(&mut self, operator: &Operator) -> Result<(), Failure> {
        self.say("Waiting until every run has ended.")?;
        let limit = self.args.delay * self.args.chunks * 2 + self.args.lease * 3 + SLACK;
        let made = |board: &Board| board.runs.iter().all(|run| run.made);
        self.until("every run has made its chunks", limit, made).await?;
        let began = Instant::now();
        loop {
            let left = operator.runs(RunFilter::new().state("running")).await?.len();
            if left == 0 {
                break;
            }
            if began.elapsed() > SLACK {
                return Err(Failure::Failed(format!("{left} runs have made all chunks, and are still running")));
            }
            self.for_a_while(REDRAW).await?;
        }
        self.draw()?;
        self.screen.keep();
        Ok(())
    }

    /// Follows the demo until `holds`, for at most `limit`.
    async fn until(&mut self, what: &str, limit: Duration, holds: impl Fn(&Board) -> bool) -> Result<(), Failure> {
        if self.follow(limit, holds).await? {
            return Ok(());
        }
        let mut text =
            format!("waited {} until {what}, in vain:\n{}", humantime::format_duration(limit), self.board.summary());
        for (pod, view) in self.board.pods.iter().enumerate() {
            text.push_str(&format!("\nThe last words of {}:{}", view.name, self.stage.fleet.last_words(pod)));
        }
        Err(Failure::Lines(text))
    }

    async fn for_a_while(&mut self, time: Duration) -> Result<(), Failure> {
        self.follow(time, |_| false).await.map(drop)
    }

    /// Takes in what the pods write and what the server announces. Returns `false` if the time is over.
    async fn follow(&mut self, limit: Duration, holds: impl Fn(&Board) -> bool) -> Result<bool, Failure> {
        let end = tokio::time::sleep(limit);
        tokio::pin!(end);
        let mut redraw = tokio::time::interval(REDRAW);
        redraw.set_missed_tick_behavior(MissedTickBehavior::Skip);
        while !holds(&self.board) {
            tokio::select! {
                news = self.stage.fleet.news() => {
                    let ended = matches!(news.what, What::End);
                    if let Some(sentence) = self.board.take(&news) {
                        self.say(&sentence)?;
                    }
                    if ended && self.board.strike.as_ref().is_none_or(|strike| strike.pod != news.pod) {
                        return Err(self.unexpected_end(news.pod).await);
                    }
                }
                told = until_told(&mut self.log) => {
                    let at = Instant::now();
                    told?;
                    self.read_log(at).await?;
                }
                _ = redraw.tick() => {
                    if let Some(at) = self.log.as_ref().and_then(|log| log.due) {
                        self.read_log(at).await?;
                    }
                    self.draw()?;
                }
                () = &mut end => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Reads the events whose notification came `at`. A busy database is asked again at the next redraw.
    async fn read_log(&mut self, at: Instant) -> Result<(), Failure> {
        let Some(log) = &mut self.log else { return Ok(()) };
        let at = log.due.unwrap_or(at);
        let events = match log.read().await {
            Err(error) if error.is_transient() => {
                log.due = Some(at);
                return Ok(());
            }
            events => events?,
        };
        log.due = None;
        for event in events {
            if let Some(sentence) = self.board.hear(at, event) {
                self.say(&sentence)?;
            }
        }
        Ok(())
    }

    async fn unexpected_end(&mut self, pod: usize) -> Failure {
        let name = &self.board.pods[pod].name;
        let words = self.stage.fleet.last_words(pod);
        match self.stage.fleet.ended(pod).await {
            Ok(status) => Failure::Lines(format!("{name} has ended by itself ({status}):{words}")),
            Err(failure) => failure,
        }
    }

    fn draw(&mut self) -> Result<(), Failure> {
        if self.screen.is_live() {
            let table = self.board.table(&self.screen);
            self.screen.draw(&table)?;
        } else if !self.board.runs.is_empty() && self.last_summary.elapsed() >= SUMMARY {
            self.last_summary = Instant::now();
            self.screen.say(&self.board.summary())?;
        }
        Ok(())
    }

    fn fate(&self) -> &'static str {
        match self.args.kill {
            Fate::Kill => "is killed",
            Fate::Term => "is asked to stop",
            Fate::Stop => "is frozen",
        }
    }

    fn heading(&mut self, line: &str) -> Result<(), Failure> {
        let line = self.screen.paint(Tone::Strong, line);
        Ok(self.screen.say(&format!("\n{line}\n"))?)
    }

    fn say(&mut self, line: &str) -> Result<(), Failure> {
        Ok(self.screen.say(&format!("• {line}"))?)
    }
}

async fn until_told(log: &mut Option<Log>) -> podlock::Result<()> {
    match log {
        Some(log) => log.notices.next().await,
        None => std::future::pending().await,
    }
}

fn http(error: reqwest::Error) -> Failure {
    Failure::Failed(format!("talking to a pod: {error}"))
}
