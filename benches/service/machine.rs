//! The machine: which cores there are to pin to, and what `/proc` says about it and its processes.

use std::fs;
use std::process::{self, Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::Outcome;

/// Which core a server and the load generator have to themselves.
pub(crate) enum Cores {
    /// One each.
    Pinned {
        /// The servers' core.
        server: usize,
    },
    /// Whatever the scheduler gives them.
    Unpinned,
}

impl Cores {
    /// Pins this process to `load`, and later its servers to `server`, if there are two cores and a `taskset`.
    ///
    /// Must be called before any thread is started, since threads inherit their core.
    pub(crate) fn pin(server: usize, load: usize) -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let pinned = Command::new("taskset")
            .args(["-cp", &load.to_string(), &process::id().to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        match pinned {
            Ok(status) if status.success() && cores > 1 && server != load => {
                Self::Pinned { server }
            }
            _ => Self::Unpinned,
        }
    }

    /// A command that runs `program` on the servers' core, in the process that the command starts.
    pub(crate) fn command(&self, program: &str) -> Command {
        match self {
            Self::Pinned { server } => {
                let mut command = Command::new("taskset");
                command.args(["-c", &server.to_string(), program]);
                command
            }
            Self::Unpinned => Command::new(program),
        }
    }
}

/// One line that says what the figures were measured on.
pub(crate) fn line(cores: &Cores) -> Outcome<String> {
    let info = fs::read_to_string("/proc/cpuinfo")?;
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown processor", |(_, model)| model);
    let count = info
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let placing = match cores {
        Cores::Pinned { .. } => "the server on one core and the load generator on another",
        Cores::Unpinned => {
            "**nothing pinned**: server and load generator compete for cores, so trust the ratios less"
        }
    };
    Ok(format!(
        "Machine: {model}, {count} cores, Linux {}; {placing}.",
        kernel.trim_end()
    ))
}

/// The processor time that a process has used, all threads together, in steps of 10 ms.
pub(crate) fn cpu_time(pid: u32) -> Outcome<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name of the program may hold anything, so the fields are counted from the parenthesis that ends it:
    // proc_pid_stat(5) calls the two wanted (14) utime and (15) stime, and that name (2).
    let (_, fields) = stat.rsplit_once(") ").ok_or("/proc/PID/stat: no name")?;
    let ticks = fields
        .split(' ')
        .skip(11)
        .take(2)
        .map(str::parse::<u64>)
        .sum::<Result<u64, _>>()?;
    Ok(Duration::from_millis(ticks * 10))
}

/// The memory of a process that lies in RAM, in KiB.
pub(crate) fn resident(pid: u32) -> Outcome<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let value = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|value| value.trim().strip_suffix(" kB"))
        .ok_or("/proc/PID/status: no VmRSS")?;
    Ok(value.parse()?)
}
