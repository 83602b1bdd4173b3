//! Where a reader of a run's stream continues, and when appended chunks are sent.
//!
//! * **Authority.** The rows. A reader has seen what it was handed, and asks for what comes after that.
//! * **States.** A [`Position`]: the generation, how many resets the reader knows of, the next chunk, and the fence of
//!   the last chunk.
//! * **Bound.** A reader that asks from the position of [`catch_up`] gets each chunk of the current generation once, in
//!   order. It is told of every chunk that it has and that was taken back.
//! * **Failures.** A failover may have undone chunks that a reader has. Chunks that are missing, or were written again
//!   under another fence, count as taken back.
//! * **Not promised.** A chunk is not delivered before it is stored.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::Moment;

/// The position of a reader in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position {
    /// The generation of the chunks that it has; 0 before it has seen the stream.
    pub generation: i32,
    /// How many resets it knows of.
    pub resets: i32,
    /// The number of the next chunk.
    pub next: i64,
    /// The fence of the chunk before `next`; 0 if there is none.
    pub fence: i64,
}

impl Position {
    /// The position of a reader that has seen nothing. Nothing that it has can have been taken back.
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

/// The end of a run that a reader was told of. A run that was quarantined and then released ends again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndMark {
    /// The first letter of the state in which the run ended. Each state has its own letter.
    letter: char,
    /// The run's fence at that end.
    fence: i64,
}

impl EndMark {
    /// The end in state `state` under this fence.
    #[must_use]
    pub fn new(state: &str, fence: i64) -> Self {
        let letter = state.chars().next().filter(char::is_ascii_lowercase).unwrap_or('x');
        Self { letter, fence }
    }
}

/// What a reader has seen: the chunks up to a position, and perhaps the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The reader's position.
    pub position: Position,
    /// The end that it was told of.
    pub end: Option<EndMark>,
}

impl Seen {
    /// The reader has seen nothing.
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

/// Whether a reader of an ended run knows everything: it has all chunks, it was told of this very end, and nothing that
/// it has was taken back since.
#[must_use]
pub fn knows_the_end(seen: &Seen, now: &Facts, end: EndMark) -> bool {
    let (position, taken_back) = catch_up(seen.position, now);
    seen.end == Some(end) && taken_back.is_none() && position.next == now.next && seen.position.next == now.next
}

/// The state of a stream, as one read of its rows showed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its generation.
    pub generation: i32,
    /// How often chunks were taken back.
    pub resets: i32,
    /// The first chunk of this generation that was taken back by a reset that the reader does not know of.
    pub cut_from: Option<i64>,
    /// If the reader's last chunk is no longer the stored one: the first chunk that differs from the reader's.
    pub differs_from: Option<i64>,
    /// How many chunks the stream has.
    pub next: i64,
}

/// Where a reader that was at `position` continues. Also returns the first chunk that it has and that was taken back,
/// if any.
#[must_use]
pub fn catch_up(position: Position, facts: &Facts) -> (Position, Option<i64>) {
    // Chunks before a reset have lower fences than the chunks after it. The exact fence does not matter here.
    let at = |next| {
        let fence = if next == position.next { position.fence } else { 0 };
        Position { generation: facts.generation, resets: facts.resets, next, fence }
    };
    if position.generation != facts.generation {
        let had_some = position != Position::START;
        return (at(0), had_some.then_some(0));
    }
    let kept = [facts.cut_from, facts.differs_from].into_iter().flatten().fold(facts.next, i64::min);
    // The stream has fewer resets than the reader knows of: a failover undid some. So nobody can tell which chunks of
    // the reader are still valid.
    let kept = if facts.resets < position.resets { 0 } else { kept };
    let next = position.next.min(kept);
    (at(next), (next < position.next).then_some(next))
}

/// When waiting chunks are sent. At once if a batch is full or if nothing was sent for a `gap`. Otherwise when the gap
/// is over, so that many small chunks make few statements.
#[must_use]
pub fn send_at(now: Moment, last: Option<Moment>, is_full: bool, gap: Duration) -> Moment {
    if is_full { now } else { last.map_or(now, |last| now.max(last + gap)) }
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
            // A late reader gets the current generation from its first chunk, and no word of chunks that it never had.
            (Position::START, facts(1, 0, None, 0), at(1, 0, 0), None),
            (Position::START, facts(3, 2, Some(0), 9), at(3, 2, 0), None),
            // Nothing new.
            (at(1, 0, 5), facts(1, 0, None, 5), at(1, 0, 5), None),
            (at(1, 0, 5), facts(1, 0, None, 9), at(1, 0, 5), None),
            // A restart.
            (at(1, 0, 5), facts(2, 1, Some(0), 3), at(2, 1, 0), Some(0)),
            (at(1, 0, 0), facts(2, 1, Some(0), 3), at(2, 1, 0), Some(0)),
            // The stream continued at chunk 4. Of the chunks from there on, only those that the reader has count as
            // taken back.
            (at(1, 0, 9), facts(1, 1, Some(4), 20), at(1, 1, 4), Some(4)),
            (at(1, 0, 4), facts(1, 1, Some(4), 20), at(1, 1, 4), None),
            (at(1, 0, 2), facts(1, 1, Some(4), 20), at(1, 1, 2), None),
            // The same, and the reader knows it already.
            (at(1, 1, 9), facts(1, 1, None, 20), at(1, 1, 9), None),
            // A failover lost chunks, a reset or a generation.
            (at(1, 0, 9), facts(1, 0, None, 6), at(1, 0, 6), Some(6)),
            (at(1, 2, 9), facts(1, 1, None, 20), at(1, 1, 0), Some(0)),
            (at(2, 1, 9), facts(1, 0, None, 20), at(1, 0, 0), Some(0)),
            // A failover lost chunks, and they were written again.
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
        // A stream without chunks.
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
    }
}
