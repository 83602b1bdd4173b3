use std::pin::Pin;

use futures_util::{FutureExt as _, poll};

use super::lanes::Group;
use super::*;
use crate::id::{Fence, Incarnation, RunId};
use crate::protocol::slots::ALONE_MOST;
use crate::store::grouped::Release;
use crate::store::runs::Owner;

/// What a write that was made alone returns. In a group the tests answer `true`.
const ALONE: bool = false;

type Write<'a> = Pin<Box<dyn Future<Output = Result<bool>> + 'a>>;

fn release() -> Release {
    let owner = Owner { run_id: RunId::generate(), incarnation: Incarnation::generate(), fence: Fence::from(1) };
    Release { owner, number: 1, reason: "yielded" }
}

fn writer() -> Arc<Writer> {
    Writer::new(STATEMENTS_MOST + LEFT_TO_OTHERS, Duration::from_secs(10))
}

/// A write that takes for ever if it is made alone before `ends`.
fn write<'a>(writer: &'a Arc<Writer>, bytes: usize, ends: &'a Notify) -> Write<'a> {
    let alone = async {
        ends.notified().await;
        Ok(ALONE)
    };
    Box::pin(writer.write(&writer.room_of_writes, bytes, release, |lanes| &mut lanes.yields, alone))
}

/// Writes that hold every slot.
async fn busy<'a>(writer: &'a Arc<Writer>, never: &'a Notify) -> Vec<Write<'a>> {
    let mut busy: Vec<_> = (0..STATEMENTS_MOST).map(|_| write(writer, 0, never)).collect();
    for write in &mut busy {
        assert!(poll!(write).is_pending());
    }
    assert_eq!(waiting(writer), 0, "each was sent at once");
    busy
}

fn waiting(writer: &Writer) -> usize {
    writer.state().lanes.yields.len()
}

fn yields(group: Option<(Group, Taken)>) -> (Vec<Waiting<Release, bool>>, Taken) {
    match group {
        Some((Group::Yields(yields), taken)) => (yields, taken),
        _ => panic!("no group of yields"),
    }
}

/// Issue: "a lone write goes at once; what arrives while statements are under way goes together in the next ones".
#[tokio::test]
async fn a_write_goes_at_once_if_a_slot_is_free_and_waits_for_a_group_otherwise() {
    let (writer, never) = (writer(), Notify::new());
    let mut busy = busy(&writer, &never).await;
    let mut late: Vec<_> = (0..3).map(|_| write(&writer, 0, &never)).collect();
    for late in &mut late {
        assert!(poll!(late).is_pending());
    }
    assert_eq!(waiting(&writer), 3);
    assert!(writer.take().is_none(), "no slot is free");
    drop(busy.pop());
    assert!(writer.is_wanted().now_or_never().is_some(), "a slot came free: a worker is woken");
    let (group, taken) = yields(writer.take());
    assert_eq!(group.len(), 3);
    group.into_iter().for_each(|waiting| waiting.answer(Ok(Turn::Done(true))));
    for late in late {
        assert!(late.await.unwrap());
    }
    drop(taken);
    let mut next = write(&writer, 0, &never);
    assert!(poll!(&mut next).is_pending());
    assert_eq!(waiting(&writer), 0, "it goes at once");
}

/// Issue: "what one caller cancels leaves the others alone".
#[tokio::test]
async fn writes_whose_callers_are_gone_are_not_taken() {
    let (writer, never) = (writer(), Notify::new());
    let mut busy = busy(&writer, &never).await;
    let mut late: Vec<_> = (0..4).map(|_| write(&writer, 0, &never)).collect();
    for late in &mut late {
        assert!(poll!(late).is_pending());
    }
    drop((late.remove(2), late.remove(0)));
    drop(busy.pop());
    let (group, _taken) = yields(writer.take());
    assert_eq!(group.len(), 2);
    drop(late);
    assert!(writer.take().is_none());
}

/// Issue: "Bounded memory: callers wait when the queue is full".
#[tokio::test]
async fn callers_wait_for_room_in_the_order_of_their_calls() {
    let (writer, never) = (writer(), Notify::new());
    let _busy = busy(&writer, &never).await;
    let half = ROOM_KIB as usize / 2 * 1024;
    let mut late: Vec<_> = [half, half, half, 0].map(|bytes| write(&writer, bytes, &never)).into();
    for late in &mut late {
        assert!(poll!(late).is_pending());
    }
    assert_eq!(waiting(&writer), 2, "there is room for two");
    drop(late.remove(0));
    // The writes that waited for room have it once the lane forgets the one that is gone.
    drop(writer.state().lanes.yields.pop_front());
    for late in &mut late {
        assert!(poll!(late).is_pending());
    }
    assert_eq!(waiting(&writer), 2);
    drop(writer.state().lanes.yields.pop_front());
    for late in &mut late[1..] {
        assert!(poll!(late).is_pending());
    }
    assert_eq!(waiting(&writer), 2, "the last one too");
}

/// A write that is locked, or that nobody polls, lends its slot: a worker wakes by itself when that is so, also if it
/// looked just before.
#[tokio::test]
async fn a_worker_wakes_when_a_slot_lapses() {
    let (writer, never) = (writer(), Notify::new());
    let _busy = busy(&writer, &never).await;
    let mut late = write(&writer, 0, &never);
    assert!(poll!(&mut late).is_pending());
    // The first wake is for the write itself.
    writer.is_wanted().await;
    // The slots lapse between the look of a worker and its wait.
    assert!(writer.take().is_none());
    std::thread::sleep(ALONE_MOST);
    assert!(writer.is_wanted().now_or_never().is_none(), "a timer of no time");
    writer.is_wanted().await;
    let (group, _taken) = yields(writer.take());
    assert_eq!(group.len(), 1);
}

/// Of several lapsed slots, each worker takes one.
#[tokio::test]
async fn what_one_worker_leaves_wakes_the_next() {
    let (writer, never) = (writer(), Notify::new());
    let _busy = busy(&writer, &never).await;
    let large = 1 << 20;
    let mut late: Vec<_> = (0..2).map(|_| write(&writer, large, &never)).collect();
    for late in &mut late {
        assert!(poll!(late).is_pending());
    }
    std::thread::sleep(ALONE_MOST);
    writer.is_wanted().await;
    let (first, _taken) = yields(writer.take());
    assert_eq!(first.len(), 1);
    assert!(writer.is_wanted().now_or_never().is_some(), "the rest is for another worker");
    assert_eq!(yields(writer.take()).0.len(), 1);
}

/// Another transaction holds the write up. It is made alone if few others wait so, and otherwise in a later group.
#[tokio::test]
async fn a_write_that_is_held_up_waits_alone_or_is_tried_again() {
    let (writer, ends) = (writer(), Notify::new());
    let mut busy = busy(&writer, &ends).await;
    let mut late = write(&writer, 0, &ends);
    assert!(poll!(&mut late).is_pending());
    std::thread::sleep(ALONE_MOST);
    let (group, taken) = yields(writer.take());
    group.into_iter().for_each(|waiting| waiting.answer(Ok(Turn::HeldUp)));
    drop(taken);
    while waiting(&writer) == 0 {
        assert!(poll!(&mut late).is_pending());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let (group, taken) = yields(writer.take());
    busy.clear();
    group.into_iter().for_each(|waiting| waiting.answer(Ok(Turn::HeldUp)));
    drop(taken);
    assert!(poll!(&mut late).is_pending());
    assert_eq!(waiting(&writer), 0, "it waits alone");
    ends.notify_one();
    assert_eq!(late.await.unwrap(), ALONE);
}

/// A write that has no turn in time was not sent. One that was sent waits for its answer.
#[tokio::test(start_paused = true)]
async fn a_write_waits_for_its_turn_for_so_long() {
    let (writer, never) = (writer(), Notify::new());
    let mut busy = busy(&writer, &never).await;
    let mut taken = write(&writer, 0, &never);
    assert!(poll!(&mut taken).is_pending());
    drop(busy.pop());
    let (group, _taken) = yields(writer.take());
    let error = write(&writer, 0, &never).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Timeout && error.is_unconnected() && !error.may_have_been_done(), "{error:?}");
    assert!(writer.take().is_none(), "nobody sends it any more");
    assert!(poll!(&mut taken).is_pending());
    group.into_iter().for_each(|waiting| waiting.answer(Ok(Turn::Done(true))));
    assert!(taken.await.unwrap());
}

/// A caller that waits for room does not wait longer either.
#[tokio::test(start_paused = true)]
async fn a_write_waits_for_room_for_so_long() {
    let (writer, never) = (writer(), Notify::new());
    let _busy = busy(&writer, &never).await;
    let full = write(&writer, ROOM_KIB as usize * 1024, &never);
    let more = write(&writer, 0, &never);
    let (full, more) = tokio::join!(full, more);
    assert!(full.unwrap_err().is_unconnected() && more.unwrap_err().is_unconnected());
}

/// A group that is too slow makes the next ones smaller, and one that is not makes them larger.
#[tokio::test]
async fn slow_groups_become_smaller() {
    let (writer, never) = (writer(), Notify::new());
    let mut busy = busy(&writer, &never).await;
    let mut late: Vec<_> = (0..100).map(|_| write(&writer, 0, &never)).collect();
    for late in &mut late {
        assert!(poll!(late).is_pending());
    }
    busy.clear();
    writer.note_pace(100, true);
    writer.note_pace(1, false);
    let (group, _one) = yields(writer.take());
    assert_eq!(group.len(), 50);
    writer.note_pace(50, true);
    assert_eq!(yields(writer.take()).0.len(), 25);
    writer.note_pace(25, false);
    assert_eq!(yields(writer.take()).0.len(), 25, "of fifty at most");
}

/// The pod has ended: nobody waits for a worker that does not come.
#[tokio::test]
async fn a_closed_writer_lets_each_write_be_made_alone() {
    let (writer, ends) = (writer(), Notify::new());
    let busy = busy(&writer, &ends).await;
    let mut late: Vec<_> = (0..2).map(|_| write(&writer, 0, &ends)).collect();
    for late in &mut late {
        assert!(poll!(late).is_pending());
    }
    writer.close();
    late.push(write(&writer, 0, &ends));
    drop(busy);
    for mut late in late {
        assert!(poll!(&mut late).is_pending());
        ends.notify_one();
        assert_eq!(late.await.unwrap(), ALONE);
    }
}

/// A group whose worker is gone is in doubt.
#[tokio::test]
async fn a_write_whose_worker_ended_was_perhaps_made() {
    let (writer, never) = (writer(), Notify::new());
    let mut busy = busy(&writer, &never).await;
    let mut late = write(&writer, 0, &never);
    assert!(poll!(&mut late).is_pending());
    drop(busy.pop());
    drop(writer.take());
    let error = late.await.unwrap_err();
    assert!(error.may_have_been_done(), "{error:?}");
}

/// Issue: groups have a bound, in writes and in bytes.
#[tokio::test]
async fn a_group_has_at_most_so_many_writes_and_bytes() {
    let (writer, never) = (writer(), Notify::new());
    let mut busy = busy(&writer, &never).await;
    let large = 400 * 1024;
    let sizes = [0, large, large, large, 2 << 20, 0];
    let mut late: Vec<_> = sizes.map(|bytes| write(&writer, bytes, &never)).into();
    late.extend((0..600).map(|_| write(&writer, 0, &never)));
    for late in &mut late {
        assert!(poll!(late).is_pending());
        // A task may do only so much at a time.
        tokio::task::yield_now().await;
    }
    busy.clear();
    let mut groups = Vec::new();
    while let Some(taken) = writer.take() {
        let (group, _taken) = yields(Some(taken));
        groups.push(group.len());
    }
    assert_eq!(groups, [3, 1, 1, 500, 101], "two large ones are below 1 MiB, and the largest goes alone");
}
