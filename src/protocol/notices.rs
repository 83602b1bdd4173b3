//! What pods tell each other over PostgreSQL's channels, and how often a pod acts on what it hears (L11).
//!
//! * **Authority.** The rows. Every role that may connect hears each notice and can send any. So a notice is one word
//!   that says which rows to read. It names no pod, incarnation or run.
//! * **States.** [`Heard`]: notices that came and were not taken yet, merged. [`Gate`]: when the rows of one kind are
//!   read next.
//! * **Bound.** The first notice of a kind is acted on at once. (The pods of a large fleet read the event log within a
//!   random time, so that they do not all read at once: `pod::hints`.) A flood that leads to nothing causes about one read of
//!   each kind per [`GAP_MOST`]. If such reads are slow, they take at most a tenth of the time. The last notice is
//!   never lost.
//! * **Failures.** A notice that a pod does not understand does nothing.
//! * **Not promised.** A notice may not arrive. Sweeps read the same rows.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use super::{Moment, neighbours};
use crate::id::RunId;

/// Which rows a notice asks a pod to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// The roster and its locks, at once: a pod that may not bury yet saw a loss.
    Look,
    /// The roster and its locks, a little later: a watch session was granted a lock, and its pod probes first.
    Free,
    /// The event log: a pod came, went, or is in trouble.
    Roster,
    /// The event log, for its followers. Pods do nothing.
    Log,
    /// Orphans: a run has no owner.
    Recover,
    /// The same, to the one pod that was chosen to take the run. A pod that cannot take it tells others.
    Take,
    /// The pod's own runs: a run was cancelled, or was given to a pod.
    Runs,
    /// The pod's own row: a pod was asked to drain, was cordoned, or its cordon was lifted.
    Asked,
    /// The workers that have changed.
    Workers,
}

impl Word {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Look,
        Self::Free,
        Self::Roster,
        Self::Log,
        Self::Recover,
        Self::Take,
        Self::Runs,
        Self::Asked,
        Self::Workers,
    ];

    /// The word that goes over the channel. The migrations and the statements that notify use the same words.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Look => "look",
            Self::Free => "free",
            Self::Roster => "roster",
            Self::Log => "log",
            Self::Recover => "recover",
            Self::Take => "take",
            Self::Runs => "runs",
            Self::Asked => "asked",
            Self::Workers => "workers",
        }
    }

    /// The word of this payload. `None`: another version or a stranger sent it.
    #[must_use]
    pub fn parse(payload: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|word| word.as_str() == payload)
    }
}

// Each word has a bit in `Words`.
const _: () = assert!(Word::ALL.len() <= u16::BITS as usize);

/// A set of [`Word`]s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Words(u16);

impl Words {
    fn add(&mut self, word: Word) {
        self.0 |= 1 << word as u8;
    }

    /// Whether the word is in the set.
    #[must_use]
    pub const fn has(self, word: Word) -> bool {
        self.0 & (1 << word as u8) != 0
    }

    /// Whether the set is empty.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// The most groups that one notice names. With more groups, the notice tells all readers to read. 512 groups make a
/// payload of about 2 KB; PostgreSQL allows 8,000 bytes.
pub const GROUPS_MOST: usize = 512;

/// The value of [`StreamNotice::by`] for a sender that has no readers of its own to leave out.
pub const NOBODY: u32 = 0;

/// A notice on the streams' channel: the groups of runs whose streams have grown. Readers of runs of these groups read
/// their rows. A group is 16 bits of a hash, so the notice does not reveal which run it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamNotice {
    /// A number that the sender drew when it started, or [`NOBODY`]. The sender's own readers know already and ignore
    /// the notice.
    pub by: u32,
    /// The groups. `None`: too many to name.
    pub groups: Option<BTreeSet<u16>>,
}

impl StreamNotice {
    /// The notice that `by` sends about these runs.
    pub fn new<'a>(by: u32, runs: impl Iterator<Item = &'a RunId>) -> Self {
        let mut groups = BTreeSet::new();
        for run in runs {
            groups.insert(group(*run));
            if groups.len() > GROUPS_MOST {
                return Self { by, groups: None };
            }
        }
        Self { by, groups: Some(groups) }
    }

    /// The notice of this payload. `None`: another version or a stranger sent it.
    #[must_use]
    pub fn parse(payload: &str) -> Option<Self> {
        let (by, groups) = payload.split_once(':')?;
        let by = (by.len() == 8).then(|| hex(by))??;
        if groups == "*" {
            return Some(Self { by, groups: None });
        }
        if !groups.len().is_multiple_of(4) || groups.len() > GROUPS_MOST * 4 {
            return None;
        }
        let group = |four: &[u8]| u16::try_from(hex(std::str::from_utf8(four).ok()?)?).ok();
        let groups: Option<BTreeSet<u16>> = groups.as_bytes().chunks(4).map(group).collect();
        Some(Self { by, groups: Some(groups?) })
    }
}

impl fmt::Display for StreamNotice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}:", self.by)?;
        match &self.groups {
            None => f.write_str("*"),
            Some(groups) => groups.iter().try_for_each(|group| write!(f, "{group:04x}")),
        }
    }
}

fn hex(digits: &str) -> Option<u32> {
    let is_hex = digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    is_hex.then(|| u32::from_str_radix(digits, 16).ok())?
}

/// The group that a run belongs to. Pods of all versions must compute the same group.
#[must_use]
pub fn group(run: RunId) -> u16 {
    // Fibonacci hashing of both halves: ids made in the same millisecond differ only in their random bits.
    let (high, low) = run.as_uuid().as_u64_pair();
    let mixed = (high ^ low.rotate_left(32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    u16::try_from(mixed >> 48).unwrap_or(0)
}

/// The most notices on the streams' channel that are kept apart. After more, all readers read. More costs memory in a
/// flood; fewer wakes readers for nothing.
const TOLD_MOST: usize = 64;

/// Notices that came and were not taken yet, merged. Its size is bounded, however many notices come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// The words that came on the schema's channel.
    pub words: Words,
    /// The notices that came on the streams' channel.
    pub told: Vec<StreamNotice>,
    /// More notices came on the streams' channel than are kept: all readers must read.
    pub all: bool,
}

impl Heard {
    /// Merges a notice. Returns `false` if the notice means nothing.
    pub fn hear(&mut self, payload: &str) -> bool {
        if let Some(word) = Word::parse(payload) {
            self.words.add(word);
            return true;
        }
        let Some(told) = StreamNotice::parse(payload) else { return false };
        if self.all || self.told.len() >= TOLD_MOST {
            self.told.clear();
            self.all = true;
        } else {
            self.told.push(told);
        }
        true
    }

    /// Whether no notice has come.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.is_empty() && self.told.is_empty() && !self.all
    }
}

/// The shortest gap between two reads because of notices: 12 ms, after a read that found something to do. It doubles
/// with each read that found nothing, up to [`GAP_MOST`]. Shorter gaps cost statements in a flood; longer ones delay
/// the reaction.
pub const GAP_LEAST: Duration = Duration::from_millis(12);
/// The longest such gap: 100 ms, and longer in a large fleet. In a flood of foreign notices, a pod of a small fleet
/// makes ten reads a second of each kind. With a longer gap, a real notice in the flood is heard later. See [`GAP_LEAST`].
pub const GAP_MOST: Duration = Duration::from_millis(100);
/// The longest gap in a fleet of any size: 3 s, about a sweep at the default lease. With a longer gap, the
/// sweep would read the rows before the notice does.
const GAP_IN_A_FLEET: Duration = Duration::from_secs(3);
/// The longest gap after a slow read that found nothing: nine times what the read took, but never more than this. With
/// longer gaps, notices would hardly be heard before the next sweep.
const GAP_AFTER_SLOW: Duration = Duration::from_secs(1);

/// When the rows that one kind of notice points to are read next.
///
/// A notice that comes during a read asks for another read, because this one may have read the rows too early.
#[derive(Clone, Debug)]
pub struct Gate {
    asked: Option<Moment>,
    began: Option<Moment>,
    /// No read begins before this moment.
    opens: Moment,
    /// The shortest gap.
    least: Duration,
    /// The longest gap, but for one after a slow read.
    most: Duration,
    gap: Duration,
}

impl Default for Gate {
    fn default() -> Self {
        Self { asked: None, began: None, opens: Moment::ZERO, least: GAP_LEAST, most: GAP_MOST, gap: GAP_LEAST }
    }
}

impl Gate {
    /// Makes the gaps as long as suits a fleet in which a pod has so many peers. All pods read because of the same
    /// notices. So a burst of notices, such as that of many pods that start at once, is read in fewer steps the more
    /// pods there are. The gate delays no first notice after a quiet time.
    pub fn suit(&mut self, peers: usize) {
        self.least = neighbours::rarer(GAP_LEAST, peers);
        self.most = neighbours::rarer(GAP_MOST, peers).min(GAP_IN_A_FLEET).max(GAP_MOST);
        self.least = self.least.min(self.most);
        self.gap = self.gap.max(self.least);
    }

    /// Whether the gaps are those of a small fleet.
    fn is_small(&self) -> bool {
        self.least == GAP_LEAST
    }

    /// A notice came at `now`. The read is due after `wait`, or together with an earlier notice.
    pub fn ask(&mut self, now: Moment, wait: Duration) {
        let at = now + wait;
        self.asked = Some(self.asked.map_or(at, |asked| asked.min(at)));
    }

    /// When the next read is due. `None`: no notice asks for one.
    #[must_use]
    pub fn due(&self) -> Option<Moment> {
        self.asked.map(|asked| asked.max(self.opens))
    }

    /// Whether the read is due at `now`.
    #[must_use]
    pub fn is_due(&self, now: Moment) -> bool {
        self.due().is_some_and(|due| due <= now)
    }

    /// The read begins at `now`, because of notices or for another reason.
    pub fn begin(&mut self, now: Moment) {
        self.began = self.is_due(now).then_some(now);
        self.asked = None;
    }

    /// The read ended at `now`. `came_to_something`: it found something to do. A read that did not begin because of
    /// notices changes no gap.
    pub fn end(&mut self, now: Moment, came_to_something: bool) {
        let Some(began) = self.began.take() else { return };
        let was_quiet = began.saturating_sub(self.opens) >= self.most;
        // In a large fleet, a burst that goes on is read more and more rarely, even if each read finds something.
        let starts_over = was_quiet || (came_to_something && self.is_small());
        self.gap = if starts_over { self.least } else { (self.gap * 2).min(self.most) };
        let slow = (now.saturating_sub(began) * 9).min(GAP_AFTER_SLOW);
        self.opens = now + if came_to_something { self.gap } else { self.gap.max(slow) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn words_are_read_back_and_nothing_else_is() {
        for word in Word::ALL {
            assert_eq!(Word::parse(word.as_str()), Some(word));
        }
        let hostile = ["", " look", "LOOK", "look\0", "{\"ask\":\"drain\"}", "drain", "null", "[]"];
        let mut heard = Heard::default();
        for payload in hostile.into_iter().map(str::to_owned).chain([format!("look{}", " ".repeat(7995))]) {
            assert!(!heard.hear(&payload), "{payload}");
        }
        assert!(heard.is_empty());
    }

    #[test]
    fn what_is_heard_is_merged_and_no_kind_is_lost() {
        let mut heard = Heard::default();
        for _ in 0..10_000 {
            assert!(heard.hear("look"));
            assert!(!heard.hear("garbage"));
        }
        assert!(heard.hear("asked"));
        let is_there = |word: &Word| heard.words.has(*word);
        assert_eq!(Word::ALL.into_iter().filter(is_there).collect::<Vec<_>>(), [Word::Look, Word::Asked]);
        assert!(!heard.is_empty() && heard.told.is_empty());
    }

    #[test]
    fn of_a_flood_on_the_streams_channel_everybody_looks() {
        let mut heard = Heard::default();
        for by in 0..64 {
            assert!(heard.hear(&StreamNotice { by, groups: Some([7].into()) }.to_string()));
        }
        assert!(!heard.all && heard.told.len() == 64);
        for by in 64..10_000 {
            assert!(heard.hear(&StreamNotice { by, groups: Some([7].into()) }.to_string()));
        }
        assert!(heard.all && heard.told.is_empty() && !heard.is_empty());
    }

    #[test]
    fn what_is_told_of_streams_is_read_back_fits_and_names_no_run() {
        let runs: Vec<RunId> = (0..GROUPS_MOST).map(|_| RunId::generate()).collect();
        let told = StreamNotice::new(0xabc, runs.iter());
        let payload = told.to_string();
        assert!(payload.len() < 8000, "{}", payload.len());
        assert_eq!(StreamNotice::parse(&payload), Some(told));
        assert!(runs.iter().all(|run| !payload.contains(&run.to_string())));
        let many: Vec<RunId> = (0..4 * GROUPS_MOST).map(|_| RunId::generate()).collect();
        let all = StreamNotice::new(1, many.iter());
        assert_eq!((all.to_string().as_str(), StreamNotice::parse("00000001:*")), ("00000001:*", Some(all)));
        for hostile in
            ["", ":", "0000000:*", "00000001:", "+0000001:*", "00000001:12", "00000001:+123", "00000001:ABCD"]
        {
            let nobody = StreamNotice::parse(hostile).is_none_or(|told| told.groups == Some(BTreeSet::new()));
            assert!(nobody, "{hostile}");
        }
        assert_eq!(StreamNotice::parse("00000001:äö"), None);
    }

    #[test]
    fn groups_are_spread_and_the_same_everywhere() {
        let groups: BTreeSet<u16> = (0..1000).map(|_| group(RunId::generate())).collect();
        assert!(groups.len() > 950, "{}", groups.len());
        let id = "0193b3a0-7c1e-7abc-8def-0123456789ab".parse().expect("an id");
        assert_eq!(group(id), group(id));
    }

    /// Plays a flood of notices, one per 100 µs, against reads that take `took`. Returns the number of reads.
    fn effects(flood: Duration, took: Duration, came_to_something: bool) -> u32 {
        let (mut gate, mut now, mut count) = (Gate::default(), Moment::ZERO, 0);
        while now < flood {
            gate.ask(now, Duration::ZERO);
            if gate.is_due(now) {
                gate.begin(now);
                now += took;
                gate.end(now, came_to_something);
                count += 1;
            }
            now += Duration::from_micros(100);
        }
        count
    }

    #[test]
    fn a_flood_has_few_effects_and_slow_ones_take_a_tenth_of_the_time() {
        let second = Duration::from_secs(1);
        assert!((95..=106).contains(&effects(second * 10, MS, false)), "{}", effects(second * 10, MS, false));
        assert!((75..=90).contains(&effects(second, MS / 10, true)), "{}", effects(second, MS / 10, true));
        let slow = effects(second * 10, MS * 50, false);
        assert!((18..=21).contains(&slow), "{slow}");
    }

    /// Looks that many pods ask for are merged, and a burst of joins is read once.
    #[test]
    fn in_a_large_fleet_the_first_notice_is_read_at_once_and_a_burst_in_fewer_steps() {
        let mut gate = Gate::default();
        gate.suit(200);
        let mut now = MS * 5000;
        let mut gaps = Vec::new();
        // A notice comes in each millisecond of ten seconds, and each read finds something.
        for _ in 0..10_000 {
            gate.ask(now, Duration::ZERO);
            if gate.is_due(now) {
                gaps.push(now);
                gate.begin(now);
                gate.end(now, true);
            }
            now += MS;
        }
        assert_eq!(gaps[0], MS * 5000);
        let gaps: Vec<_> = gaps.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
        assert_eq!(gaps[..5], [156, 312, 624, 1248, 1300]);
        assert!(gaps.len() <= 11, "{gaps:?}");
        // After a quiet time, the next notice is read at once.
        gate.ask(now + MS * 5000, Duration::ZERO);
        assert!(gate.is_due(now + MS * 5000));
    }

    #[test]
    fn the_first_is_at_once_the_others_merged_and_the_last_is_never_lost() {
        let mut gate = Gate::default();
        assert_eq!(gate.due(), None);
        gate.ask(MS * 500, Duration::ZERO);
        gate.ask(MS * 501, Duration::ZERO);
        assert!(gate.is_due(MS * 500));
        gate.begin(MS * 501);
        // A notice during a read: the read may have seen the rows from before.
        gate.ask(MS * 502, Duration::ZERO);
        gate.end(MS * 502, false);
        assert_eq!(gate.due(), Some(MS * 502 + GAP_LEAST));
        gate.begin(MS * 514);
        gate.end(MS * 514, false);
        assert_eq!(gate.due(), None);
        // After a quiet time, the gap is short again.
        gate.ask(MS * 900, Duration::ZERO);
        gate.begin(MS * 900);
        gate.end(MS * 901, false);
        gate.ask(MS * 901, Duration::ZERO);
        assert_eq!(gate.due(), Some(MS * 901 + GAP_LEAST));
    }

    #[test]
    fn a_wait_is_kept_and_cut_short_by_a_notice_that_waits_less() {
        let mut gate = Gate::default();
        gate.ask(MS * 10, MS * 250);
        assert_eq!(gate.due(), Some(MS * 260));
        gate.ask(MS * 20, Duration::ZERO);
        assert_eq!(gate.due(), Some(MS * 20));
        gate.ask(MS * 30, MS * 5);
        assert_eq!(gate.due(), Some(MS * 20));
        // A read for another reason answers the notices and is not counted.
        gate.begin(MS * 15);
        gate.end(MS * 16, false);
        assert_eq!((gate.due(), gate.opens), (None, Moment::ZERO));
    }
}
