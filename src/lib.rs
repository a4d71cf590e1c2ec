//! kmsgate: encrypt data under managed keys, over gRPC and over Huawei Cloud KMS's REST contract.
//!
//! | module | what it is |
//! |---|---|
//! | [`domain`] | plain values: keys, algorithms, secrets, the ciphertext frame, callers |
//! | [`crypto`] | making and using keys, behind the [`Provider`](crypto::Provider) trait |
//! | [`store`] | keeping keys, behind the [`KeyStore`](store::KeyStore) trait |
//! | [`auth`] | who is asking, and may they |
//! | [`audit`] | what happened, for someone else to keep |
//! | [`error`] | how requests fail: one error type, one table |
//! | [`service`] | one file per use case; knows no transport |
//! | [`grpc`] | messages in, use case, messages out |
//! | [`gateway`] | JSON and HTTP in front of the same generated service traits |
//! | [`server`] | the one place that builds things |
//! | [`config`] | the configuration file as types |
//! | [`telemetry`] | logs and metrics, set up once |
//! | [`cli`] | the command line |
//!
//! `ARCHITECTURE.md` draws the arrows between them.

// A request must never be able to stop the process. These five are here and not in Cargo.toml so
// that `tests/` may still unwrap.
#![warn(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

pub mod audit;
pub mod auth;
pub mod cli;
pub mod config;
pub mod crypto;
pub mod domain;
pub mod error;
pub mod gateway;
pub mod grpc;
pub mod server;
pub mod service;
pub mod store;
pub mod telemetry;
