//! The root key, which seals key material at rest.
