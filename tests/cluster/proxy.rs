//! TCP proxies that stand in the links between processes, so that a link can be cut, slowed down and
//! healed.
//!
//! A cut link is a black hole: what is on its way stays there, and arrives when the link heals, as TCP
//! brings it after packets were lost. New connections are taken and hear nothing. A link can also be
//! torn: its connections end.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// The way from one process to another, over all connections that the one makes.
#[derive(Clone, Debug)]
pub(crate) struct Link(Arc<watch::Sender<Weather>>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Weather {
    cut: bool,
    /// How much later than usual bytes arrive, in each direction.
    delay: Duration,
    /// How often the link has been torn.
    torn: u64,
}

impl Link {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Weather::default())))
    }

    /// Lets nothing through.
    pub(crate) fn cut(&self) {
        self.0.send_modify(|weather| weather.cut = true);
    }

    /// Lets everything through later.
    pub(crate) fn slow_down(&self, delay: Duration) {
        self.0.send_modify(|weather| weather.delay = delay);
    }

    /// Ends the connections that there are.
    pub(crate) fn tear(&self) {
        self.0.send_modify(|weather| weather.torn += 1);
    }

    /// Is as it was at first.
    pub(crate) fn heal(&self) {
        self.0.send_modify(|weather| {
            *weather = Weather {
                torn: weather.torn,
                ..Weather::default()
            };
        });
    }
}

/// A free port of this machine, whose listener is a proxy's.
pub(crate) async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Carries the connections to `listener` on to `to`, over one link.
pub(crate) fn carry(listener: TcpListener, to: SocketAddr, link: Link) {
    carry_each(listener, to, move |_| Some(link.clone()));
}

/// Carries the connections to `listener` on to `to`, over the link of the process that connects.
pub(crate) fn carry_from(listener: TcpListener, to: SocketAddr, from: Vec<(Pid, Link)>) {
    let here = listener.local_addr().unwrap();
    carry_each(listener, to, move |peer| {
        let inode = inode(peer, here)?;
        let mut from = from.iter();
        let found = from.find(|(pid, _)| holds(*pid.0.lock().unwrap(), &inode));
        found.map(|(_, link)| link.clone())
    });
}

/// The process id of something that may be started again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pid(pub(crate) Arc<Mutex<Option<u32>>>);

fn carry_each(
    listener: TcpListener,
    to: SocketAddr,
    link: impl Fn(SocketAddr) -> Option<Link> + Send + Sync + 'static,
) {
    tokio::spawn(async move {
        loop {
            // Out of descriptors, or the client is gone already: the next one may not be.
            let Ok((client, peer)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            };
            // Nobody's: its process has been killed.
            if let Some(link) = link(peer) {
                tokio::spawn(connection(client, to, link));
            }
        }
    });
}

async fn connection(client: TcpStream, to: SocketAddr, link: Link) {
    let mut weather = link.0.subscribe();
    let before = weather.borrow().torn;
    tokio::select! {
        () = both_ways(client, to, &link) => {}
        _ = weather.wait_for(|weather| weather.torn != before) => {}
    }
}

async fn both_ways(client: TcpStream, to: SocketAddr, link: &Link) {
    let mut weather = link.0.subscribe();
    if weather.wait_for(|weather| !weather.cut).await.is_err() {
        return;
    }
    let Ok(server) = TcpStream::connect(to).await else {
        return;
    };
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    // One direction may end before the other; one that fails ends both.
    let _ = tokio::try_join!(
        pump(from_client, to_server, link.0.subscribe()),
        pump(from_server, to_client, link.0.subscribe()),
    );
}

/// How much is on its way in one direction of a connection at most, in reads of 16 KiB.
const READS: usize = 64;

/// Carries one direction of a connection.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut weather: watch::Receiver<Weather>,
) -> Result<(), ()> {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(READS);
    let read = async move {
        loop {
            let mut bytes = vec![0; 16 * 1024];
            let count = from.read(&mut bytes).await.map_err(drop)?;
            bytes.truncate(count);
            // No bytes are the end, which must not overtake what comes before it.
            sender.send((Instant::now(), bytes)).await.map_err(drop)?;
            if count == 0 {
                return Ok(());
            }
        }
    };
    let write = async move {
        while let Some((at, bytes)) = receiver.recv().await {
            pass(at, &mut weather).await?;
            if bytes.is_empty() {
                return to.shutdown().await.map_err(drop);
            }
            to.write_all(&bytes).await.map_err(drop)?;
        }
        Ok(())
    };
    tokio::try_join!(read, write).map(drop)
}

/// Waits until what was sent at `at` has arrived.
async fn pass(at: Instant, weather: &mut watch::Receiver<Weather>) -> Result<(), ()> {
    loop {
        let Weather { cut, delay, .. } = *weather.borrow_and_update();
        let due = at + delay;
        if !cut && due <= Instant::now() {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep_until(due), if !cut => {}
            changed = weather.changed() => changed.map_err(drop)?,
        }
    }
}

/// The inode of the socket that is connected from `peer` to `here` (proc(5), `/proc/net/tcp`).
fn inode(peer: SocketAddr, here: SocketAddr) -> Option<String> {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let ends = (hex(peer), hex(here));
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let found = fields.get(1) == Some(&&*ends.0) && fields.get(2) == Some(&&*ends.1);
        found.then(|| fields[9].to_owned())
    })
}

/// An address as the kernel writes it: hexadecimal, the bytes of the address in the machine's order.
fn hex(address: SocketAddr) -> String {
    let SocketAddr::V4(address) = address else {
        panic!("{address} is not of IPv4");
    };
    let ip = u32::from_ne_bytes(address.ip().octets());
    format!("{ip:08X}:{:04X}", address.port())
}

/// Whether a process has the socket open.
fn holds(pid: Option<u32>, inode: &str) -> bool {
    let Some(pid) = pid else {
        return false;
    };
    let socket = format!("socket:[{inode}]");
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    open.flatten()
        .filter_map(|file| fs::read_link(file.path()).ok())
        .any(|file| file.to_str() == Some(&socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What arrives after less than this arrives at once.
    const SOON: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn a_cut_link_keeps_what_is_sent_until_it_heals() {
        let (mut client, link) = echo().await;
        assert_eq!(exchange(&mut client, b"one").await, b"one");
        link.cut();
        client.write_all(b"two").await.unwrap();
        let mut answer = [0; 3];
        let nothing = Duration::from_millis(200);
        let waited = tokio::time::timeout(nothing, client.read_exact(&mut answer)).await;
        assert!(waited.is_err(), "{answer:?}");
        link.heal();
        let arrived = tokio::time::timeout(SOON, client.read_exact(&mut answer)).await;
        arrived.unwrap().unwrap();
        assert_eq!(&answer, b"two");
    }

    #[tokio::test]
    async fn a_slow_link_takes_its_time_in_each_direction() {
        let (mut client, link) = echo().await;
        exchange(&mut client, b"one").await;
        let delay = Duration::from_millis(100);
        link.slow_down(delay);
        let began = Instant::now();
        exchange(&mut client, b"two").await;
        assert!(began.elapsed() >= 2 * delay, "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn a_torn_link_ends_its_connections() {
        let (mut client, link) = echo().await;
        exchange(&mut client, b"one").await;
        link.tear();
        let read = tokio::time::timeout(SOON, client.read(&mut [0; 1])).await;
        assert!(matches!(read.unwrap(), Ok(0) | Err(_)));
    }

    #[tokio::test]
    async fn who_connects_is_known_by_its_process() {
        let (listener, at) = listener().await;
        let _client = TcpStream::connect(at).await.unwrap();
        let (_server, peer) = listener.accept().await.unwrap();
        let inode = inode(peer, at).unwrap();
        assert!(holds(Some(std::process::id()), &inode));
        assert!(!holds(Some(1), &inode));
    }

    /// A connection over a link to a server that sends back what it is sent.
    async fn echo() -> (TcpStream, Link) {
        let (server, to) = listener().await;
        tokio::spawn(async move {
            let (mut stream, _) = server.accept().await.unwrap();
            let (mut from, mut to) = stream.split();
            let _ = tokio::io::copy(&mut from, &mut to).await;
        });
        let (proxy, at) = listener().await;
        let link = Link::new();
        carry(proxy, to, link.clone());
        (TcpStream::connect(at).await.unwrap(), link)
    }

    async fn exchange(stream: &mut TcpStream, bytes: &[u8]) -> Vec<u8> {
        stream.write_all(bytes).await.unwrap();
        let mut answer = vec![0; bytes.len()];
        stream.read_exact(&mut answer).await.unwrap();
        answer
    }
}
