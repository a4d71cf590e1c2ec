//! The provider built on the RustCrypto crates.
