//! A proxy before the server that counts what a pod's pool receives.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::Result;

/// In the startup message of a connection of a pod's pool, behind the pod's name.
const POOL: &[u8] = b"/pool\0";

/// The length of the message by which a client asks whether the server has TLS. A startup message is longer.
const ASKS_FOR_TLS: usize = 8;

/// The proxy. It lives as long as the runtime.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    received: Arc<AtomicU64>,
}

impl Proxy {
    pub(crate) async fn start(server: u16) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let (port, received) = (listener.local_addr()?.port(), Arc::new(AtomicU64::new(0)));
        let count = Arc::clone(&received);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, server, Arc::clone(&count)));
            }
        });
        Ok(Self { port, received })
    }

    /// How many bytes the server has sent to connections of the pool.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

async fn serve(client: TcpStream, port: u16, count: Arc<AtomicU64>) -> Result<()> {
    let server = TcpStream::connect(("127.0.0.1", port)).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let mut buffer = [0; 4096];
    let mut read = from_client.read(&mut buffer).await?;
    if read == ASKS_FOR_TLS {
        // The server says in one byte that it has none. Then the startup message comes.
        to_server.write_all(&buffer[..read]).await?;
        to_client.write_u8(from_server.read_u8().await?).await?;
        read = from_client.read(&mut buffer).await?;
    }
    let startup = &buffer[..read];
    let is_pool = startup.windows(POOL.len()).any(|part| part == POOL);
    to_server.write_all(startup).await?;
    let count = is_pool.then_some(count);
    tokio::try_join!(pass(from_client, to_server, None), pass(from_server, to_client, count))?;
    Ok(())
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    count: Option<Arc<AtomicU64>>,
) -> Result<()> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            to.shutdown().await?;
            return Ok(());
        }
        if let Some(count) = &count {
            count.fetch_add(read as u64, Ordering::Relaxed);
        }
        to.write_all(&buffer[..read]).await?;
    }
}
