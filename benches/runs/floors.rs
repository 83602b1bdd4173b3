//! The floors: the same writes by hand, by connections that always have the next one ready.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::by_hand::{Hand, MANY, ONE};
use crate::counts::Counts;
use crate::stage::{Load, Measured, Stage, checkpoint, input};
use crate::{Args, Result};

/// As many as the pool of a pod has.
const ONE_BY_ONE: usize = 4;
/// As many statements as the writer has under way.
const IN_GROUPS: usize = 3;

/// What happens to a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Whether nobody owns it at first, and it must be claimed.
    pub(crate) is_submitted: bool,
    pub(crate) checkpoints: usize,
}

/// How many runs a statement writes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) start: usize,
    pub(crate) claim: usize,
    pub(crate) checkpoint: usize,
    pub(crate) end: usize,
}

impl Sizes {
    /// Those of what was measured.
    pub(crate) fn of(counts: &Counts) -> Self {
        Self {
            start: counts.starts.size(),
            claim: counts.claims.size(),
            checkpoint: counts.checkpoints.size(),
            end: counts.ends.size(),
        }
    }

    fn most(&self) -> usize {
        self.start.max(self.claim).max(self.checkpoint).max(self.end)
    }
}

/// A database in which no pod lives.
pub(crate) struct Floor<'a> {
    stage: &'a Stage,
    name: String,
    url: String,
    shape: Shape,
}

impl<'a> Floor<'a> {
    pub(crate) async fn new(stage: &'a Stage, name: &str, shape: Shape) -> Result<Self> {
        let url = stage.database(name).await?;
        Ok(Self { stage, name: name.to_owned(), url, shape })
    }

    /// Each write in a statement of its own.
    pub(crate) async fn one_by_one(&self, args: &Args) -> Result<Measured> {
        let (load, mut tasks, shape) = (Arc::new(Load::default()), JoinSet::new(), self.shape);
        for _ in 0..ONE_BY_ONE {
            let (hand, load) = (Hand::new(&self.url, &ONE).await?, Arc::clone(&load));
            tasks.spawn(async move {
                while load.goes_on() {
                    one(&hand, shape).await?;
                    load.add(1);
                }
                Result::<()>::Ok(())
            });
        }
        self.watch(args, &load, tasks).await
    }

    /// The writes in statements of these sizes.
    pub(crate) async fn in_groups(&self, args: &Args, sizes: Sizes) -> Result<Measured> {
        let (load, mut tasks, shape) = (Arc::new(Load::default()), JoinSet::new(), self.shape);
        for _ in 0..IN_GROUPS {
            let (hand, load) = (Hand::new(&self.url, &MANY).await?, Arc::clone(&load));
            tasks.spawn(async move {
                while load.goes_on() {
                    many(&hand, shape, sizes, &load).await?;
                }
                Result::<()>::Ok(())
            });
        }
        self.watch(args, &load, tasks).await
    }

    async fn watch(&self, args: &Args, load: &Load, mut tasks: JoinSet<Result<()>>) -> Result<Measured> {
        let measured = self.stage.watch(&self.name, args.time(), load).await?;
        while let Some(ended) = tasks.join_next().await {
            ended??;
        }
        Ok(measured)
    }
}

async fn one(hand: &Hand, shape: Shape) -> Result<()> {
    let (run_id, input) = (Uuid::now_v7(), input(0, shape.checkpoints));
    let row = if shape.is_submitted {
        hand.client.execute(&hand.submit, &[&run_id, &input]).await?;
        hand.client.query_one(&hand.claim, &[&run_id, &hand.own]).await?
    } else {
        hand.client.query_one(&hand.start, &[&run_id, &input, &hand.own]).await?
    };
    let fence: i64 = row.get(1);
    for step in 0..shape.checkpoints {
        let (number, saved) = (i64::try_from(step)?, checkpoint(step));
        let params: [&(dyn ToSql + Sync); 5] = [&run_id, &fence, &hand.own, &number, &saved];
        expect(1, hand.client.execute(&hand.checkpoint, &params).await?)?;
    }
    expect(1, hand.client.execute(&hand.end, &[&run_id, &fence, &hand.own, &json!(null)]).await?)
}

async fn many(hand: &Hand, shape: Shape, sizes: Sizes, load: &Load) -> Result<()> {
    let run_ids: Vec<Uuid> = (0..sizes.most()).map(|_| Uuid::now_v7()).collect();
    let input = input(0, shape.checkpoints);
    let mut owned: Vec<(Uuid, i64)> = Vec::new();
    for part in run_ids.chunks(sizes.start) {
        let inputs = vec![&input; part.len()];
        if shape.is_submitted {
            hand.client.execute(&hand.submit, &[&part, &inputs]).await?;
        } else {
            let rows = hand.client.query(&hand.start, &[&part, &inputs, &hand.own]).await?;
            owned.extend(rows.iter().map(|row| (row.get(0), row.get(1))));
        }
    }
    if shape.is_submitted {
        for part in run_ids.chunks(sizes.claim) {
            let rows = hand.client.query(&hand.claim, &[&part, &hand.own]).await?;
            owned.extend(rows.iter().map(|row| (row.get(0), row.get(1))));
        }
    }
    for step in 0..shape.checkpoints {
        let (number, saved) = (i64::try_from(step)?, checkpoint(step));
        for part in owned.chunks(sizes.checkpoint) {
            let (run_ids, fences, saved) = columns(part, &saved);
            let params: [&(dyn ToSql + Sync); 5] = [&run_ids, &fences, &hand.own, &number, &saved];
            expect(part.len(), hand.client.execute(&hand.checkpoint, &params).await?)?;
        }
    }
    let result = json!(null);
    for part in owned.chunks(sizes.end) {
        let (run_ids, fences, results) = columns(part, &result);
        let rows = hand.client.query(&hand.end, &[&run_ids, &fences, &hand.own, &results]).await?;
        expect(part.len(), rows.len() as u64)?;
        load.add(part.len());
    }
    Ok(())
}

fn columns<'a>(part: &[(Uuid, i64)], value: &'a Value) -> (Vec<Uuid>, Vec<i64>, Vec<&'a Value>) {
    let (run_ids, fences) = part.iter().copied().unzip();
    (run_ids, fences, vec![value; part.len()])
}

fn expect(expected: usize, written: u64) -> Result<()> {
    if written == expected as u64 {
        Ok(())
    } else {
        Err(format!("{written} of {expected} runs were written by hand").into())
    }
}
