//! A store that is gone when the process ends.
