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

/// Which end of a run a reader was told of. A run that was quarantined and then released ends again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndMark {
    /// The first letter of the state in which it ended: each state has its own.
    letter: char,
    /// The run's fence then.
    fence: i64,
}

impl EndMark {
    /// The end in this state under this fence.
    #[must_use]
    pub fn new(state: &str, fence: i64) -> Self {
        let letter = state.chars().next().filter(char::is_ascii_lowercase).unwrap_or('x');
        Self { letter, fence }
    }
}

/// What a reader has seen: chunks up to a position, and perhaps the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Where it is.
    pub position: Position,
    /// The end that it was told of.
    pub end: Option<EndMark>,
}

impl Seen {
    /// Nothing.
    pub const NOTHING: Self = Self { position: Position::START, end: None };
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.position.fmt(f)?;
        self.end.map_or(Ok(()), |EndMark { letter, fence }| write!(f, ".{letter}{fence}"))
    }
}

impl FromStr for Seen {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let last = text.rsplit('.').next().unwrap_or_default();
        let Some(letter) = last.chars().next().filter(char::is_ascii_lowercase) else {
            return Ok(Self { position: text.parse()?, end: None });
        };
        let (position, fence) = (text.strip_suffix(last).and_then(|text| text.strip_suffix('.')), &last[1..]);
        let is_number = !fence.is_empty() && fence.bytes().all(|b| b.is_ascii_digit());
        let fence = if is_number { fence.parse().map_err(drop)? } else { return Err(()) };
        Ok(Self { position: position.ok_or(())?.parse()?, end: Some(EndMark { letter, fence }) })
    }
}

/// Whether a run that has ended and has no more chunks for a reader has ended for it: it was told of this very end, and
/// nothing of what it has was taken back since.
#[must_use]
pub fn knows_the_end(seen: &Seen, now: &Facts, end: EndMark) -> bool {
    let (position, taken_back) = catch_up(seen.position, now);
    seen.end == Some(end) && taken_back.is_none() && position.next == now.next && seen.position.next == now.next
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
    fn the_end_has_a_position_of_its_own_that_is_read_back() {
        for state in ["succeeded", "failed", "cancelled", "quarantined"] {
            for position in [Position::START, at(1, 0, 0), at(2, 3, i64::MAX)] {
                let seen = Seen { position, end: Some(EndMark::new(state, 42)) };
                assert_eq!(seen.to_string(), format!("{position}.{}42", &state[..1]));
                assert_eq!(seen.to_string().parse(), Ok(seen));
                let without = Seen { end: None, ..seen };
                assert_eq!(without.to_string().parse(), Ok(without));
                assert_ne!(seen, without);
            }
        }
        for text in
            ["s42", ".s42", "1.0.0.s42", "1.0.0.0.s", "1.0.0.0.s-1", "1.0.0.0.42", "1.0.0.0.s1.s1", "1.0.0.0.é1", ""]
        {
            assert_eq!(text.parse::<Seen>(), Err(()), "{text}");
        }
    }

    #[test]
    fn a_reader_knows_the_end_that_it_was_told_of_and_no_other() {
        let (end, chunks) = (EndMark::new("failed", 7), facts(1, 0, None, 5));
        let seen = |position, end| Seen { position, end };
        assert!(knows_the_end(&seen(at(1, 0, 5), Some(end)), &chunks, end));
        // A stream without any chunk.
        assert!(knows_the_end(&seen(at(1, 0, 0), Some(end)), &facts(1, 0, None, 0), end));
        for (why, seen, now, end) in [
            ("it was told of no end", seen(at(1, 0, 5), None), chunks, end),
            ("another attempt's end", seen(at(1, 0, 5), Some(end)), chunks, EndMark::new("failed", 8)),
            ("another state", seen(at(1, 0, 5), Some(end)), chunks, EndMark::new("cancelled", 7)),
            ("a restart", seen(at(1, 0, 5), Some(end)), facts(2, 1, Some(0), 5), end),
            ("a failover took chunks back", seen(at(1, 0, 5), Some(end)), facts(1, 0, None, 3), end),
            ("more chunks came", seen(at(1, 0, 5), Some(end)), facts(1, 0, None, 6), end),
        ] {
            assert!(!knows_the_end(&seen, &now, end), "{why}");
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
