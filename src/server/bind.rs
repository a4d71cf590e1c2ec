//! Listening sockets: TCP ports, and Unix sockets, which are files that come and go.

use std::fs;
use std::fs::Permissions;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixSocket, UnixStream};

use crate::domain::address::{Address, Origin};

/// Who may connect to a Unix socket: its owner and its group (unix(7): that takes the right to write).
const MODE: u32 = 0o660;

/// How many connections may wait to be accepted, as over TCP.
const BACKLOG: u32 = 1024;

/// A socket to which others connect.
#[derive(Debug)]
pub struct Listener(Kind);

#[derive(Debug)]
enum Kind {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// A connection, as it was accepted.
#[derive(Debug)]
pub(super) enum Accepted {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Listener {
    /// Listens at `address`. A Unix socket that nobody listens at any longer is replaced.
    pub async fn bind(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => Ok(TcpListener::bind(address).await?.into()),
            Address::Unix(path) => {
                let socket = UnixSocket::new_stream()?;
                if let Err(error) = socket.bind(path) {
                    if error.kind() != io::ErrorKind::AddrInUse {
                        return Err(error);
                    }
                    remove_dead(path).await?;
                    socket.bind(path)?;
                }
                let file = SocketFile::of(path)?;
                // Nobody can connect before it listens, whatever the umask is.
                fs::set_permissions(path, Permissions::from_mode(MODE))?;
                Ok(Self(Kind::Unix(socket.listen(BACKLOG)?, file)))
            }
        }
    }

    /// Where it listens: what was asked for may have been port 0, for any free one.
    pub fn address(&self) -> io::Result<Address> {
        match &self.0 {
            Kind::Tcp(listener) => listener.local_addr().map(Address::Tcp),
            Kind::Unix(_, file) => Ok(Address::Unix(file.path.clone())),
        }
    }

    /// The next connection, and where it comes from.
    pub(super) async fn accept(&self) -> io::Result<(Accepted, Origin)> {
        match &self.0 {
            Kind::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                Ok(Accepted::tcp(stream, address))
            }
            Kind::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                Accepted::unix(stream)
            }
        }
    }

    /// Listens no longer, and gives the connections that were made and wait to be accepted. Closing
    /// alone resets them, and what their clients have sent is lost.
    pub(super) fn close(self) -> io::Result<Vec<(Accepted, Origin)>> {
        // The runtime's own way to accept knows only of connections that it has been told of.
        match self.0 {
            Kind::Tcp(listener) => {
                let listener = listener.into_std()?;
                Ok(waiting(|| {
                    let (stream, address) = listener.accept()?;
                    stream.set_nonblocking(true)?;
                    Ok(Accepted::tcp(TcpStream::from_std(stream)?, address))
                }))
            }
            Kind::Unix(listener, _file) => {
                let listener = listener.into_std()?;
                Ok(waiting(|| {
                    let (stream, _) = listener.accept()?;
                    stream.set_nonblocking(true)?;
                    Accepted::unix(UnixStream::from_std(stream)?)
                }))
            }
        }
    }
}

impl Accepted {
    fn tcp(stream: TcpStream, address: SocketAddr) -> (Self, Origin) {
        // Small answers must not wait for more.
        let _ = stream.set_nodelay(true);
        (Self::Tcp(stream), Origin::Tcp(address))
    }

    fn unix(stream: UnixStream) -> io::Result<(Self, Origin)> {
        let user = stream.peer_cred()?.uid();
        Ok((Self::Unix(stream), Origin::Unix(user)))
    }
}

/// What `accept` gives until nobody waits, but no more than can wait at a time: others may keep coming.
fn waiting(accept: impl Fn() -> io::Result<(Accepted, Origin)>) -> Vec<(Accepted, Origin)> {
    let mut waiting = Vec::new();
    for _ in 0..BACKLOG {
        match accept() {
            Ok(accepted) => waiting.push(accepted),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            // It came and went.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                break;
            }
        }
    }
    waiting
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self(Kind::Tcp(listener))
    }
}

/// Removes a socket that was left over by a server that is no more. One that is in use stays, and so
/// does everything that is no socket.
///
/// Two servers that find it at the same moment could take it from each other; both would have to be
/// told to use it.
async fn remove_dead(path: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        let told = "there is a file that is no socket";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, told));
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        _ => Err(io::ErrorKind::AddrInUse.into()),
    }
}

/// The file of a Unix socket. It is removed with this.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// The device and the inode.
    file: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            file: file_at(path)?,
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another server may have put its own there.
        if file_at(&self.path).is_ok_and(|there| there == self.file) {
            // A file that stays is replaced by the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn file_at(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    #[tokio::test]
    async fn a_socket_is_its_owner_s_and_its_group_s_and_goes_with_its_listener() {
        let dir = TempDir::new().unwrap();
        let address = at(&dir);
        let listener = Listener::bind(&address).await.unwrap();
        assert_eq!(listener.address().unwrap(), address);
        let metadata = fs::metadata(path(&address)).unwrap();
        assert_eq!(metadata.mode() & 0o777, 0o660);
        let own = metadata.uid();

        let (client, accepted) =
            tokio::join!(UnixStream::connect(path(&address)), listener.accept());
        client.unwrap();
        let (_, origin) = accepted.unwrap();
        assert_eq!(origin, Origin::Unix(own));
        drop(listener);
        assert!(!path(&address).exists());
    }

    #[tokio::test]
    async fn a_socket_that_nobody_listens_at_is_replaced_and_one_in_use_is_not() {
        let dir = TempDir::new().unwrap();
        let address = at(&dir);
        // Its listener closes it and leaves the file, as one does that was killed.
        drop(std::os::unix::net::UnixListener::bind(path(&address)).unwrap());
        assert!(path(&address).exists());
        let first = Listener::bind(&address).await.unwrap();

        let second = Listener::bind(&address).await.unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
        let (client, accepted) = tokio::join!(UnixStream::connect(path(&address)), first.accept());
        assert!(client.is_ok() && accepted.is_ok(), "the first is as it was");
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let dir = TempDir::new().unwrap();
        let address = at(&dir);
        fs::write(path(&address), "precious").unwrap();
        let error = Listener::bind(&address).await.unwrap_err();
        assert!(error.to_string().contains("no socket"), "{error}");
        assert_eq!(fs::read(path(&address)).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn a_listener_removes_no_other_s_socket() {
        let dir = TempDir::new().unwrap();
        let address = at(&dir);
        let first = Listener::bind(&address).await.unwrap();
        fs::remove_file(path(&address)).unwrap();
        let _second = Listener::bind(&address).await.unwrap();
        drop(first);
        assert!(path(&address).exists());
    }

    fn at(dir: &TempDir) -> Address {
        Address::Unix(dir.path().join("k.sock"))
    }

    fn path(address: &Address) -> &Path {
        match address {
            Address::Unix(path) => path,
            Address::Tcp(_) => panic!("{address}"),
        }
    }
}
