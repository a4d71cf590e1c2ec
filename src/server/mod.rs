//! The one place that builds things.
