//! Where a reader of a run's stream goes on, and when what was appended is sent.
//!
//! * **Authority.** The rows: a reader has seen what it was handed, and asks for what comes after it.
//! * **States.** A [`Position`]: the generation, how many resets are known, the next chunk, the fence of the last.
//! * **Bound.** A reader that asks from where [`catch_up`] puts it gets each chunk of the current generation once, in order,
//!   and is told of everything that it has and that was taken back.
//! * **Failures.** A failover may have undone what a reader has. What is missing, and what was written again under another
//!   fence, counts as taken back.
//! * **Not promised.** A chunk before it is stored.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::Moment;

/// Where a reader of a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position {
    /// The generation whose chunks it has; 0 before it has seen the stream at all.
    pub generation: i32,
    /// How many resets it knows of.
    pub resets: i32,
    /// The number of the next chunk.
    pub next: i64,
    /// The fence of the chunk before it; 0 if there is none.
    pub fence: i64,
}

impl Position {
    /// Before anything was seen: nothing can have been taken back.
    pub const START: Self = Self { generation: 0, resets: 0, next: 0, fence: 0 };
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}.{}", self.generation, self.resets, self.next, self.fence)
    }
}

impl FromStr for Position {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut numbers = text.split('.');
        let mut number = || numbers.next().filter(|n| n.bytes().all(|b| b.is_ascii_digit())).ok_or(());
        let position = Self {
            generation: number()?.parse().map_err(drop)?,
            resets: number()?.parse().map_err(drop)?,
            next: number()?.parse().map_err(drop)?,
            fence: number()?.parse().map_err(drop)?,
        };
        let is_one = numbers.next().is_none() && (position.generation > 0 || position == Self::START);
        if is_one { Ok(position) } else { Err(()) }
    }
}

/// How a stream stands, as one look showed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its generation.
    pub generation: i32,
    /// How often chunks were taken back.
    pub resets: i32,
    /// The first chunk of this generation that was taken back by a reset that the reader does not know.
    pub cut_from: Option<i64>,
    /// The first chunk that is no longer the one that the reader has, if the last that it has is not.
    pub differs_from: Option<i64>,
    /// How many chunks it has.
    pub next: i64,
}

/// Where a reader goes on that was at `position`, and from which chunk on what it has was taken back, if any was.
#[must_use]
pub fn catch_up(position: Position, facts: &Facts) -> (Position, Option<i64>) {
    // What is before a reset is of a lower fence than what will be behind it; which one does not matter.
    let at = |next| {
        let fence = if next == position.next { position.fence } else { 0 };
        Position { generation: facts.generation, resets: facts.resets, next, fence }
    };
    if position.generation != facts.generation {
        let had_some = position != Position::START;
        return (at(0), had_some.then_some(0));
    }
    let kept = [facts.cut_from, facts.differs_from].into_iter().flatten().fold(facts.next, i64::min);
    // Fewer resets than it knows of: a failover undid some, and what it has is anybody's guess.
    let kept = if facts.resets < position.resets { 0 } else { kept };
    let next = position.next.min(kept);
    (at(next), (next < position.next).then_some(next))
}

/// When what waits is sent: at once where a batch is full or nothing was sent for a `gap`, else when the gap is over, so
/// that many small chunks make few statements.
#[must_use]
pub fn send_at(now: Moment, last: Option<Moment>, is_full: bool, gap: Duration) -> Moment {
    if is_full { now } else { last.map_or(now, |last| now.max(last + gap)) }
}

/// When readers are told: never twice within a `gap`.
#[must_use]
pub fn tell_at(now: Moment, last: Option<Moment>, gap: Duration) -> Moment {
    send_at(now, last, false, gap)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(generation: i32, resets: i32, next: i64) -> Position {
        Position { generation, resets, next, fence: 0 }
    }

    const fn facts(generation: i32, resets: i32, cut_from: Option<i64>, next: i64) -> Facts {
        Facts { generation, resets, cut_from, differs_from: None, next }
    }

    const fn differs(facts: Facts, from: i64) -> Facts {
        Facts { differs_from: Some(from), ..facts }
    }

    #[test]
    fn a_reader_goes_on_where_it_was_and_is_told_what_was_taken_back_of_what_it_has() {
        let cases = [
            // Late: the current generation from its first chunk, and no word of what it never had.
            (Position::START, facts(1, 0, None, 0), at(1, 0, 0), None),
            (Position::START, facts(3, 2, Some(0), 9), at(3, 2, 0), None),
            // Nothing new.
            (at(1, 0, 5), facts(1, 0, None, 5), at(1, 0, 5), None),
            (at(1, 0, 5), facts(1, 0, None, 9), at(1, 0, 5), None),
            // A restart.
            (at(1, 0, 5), facts(2, 1, Some(0), 3), at(2, 1, 0), Some(0)),
            (at(1, 0, 0), facts(2, 1, Some(0), 3), at(2, 1, 0), Some(0)),
            // Gone on from chunk 4: what it has from there on was taken back; what it does not have was not.
            (at(1, 0, 9), facts(1, 1, Some(4), 20), at(1, 1, 4), Some(4)),
            (at(1, 0, 4), facts(1, 1, Some(4), 20), at(1, 1, 4), None),
            (at(1, 0, 2), facts(1, 1, Some(4), 20), at(1, 1, 2), None),
            // The same, known already.
            (at(1, 1, 9), facts(1, 1, None, 20), at(1, 1, 9), None),
            // A failover lost chunks, a reset, a generation.
            (at(1, 0, 9), facts(1, 0, None, 6), at(1, 0, 6), Some(6)),
            (at(1, 2, 9), facts(1, 1, None, 20), at(1, 1, 0), Some(0)),
            (at(2, 1, 9), facts(1, 0, None, 20), at(1, 0, 0), Some(0)),
            // It lost chunks, and they were written again.
            (at(1, 0, 9), differs(facts(1, 0, None, 20), 6), at(1, 0, 6), Some(6)),
            (at(1, 0, 9), differs(facts(1, 1, Some(4), 20), 6), at(1, 1, 4), Some(4)),
        ];
        for (position, facts, goes_on, taken_back) in cases {
            assert_eq!(catch_up(position, &facts), (goes_on, taken_back), "{position} {facts:?}");
        }
    }

    #[test]
    fn positions_are_read_back_and_nothing_else_is() {
        for position in [Position::START, at(1, 0, 0), at(i32::MAX, 7, i64::MAX)] {
            assert_eq!(position.to_string().parse(), Ok(position));
        }
        for text in [
            "",
            "1",
            "1.2.3",
            "1.2.3.4.5",
            "1..3.4",
            "-1.0.0.0",
            "+1.0.0.0",
            "1.0.9223372036854775808.0",
            "1.0. 3.0",
            "a.b.c.d",
            "0.0.5.0",
        ] {
            assert_eq!(text.parse::<Position>(), Err(()), "{text}");
        }
    }

    #[test]
    fn small_chunks_wait_for_each_other_and_full_batches_for_nobody() {
        let ms = Duration::from_millis;
        assert_eq!(send_at(ms(100), None, false, ms(20)), ms(100));
        assert_eq!(send_at(ms(100), Some(ms(95)), false, ms(20)), ms(115));
        assert_eq!(send_at(ms(100), Some(ms(95)), true, ms(20)), ms(100));
        assert_eq!(send_at(ms(100), Some(ms(10)), false, ms(20)), ms(100));
        assert_eq!(tell_at(ms(100), Some(ms(95)), ms(20)), ms(115));
    }
}
