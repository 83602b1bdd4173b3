//! Hourly rows. Only hours that are over are made, and always from all of their samples.
//!
//! A round first makes the hours that have no rows yet, the oldest first, and records how far it has got in the same
//! statement. So a pod that dies loses nothing. Then the round makes the two hours before again, for samples that came
//! late: a pod keeps its samples while the database is away.

use std::time::Duration;

use super::{Maker, RolledUp, Tried};
use crate::error::{Error, Result};
use crate::membership::clock;
use crate::store::roll_ups::{self as statements, Claimed, at};

const HOUR: i64 = 3_600_000_000;
/// How many hours are made again: two. Samples are late by ten minutes at most, so the last hour but one is complete.
const AGAIN: i64 = 2 * HOUR;
/// The most hours of one statement: a day. A statement doubles its hours while it is quick.
const SPAN_MAX: i64 = 24;
/// A statement that takes longer than this is not quick: a quarter of a second. The statement time-out is above it.
const QUICK: Duration = Duration::from_millis(250);
/// The most statements of one round. A fleet of 1,000 pods that fell behind by 28 days needs four rounds.
const STATEMENTS: u32 = 200;
/// How long hourly rows are kept: 400 days, so that a month can be compared with the same month a year before. 1,000 pods
/// have ten million rows then, about a gigabyte.
const KEEP: Duration = Duration::from_secs(400 * 24 * 3600);
/// How many old rows one statement deletes, and how many such statements a round has.
const PRUNED: (i32, u32) = (1000, 100);

pub(super) async fn make(maker: &Maker, claimed: &Claimed, total: &mut RolledUp) -> Result<Tried> {
    let hour = claimed.hour.as_microsecond();
    let done = match claimed.upto {
        // After a jump back of the clock it may be in the future.
        Some(upto) => upto.as_microsecond().min(hour),
        None => statements::first_hour(&maker.db).await?.as_microsecond(),
    };
    // Rows of earlier hours would be deleted at once.
    let keep = i64::try_from(KEEP.as_micros()).unwrap_or(i64::MAX);
    let mut walk = Walk { from: done.max(hour - keep), span: 1, statements: 0 };
    while walk.from < hour {
        if walk.statements == STATEMENTS {
            return Ok(Tried::More);
        }
        if !walk.step(maker, hour, total).await? {
            return Ok(Tried::NotMine);
        }
    }
    let mut again = Walk { from: done - AGAIN, span: AGAIN / HOUR, statements: 0 };
    while again.from < done {
        if !again.again(maker, done, hour, total).await? {
            return Ok(Tried::NotMine);
        }
    }
    for _ in 0..PRUNED.1 {
        let gone = statements::prune_hours(&maker.db, KEEP, PRUNED.0).await?;
        total.old_hours += i64::from(gone);
        if gone < PRUNED.0 {
            break;
        }
    }
    Ok(Tried::Made)
}

/// A walk through hours, a statement at a time.
struct Walk {
    from: i64,
    /// How many hours the next statement makes.
    span: i64,
    statements: u32,
}

impl Walk {
    /// Makes the next hours before `end`, and records that. False: the roll-up is another's.
    async fn step(&mut self, maker: &Maker, end: i64, total: &mut RolledUp) -> Result<bool> {
        let to = (self.from + self.span * HOUR).min(end);
        self.make(maker, to, to, total).await
    }

    /// Makes the next hours before `end` again. What is recorded stays: everything up to `upto` is made.
    async fn again(&mut self, maker: &Maker, end: i64, upto: i64, total: &mut RolledUp) -> Result<bool> {
        let to = (self.from + self.span * HOUR).min(end);
        self.make(maker, to, upto, total).await
    }

    async fn make(&mut self, maker: &Maker, to: i64, upto: i64, total: &mut RolledUp) -> Result<bool> {
        let began = clock::now();
        self.statements += 1;
        match statements::roll_up_hours(&maker.db, maker.token, at(self.from)?, at(to)?, at(upto)?).await {
            Ok(None) => return Ok(false),
            Ok(Some(rows)) => {
                total.hours += rows;
                self.from = to;
                let is_quick = clock::now().saturating_sub(began) < QUICK;
                self.span = if is_quick { (self.span * 2).min(SPAN_MAX) } else { (self.span / 2).max(1) };
            }
            // The server rolled it back. Fewer hours take less time.
            Err(e) if took_too_long(&e) && self.span > 1 => self.span = 1,
            Err(e) => return Err(e),
        }
        Ok(true)
    }
}

/// The server ended the statement at its time-out.
fn took_too_long(error: &Error) -> bool {
    error.sqlstate() == Some("57014")
}
