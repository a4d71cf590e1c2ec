//! Events as JSON, one a line.
