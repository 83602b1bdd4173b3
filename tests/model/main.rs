//! A model of the protocol, which tries every order of its transactions, steps and faults in small configurations.
//!
//! Time is abstracted to the orders that the settings guarantee, and nothing else:
//!
//! * A pod settles (L2) at any time after every living pod that the last restart cut off came back or passed its
//!   deadline: `settle` is longer than the deadline, and begins later. For a pod of a longer lease it settles later
//!   than for its equals.
//! * A hold as long as a lease is over once every living pod that it covers came back or passed its deadline, for the
//!   same reason; the lease is the longer one, its own or the peer's. The short times, `window` and `second_probe`, may
//!   pass at any moment: they promise nothing.
//! * The server ends a silent session only after its pod passed its deadline (L7): the lease is longer.
//! * A frozen process is one whose session ends while it goes on: what matters is what it believes when it acts again.
//!
//! `docs/model.md` says what else is abstracted and why, and what is not covered. `make model` runs the larger ones.

#![allow(clippy::expect_used, reason = "a test fails by panicking")]

mod actions;
mod configurations;
mod database;
mod document;
mod liveness;
mod mistakes;
mod model;
mod properties;
mod runs;
mod state;
mod writer;

use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model};

use configurations::Exploration;
use mistakes::{Case, Mistake};
use model::Podlock;
use properties::Rule;

const THREADS: usize = 2;
/// No counterexample of the table is longer.
const DEEPEST: usize = 12;

/// Explores a configuration to its end: every rule holds, every sight is seen.
fn explore(name: &str, Exploration { config, sights }: Exploration) {
    let began = Instant::now();
    let model = Podlock { sights, ..Podlock::correct(config) };
    let checker = model.checker().threads(THREADS).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let (states, steps) = (checker.unique_state_count(), checker.state_count());
    println!("{name}: {states} states, {steps} steps, {:.1?}", began.elapsed());
    for rule in Rule::OF_STATES {
        if let Some(path) = checker.discovery(rule.says()) {
            panic!("{name} breaks: {}\n{:?}\n{:#?}", rule.says(), path.clone().into_actions(), path.last_state());
        }
    }
    for (sight, _) in sights {
        assert!(checker.discovery(sight).is_some(), "{name} never reaches: {sight}");
    }
}

/// Explores the whole graph of a configuration: every run can always be finished.
fn always_ends(name: &str, Exploration { config, .. }: Exploration) {
    let began = Instant::now();
    let graph = liveness::search(&Podlock::correct(config));
    println!("{name}: an end from each of {} states, {:.1?}", graph.states, began.elapsed());
    assert_eq!(graph.stuck, None, "{name}: from there no end can be reached");
}

/// The shortest way to break `rule`, found by going deeper step by step: stateright replaces a short counterexample by
/// a longer one.
fn shortest(model: &Podlock, rule: Rule) -> Option<Vec<actions::Action>> {
    (1..=DEEPEST).find_map(|steps| {
        let checker = model.clone().checker().target_max_depth(steps + 2).spawn_bfs().join();
        checker.discovery(rule.says()).map(|path| path.into_actions())
    })
}

/// A mistake breaks the rule that is to catch it, and the protocol without it does not, as far into the configuration.
fn is_caught(mistake: Mistake) {
    let Case { caught_by, config } = mistake.case();
    let wrong = Podlock { mistake: Some(mistake), only: Some(caught_by), ..Podlock::correct(config.clone()) };
    let right = Podlock { only: Some(caught_by), ..Podlock::correct(config) };
    let trace = if caught_by == Rule::EveryRunCanEnd {
        assert_eq!(liveness::search(&right).stuck, None, "the protocol itself breaks it");
        liveness::search(&wrong).stuck
    } else {
        shortest(&wrong, caught_by)
    };
    let trace = trace.unwrap_or_else(|| panic!("{mistake:?} does not break: {}", caught_by.says()));
    println!("{mistake:?} breaks: {}\n  {trace:?}", caught_by.says());
    let checker = right.checker().target_max_depth(trace.len() + 3).spawn_bfs().join();
    assert!(checker.discovery(caught_by.says()).is_none(), "the protocol itself breaks it");
}

/// One test for each configuration, given to `$check`.
macro_rules! each {
    ($check:ident $(, #[$ignored:meta])?: $($name:ident)*) => { each!(@ $check [$(#[$ignored])?] $($name)*); };
    (@ $check:ident $ignored:tt $($name:ident)*) => { $( each!(@@ $check $ignored $name); )* };
    (@@ $check:ident [$($ignored:tt)*] $name:ident) => {
        #[test]
        $($ignored)*
        fn $name() {
            $check(stringify!($name), configurations::$name());
        }
    };
}

mod explored {
    use super::*;
    each!(explore: kill two_kills cut cut_and_kill cut_and_spawn silence restart failover stop lost_reply
        late_write same_key unequal_restart unequal_cut shutdown batch batch_in_doubt batch_of_two_attempts
        batch_and_kill batch_and_cut);
}

mod ends {
    use super::*;
    each!(always_ends: kill two_kills cut cut_and_kill cut_and_spawn silence restart failover stop lost_reply
        late_write same_key unequal_restart unequal_cut shutdown batch batch_in_doubt batch_of_two_attempts
        batch_and_kill batch_and_cut);
}

mod larger {
    use super::*;
    each!(explore, #[ignore = "large: make model"]: three_pods_two_cuts three_pods_cut_and_kill three_pods_restart
        unequal_three_pods_restart two_cuts_and_spawn restart_and_cut restart_and_kill failover_of_a_claim
        failover_of_an_end failover_and_kill
        failover_and_cut failover_and_stop failover_and_lost_reply two_failovers silence_and_cut two_runs stop_and_cut
        stop_kill_and_cut three_pods_shutdown shutdown_and_kill batches_of_two_runs batches_and_cut
        batches_in_doubt_and_cut batches_and_kill batches_and_stop batches_and_failover);
}

mod larger_ends {
    use super::*;
    each!(always_ends, #[ignore = "large: make model"]: three_pods_cut_and_kill failover_of_an_end failover_of_a_claim
        failover_and_kill two_runs stop_and_cut batches_of_two_runs batches_and_kill);
}

/// One test for each mistake, and the table of them.
macro_rules! mistakes {
    ($($name:ident: $mistake:ident,)*) => {
        pub(crate) const TABLE: &[(&str, Mistake)] = &[$((stringify!($name), Mistake::$mistake)),*];
        $(#[test] fn $name() { is_caught(Mistake::$mistake); })*
    };
}

mod caught {
    use super::*;
    mistakes!(
        row_before_lock: RowBeforeLock,
        row_through_the_pool: RowThroughPool,
        probe_and_delete_in_two_transactions_by_name: DeleteByName,
        no_settle_after_a_restart: NoSettle,
        burial_while_the_server_ends_its_sessions: BuriesBehindAClosedDoor,
        own_key_proof_by_a_failing_try_lock: ProofByTryLock,
        one_that_lost_its_row_still_buries: BuryWithoutRow,
        no_grace_for_a_broken_connection: NoGrace,
        a_longer_lease_settled_for_by_its_own_time: OwnSettle,
        a_longer_lease_held_by_its_own_time: OwnGrace,
        lease_shorter_than_the_deadline: LeaseBeforeDeadline,
        unanswered_sessions_closed_before_the_deadline: LetsGoUnanswered,
        burial_only_in_memory: BurialInMemory,
        burial_without_an_event: BurialUnlogged,
        clean_stop_deletes_its_row_and_recovery_waits_for_burials: StopDeletesRow,
        clean_stop_without_a_mark: StopUnmarked,
        clean_stop_recorded_as_complete_when_it_begins: StopCompleteTooEarly,
        restart_overwrites_the_row_and_nobody_adopts: NobodyAdopts,
        key_collision: SharedKey,
        owner_stored_by_name: OwnerByName,
        claim_without_expected_owner: ClaimUnexpected,
        sweep_that_ignores_live_owners: IgnoreLiveOwners,
        one_that_lost_its_row_still_claims: ClaimWithoutRow,
        orphans_without_null_owners: OrphansWithoutNull,
        own_rows_without_a_task_forgotten: OwnRowsForgotten,
        no_fence_check: NoFence,
        fence_by_number_alone: FenceByNumber,
        fence_from_the_sequence_alone: FenceFromSequence,
        answers_of_a_batch_joined_by_run: AnswersByRun,
        no_fence_in_one_row_of_a_batch: NoFenceInOneRow,
        batch_made_as_a_whole_or_not_at_all: AllOrNothing,
        repeat_without_its_number: RepeatWithoutNumber,
        write_left_out_of_a_batch_counts_as_fenced: LeftOutIsFenced,
        end_that_does_not_ask_whether_the_run_has_ended: EndsAgain,
        end_of_a_dropped_call_taken_for_its_own: EndOfAnotherCall,
    );
}
