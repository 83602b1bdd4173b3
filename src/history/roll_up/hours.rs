//! Hourly rows. Only hours that are over are made, each from the samples of it that have arrived.
//!
//! A round first makes the hours that have no rows yet, the oldest first, and records how far it has got in the same
//! statement. So a pod that dies loses nothing. Then the round makes the two hours before again, for samples that came
//! late: a pod keeps its samples while the database is away. A sample that comes later still gives its hour back
//! (`write_samples.sql`): it lowers how far the roll-up has got.

use std::time::Duration;

use super::{Maker, RolledUp, Tried};
use crate::error::{Error, Result};
use crate::membership::clock;
use crate::store::roll_ups::{self as statements, Claimed, Hours, at};

const HOUR: i64 = 3_600_000_000;
/// How many hours are made again: two. `write_samples.sql` relies on it, and gives back the hours of samples that are later.
/// More hours would cost each roll-up more; with fewer, each short outage would give hours back.
const AGAIN: i64 = 2 * HOUR;
/// The most hours of one statement: a day. A statement doubles its hours while it is quick.
const SPAN_MAX: i64 = 24;
/// A statement that takes longer than this is not quick: a quarter of a second. The statement time-out is above it.
const QUICK: Duration = Duration::from_millis(250);
/// How long the statement of a single hour may take, once it has not fitted into the statement time-out: 30 s. It holds a
/// connection of the pool for as long, so a pool of one connection does not get it, and divides the hour at once.
const LONG: Duration = Duration::from_secs(30);
/// Into how many slices of pods an hour is divided when it does not fit. Each further time the number grows eightfold.
const SLICES: i32 = 8;
/// The most slices of an hour: 512. Each reads the samples of the hour, and keeps those of its own pods.
const SLICES_MAX: i32 = 512;
/// The most statements of one round. A fleet of 1,000 pods that fell behind by 28 days needs four rounds.
const STATEMENTS: u32 = 200;
/// How long hourly rows are kept: 400 days, so that a month can be compared with the same month a year before. 1,000 pods
/// have ten million rows then, about a gigabyte.
const KEEP: Duration = Duration::from_secs(400 * 24 * 3600);
/// How many old rows one statement deletes, and how many such statements a round has.
const PRUNED: (i32, u32) = (1000, 100);

pub(super) async fn make(maker: &Maker, claimed: &Claimed, total: &mut RolledUp) -> Result<Tried> {
    let hour = claimed.hour.as_microsecond();
    let upto = claimed.upto.map(|upto| upto.as_microsecond());
    let done = match upto {
        Some(upto) if upto <= hour => upto,
        // The clock has jumped forward and back. The rows say which hours were made before that.
        Some(_) => match statements::last_hour(&maker.db).await? {
            Some(last) => last.as_microsecond(),
            None => statements::first_hour(&maker.db).await?.as_microsecond(),
        },
        None => statements::first_hour(&maker.db).await?.as_microsecond(),
    };
    // Rows of earlier hours would be deleted at once.
    let keep = i64::try_from(KEEP.as_micros()).unwrap_or(i64::MAX);
    let mut walk = Walk::new(done.max(hour - keep), 1);
    while walk.from < hour {
        if walk.statements == STATEMENTS {
            return Ok(Tried::More);
        }
        if !walk.step(maker, hour, total).await? {
            return Ok(Tried::NotMine);
        }
    }
    let mut again = Walk::new(done - AGAIN, AGAIN / HOUR);
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
    /// Whether an hour did not fit into the statement time-out. All further ones get the longer limit.
    is_long: bool,
    /// Into how many slices of pods the hours are divided, and which is next.
    slices: (i32, i32),
}

impl Walk {
    const fn new(from: i64, span: i64) -> Self {
        Self { from, span, statements: 0, is_long: false, slices: (1, 0) }
    }

    /// Makes the next hours before `end`, and records that. False: the roll-up is another's.
    async fn step(&mut self, maker: &Maker, end: i64, total: &mut RolledUp) -> Result<bool> {
        let to = (self.from + self.span * HOUR).min(end);
        let is_last = self.slices.1 + 1 == self.slices.0;
        self.make(maker, to, if is_last { to } else { self.from }, total).await
    }

    /// Makes the next hours before `end` again. What is recorded stays: everything up to `upto` is made.
    async fn again(&mut self, maker: &Maker, end: i64, upto: i64, total: &mut RolledUp) -> Result<bool> {
        let to = (self.from + self.span * HOUR).min(end);
        self.make(maker, to, upto, total).await
    }

    async fn make(&mut self, maker: &Maker, to: i64, upto: i64, total: &mut RolledUp) -> Result<bool> {
        let began = clock::now();
        self.statements += 1;
        let (slices, slice) = self.slices;
        let of = Hours { from: at(self.from)?, to: at(to)?, upto: at(upto)?, slices, slice };
        let limit = (self.is_long && maker.db.most_connections() > 1).then_some(LONG);
        match statements::roll_up_hours(&maker.db, maker.token, of, limit).await {
            Ok(None) => return Ok(false),
            Ok(Some(rows)) => {
                total.hours += rows;
                self.slices.1 = (slice + 1) % slices;
                if self.slices.1 == 0 {
                    self.from = to;
                }
                let is_quick = slices == 1 && clock::now().saturating_sub(began) < QUICK;
                self.span = if is_quick { (self.span * 2).min(SPAN_MAX) } else { (self.span / 2).max(1) };
            }
            // The server rolled it back. Fewer hours take less time, and fewer pods.
            Err(e) if took_too_long(&e) && self.makes_less(maker) => {}
            Err(e) => return Err(e),
        }
        Ok(true)
    }

    /// Makes the next statement smaller, or gives it more time. False: it has no smaller one.
    fn makes_less(&mut self, maker: &Maker) -> bool {
        if self.span > 1 {
            self.span = 1;
        } else if !self.is_long {
            self.is_long = true;
            if maker.db.most_connections() == 1 {
                self.slices = (SLICES, 0);
            }
        } else if self.slices.0 < SLICES_MAX {
            self.slices = (self.slices.0 * SLICES, 0);
        } else {
            return false;
        }
        true
    }
}

/// The server ended the statement at its time-out.
fn took_too_long(error: &Error) -> bool {
    error.sqlstate() == Some("57014")
}
