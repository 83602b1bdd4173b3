//! Asks a server whether it lets anybody in, without logging in.
//!
//! When PostgreSQL shuts down, its postmaster signals the backends one after another in a loop, and accepts no
//! connection meanwhile. With 720 sessions on two cores, some sessions still worked 0.4 s after others had ended
//! (measured). A session that the loop has not reached yet sees others end, and can still commit. So a pod that saw
//! sessions end knocks before it acts. If the knock is answered, no loop is in progress. If a loop is over, the pod's
//! own session was signalled too, and its next statement fails.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::either::Either;

/// Asks for encryption by GSSAPI. A server answers with one byte before it asks who the client is. If the client then
/// leaves, the server logs nothing, unless it logs every connection. (After the request for TLS, a server with TLS logs
/// that the client left.)
const GSS_ENCRYPTION_REQUEST: [u8; 8] = {
    let [a, b, c, d] = 80_877_104_u32.to_be_bytes();
    [0, 0, 0, 8, a, b, c, d]
};

/// Where a session is connected, so that a knock reaches the same server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Door {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// Whether the server, or the proxy before it, lets a new client in within `limit`.
///
/// Cancel safe: a dropped call closes its socket.
pub(crate) async fn knock(door: &Door, limit: Duration) -> Result<(), String> {
    match tokio::time::timeout(limit, ask(door)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err(format!("no answer within {limit:?}")),
    }
}

async fn ask(door: &Door) -> io::Result<()> {
    let mut stream = match door {
        Door::Tcp(address) => Either::Left(TcpStream::connect(address).await?),
        Door::Unix(socket) => Either::Right(UnixStream::connect(socket).await?),
    };
    stream.write_all(&GSS_ENCRYPTION_REQUEST).await?;
    // Any answer will do, also the end of the connection: somebody has taken it. A server that is gone resets it.
    stream.read(&mut [0]).await.map(drop)
}
