//! The gRPC face: messages in, use case, messages out.

mod status;

/// Messages, service traits and clients generated from `proto/kmsgate/v1`.
#[allow(
    missing_docs,
    unused_qualifications,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::or_fun_call,
    clippy::use_self,
    clippy::unwrap_used,
    reason = "generated"
)]
pub mod pb {
    tonic::include_proto!("kmsgate.v1");
}

/// The compiled schema, for reflection and for tests.
pub const DESCRIPTORS: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/kmsgate.v1.descriptors.bin"));
