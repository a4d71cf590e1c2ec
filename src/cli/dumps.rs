//! Keeps the process's memory to itself: it is in no core dump, and no other process of the same
//! user may read it.

use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

use crate::cli::Failure;

/// Forbids core dumps and debuggers for as long as the process runs.
///
/// Both ways are needed. A core that is piped to a program (`core_pattern` with a `|`, as systemd
/// has it) is written whatever its limit says, save for a process that is not dumpable; and that
/// attribute a later `execve` would reset, while a limit stays.
pub(super) fn forbid() -> Result<(), Failure> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none)
        .and_then(|()| set_dumpable_behavior(DumpableBehavior::NotDumpable))
        .map_err(|error| format!("cannot forbid core dumps: {}", io::Error::from(error)).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{dumpable_behavior, getrlimit};

    #[test]
    fn what_was_forbidden_stays_so() {
        forbid().unwrap();
        assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
        let limit = getrlimit(Resource::Core);
        assert_eq!((limit.current, limit.maximum), (Some(0), Some(0)));
        // A second time, as by a program within a program, is no failure.
        forbid().unwrap();
    }
}
