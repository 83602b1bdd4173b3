//! The line from podlock to the supervisor: a socket pair that keeps messages apart. The end of the line is the order
//! to kill. The kernel closes it however podlock ends.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recv, recvmsg, send, sendmsg, socketpair,
};
use rustix::time::{ClockId, clock_gettime};

use super::rule::Limits;

/// Stands for an absent number in a message.
const NONE: u64 = u64::MAX;
const ORDERS: usize = 4 * size_of::<u64>();
const WORD: usize = 1 + size_of::<u64>();

/// The first message. podlock's stdin is sent along with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Orders {
    pub(super) limits: Limits,
    pub(super) answered: Duration,
}

/// Every later message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// When the last answered ping was sent.
    Answered(Duration),
    /// A signal to pass on.
    Signal(i32),
    /// Stop the command, because its pod drains.
    Drain,
    /// Stop the command, because ownership is lost.
    Lost,
}

/// The last message of the supervisor to podlock: how the command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Report {
    /// With this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// The current time of the clock that all moments here use. The clock counts suspended time, and is the same for every
/// process of the host.
pub(super) fn now() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// The two ends of the line: podlock's and the supervisor's.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

impl Orders {
    pub(super) fn send(&self, to: impl AsFd, stdin: impl AsFd) -> io::Result<()> {
        let Limits { self_fence, last, grace } = self.limits;
        let mut message = [0; ORDERS];
        let fields = [self_fence.map_or(NONE, nanos), nanos(last), nanos(grace), nanos(self.answered)];
        for (field, place) in fields.iter().zip(message.chunks_exact_mut(size_of::<u64>())) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        let descriptors = [stdin.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        sendmsg(to, &[IoSlice::new(&message)], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// `None`: podlock is gone.
    pub(super) fn receive(from: impl AsFd) -> io::Result<Option<(Self, OwnedFd)>> {
        let mut message = [0; ORDERS];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = recvmsg(from, &mut [IoSliceMut::new(&mut message)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        if got.bytes == 0 {
            return Ok(None);
        }
        let stdin = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        let (ORDERS, Some(stdin)) = (got.bytes, stdin) else { return Err(malformed()) };
        let field = |n: usize| number(&message[n * size_of::<u64>()..]);
        let limits = Limits {
            self_fence: Some(field(0)).filter(|f| *f != NONE).map(Duration::from_nanos),
            last: Duration::from_nanos(field(1)),
            grace: Duration::from_nanos(field(2)),
        };
        Ok(Some((Self { limits, answered: Duration::from_nanos(field(3)) }, stdin)))
    }
}

impl Report {
    pub(super) fn send(self, to: impl AsFd) -> io::Result<()> {
        let (tag, value) = match self {
            Self::Code(code) => (b'c', code),
            Self::Signal(signal) => (b's', signal),
        };
        let mut message = [tag; WORD];
        message[1..].copy_from_slice(&u64::try_from(value).unwrap_or(0).to_le_bytes());
        send(to, &message, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
        Ok(())
    }

    /// `None`: the supervisor ended without a report.
    pub(super) fn receive(from: impl AsFd) -> Option<Self> {
        let mut message = [0; WORD];
        let mut heard = || recv(from.as_fd(), &mut message, RecvFlags::DONTWAIT);
        // A supervisor that ends with unread words resets the line. The kernel tells of that once, and before it hands
        // out a message that came earlier.
        let (_, bytes) = heard().or_else(|error| if error == Errno::CONNRESET { heard() } else { Err(error) }).ok()?;
        let value = i32::try_from(number(&message[1..])).ok()?;
        match (bytes, message[0]) {
            (WORD, b'c') => Some(Self::Code(value)),
            (WORD, b's') => Some(Self::Signal(value)),
            _ => None,
        }
    }
}

impl Word {
    pub(super) fn send(self, to: impl AsFd) -> io::Result<()> {
        let (tag, value) = match self {
            Self::Answered(at) => (b'a', nanos(at)),
            Self::Signal(number) => (b's', u64::try_from(number).unwrap_or(0)),
            Self::Drain => (b'd', 0),
            Self::Lost => (b'l', 0),
        };
        let mut message = [tag; WORD];
        message[1..].copy_from_slice(&value.to_le_bytes());
        // A supervisor that does not read must not block the pod.
        send(to, &message, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
        Ok(())
    }

    /// `None`: podlock is gone. `WouldBlock`: no further message has come.
    pub(super) fn receive(from: impl AsFd) -> io::Result<Option<Self>> {
        let mut message = [0; WORD];
        let (_, bytes) = recv(from, &mut message, RecvFlags::DONTWAIT)?;
        let value = number(&message[1..]);
        match (bytes, message[0]) {
            (0, _) => Ok(None),
            (WORD, b'a') => Ok(Some(Self::Answered(Duration::from_nanos(value)))),
            (WORD, b's') => Ok(Some(Self::Signal(i32::try_from(value).unwrap_or(0)))),
            (WORD, b'd') => Ok(Some(Self::Drain)),
            (WORD, b'l') => Ok(Some(Self::Lost)),
            _ => Err(malformed()),
        }
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().take(size_of::<u64>()).rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(NONE - 1)
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "podlock said something that its supervisor does not understand")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_what_is_heard_and_the_end_is_heard_too() {
        let (ours, theirs) = pair().unwrap();
        let second = Duration::from_secs(1);
        for self_fence in [None, Some(8 * second)] {
            let limits = Limits { self_fence, last: 9 * second, grace: Duration::from_millis(1500) };
            let orders = Orders { limits, answered: Duration::from_nanos(123_456_789_012_345) };
            orders.send(&ours, io::stdin()).unwrap();
            let (heard, _stdin) = Orders::receive(&theirs).unwrap().unwrap();
            assert_eq!(heard, orders);
        }
        for word in [Word::Answered(second), Word::Signal(15), Word::Drain, Word::Lost] {
            word.send(&ours).unwrap();
            assert_eq!(Word::receive(&theirs).unwrap(), Some(word));
        }
        assert_eq!(Word::receive(&theirs).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(Report::receive(&ours), None, "nothing was reported");
        for report in [Report::Code(137), Report::Signal(9)] {
            report.send(&theirs).unwrap();
            assert_eq!(Report::receive(&ours), Some(report));
        }
        drop(ours);
        assert_eq!(Word::receive(&theirs).unwrap(), None);
    }

    /// podlock speaks on while the supervisor ends.
    #[test]
    fn a_report_is_heard_although_the_supervisor_left_words_unread() {
        let (ours, theirs) = pair().unwrap();
        Report::Code(0).send(&theirs).unwrap();
        Word::Drain.send(&ours).unwrap();
        drop(theirs);
        assert_eq!(Report::receive(&ours), Some(Report::Code(0)));
        assert_eq!(Report::receive(&ours), None, "there was one");
    }
}
