//! Addresses: where something is served, and where a connection comes from.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

/// The most bytes of a Unix socket's path: what its address has room for, less the zero at the end
/// (unix(7)).
const MAX_PATH: usize = 107;

/// Where something is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// An address of the machine, and a port.
    Tcp(SocketAddr),
    /// A Unix socket, which is a file.
    Unix(PathBuf),
}

impl Address {
    /// Whether no other machine reaches it.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().is_loopback(),
            Self::Unix(_) => true,
        }
    }
}

impl FromStr for Address {
    type Err = InvalidAddress;

    /// Reads `ADDRESS:PORT`, or `unix:PATH`, which may also be written `unix://PATH` as gRPC has it.
    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let Some(path) = text.strip_prefix("unix:") else {
            return text.parse().map(Self::Tcp).map_err(|_| InvalidAddress);
        };
        let path = path.strip_prefix("//").unwrap_or(path);
        if !(1..=MAX_PATH).contains(&path.len()) || path.contains('\0') {
            return Err(InvalidAddress);
        }
        Ok(Self::Unix(path.into()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The text is no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected an address and a port, or unix: and a path of at most {MAX_PATH} bytes")]
pub struct InvalidAddress;

/// Whether a host, as an address of the web names it, is this machine: what is sent there in plain text
/// no other machine reads or answers.
pub fn is_this_machine(host: &str) -> bool {
    let address: Result<IpAddr, _> = host.trim_matches(['[', ']']).parse();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// An address, over TCP.
    Tcp(SocketAddr),
    /// A process of this machine, over a Unix socket: the id of its user.
    Unix(u32),
}

impl Origin {
    /// The address, over TCP.
    pub fn address(self) -> Option<IpAddr> {
        match self {
            Self::Tcp(address) => Some(address.ip().to_canonical()),
            Self::Unix(_) => None,
        }
    }

    /// Whether it is this machine, over TCP.
    pub fn is_loopback(self) -> bool {
        self.address().is_some_and(|address| address.is_loopback())
    }

    /// Who is behind it, as far as that can be told without a credential.
    pub fn source(self) -> Source {
        match self {
            Self::Unix(user) => Source::User(user),
            Self::Tcp(address) => match address.ip().to_canonical() {
                IpAddr::V6(address) => {
                    let network = u128::from(address) >> 64 << 64;
                    Source::Network(Ipv6Addr::from(network).into())
                }
                address @ IpAddr::V4(_) => Source::Network(address),
            },
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(user) => write!(f, "unix socket, user {user}"),
        }
    }
}

/// Who is behind a connection, as far as that can be told without a credential. What a stranger may use
/// is bounded for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// An address of IPv4, or the half of one of IPv6 that names a network (RFC 4291, section 2.5.4):
    /// its holder has all the rest.
    Network(IpAddr),
    /// A user of this machine.
    User(u32),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_port_or_a_path() {
        let read = |text: &str| text.parse::<Address>();
        let port = read("127.0.0.1:9090").unwrap();
        assert_eq!(port, Address::Tcp(([127, 0, 0, 1], 9090).into()));
        assert!(port.is_local() && !read("0.0.0.0:9090").unwrap().is_local());
        assert!(read("[::1]:0").unwrap().is_local() && !read("[::]:0").unwrap().is_local());
        for text in ["unix:/run/k.sock", "unix:///run/k.sock"] {
            let address = read(text).unwrap();
            assert_eq!(address, Address::Unix("/run/k.sock".into()));
            assert_eq!(address.to_string(), "unix:/run/k.sock");
            assert!(address.is_local());
        }
        assert_eq!(read("unix:k.sock"), Ok(Address::Unix("k.sock".into())));
        let longest = format!("unix:/{}", "x".repeat(MAX_PATH - 1));
        assert!(read(&longest).is_ok());
        for bad in [
            "",
            "unix:",
            "unix://",
            "unix:a\0b",
            &format!("{longest}x"),
            "UNIX:/k",
            "localhost:1",
            "127.0.0.1",
            "/run/k.sock",
        ] {
            assert_eq!(read(bad), Err(InvalidAddress), "{bad:?}");
        }
    }

    #[test]
    fn this_machine_has_few_names() {
        for host in ["localhost", "127.0.0.1", "127.8.0.1", "::1", "[::1]"] {
            assert!(is_this_machine(host), "{host}");
        }
        for host in [
            "",
            "10.0.0.1",
            "0.0.0.0",
            "localhost.example",
            "LOCALHOST.",
            "127.0.0.1.example",
            "127.1",
        ] {
            assert!(!is_this_machine(host), "{host}");
        }
    }

    #[test]
    fn connections_of_one_party_have_one_source() {
        let tcp = |text: &str| Origin::Tcp(text.parse().unwrap());
        let source = |text: &str| tcp(text).source();
        assert_eq!(source("192.0.2.1:1"), source("192.0.2.1:2"));
        assert_ne!(source("192.0.2.1:1"), source("192.0.2.2:1"));
        assert_eq!(source("192.0.2.1:1"), source("[::ffff:192.0.2.1]:1"));
        assert_eq!(source("[2001:db8::1]:1"), source("[2001:db8::ffff:0:1]:2"));
        assert_ne!(source("[2001:db8::1]:1"), source("[2001:db8:0:1::1]:1"));
        assert_eq!(Origin::Unix(7).source(), Source::User(7));
        assert!(tcp("[::ffff:127.0.0.1]:1").is_loopback());
        assert!(!tcp("192.0.2.1:1").is_loopback() && !Origin::Unix(0).is_loopback());
    }
}
