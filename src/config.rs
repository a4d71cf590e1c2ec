//! The configuration file as types.
