//! The demo's knowledge, from what the pods write and the server announces, and how it is shown.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use podlock::operator::EventRow;
use podlock::{Incarnation, RunId};

use super::fleet::{LogLine, News, What};
use super::screen::{Screen, Tone};

/// The most lines of the table. It must fit into a terminal of 24 lines, or it cannot be redrawn in place.
const LINES: usize = 22;
/// The width of a run's bar, in characters. With the other columns, a line takes at most 80.
const BAR: usize = 30;
/// If a line would name more pods than this, it shows their number. Six names with their states take up to 120 columns.
const NAMED: usize = 6;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PodState {
    Starting,
    Alive,
    Killed,
    Draining,
    Frozen,
    Woken,
    Ended,
}

pub(super) struct PodView {
    pub(super) name: String,
    pub(super) incarnation: Option<Incarnation>,
    pub(super) state: PodState,
}

pub(super) struct RunView {
    pub(super) id: RunId,
    /// The pod that executes the run, as the pods report it.
    pub(super) pod: usize,
    pub(super) attempt: i32,
    pub(super) fence: i64,
    pub(super) done: u32,
    pub(super) made: bool,
    /// Where the run continued after the strike.
    pub(super) moved: Option<Moved>,
}

/// A run that continued on another pod.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moved {
    pub(super) to: usize,
    pub(super) attempt: i32,
    pub(super) fence: i64,
    pub(super) after: Duration,
    /// The chunk at which it continued.
    pub(super) from: u32,
}

/// An event about the pod that was struck.
#[derive(Clone, Debug)]
pub(super) struct Heard {
    pub(super) event: String,
    pub(super) by: String,
    pub(super) reason: Option<String>,
    pub(super) after: Duration,
}

/// The strike, and its consequences.
pub(super) struct Strike {
    pub(super) pod: usize,
    pub(super) at: Instant,
    pub(super) incarnation: Option<Incarnation>,
    pub(super) heard: Vec<Heard>,
    /// How long after the strike its process ended.
    pub(super) ended: Option<Duration>,
    /// The incarnation as which the pod came back, and how long after the strike.
    pub(super) back: Option<(Incarnation, Duration)>,
    /// When the pod was woken.
    pub(super) woken: Option<Instant>,
    /// Runs that were told to stop after the pod was woken, by the pod's own clock or because of a claim.
    pub(super) told_to_stop: usize,
    /// Writes of the pod that were refused after it was woken.
    pub(super) refused: usize,
}

impl Strike {
    /// The first event of this kind.
    pub(super) fn heard(&self, event: &str) -> Option<&Heard> {
        self.heard.iter().find(|heard| heard.event == event)
    }
}

pub(super) struct Board {
    pub(super) pods: Vec<PodView>,
    pub(super) runs: Vec<RunView>,
    pub(super) chunks: u32,
    pub(super) strike: Option<Strike>,
    index: HashMap<RunId, usize>,
}

impl Board {
    pub(super) fn new(names: impl IntoIterator<Item = String>, chunks: u32) -> Self {
        let pods =
            names.into_iter().map(|name| PodView { name, incarnation: None, state: PodState::Starting }).collect();
        Self { pods, runs: Vec::new(), chunks, strike: None, index: HashMap::new() }
    }

    pub(super) fn add_run(&mut self, id: RunId, pod: usize, fence: i64) {
        self.index.insert(id, self.runs.len());
        self.runs.push(RunView { id, pod, attempt: 1, fence, done: 0, made: false, moved: None });
    }

    /// The pod with the most unfinished runs, and their number.
    pub(super) fn busiest(&self) -> (usize, usize) {
        let count = |pod| self.runs.iter().filter(|run| run.pod == pod && !run.made).count();
        let counts = (0..self.pods.len()).map(|pod| (pod, count(pod)));
        counts.max_by_key(|(pod, count)| (*count, usize::MAX - pod)).unwrap_or((0, 0))
    }

    pub(super) fn struck(&mut self, pod: usize, at: Instant, state: PodState) {
        let incarnation = self.pods[pod].incarnation;
        self.pods[pod].state = state;
        self.strike = Some(Strike {
            pod,
            at,
            incarnation,
            heard: Vec::new(),
            ended: None,
            back: None,
            woken: None,
            told_to_stop: 0,
            refused: 0,
        });
    }

    /// Takes in a line that a pod wrote. Returns a sentence if the line is interesting.
    pub(super) fn take(&mut self, news: &News) -> Option<String> {
        match &news.what {
            What::Ready(_) => {
                self.pods[news.pod].state = PodState::Alive;
                None
            }
            What::Log(line) => self.take_log(news.pod, news.at, line),
            What::Text(_) => None,
            What::End => {
                let view = &mut self.pods[news.pod];
                view.state = if view.state == PodState::Killed { PodState::Killed } else { PodState::Ended };
                if let Some(strike) = self.strike.as_mut().filter(|strike| strike.pod == news.pod) {
                    strike.ended.get_or_insert(news.at.duration_since(strike.at));
                }
                None
            }
        }
    }

    fn take_log(&mut self, pod: usize, at: Instant, line: &LogLine) -> Option<String> {
        let index = self.index.get(&line.run_id?).copied()?;
        let run = &mut self.runs[index];
        match line.event.as_str() {
            "executing" => {
                let again = line.attempt > run.attempt;
                run.pod = pod;
                run.attempt = line.attempt;
                run.fence = line.fence;
                run.done = line.from.saturating_sub(1);
                let strike = self.strike.as_ref().filter(|strike| again && strike.pod != pod)?;
                let after = at.duration_since(strike.at);
                let moved = Moved { to: pod, attempt: line.attempt, fence: line.fence, after, from: line.from };
                run.moved.get_or_insert(moved);
                None
            }
            "chunk" if run.pod == pod => {
                run.done = line.n;
                None
            }
            "made" if run.pod == pod => {
                run.made = true;
                None
            }
            "told_to_stop" | "refused" => {
                let strike = self.strike.as_mut().filter(|s| s.pod == pod && s.woken.is_some())?;
                let count = if line.event == "refused" { &mut strike.refused } else { &mut strike.told_to_stop };
                *count += 1;
                None
            }
            _ => None,
        }
    }

    /// Takes in an event of the log. The server's notification of it came `at`.
    pub(super) fn hear(&mut self, at: Instant, event: EventRow) -> Option<String> {
        let EventRow { kind, pod_id: pod, incarnation, by_pod: by, detail, .. } = event;
        let index = self.pods.iter().position(|view| view.name == pod)?;
        let strike = self.strike.as_mut().filter(|strike| strike.pod == index)?;
        let after = at.saturating_duration_since(strike.at);
        if Some(incarnation) != strike.incarnation {
            if kind == "joined" {
                strike.back = Some((incarnation, after));
            }
            return None;
        }
        let reason = detail["reason"].as_str().map(str::to_owned);
        let sentence = match kind.as_str() {
            "buried" if reason.as_deref() == Some("shutdown") => {
                Some(format!("{by} buried {pod} {} after the signal, as one that stopped cleanly.", ms(after)))
            }
            "buried" => Some(format!("{by} noticed {} after the signal, and buried {pod}.", ms(after))),
            "draining" => Some(format!("{pod} says that it is draining, {} after the signal.", ms(after))),
            _ => None,
        };
        strike.heard.push(Heard { event: kind, by, reason, after });
        sentence
    }

    /// The runs of the struck pod that continued on another pod.
    pub(super) fn moved(&self) -> impl Iterator<Item = (usize, &RunView, &Moved)> {
        self.runs.iter().enumerate().filter_map(|(i, run)| run.moved.as_ref().map(|moved| (i + 1, run, moved)))
    }

    /// A summary in one line, for outputs that are no terminal.
    pub(super) fn summary(&self) -> String {
        let made = self.runs.iter().filter(|run| run.made).count();
        let chunks: u32 = self.runs.iter().map(|run| run.done).sum();
        let pods = if self.pods.len() > NAMED {
            let alive = self.pods.iter().filter(|pod| pod.state == PodState::Alive).count();
            format!("{alive} of {} pods alive", self.pods.len())
        } else {
            let pods = self.pods.iter().enumerate().map(|(i, pod)| {
                let mine = self.runs.iter().filter(|run| run.pod == i && !run.made).count();
                let s = if mine == 1 { "" } else { "s" };
                format!("{} {}, {mine} run{s}", pod.name, pod.state.word())
            });
            pods.collect::<Vec<_>>().join("; ")
        };
        format!("    {made} of {} runs done, {chunks} chunks; {pods}", self.runs.len())
    }

    pub(super) fn table(&self, screen: &Screen) -> Vec<String> {
        let mut lines = vec![String::new()];
        for (i, pod) in self.pods.iter().enumerate() {
            let mine = self.runs.iter().filter(|run| run.pod == i && !run.made).count();
            let word = format!("{:<9}", pod.state.word());
            let word = screen.paint(pod.state.tone(), &word);
            lines.push(format!("    {:<8} {word} {mine:>3} runs", pod.name));
        }
        lines.push(String::new());
        lines.push(screen.paint(Tone::Faint, "    run   on       attempt  fence  chunks"));
        let room = LINES.saturating_sub(lines.len() + 1);
        for (i, run) in self.runs.iter().enumerate().take(room) {
            lines.push(self.row(i, run, screen));
        }
        if self.runs.len() > room {
            lines.push(format!("    … and {} more", self.runs.len() - room));
        }
        lines
    }

    fn row(&self, i: usize, run: &RunView, screen: &Screen) -> String {
        let full = (run.done as usize * BAR) / self.chunks.max(1) as usize;
        let bar = format!("{}{}", "█".repeat(full.min(BAR)), "░".repeat(BAR - full.min(BAR)));
        let tone = if run.made {
            Tone::Good
        } else if self.pods[run.pod].state == PodState::Alive {
            Tone::Strong
        } else {
            Tone::Bad
        };
        let bar = screen.paint(tone, &bar);
        let number = format!("#{}", i + 1);
        let on = &self.pods[run.pod].name;
        format!("    {number:<5} {on:<8} {:>7}  {:>5}  {bar} {}/{}", run.attempt, run.fence, run.done, self.chunks)
    }
}

impl PodState {
    fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Alive => "alive",
            Self::Killed => "killed",
            Self::Draining => "draining",
            Self::Frozen => "frozen",
            Self::Woken => "woken",
            Self::Ended => "ended",
        }
    }

    fn tone(self) -> Tone {
        match self {
            Self::Alive => Tone::Good,
            Self::Starting | Self::Woken => Tone::Strong,
            _ => Tone::Bad,
        }
    }
}

/// A time for people: milliseconds, or seconds if the time is long.
pub(super) fn ms(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1000.0;
    if ms < 9_999.5 { format!("{ms:.1} ms") } else { format!("{:.1} s", ms / 1000.0) }
}
