//! What goes wrong in a run, in which order, and how each fault is made and mended.

use std::time::Duration;

use crate::history::Book;
use crate::processes::Cluster;
use crate::random::Random;

/// A way to go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    KillReplica,
    KillMember,
    KillMajority,
    PauseReplica,
    PauseMember,
    CutReplicaFromMember,
    CutReplicaFromStore,
    CutMembers,
    IsolateMember,
    CutCallers,
    SlowReplica,
    SlowMember,
    SlowCallers,
    FillDatabase,
    FillDisk,
    JumpClock,
    MoveLeader,
    Compact,
    Restore,
}

impl Fault {
    pub(crate) const ALL: &[Self] = &[
        Self::KillReplica,
        Self::KillMember,
        Self::KillMajority,
        Self::PauseReplica,
        Self::PauseMember,
        Self::CutReplicaFromMember,
        Self::CutReplicaFromStore,
        Self::CutMembers,
        Self::IsolateMember,
        Self::CutCallers,
        Self::SlowReplica,
        Self::SlowMember,
        Self::SlowCallers,
        Self::FillDatabase,
        Self::FillDisk,
        Self::JumpClock,
        Self::MoveLeader,
        Self::Compact,
        Self::Restore,
    ];

    /// In the words of the table.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::KillReplica => "kill -9 of a replica",
            Self::KillMember => "kill -9 of a member",
            Self::KillMajority => "kill -9 of two members at once",
            Self::PauseReplica => "SIGSTOP of a replica",
            Self::PauseMember => "SIGSTOP of a member",
            Self::CutReplicaFromMember => "a replica cut off from a member",
            Self::CutReplicaFromStore => "a replica cut off from all members",
            Self::CutMembers => "two members cut off from each other",
            Self::IsolateMember => "a member cut off from the others, not from the replicas",
            Self::CutCallers => "callers cut off from a replica",
            Self::SlowReplica => "slow links from a replica to the members",
            Self::SlowMember => "slow links between a member and the others",
            Self::SlowCallers => "a slow link from callers to a replica",
            Self::FillDatabase => "etcd's database is as large as it may be",
            Self::FillDisk => "no space left on a disk",
            Self::JumpClock => "a replica's clock jumps by an hour, and back",
            Self::MoveLeader => "another member leads",
            Self::Compact => "compaction to the present revision",
            Self::Restore => "all members restored from a snapshot",
        }
    }

    /// Whether it needs etcd.
    const fn is_of_members(self) -> bool {
        !matches!(
            self,
            Self::KillReplica
                | Self::PauseReplica
                | Self::CutCallers
                | Self::SlowCallers
                | Self::FillDisk
                | Self::JumpClock
        )
    }

    /// Whether it can be made while something else is wrong: those cannot that ask all members for
    /// something.
    const fn combines(self) -> bool {
        !matches!(self, Self::FillDatabase | Self::Restore)
    }
}

/// Faults that are there together, and how.
#[derive(Clone, Debug)]
pub(crate) struct Round {
    pub(crate) faults: Vec<Fault>,
    /// For how long.
    pub(crate) hold: Duration,
    /// What decides the rest.
    random: Random,
}

/// So many faults, in rounds: every kind that there can be as often as every other.
pub(crate) fn plan(
    faults: usize,
    with_members: bool,
    with_disks: bool,
    random: &mut Random,
) -> Vec<Round> {
    let kinds = Fault::ALL.iter().copied();
    let kinds: Vec<Fault> = kinds
        .filter(|kind| with_members || !kind.is_of_members())
        .filter(|kind| with_disks || *kind != Fault::FillDisk)
        .collect();
    let mut order = Vec::new();
    while order.len() < faults {
        let mut next = kinds.clone();
        random.shuffle(&mut next);
        order.extend(next);
    }
    order.truncate(faults);
    let mut rounds: Vec<Round> = Vec::new();
    for fault in order {
        let joins = rounds.last().is_some_and(|round| {
            let mut others = round.faults.iter();
            round.faults.len() < 3
                && fault.combines()
                && others.all(|other| other.combines() && *other != fault)
        });
        if joins && random.percent(40) {
            rounds.last_mut().unwrap().faults.push(fault);
            continue;
        }
        // Below and above max_staleness.
        let hold = match random.below(4) {
            0 => random.millis(3200..6000),
            _ => random.millis(200..2500),
        };
        rounds.push(Round {
            faults: vec![fault],
            hold,
            random: random.fork(),
        });
    }
    rounds
}

impl Round {
    pub(crate) fn names(&self) -> String {
        let names: Vec<_> = self.faults.iter().map(|fault| fault.name()).collect();
        names.join(" + ")
    }

    /// Makes the faults, waits, and mends everything. Tells what of it could not be made.
    pub(crate) async fn run(mut self, cluster: &Cluster, book: &Book) -> Vec<Fault> {
        let mut failed = Vec::new();
        let mut saved = None;
        // What members are asked to do comes before what keeps them from it.
        let asked = |fault: &Fault| matches!(fault, Fault::MoveLeader | Fault::Compact);
        self.faults.sort_by_key(|fault| !asked(fault));
        // Before anything is wrong: then members answer at once.
        let leader = tokio::task::block_in_place(|| cluster.leader());
        for fault in self.faults.clone() {
            let from = book.now();
            let random = &mut self.random;
            let made = tokio::task::block_in_place(|| make(fault, leader, cluster, random));
            if !made {
                failed.push(fault);
            }
            if fault == Fault::Restore {
                saved = Some((from, book.now()));
            }
        }
        tokio::time::sleep(self.hold).await;
        if let Some(save) = saved {
            book.restoring(save);
            let same = self.random.percent(50);
            tokio::task::block_in_place(|| cluster.restore(same));
            book.restored();
        }
        tokio::task::block_in_place(|| self.mend(cluster));
        failed
    }

    fn mend(&mut self, cluster: &Cluster) {
        for link in cluster.links() {
            link.heal();
            // Something on the way has forgotten the connections, now and then.
            if self.random.percent(10) {
                link.tear();
            }
        }
        for disk in cluster.disks() {
            disk.make_room();
        }
        // A member of etcd ends when it cannot write.
        if self.faults.contains(&Fault::FillDisk) {
            for member in &cluster.members {
                if member.process.ended_by_itself().is_some() {
                    member.process.kill();
                }
            }
        }
        for process in cluster.processes() {
            process.resume();
            process.start();
        }
        for replica in &cluster.replicas {
            replica.set_clock("+0");
        }
        if self.faults.contains(&Fault::FillDatabase) {
            cluster.make_room();
        }
    }
}

/// Makes a fault. Tells whether that could be done.
fn make(fault: Fault, leader: Option<usize>, cluster: &Cluster, random: &mut Random) -> bool {
    let replica = random.below(cluster.replicas.len());
    let members = cluster.members.len();
    // What happens to the leader is worse than what happens to another member.
    let aims = random.percent(50);
    let mut member = random.below(members.max(1));
    let other = (member + 1 + random.below(members.saturating_sub(1).max(1))) % members.max(1);
    if aims && fault != Fault::MoveLeader {
        member = leader.unwrap_or(member);
    }
    let other = if other == member {
        (other + 1) % members.max(1)
    } else {
        other
    };
    match fault {
        Fault::KillReplica => cluster.replicas[replica].process.kill(),
        Fault::KillMember => cluster.members[member].process.kill(),
        Fault::KillMajority => {
            cluster.members[member].process.kill();
            cluster.members[other].process.kill();
        }
        Fault::PauseReplica => cluster.replicas[replica].process.pause(),
        Fault::PauseMember => cluster.members[member].process.pause(),
        Fault::CutReplicaFromMember => cluster.to_member[replica][member].cut(),
        Fault::CutReplicaFromStore => {
            for link in &cluster.to_member[replica] {
                link.cut();
            }
        }
        Fault::CutMembers => {
            cluster.between[member][other].cut();
            cluster.between[other][member].cut();
        }
        Fault::IsolateMember => {
            for other in (0..members).filter(|&other| other != member) {
                cluster.between[member][other].cut();
                cluster.between[other][member].cut();
            }
        }
        Fault::CutCallers => cluster.to_replica[replica].cut(),
        Fault::SlowReplica => {
            let delay = random.millis(20..800);
            for link in &cluster.to_member[replica] {
                link.slow_down(delay);
            }
        }
        Fault::SlowMember => {
            let delay = random.millis(20..400);
            for other in (0..members).filter(|&other| other != member) {
                cluster.between[member][other].slow_down(delay);
                cluster.between[other][member].slow_down(delay);
            }
        }
        Fault::SlowCallers => cluster.to_replica[replica].slow_down(random.millis(20..800)),
        Fault::FillDatabase => return cluster.fill(),
        Fault::FillDisk => match cluster.members.get(member) {
            Some(member) => member.disk.fill(),
            None => cluster.replicas[replica].disk.fill(),
        },
        Fault::JumpClock => {
            let offset = if random.percent(50) { "+1h" } else { "-1h" };
            cluster.replicas[replica].set_clock(offset);
        }
        Fault::MoveLeader => {
            if leader == Some(member) {
                member = other;
            }
            return cluster.move_leader(member);
        }
        Fault::Compact => return cluster.compact(),
        Fault::Restore => cluster.save(),
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_has_every_fault_once_before_it_has_one_twice() {
        for seed in 0..50 {
            let rounds = plan(Fault::ALL.len(), true, true, &mut Random::new(seed));
            let mut made: Vec<_> = rounds.iter().flat_map(|round| &round.faults).collect();
            made.sort_unstable();
            assert_eq!(made, Fault::ALL.iter().collect::<Vec<_>>(), "{seed}");
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_plan() {
        let told = |seed| {
            let rounds = plan(200, true, true, &mut Random::new(seed));
            let told = rounds.iter().map(|round| (round.names(), round.hold));
            told.collect::<Vec<_>>()
        };
        assert_eq!(told(7), told(7));
        assert_ne!(told(7), told(8));
    }
}
