//! The model: a configuration, perhaps with one known mistake in it, as stateright explores it.

use stateright::{Model, Property};

use crate::actions::{self, Action};
use crate::mistakes::Mistake;
use crate::properties::{self, Rule, Sight};
use crate::state::{Db, Faults, Name, Phase, Proc, ProcId, RUNS, Row, Run, State, Task};

/// Where an exploration begins, and what may go wrong in it.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// The names that there are.
    pub(crate) names: usize,
    /// How many of them have a settled pod at the start.
    pub(crate) pods: usize,
    /// Who owns each run at the start.
    pub(crate) runs: Vec<Option<ProcId>>,
    /// Names 0 and 1 have the same lock key.
    pub(crate) same_key: bool,
    /// The name whose pods have a lease twice as long as that of the others.
    pub(crate) longer: Option<Name>,
    pub(crate) faults: Faults,
}

/// What is explored.
#[derive(Clone, Debug)]
pub(crate) struct Podlock {
    pub(crate) config: Config,
    pub(crate) mistake: Option<Mistake>,
    /// The only rule to be checked, where a mistake is looked for.
    pub(crate) only: Option<Rule>,
    /// What must be reached.
    pub(crate) sights: &'static [Sight],
}

impl Podlock {
    pub(crate) fn correct(config: Config) -> Self {
        Self { config, mistake: None, only: None, sights: &[] }
    }

    /// The lock key of a name.
    pub(crate) fn key(&self, name: usize) -> usize {
        if self.config.same_key && name == 1 { 0 } else { name }
    }

    /// The steps of processes that change something.
    pub(crate) fn has_step(&self, s: &State) -> bool {
        let mut steps = Vec::new();
        actions::steps(s, &mut steps);
        steps.into_iter().any(|step| self.next_state(s, step).is_some())
    }
}

impl Model for Podlock {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let config = &self.config;
        let attached = |p: ProcId| Proc {
            phase: Phase::Attached,
            inc: Some(inc_of(p)),
            settled: self.settles(p).max(),
            ..Proc::booting(p)
        };
        let row = |p: ProcId| Row { inc: inc_of(p), session: 1, draining: false, stopped: false, backend: p };
        let mut s = State {
            db: Db {
                roster: (0..config.names).map(|n| (n < config.pods).then(|| row(n))).collect(),
                runs: Vec::new(),
                sequence: 0,
                buried: 0,
            },
            standby: None,
            liveness: vec![None; config.names],
            witness: (0..config.names).map(|n| (n < config.pods).then_some(n)).collect(),
            procs: (0..config.pods).map(attached).collect(),
            under_way: Vec::new(),
            next_inc: inc_of(config.pods),
            next_claim: 1,
            left: config.faults,
            closing: false,
            lost_commits: false,
            broken: 0,
        };
        for p in 0..config.pods {
            s.liveness[self.key(p)] = Some(p);
        }
        assert!(config.runs.len() <= RUNS, "a configuration has at most {RUNS} runs");
        for (r, owner) in config.runs.iter().enumerate() {
            let mut run = Run { finished: false, owner: None, fence: 0, attempt: 0, claim: 0, written: 0 };
            if let Some(p) = *owner {
                s.db.sequence += 1;
                run = Run { owner: Some(inc_of(p)), fence: s.db.sequence, attempt: 1, claim: s.next_claim, ..run };
                s.next_claim += 1;
                s.procs[p].tasks[r] = Some(Task::of_claim(inc_of(p), &run));
            }
            s.db.runs.push(run);
        }
        vec![s]
    }

    fn actions(&self, s: &State, out: &mut Vec<Action>) {
        // What comes after a broken rule teaches nothing.
        if s.broken == 0 {
            actions::steps(s, out);
            actions::faults(self.config.names, s, out);
        }
    }

    fn next_state(&self, s: &State, action: Action) -> Option<State> {
        let mut next = s.clone();
        self.apply(&mut next, action);
        (next != *s).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::of(self)
    }
}

fn inc_of(p: ProcId) -> u8 {
    u8::try_from(p).unwrap_or(u8::MAX)
}
