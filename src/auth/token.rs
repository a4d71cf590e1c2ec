//! Tokens, checked against a file of hashes.
