//! The processes: etcd's members and kmsgate's replicas, and the links between them.
//!
//! ```text
//! load ──► proxy ──► replica ──► proxy ──► member ◄── proxy ◄── another member
//! ```
//!
//! Members advertise their proxies to each other, so nothing goes past one. Only the harness itself
//! asks members directly, through etcdctl.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener as Port};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use serde_json::Value;

use kmsgate::auth::token::Entry;
use kmsgate::crypto::root::RootKey;

use crate::proxy;
use crate::proxy::{Link, Pid};

/// The token that may do anything.
pub(crate) const TOKEN: &str = "8f0c4a1de57b4f0d9c9f83a6f2a1b7c4d5e60718293a4b5c";

/// The files of the root keys.
const ROOT_KEYS: [&str; 2] = ["one.key", "other.key"];

/// How long members may take to elect a leader and answer, on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// How large etcd's database may get, so that it can be filled.
const QUOTA: u64 = 24 * 1024 * 1024;

/// How large a disk is. A member keeps a few files of 64 MB for its log, and its database.
const DISK: &str = "768m";

/// A disk that holds what one process writes.
#[derive(Debug)]
pub(crate) struct Disk {
    at: PathBuf,
    /// Whether it is one of its own, which can be filled, and no mere directory.
    mounted: bool,
}

impl Disk {
    /// One at this place, mounted if it can be. It is gone when the run is, for the run has mounts of its
    /// own.
    fn new(at: PathBuf, mounted: bool) -> Self {
        fs::create_dir(&at).unwrap();
        if !mounted {
            return Self { at, mounted };
        }
        let mut mount = Command::new("mount");
        mount.args([
            "-t",
            "tmpfs",
            "-o",
            &format!("size={DISK},mode=0700"),
            "disk",
        ]);
        assert!(mount.arg(&at).status().unwrap().success(), "a mount");
        Self { at, mounted }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.at.join(name)
    }

    fn filler(&self) -> PathBuf {
        self.path("filler")
    }

    /// Fills it to the last byte.
    pub(crate) fn fill(&self) {
        let mut filler = File::create(self.filler()).unwrap();
        let mut length = 1024 * 1024;
        let zeros = vec![0; length];
        while length > 0 {
            match filler.write(&zeros[..length]) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => length /= 2,
                Err(error) => panic!("{}: {error}", self.at.display()),
            }
        }
    }

    /// Makes room again.
    pub(crate) fn make_room(&self) {
        let _ = fs::remove_file(self.filler());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted {
            let mut umount = Command::new("umount");
            let umounted = umount.arg("--lazy").arg(&self.at).status().unwrap();
            assert!(umounted.success(), "umount {}", self.at.display());
        }
    }
}

/// A program that is started again when it has been killed.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) name: String,
    program: Mutex<PathBuf>,
    arguments: Mutex<Vec<OsString>>,
    environment: Vec<(&'static str, OsString)>,
    log: PathBuf,
    pid: Pid,
    child: Mutex<Option<Child>>,
}

impl Process {
    fn new(name: String, program: &Path, run: &Path) -> Self {
        let log = run.join(format!("{name}.log"));
        Self {
            name,
            program: Mutex::new(program.to_owned()),
            arguments: Mutex::default(),
            environment: Vec::new(),
            log,
            pid: Pid::default(),
            child: Mutex::default(),
        }
    }

    /// Starts it, unless it runs.
    pub(crate) fn start(&self) {
        let mut child = self.child.lock().unwrap();
        if child.is_some() {
            return;
        }
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.unwrap();
        let program = self.program.lock().unwrap().clone();
        let started = Command::new(&program)
            .args(&*self.arguments.lock().unwrap())
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        let started = match started {
            Ok(started) => started,
            Err(error) => {
                drop(child);
                panic!("{}: {error}", program.display());
            }
        };
        *self.pid.0.lock().unwrap() = Some(started.id());
        *child = Some(started);
    }

    /// Starts another program in its place, unless it runs.
    pub(crate) fn start_as(&self, program: &Path) {
        program.clone_into(&mut self.program.lock().unwrap());
        self.start();
    }

    /// Asks it to end, and waits so long for it. Tells how it ended; it is killed if it did not.
    pub(crate) fn end(&self, patience: Duration) -> Option<ExitStatus> {
        self.signal(Signal::TERM);
        let began = Instant::now();
        while began.elapsed() < patience {
            if let Some(status) = self.ended_by_itself() {
                self.kill();
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.kill();
        None
    }

    /// Ends it as a lost machine would.
    pub(crate) fn kill(&self) {
        let Some(mut child) = self.child.lock().unwrap().take() else {
            return;
        };
        *self.pid.0.lock().unwrap() = None;
        let _ = child.kill();
        child.wait().unwrap();
    }

    /// Stops the clock for it.
    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        if let Some(child) = &*self.child.lock().unwrap() {
            let pid = rustix::process::Pid::from_child(child);
            // It has ended by itself, which is found out elsewhere.
            let _ = kill_process(pid, signal);
        }
    }

    /// How it has ended, if it has though nobody killed it.
    pub(crate) fn ended_by_itself(&self) -> Option<ExitStatus> {
        let mut child = self.child.lock().unwrap();
        child.as_mut()?.try_wait().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A member of etcd.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) process: Process,
    /// Where it serves clients.
    pub(crate) client: SocketAddr,
    /// Where it serves other members.
    peer: SocketAddr,
    /// Where other members find it.
    advertised: SocketAddr,
    /// Where its data is.
    pub(crate) disk: Disk,
    data: PathBuf,
}

/// A replica of kmsgate.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) process: Process,
    /// Where the load finds it.
    pub(crate) proxy: SocketAddr,
    /// Where it serves itself.
    pub(crate) grpc: SocketAddr,
    /// Where its keys are, without members.
    pub(crate) disk: Disk,
    /// What its clock adds to the machine's, in libfaketime's words.
    clock: PathBuf,
}

impl Replica {
    /// Makes its clock jump to this much from the machine's, such as `+1h`, within a second.
    pub(crate) fn set_clock(&self, offset: &str) {
        replace(&self.clock, offset);
    }
}

/// What a run needs to know of its surroundings.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub(crate) kmsgate: PathBuf,
    /// Another version of it, to which replicas are changed one by one, and back.
    pub(crate) other: PathBuf,
    /// What the replicas are told of `store.max_staleness`, if it is not to be as usual.
    pub(crate) max_staleness: Option<String>,
    pub(crate) etcd: PathBuf,
    pub(crate) etcdctl: PathBuf,
    /// libfaketime, which lets clocks jump.
    pub(crate) faketime: PathBuf,
    /// Whether disks can be mounted.
    pub(crate) mounts: bool,
}

/// All processes and links.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) members: Vec<Member>,
    pub(crate) replicas: Vec<Replica>,
    /// From each replica to each member.
    pub(crate) to_member: Vec<Vec<Link>>,
    /// From each member to each member; one to itself is of no use.
    pub(crate) between: Vec<Vec<Link>>,
    /// From the load to each replica.
    pub(crate) to_replica: Vec<Link>,
    etcdctl: PathBuf,
    run: PathBuf,
    /// How often it has become another cluster.
    restored: Mutex<u32>,
}

impl Cluster {
    /// Starts as many members and replicas, with their files in the directory `run`. Without
    /// members, one replica keeps its keys in SQLite.
    pub(crate) async fn start(
        programs: &Programs,
        run: &Path,
        members: usize,
        replicas: usize,
    ) -> Self {
        let mut cluster = Self {
            members: Vec::new(),
            replicas: Vec::new(),
            to_member: links(replicas, members),
            between: links(members, members),
            to_replica: (0..replicas).map(|_| Link::new()).collect(),
            etcdctl: programs.etcdctl.clone(),
            run: run.to_owned(),
            restored: Mutex::default(),
        };
        let mut ports = Ports::new();
        cluster.add_members(programs, members, &mut ports).await;
        cluster.add_replicas(programs, replicas, &mut ports).await;
        for member in &cluster.members {
            member.process.start();
        }
        cluster.await_members();
        for replica in &cluster.replicas {
            replica.process.start();
        }
        cluster
    }

    async fn add_members(&mut self, programs: &Programs, members: usize, ports: &mut Ports) {
        let mut listeners = Vec::new();
        for number in 0..members {
            let (listener, advertised) = proxy::listener().await;
            listeners.push(listener);
            let process = Process::new(format!("member-{number}"), &programs.etcd, &self.run);
            let disk = Disk::new(self.run.join(&process.name), programs.mounts);
            self.members.push(Member {
                data: disk.path("data"),
                disk,
                process,
                client: ports.next(),
                peer: ports.next(),
                advertised,
            });
        }
        for (number, listener) in listeners.into_iter().enumerate() {
            let from = (0..members).filter(|&from| from != number).map(|from| {
                let pid = self.members[from].process.pid.clone();
                (pid, self.between[from][number].clone())
            });
            proxy::carry_from(listener, self.members[number].peer, from.collect());
        }
        self.set_arguments("kmsgate-0");
    }

    /// Tells the members who they are.
    fn set_arguments(&self, token: &str) {
        for member in &self.members {
            let data = member.data.display();
            let quota = QUOTA.to_string();
            let arguments = [
                format!("--name={}", member.process.name),
                format!("--data-dir={data}"),
                format!("--listen-client-urls=http://{}", member.client),
                format!("--advertise-client-urls=http://{}", member.client),
                format!("--listen-peer-urls=http://{}", member.peer),
                format!("--initial-advertise-peer-urls=http://{}", member.advertised),
                format!("--initial-cluster={}", self.membership()),
                format!("--initial-cluster-token={token}"),
                format!("--quota-backend-bytes={quota}"),
                // Old revisions would fill it; a fault of its own goes further.
                "--auto-compaction-mode=revision".to_owned(),
                "--auto-compaction-retention=5000".to_owned(),
                // Who was away for a while gets the whole database, and logs stay short.
                "--snapshot-count=2000".to_owned(),
                "--max-wals=2".to_owned(),
                "--logger=zap".to_owned(),
                "--log-outputs=stderr".to_owned(),
            ];
            let arguments = arguments.into_iter().map(OsString::from);
            *member.process.arguments.lock().unwrap() = arguments.collect();
        }
    }

    fn membership(&self) -> String {
        let members = self.members.iter();
        let members = members.map(|member| {
            let Member { advertised, .. } = member;
            format!("{}=http://{advertised}", member.process.name)
        });
        members.collect::<Vec<_>>().join(",")
    }

    async fn add_replicas(&mut self, programs: &Programs, replicas: usize, ports: &mut Ports) {
        for root in ROOT_KEYS {
            RootKey::create(&self.run.join(root)).unwrap();
        }
        let entry = Entry {
            name: "load",
            project: "53d1aefc533f4ce9a59c26b01667cbcf",
            expires: None,
            actions: &["kms:*", "kms:system:*"],
        };
        let tokens = self.run.join("tokens.toml");
        fs::write(&tokens, entry.render(TOKEN.as_bytes()).unwrap()).unwrap();
        fs::set_permissions(&tokens, PermissionsExt::from_mode(0o600)).unwrap();
        for number in 0..replicas {
            let mut endpoints = Vec::new();
            for (link, member) in self.to_member[number].iter().zip(&self.members) {
                let (listener, endpoint) = proxy::listener().await;
                proxy::carry(listener, member.client, link.clone());
                endpoints.push(format!("http://{endpoint}"));
            }
            let (listener, proxy) = proxy::listener().await;
            let grpc = ports.next();
            proxy::carry(listener, grpc, self.to_replica[number].clone());

            let mut process =
                Process::new(format!("replica-{number}"), &programs.kmsgate, &self.run);
            let disk = Disk::new(self.run.join(&process.name), programs.mounts);
            let config = self.run.join(format!("{}.toml", process.name));
            let run = self.run.display();
            let store = if endpoints.is_empty() {
                format!(
                    "kind = \"sqlite\"\npath = {:?}\n\
                     [audit]\nkind = \"file\"\npath = {:?}",
                    disk.path("keys.db"),
                    disk.path("audit.jsonl"),
                )
            } else {
                let bound = programs.max_staleness.as_deref().unwrap_or("3s");
                format!("kind = \"etcd\"\nendpoints = {endpoints:?}\nmax_staleness = \"{bound}\"")
            };
            // Not all of them the same first, so that there is something to rotate again and again.
            let [mut first, mut second] = ROOT_KEYS;
            if number % 2 == 1 {
                std::mem::swap(&mut first, &mut second);
            }
            let text = format!(
                "grpc = \"{grpc}\"\nrest = \"{}\"\nadmin = \"{}\"\n\
                 root_key_file = \"{run}/{first}\"\n\
                 previous_root_key_files = [\"{run}/{second}\"]\nshutdown = {{ lag = \"0ms\" }}\n\
                 [store]\n{store}\n[auth]\ntoken_file = \"{run}/tokens.toml\"\n",
                ports.next(),
                ports.next(),
            );
            fs::write(&config, text).unwrap();
            let arguments = ["serve".into(), "--config".into(), config.into()];
            *process.arguments.lock().unwrap() = arguments.to_vec();
            let clock = self.run.join(format!("{}.clock", process.name));
            process.environment = clock_that_jumps(&programs.faketime, &clock);
            let replica = Replica {
                process,
                proxy,
                grpc,
                disk,
                clock,
            };
            replica.set_clock("+0");
            self.replicas.push(replica);
        }
    }

    /// Every process.
    pub(crate) fn processes(&self) -> impl Iterator<Item = &Process> {
        let members = self.members.iter().map(|member| &member.process);
        members.chain(self.replicas.iter().map(|replica| &replica.process))
    }

    /// Every disk.
    pub(crate) fn disks(&self) -> impl Iterator<Item = &Disk> {
        let members = self.members.iter().map(|member| &member.disk);
        members.chain(self.replicas.iter().map(|replica| &replica.disk))
    }

    /// Every link.
    pub(crate) fn links(&self) -> impl Iterator<Item = &Link> {
        let mut all: Vec<&Link> = self.to_replica.iter().collect();
        all.extend(self.to_member.iter().flatten());
        all.extend(self.between.iter().flatten());
        all.into_iter()
    }

    /// Waits until every member answers with what a majority says.
    pub(crate) fn await_members(&self) {
        let deadline = Instant::now() + PATIENCE;
        for member in &self.members {
            while !self.ask(member, &["get", "nothing"]).status.success() {
                assert!(Instant::now() < deadline, "{} is away", member.process.name);
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }

    /// Which member leads, if one does and says so.
    pub(crate) fn leader(&self) -> Option<usize> {
        (0..self.members.len()).find(|number| self.leads(*number))
    }

    /// Waits until a member leads, and not this one, which is gone.
    pub(crate) fn await_another_leader(&self, gone: usize) {
        let deadline = Instant::now() + PATIENCE;
        let others = (0..self.members.len()).filter(|number| *number != gone);
        while !others.clone().any(|number| self.leads(number)) {
            assert!(Instant::now() < deadline, "no leader is elected");
        }
    }

    fn leads(&self, number: usize) -> bool {
        let status = self.status(&self.members[number]);
        status.is_some_and(|status| status["leader"] == status["header"]["member_id"])
    }

    /// Has another member lead. Tells whether one does.
    pub(crate) fn move_leader(&self, to: usize) -> bool {
        let Some(leader) = self.leader() else {
            return false;
        };
        let Some(status) = self.status(&self.members[to]) else {
            return false;
        };
        let id = status["header"]["member_id"].as_u64().unwrap();
        let id = format!("{id:x}");
        let asked = self.ask(&self.members[leader], &["move-leader", &id]);
        asked.status.success()
    }

    /// Forgets all revisions but the present one. Tells whether that was done.
    pub(crate) fn compact(&self) -> bool {
        let Some(status) = self.statuses().max_by_key(revision) else {
            return false;
        };
        let compact = ["compact", "--physical", &revision(&status).to_string()];
        self.members.iter().any(|member| {
            let asked = self.ask(member, &compact);
            let reason = String::from_utf8_lossy(&asked.stderr);
            // Also if nothing has been written since it was done last.
            asked.status.success() || reason.contains("has been compacted")
        })
    }

    /// Fills the database until it refuses to take more. Tells whether it does.
    pub(crate) fn fill(&self) -> bool {
        let filler = "x".repeat(100 * 1024);
        let megabyte = self.run.join("filler");
        fs::write(&megabyte, filler.repeat(10)).unwrap();
        // Twice as often as would fill it, should another writer compact it meanwhile.
        for number in 0..QUOTA / (512 * 1024) {
            let member = &self.members[usize::try_from(number).unwrap() % self.members.len()];
            let key = format!("filler/{number}");
            let put = self
                .etcdctl(member, "5s")
                .args(["put", &key])
                .stdin(File::open(&megabyte).unwrap())
                .output()
                .unwrap();
            let reason = String::from_utf8_lossy(&put.stderr);
            if reason.contains("database space exceeded") {
                return true;
            }
        }
        false
    }

    /// Makes room again, as etcd's manual says: delete, compact, defragment, and take back the alarm.
    pub(crate) fn make_room(&self) {
        let member = &self.members[0];
        self.must(member, &["del", "--prefix", "filler/"]);
        let deadline = Instant::now() + PATIENCE;
        while !self.compact() {
            assert!(Instant::now() < deadline, "nobody compacts");
        }
        for member in &self.members {
            self.must(member, &["defrag"]);
        }
        self.must(member, &["alarm", "disarm"]);
        // A member of etcd 3.4 that is killed and started goes through its log again from its last
        // write. What it refused for want of space after that write it now takes, because the alarm is
        // gone, and differs from the others from then on. So there is a write, and the tenth of a
        // second after which it is in the file.
        self.must(member, &["put", "filled", "once"]);
        std::thread::sleep(Duration::from_millis(300));
    }

    /// Copies the store. What has been acknowledged is in the copy.
    pub(crate) fn save(&self) {
        let member = &self.members[0];
        let copy = self.copy();
        let _ = fs::remove_file(&copy);
        // The copy is of this member alone, which has everything once it has answered.
        self.must(member, &["get", "nothing"]);
        self.must(member, &["snapshot", "save", copy.to_str().unwrap()]);
    }

    /// Sets the store back to the copy, as etcd's manual says: every member begins anew from it. As
    /// another cluster, or under the id of the one before, so that the revisions alone betray it.
    pub(crate) fn restore(&self, same: bool) {
        let mut restored = self.restored.lock().unwrap();
        if !same {
            *restored += 1;
        }
        let token = format!("kmsgate-{}", *restored);
        for member in &self.members {
            member.process.kill();
        }
        for member in &self.members {
            fs::remove_dir_all(&member.data).unwrap();
            let arguments = [
                "snapshot".to_owned(),
                "restore".to_owned(),
                self.copy().display().to_string(),
                format!("--name={}", member.process.name),
                format!("--data-dir={}", member.data.display()),
                format!("--initial-cluster={}", self.membership()),
                format!("--initial-cluster-token={token}"),
                format!("--initial-advertise-peer-urls=http://{}", member.advertised),
            ];
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            self.must(member, &arguments);
        }
        self.set_arguments(&token);
        for member in &self.members {
            member.process.start();
        }
        self.await_members();
    }

    fn copy(&self) -> PathBuf {
        self.run.join("copy.db")
    }

    fn statuses(&self) -> impl Iterator<Item = Value> {
        self.members.iter().filter_map(|member| self.status(member))
    }

    /// What a member says of itself.
    fn status(&self, member: &Member) -> Option<Value> {
        // Each says what it knows, without asking the others.
        let mut etcdctl = self.etcdctl(member, "2s");
        etcdctl.args(["endpoint", "status", "--write-out=json"]);
        let asked = etcdctl.stdin(Stdio::null()).output().unwrap();
        let status: Value = serde_json::from_slice(&asked.stdout).ok()?;
        status.get(0)?.get("Status").cloned()
    }

    /// Asks again until it is done: an election may be going on.
    fn must(&self, member: &Member, arguments: &[&str]) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let done = self.ask(member, arguments);
            if done.status.success() {
                return;
            }
            let reason = String::from_utf8_lossy(&done.stderr);
            assert!(Instant::now() < deadline, "etcdctl {arguments:?}: {reason}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn ask(&self, member: &Member, arguments: &[&str]) -> Output {
        let mut etcdctl = self.etcdctl(member, "5s");
        etcdctl.args(arguments).stdin(Stdio::null());
        etcdctl.output().unwrap()
    }

    fn etcdctl(&self, member: &Member, time: &str) -> Command {
        let mut etcdctl = Command::new(&self.etcdctl);
        etcdctl
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints=http://{}", member.client))
            .arg("--dial-timeout=500ms")
            .arg(format!("--command-timeout={time}"));
        etcdctl
    }
}

fn revision(status: &Value) -> u64 {
    status["header"]["revision"].as_u64().unwrap_or_default()
}

fn links(from: usize, to: usize) -> Vec<Vec<Link>> {
    let row = |_| (0..to).map(|_| Link::new()).collect();
    (0..from).map(row).collect()
}

/// The environment of a process whose wall clock reads `clock`, and whose other clocks are the
/// machine's. A dead process must leave nothing behind in shared memory.
fn clock_that_jumps(faketime: &Path, clock: &Path) -> Vec<(&'static str, OsString)> {
    vec![
        ("LD_PRELOAD", faketime.into()),
        ("FAKETIME_TIMESTAMP_FILE", clock.into()),
        ("FAKETIME_CACHE_DURATION", "1".into()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
        ("FAKETIME_DISABLE_SHM", "1".into()),
    ]
}

/// Puts a file in the place of the one that is there, in one step.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}

/// Ports that a process can listen on again after it has been killed. Those that the kernel gives to
/// connections (from 32768, ip(7)) could be taken meanwhile.
struct Ports(u16);

impl Ports {
    fn new() -> Self {
        // Where other runs on the machine probably do not begin.
        let begin = 20_000 + std::process::id() % 300 * 40;
        Self(u16::try_from(begin).unwrap())
    }

    fn next(&mut self) -> SocketAddr {
        loop {
            self.0 += 1;
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.0));
            if Port::bind(address).is_ok() {
                return address;
            }
        }
    }
}
