//! AK/SK signatures.
