//! The calls of [`Run`] that write its stream.

use serde_json::Value;

use super::{Going, WritePlace, check_chunk};
use crate::error::{Error, ErrorKind, Result};
use crate::membership::clock;
use crate::runs::Run;
use crate::runs::run::{Writes, done};
use crate::store::streams::{self, Continued};

impl Run {
    /// Appends a chunk to the run's stream. Readers that are attached on any pod get it. Returns the chunk's number in
    /// the stream's generation; the first is 0.
    ///
    /// The call returns when the chunk is buffered, not when it is stored. Every 16 ms one statement stores the chunks
    /// of all runs of the pod, and sooner if there are many. [`Run::flush`], a checkpoint, a yield and the end of the
    /// run wait until all chunks before them are stored. If more than 512 KiB or 8,192 chunks of a run are buffered,
    /// this call waits too.
    ///
    /// In a later attempt the first call restarts the stream, as [`Run::restart_stream`] does, unless that or
    /// [`Run::continue_from`] was called before. A chunk beyond all chunks that the run ever had is progress, like a
    /// checkpoint.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Fenced`] if this attempt is known to have lost the run. For chunks that were buffered before that
    /// was known, [`Run::flush`] returns the error. [`ErrorKind::InvalidInput`] if the chunk has more than
    /// [`CHUNK_LIMIT`](crate::CHUNK_LIMIT) bytes or a NUL. The server's error if it refused an earlier chunk: the
    /// stream has a gap then, and accepts no chunk until it is restarted, or continued from before the gap.
    ///
    /// # Cancel safety
    ///
    /// A dropped call has not appended the chunk.
    pub async fn append(&self, chunk: impl Into<String>) -> Result<u64> {
        let chunk = chunk.into();
        check_chunk(&chunk)?;
        let bytes = chunk.len();
        let mut chunk = Some(chunk);
        let mut writes = self.writes.lock().await;
        self.open_stream(&mut writes).await?;
        loop {
            self.refuse_if_over("a chunk").map_err(|e| self.report(e))?;
            self.stream.refusal()?;
            if let Some((seq, enqueue)) = self.stream.push(&mut chunk, writes.number) {
                self.engine.flusher.note_appended(&self.stream, enqueue);
                return Ok(seq.unsigned_abs());
            }
            self.stream.has_room(bytes).await;
        }
    }

    /// Appends a chunk and saves a checkpoint: both or neither. The attempt that resumes from the checkpoint has the
    /// chunk, and continues after it. Returns the chunk's number.
    ///
    /// While the database cannot be reached, the call waits and retries, until the run is told to stop.
    ///
    /// # Errors
    ///
    /// As [`Run::append`] and [`Run::checkpoint`].
    ///
    /// # Cancel safety
    ///
    /// A dropped call may or may not have done both. The stream continues correctly in either case.
    pub async fn append_with_checkpoint(&self, chunk: impl Into<String>, value: impl Into<Value>) -> Result<u64> {
        let (chunk, value) = (chunk.into(), value.into());
        check_chunk(&chunk)?;
        self.check_checkpoint(&value)?;
        let what = "a chunk with a checkpoint";
        let mut writes = self.writes.lock().await;
        self.settle_stream(&mut writes, what).await?;
        let at = self.open_stream(&mut writes).await?;
        let place = (at.generation, at.next);
        let (chunk, value) = (&chunk, &value);
        let db = &self.engine.owners_db;
        let save = |number| done(streams::append_with_checkpoint(db, self.owner, number, place, chunk, value));
        self.stream.set_going(Going::Unknown);
        let began = clock::now();
        self.write(&mut writes, what, save, |_| None).await?;
        self.stream.set_going(Going::At(WritePlace { next: at.next + 1, ..at }));
        self.engine.flusher.note_changed(self.owner.run_id, began);
        self.note_saved();
        Ok(at.next.unsigned_abs())
    }

    /// Waits until all appended chunks are stored.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Fenced`] if this attempt has lost the run: some chunks may not be stored. The server's error if it
    /// refused a chunk.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it only waits.
    pub async fn flush(&self) -> Result<()> {
        let mut writes = self.writes.lock().await;
        self.settle_stream(&mut writes, "chunks").await
    }

    /// Takes back all chunks of the stream, from this attempt or former ones, and begins a new generation, in one
    /// transaction. Attached readers get a reset. If the stream is empty, nothing changes.
    ///
    /// # Errors
    ///
    /// As [`Run::checkpoint`].
    ///
    /// # Cancel safety
    ///
    /// A dropped call may or may not have restarted the stream. If it did not, the next append does.
    pub async fn restart_stream(&self) -> Result<()> {
        let mut writes = self.writes.lock().await;
        self.restart(&mut writes).await.map(drop)
    }

    /// Keeps the chunks before `seq` and takes back the others, in one transaction. The next chunk is number `seq`.
    /// Attached readers that have one of the chunks taken back get a reset.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] if the stream has fewer than `seq` chunks. The stream does not change then. Other
    /// errors as [`Run::checkpoint`].
    ///
    /// # Cancel safety
    ///
    /// A dropped call may or may not have taken effect. Call it again: the next append would restart the stream.
    pub async fn continue_from(&self, seq: u64) -> Result<()> {
        let mut writes = self.writes.lock().await;
        self.stream.settled().await;
        let before = self.stream.going();
        if seq == 0 && before.place().is_some_and(|place| place.next == 0) {
            return self.refuse_if_over("going on with its stream").map_err(|e| self.report(e));
        }
        self.stream.set_going(Going::Unsaid);
        let seq = i64::try_from(seq).unwrap_or(i64::MAX);
        let Continued::Short(chunks) = self.go_on(&mut writes, Some(seq)).await? else { return Ok(()) };
        self.stream.set_going(before);
        let run_id = self.owner.run_id;
        let why = format!("run {run_id}: its stream has {chunks} chunks, and cannot go on with number {seq}");
        Err(Error::new(ErrorKind::InvalidInput, why)
            .about_run(run_id)
            .state("the stream is as it was")
            .help("go on from a chunk that is there, as Run::saved_seq, or restart the stream"))
    }

    /// Continues the stream at `seq`, or after all its chunks.
    async fn go_on(&self, writes: &mut Writes, seq: Option<i64>) -> Result<Continued> {
        let go_on = |number| streams::go_on(&self.engine.owners_db, self.owner, number, seq);
        let began = clock::now();
        let continued = self.write(writes, "going on with its stream", go_on, |_| None).await?;
        if let Continued::Yes(generation, next) = continued {
            self.stream.goes_on_at(WritePlace { generation, next });
            self.engine.flusher.note_changed(self.owner.run_id, began);
        }
        Ok(continued)
    }

    async fn restart(&self, writes: &mut Writes) -> Result<WritePlace> {
        self.stream.settled().await;
        if let Some(place) = self.stream.going().place().filter(|place| place.next == 0) {
            self.refuse_if_over("restarting its stream").map_err(|e| self.report(e))?;
            return Ok(place);
        }
        self.stream.set_going(Going::Unsaid);
        let restart = |number| streams::restart(&self.engine.owners_db, self.owner, number);
        let began = clock::now();
        let generation = self.write(writes, "restarting its stream", restart, |_| None).await?;
        let place = WritePlace { generation, next: 0 };
        self.stream.goes_on_at(place);
        self.engine.flusher.note_changed(self.owner.run_id, began);
        Ok(place)
    }

    /// Where the next chunk goes. If the handler has not said where the stream continues, restarts the stream.
    async fn open_stream(&self, writes: &mut Writes) -> Result<WritePlace> {
        if self.stream.going() == Going::Unknown {
            self.go_on(writes, None).await?;
        }
        match self.stream.going().place() {
            Some(place) => Ok(place),
            None => self.restart(writes).await,
        }
    }

    /// Waits until the chunks before a write are stored, because the write relies on them.
    pub(in crate::runs) async fn settle_stream(&self, writes: &mut Writes, what: &str) -> Result<()> {
        self.stream.settled().await;
        self.refuse_if_over(what).map_err(|e| self.report(e))?;
        if self.stream.going() == Going::Unknown {
            self.go_on(writes, None).await?;
        }
        self.stream.refusal()
    }
}
