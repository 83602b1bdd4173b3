use std::pin::Pin;
use std::time::Duration;

use futures_util::{FutureExt as _, poll};

use super::lanes::Group;
use super::*;
use crate::id::{Fence, Incarnation, RunId};
use crate::store::runs::Owner;

type Write<'a> = Pin<Box<dyn Future<Output = Result<&'static str>> + 'a>>;

fn release() -> Release {
    let owner = Owner { run_id: RunId::generate(), incarnation: Incarnation::generate(), fence: Fence::from(1) };
    Release { owner, reason: "yielded" }
}

/// A write that takes for ever if it is made alone before `ends`.
fn write<'a>(writer: &'a Arc<Writer>, bytes: usize, ends: &'a Notify) -> Write<'a> {
    let alone = async {
        ends.notified().await;
        Ok("alone")
    };
    Box::pin(writer.write(bytes, release, |lanes, waiting| lanes.yields.push_back(waiting), alone, |()| "in a group"))
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

fn yields(group: Option<(Group, Taken)>) -> (Vec<Waiting<Release, ()>>, Taken) {
    match group {
        Some((Group::Yields(yields), taken)) => (yields, taken),
        _ => panic!("no group of yields"),
    }
}

/// Issue: "a lone write goes at once; what arrives while statements are under way goes together in the next ones".
#[tokio::test]
async fn a_write_goes_at_once_if_a_slot_is_free_and_waits_for_a_group_otherwise() {
    let (writer, never) = (Writer::new(4), Notify::new());
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
    group.into_iter().for_each(|waiting| waiting.answer(Ok(Some(()))));
    for late in late {
        assert_eq!(late.await.unwrap(), "in a group");
    }
    drop(taken);
    let mut next = write(&writer, 0, &never);
    assert!(poll!(&mut next).is_pending());
    assert_eq!(waiting(&writer), 0, "it goes at once");
}

/// Issue: "what one caller cancels leaves the others alone".
#[tokio::test]
async fn writes_whose_callers_are_gone_are_not_taken() {
    let (writer, never) = (Writer::new(4), Notify::new());
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
    let (writer, never) = (Writer::new(4), Notify::new());
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

/// A write that is locked, or that nobody polls, lends its slot: a worker wakes by itself when that is so.
#[tokio::test]
async fn a_worker_wakes_when_a_slot_lapses() {
    let (writer, never) = (Writer::new(4), Notify::new());
    let _busy = busy(&writer, &never).await;
    let mut late = write(&writer, 0, &never);
    assert!(poll!(&mut late).is_pending());
    // The first wake is for the write itself.
    writer.is_wanted().await;
    assert!(writer.take().is_none() || waiting(&writer) == 0);
    let taken = async {
        loop {
            if let Some(taken) = writer.take() {
                return taken;
            }
            writer.is_wanted().await;
        }
    };
    let (group, _taken) = yields(Some(tokio::time::timeout(Duration::from_secs(60), taken).await.unwrap()));
    assert_eq!(group.len(), 1);
}

/// The pod has ended: nobody waits for a worker that does not come.
#[tokio::test]
async fn a_closed_writer_lets_each_write_be_made_alone() {
    let (writer, ends) = (Writer::new(4), Notify::new());
    let busy = busy(&writer, &ends).await;
    let mut late: Vec<_> = (0..2).map(|_| write(&writer, 0, &ends)).collect();
    for late in &mut late {
        assert!(poll!(late).is_pending());
    }
    writer.close();
    late.push(write(&writer, 0, &ends));
    for late in &mut late {
        assert!(poll!(late).is_pending(), "all connections but one are taken");
    }
    drop(busy);
    for mut late in late {
        assert!(poll!(&mut late).is_pending());
        ends.notify_one();
        assert_eq!(late.await.unwrap(), "alone");
    }
}

/// A group whose worker is gone is in doubt.
#[tokio::test]
async fn a_write_whose_worker_ended_was_perhaps_made() {
    let (writer, never) = (Writer::new(4), Notify::new());
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
    let (writer, never) = (Writer::new(4), Notify::new());
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
