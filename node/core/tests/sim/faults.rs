//! What goes wrong, and what people do.

use quorate_core::invariants::Fact;
use quorate_types::NodeId;

use super::events::{Command, Ms, Outside, What};
use super::postgres::Mode;
use super::raft::{Entry, Purpose};
use super::world::{Node, World};

impl World {
    pub fn on_outside(&mut self, what: Outside) {
        match what {
            Outside::Write => self.client_writes(),
            Outside::Fault => {
                if !self.quiet {
                    self.fault();
                    let after = self.rng.range(100, 2500);
                    self.outside(after, Outside::Fault);
                }
            }
            Outside::Heal => self.heal(),
            Outside::Restart(id) => self.restart(id),
            Outside::Uncut(a, b) => {
                self.cut.remove(&(a, b));
            }
            Outside::Probe => self.try_admit(),
        }
    }

    /// Clients write to whoever lets them in.
    fn client_writes(&mut self) {
        let after = self.rng.range(10, 60);
        self.outside(after, Outside::Write);
        let open = |id: &NodeId, node: &Node, world: &Self| {
            node.reign.is_some() && node.pg.mode == Mode::Primary && !node.pg.stopping && world.awake(*id)
        };
        let doors: Vec<NodeId> = self.nodes.iter().filter(|(id, n)| open(id, n, self)).map(|(id, _)| *id).collect();
        for id in doors {
            self.last_write += 1;
            let write = self.last_write;
            self.fact(Fact::WriteBegan { write });
            self.write(id, write);
        }
    }

    fn fault(&mut self) {
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        let active = ids.iter().copied().find(|id| self.nodes[id].serving.is_some());
        let raft_leader = self.raft.leader;
        // The interesting nodes more often than chance would have it.
        let any = self.rng.pick(&ids);
        let chosen = match self.rng.range(0, 3) {
            0 | 1 => active.or(any),
            2 => raft_leader.filter(|id| self.nodes.contains_key(id)).or(any),
            _ => any,
        };
        let Some(id) = chosen else { return };
        match self.rng.range(0, 15) {
            0 | 1 => self.crash(id, false),
            2 | 3 => self.crash(id, true),
            4..=6 => {
                let long = self.rng.range(50, 4000);
                self.stop(id, long);
            }
            7 => self.isolate(id, true, true),
            8 => self.isolate(id, true, false),
            9 => self.isolate(id, false, true),
            10 | 11 => {
                if let Some(other) = self.rng.pick(&ids).filter(|other| *other != id) {
                    self.cut_for_a_while(id, other);
                    if self.rng.permille(600) {
                        self.cut_for_a_while(other, id);
                    }
                }
            }
            12 => {
                self.loss = self.rng.range(0, 200);
                self.delay = self.rng.range(2, 60);
                self.trace(|| "the network gets worse or better".into());
            }
            13 => {
                self.trace(|| "power loss of all".into());
                for id in ids {
                    self.crash(id, true);
                }
            }
            14 => {
                if let Some(to) = self.rng.pick(&ids) {
                    self.trace(|| format!("somebody asks for a switchover to {to}"));
                    if self.nodes[&id].up {
                        self.propose(id, Command::SetSwitchover(to), Purpose::Other);
                    }
                }
            }
            _ => self.wipe(id),
        }
    }

    pub fn crash(&mut self, id: NodeId, power: bool) {
        if !self.nodes[&id].up {
            return;
        }
        self.trace(|| format!("{id} {}", if power { "loses power" } else { "crashes" }));
        self.wake(id);
        self.end_service(id);
        self.kill_server(id, power);
        let node = self.n(id);
        node.up = false;
        node.dark = power;
        node.life += 1;
        let after = self.rng.range(100, 5000);
        self.outside(after, Outside::Restart(id));
    }

    fn restart(&mut self, id: NodeId) {
        let now = self.now;
        if self.nodes.get(&id).is_none_or(|node| node.up) {
            return;
        }
        self.trace(|| format!("{id} starts"));
        self.n(id).reborn(now);
        self.after(1, id, What::Tick);
    }

    fn stop(&mut self, id: NodeId, long: Ms) {
        if self.awake(id) {
            self.trace(|| format!("{id} is stopped for {long} ms"));
            self.n(id).asleep_until = self.now + long;
            self.fact(Fact::Stopped { node: id });
            // The check of the address must know when it goes on; the order within that moment does not matter.
            self.wakes.push((self.now + long, id));
        }
    }

    /// A stopped process that is killed does not wake before.
    fn wake(&mut self, id: NodeId) {
        if self.now < self.nodes[&id].asleep_until {
            self.n(id).asleep_until = 0;
            self.wakes.retain(|(_, sleeper)| *sleeper != id);
            self.fact(Fact::Woke { node: id });
        }
    }

    pub fn tell_of_wakes(&mut self) {
        let now = self.now;
        let due: Vec<NodeId> = self.wakes.iter().filter(|(at, _)| *at <= now).map(|(_, id)| *id).collect();
        self.wakes.retain(|(at, _)| *at > now);
        for node in due {
            self.fact(Fact::Woke { node });
        }
    }

    fn isolate(&mut self, id: NodeId, out: bool, into: bool) {
        let others: Vec<NodeId> = self.nodes.keys().copied().filter(|other| *other != id).collect();
        for other in others {
            if out {
                self.cut_for_a_while(id, other);
            }
            if into {
                self.cut_for_a_while(other, id);
            }
        }
    }

    fn cut_for_a_while(&mut self, a: NodeId, b: NodeId) {
        self.trace(|| format!("{a} cannot reach {b}"));
        self.cut.insert((a, b));
        let after = self.rng.range(200, 6000);
        self.outside(after, Outside::Uncut(a, b));
    }

    /// The machine gets new disks and joins again under a new number.
    fn wipe(&mut self, id: NodeId) {
        // Everybody else must have data that can be continued: one lost disk at a time is what the cluster is made for.
        let state = self.latest();
        let line = state.last_opened().map(|record| record.epoch).unwrap_or_default();
        let sound =
            |other: NodeId| self.nodes[&other].has_data && state.descends_from(line, self.position(other).lineage);
        let others_have = self.nodes.keys().all(|other| *other == id || sound(*other));
        if !self.membership_rests() || self.nodes.len() < 3 || !others_have {
            return;
        }
        self.crash(id, true);
        let Some(old) = self.nodes.remove(&id) else { return };
        let new = NodeId(self.next_id);
        self.next_id += 1;
        self.trace(|| format!("{id} is wiped and comes back as {new}"));
        if self.raft.leader == Some(id) {
            self.raft.leader = None;
            self.raft.pending.clear();
        }
        let (now, applied) = (self.now, 0);
        self.nodes.insert(new, Node::new(old.address, applied, now));
        self.after(1, new, What::Tick);
        self.admit(new, old.address);
    }

    /// An operator's `cluster join`, which is repeated until it succeeds.
    pub fn admit(&mut self, id: NodeId, address: std::net::IpAddr) {
        self.joining.push((id, address));
        self.outside(300, Outside::Probe);
    }

    fn try_admit(&mut self) {
        let members = self.latest();
        self.joining.retain(|(id, _)| !members.members.contains_key(id));
        let Some((id, address)) = self.joining.first().copied() else { return };
        if let Some(leader) = self.raft.leader.filter(|leader| self.awake(*leader)) {
            self.append(leader, Entry { command: Command::Admit { id, address }, origin: leader, id: 0 });
        }
        self.outside(700, Outside::Probe);
    }

    /// From here on nothing goes wrong any more.
    fn heal(&mut self) {
        self.quiet = true;
        self.trace(|| "all faults end".into());
        self.cut.clear();
        self.loss = 0;
        self.delay = 3;
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        for id in ids {
            if self.nodes[&id].up {
                self.wake(id);
            } else {
                self.restart(id);
            }
        }
    }
}
