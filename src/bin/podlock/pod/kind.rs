//! Kind `demo`: makes one chunk after another. Each chunk contains its number, attempt and fence (`chunk-3 a1 f17`).
//! Appends each to the run's stream together with a checkpoint, so that another pod can continue from there.

use std::time::Duration;

use podlock::{Fence, HandlerError, Outcome, Run, StopReason};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

pub(super) const NAME: &str = "demo";

/// The input of a run of this kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Input {
    chunks: u32,
    delay: Duration,
    resume: Resume,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resume {
    Restart,
    Continue,
}

/// The progress of a run. Its size grows with the number of owners, not with the number of chunks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Progress {
    done: u32,
    segments: Vec<Segment>,
}

/// Consecutive chunks of one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Segment {
    from: u32,
    to: u32,
    attempt: i32,
    fence: Fence,
}

/// Checks the input of a run of this kind. Accepts any input of other kinds.
pub(super) fn validate(kind: &str, input: &Value) -> Result<(), String> {
    if kind == NAME { Input::read(input).map(drop) } else { Ok(()) }
}

/// The handler.
pub(super) async fn run(run: Run) -> Result<Outcome, HandlerError> {
    let input = Input::read(run.input())?;
    let mut progress = match (input.resume, run.saved()) {
        (Resume::Continue, Some(saved)) => serde_json::from_value(saved.clone())?,
        _ => Progress::default(),
    };
    match input.resume {
        Resume::Continue => run.continue_from(run.saved_seq()).await?,
        Resume::Restart => run.restart_stream().await?,
    }
    let (run_id, attempt, fence) = (run.id(), run.attempt(), run.fence());
    tracing::info!(
        target: "podlock::demo", event = "executing", %run_id, attempt, fence = fence.get(), from = progress.done + 1,
        "executing"
    );
    while progress.done < input.chunks {
        tokio::select! {
            biased;
            reason = run.stopped() => return Ok(stop(&run, reason, progress.done)),
            () = tokio::time::sleep(input.delay) => {}
        }
        let made = progress.make(attempt, fence);
        save(&run, &made, &progress).await?;
        tracing::info!(target: "podlock::demo", event = "chunk", %run_id, n = progress.done, "{made}");
    }
    tracing::info!(target: "podlock::demo", event = "made", %run_id, attempt, fence = fence.get(), "all chunks are made");
    Ok(Outcome::Done(progress.result()))
}

/// Writes the chunk and the checkpoint under the fence, both or neither. The call waits out an outage of the database.
/// An error is final.
async fn save(run: &Run, made: &str, progress: &Progress) -> Result<(), HandlerError> {
    run.append_with_checkpoint(made, serde_json::to_value(progress)?).await.inspect_err(|error| {
        if error.is_fenced() {
            tracing::warn!(
                target: "podlock::demo", event = "refused", run_id = %run.id(), fence = run.fence().get(),
                n = progress.done, "a late write was refused: {error}"
            );
        }
    })?;
    Ok(())
}

/// Releases the run. The pod that claims it continues from the checkpoint, or starts again if there is none.
fn stop(run: &Run, reason: StopReason, done: u32) -> Outcome {
    tracing::info!(
        target: "podlock::demo", event = "told_to_stop", run_id = %run.id(), fence = run.fence().get(), n = done,
        %reason, "told to stop"
    );
    Outcome::Yield
}

impl Progress {
    /// Makes the next chunk.
    fn make(&mut self, attempt: i32, fence: Fence) -> String {
        self.done += 1;
        match self.segments.last_mut().filter(|s| s.fence == fence && s.attempt == attempt) {
            Some(segment) => segment.to = self.done,
            None => self.segments.push(Segment { from: self.done, to: self.done, attempt, fence }),
        }
        chunk(self.done, attempt, fence)
    }

    fn result(&self) -> Value {
        let last = self.segments.last().map(|s| chunk(s.to, s.attempt, s.fence));
        json!({ "chunks": self.done, "segments": self.segments, "last": last })
    }
}

fn chunk(n: u32, attempt: i32, fence: Fence) -> String {
    format!("chunk-{n} a{attempt} f{fence}")
}

impl Input {
    fn read(input: &Value) -> Result<Self, String> {
        let nothing = Map::new();
        let fields = match input {
            Value::Null => &nothing,
            Value::Object(fields) => fields,
            other => return Err(format!("this is {other}, but must be an object")),
        };
        if let Some(name) = fields.keys().find(|name| !["chunks", "delay_ms", "resume"].contains(&name.as_str())) {
            return Err(format!("there is no field {name:?}; there are chunks, delay_ms and resume"));
        }
        let resume = match fields.get("resume").map(|value| (value, value.as_str())) {
            None | Some((_, Some("restart"))) => Resume::Restart,
            Some((_, Some("continue"))) => Resume::Continue,
            Some((other, _)) => return Err(format!("resume is {other}, but must be \"restart\" or \"continue\"")),
        };
        Ok(Self {
            chunks: whole(fields, "chunks", 20, 1, 100_000)?,
            delay: Duration::from_millis(whole(fields, "delay_ms", 100, 0, 600_000)?.into()),
            resume,
        })
    }
}

fn whole(fields: &Map<String, Value>, name: &str, default: u32, least: u32, most: u32) -> Result<u32, String> {
    let Some(value) = fields.get(name) else { return Ok(default) };
    value
        .as_u64()
        .and_then(|n| u32::try_from(n).ok())
        .filter(|n| (least..=most).contains(n))
        .ok_or_else(|| format!("{name} is {value}, but must be a whole number from {least} to {most}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_taken_or_refused_with_what_is_wrong() {
        for input in [
            json!(null),
            json!({}),
            json!({"chunks": 1, "delay_ms": 0, "resume": "restart"}),
            json!({"chunks": 100_000, "delay_ms": 600_000, "resume": "continue"}),
        ] {
            assert_eq!(validate("demo", &input), Ok(()), "{input}");
        }
        for (input, word) in [
            (json!([]), "object"),
            (json!("x"), "object"),
            (json!({"chunks": 0}), "chunks is 0"),
            (json!({"chunks": -1}), "chunks is -1"),
            (json!({"chunks": 1.5}), "chunks is 1.5"),
            (json!({"chunks": "20"}), "chunks is \"20\""),
            (json!({"chunks": 100_001}), "100000"),
            (json!({"chunks": u64::MAX}), "18446744073709551615"),
            (json!({"chunks": 1e30}), "whole number from 1 to 100000"),
            (json!({"chunks": null}), "chunks is null"),
            (json!({"delay_ms": 600_001}), "delay_ms is 600001"),
            (json!({"resume": "Continue"}), "resume is \"Continue\""),
            (json!({"resume": null}), "resume is null"),
            (json!({"chunk": 3}), "no field \"chunk\""),
        ] {
            let fault = validate("demo", &input).expect_err("refused");
            assert!(fault.contains(word), "{input}: {fault}");
        }
        assert_eq!(validate("another", &json!([])), Ok(()));
    }

    #[test]
    fn a_checkpoint_grows_with_the_owners_and_not_with_the_chunks() {
        let mut progress = Progress::default();
        for _ in 0..1000 {
            progress.make(1, Fence::from(17));
        }
        assert_eq!(progress.make(2, Fence::from(19)), "chunk-1001 a2 f19");
        let saved = serde_json::to_value(&progress).expect("serialises");
        assert_eq!(
            saved,
            json!({"done": 1001, "segments": [
                {"from": 1, "to": 1000, "attempt": 1, "fence": 17},
                {"from": 1001, "to": 1001, "attempt": 2, "fence": 19}
            ]})
        );
        let again: Progress = serde_json::from_value(saved).expect("parses");
        assert_eq!(again, progress);
        assert_eq!(progress.result()["last"], "chunk-1001 a2 f19");
        assert_eq!(progress.result()["chunks"], 1001);
    }
}
