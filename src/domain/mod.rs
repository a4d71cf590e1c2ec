//! Plain values: what a key is, what an algorithm takes, who is asking.
//!
//! Nothing here reads, writes or waits, and nothing here knows a transport. A value that exists is
//! valid, so code that holds one never checks it again.

pub mod address;
pub mod algorithm;
pub mod caller;
pub mod cost;
pub mod frame;
pub mod identity;
pub mod jwt;
pub mod key;
pub(crate) mod places;
pub mod rate;
pub mod request;
pub mod secret;
pub mod time;
