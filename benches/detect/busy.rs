//! What makes the database busy while pods are killed: sessions that listen and clients that notify, on a channel that
//! no pod knows, and commits that wait for each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use podlock::throwaway::Builder;

use crate::{Result, connect};

#[derive(Clone, Copy, clap::Args)]
pub(crate) struct Busy {
    /// How many sessions listen on another channel of the same database
    #[arg(long, default_value_t = 0)]
    listeners: usize,
    /// How many clients notify on that channel without a pause
    #[arg(long, default_value_t = 0)]
    notifiers: usize,
    /// `fsync = on`, and each commit waits for so many milliseconds, to be flushed together with others
    #[arg(long)]
    commit_delay: Option<u32>,
}

impl Busy {
    /// The server's settings.
    pub(crate) fn suits(&self, server: Builder) -> Builder {
        let server = server.setting("max_connections", (100 + self.listeners + self.notifiers).to_string());
        match self.commit_delay {
            None => server,
            Some(ms) => server
                .setting("fsync", "on")
                .setting("commit_siblings", "0")
                .setting("commit_delay", (ms * 1000).to_string()),
        }
    }

    /// Begins, on a thread of its own, so that it does not wait for the bench, nor the bench for it.
    pub(crate) fn begin(self, url: &str) -> Others {
        let (over, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (url, until, count) = (url.to_owned(), Arc::clone(&over), Arc::clone(&sent));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(self.go_on(&url, until, count))
        });
        Others { over, sent, began: Instant::now(), thread: Some(thread) }
    }

    async fn go_on(self, url: &str, over: Arc<AtomicBool>, sent: Arc<AtomicU64>) -> Result<()> {
        let mut listeners = Vec::new();
        for _ in 0..self.listeners {
            let client = connect(url).await?;
            client.batch_execute("LISTEN of_others").await?;
            listeners.push(client);
        }
        let mut notifiers = tokio::task::JoinSet::new();
        for _ in 0..self.notifiers {
            let client = connect(url).await?;
            let (over, sent) = (Arc::clone(&over), Arc::clone(&sent));
            notifiers.spawn(async move {
                let notice = client.prepare("SELECT pg_notify('of_others', $1)").await?;
                while !over.load(Ordering::Relaxed) {
                    let n = sent.fetch_add(1, Ordering::Relaxed);
                    client.execute(&notice, &[&n.to_string()]).await?;
                }
                Result::<()>::Ok(())
            });
        }
        while let Some(ended) = notifiers.join_next().await {
            ended??;
        }
        while !over.load(Ordering::Relaxed) {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        Ok(())
    }
}

/// The others, until they are told to end.
pub(crate) struct Others {
    over: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    began: Instant,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Others {
    /// Ends them; how many notices they sent in a second.
    pub(crate) fn end(mut self) -> Result<f64> {
        let rate = self.sent.load(Ordering::Relaxed) as f64 / self.began.elapsed().as_secs_f64();
        self.over.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(ended)) => ended?,
            Some(Err(_)) => return Err("the thread that notifies panicked".into()),
            None => {}
        }
        Ok(rate)
    }
}
