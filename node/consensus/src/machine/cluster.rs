//! Members, join tokens, epochs and the synchronous set.

use quorate_types::cluster::{EPOCHS_KEPT, Opened};
use quorate_types::{Epoch, EpochRecord, Member, NodeId, SyncSet};

use super::{JOIN_TOKENS_MAX, JoinToken, Machine};
use crate::command::{Command, Reply};

impl Machine {
    pub(super) fn apply_cluster(&mut self, command: Command) -> Result<Reply, String> {
        match command {
            Command::Init { cluster_id, first } => self.init(cluster_id, first),
            Command::AddJoinToken { id, secret_sha256, expires_at } => self.add_token(id, secret_sha256, expires_at),
            Command::Admit { token, secret_sha256, now, name, address, public_key_sha256 } => {
                self.use_token(&token, &secret_sha256, now)?;
                let id = NodeId(self.next_node.max(1));
                Ok(Reply::Admitted(self.admit(Member { id, name, address, public_key_sha256, voter: false })))
            }
            Command::RemoveMember { id } => self.remove_member(id),
            Command::SetVoter { id, voter } => {
                self.member(id)?.voter = voter;
                Ok(Reply::Done)
            }
            Command::UpdateMember { id, name, address } => {
                let member = self.member(id)?;
                member.name = name;
                member.address = address;
                Ok(Reply::Done)
            }
            Command::Grant { epoch, holder, parent, counted, reason } => {
                self.grant(EpochRecord { epoch, holder, parent, reason, opened: None }, &counted)
            }
            Command::Open { epoch, holder, timeline, start } => self.open(epoch, holder, Opened { timeline, start }),
            Command::SetSync { epoch, expected, sync } => self.set_sync(epoch, &expected, sync),
            Command::SetSwitchover { to } => {
                if let Some(node) = to {
                    self.member(node)?;
                }
                self.cluster.switchover_to = to;
                Ok(Reply::Done)
            }
            Command::Kv(_) => unreachable!("apply hands these to the key-value store"),
        }
    }

    fn member(&mut self, id: NodeId) -> Result<&mut Member, String> {
        self.cluster.members.get_mut(&id).ok_or_else(|| format!("{id} is no member"))
    }

    fn init(&mut self, cluster_id: String, first: Member) -> Result<Reply, String> {
        if !self.cluster.cluster_id.is_empty() {
            return if self.cluster.cluster_id == cluster_id {
                Ok(Reply::Done)
            } else {
                Err(format!("this already is cluster {}", self.cluster.cluster_id))
            };
        }
        self.cluster.cluster_id = cluster_id;
        self.cluster.sync = SyncSet { num_sync: 0, members: [first.id].into() };
        self.admit(first);
        Ok(Reply::Done)
    }

    fn add_token(&mut self, id: String, secret_sha256: String, expires_at: i64) -> Result<Reply, String> {
        if self.join_tokens.contains_key(&id) {
            return Err("a token with this name waits already".into());
        }
        if self.join_tokens.len() >= JOIN_TOKENS_MAX {
            // The one that expires first gives way: nobody should be locked out by forgotten tokens.
            let oldest = self.join_tokens.iter().min_by_key(|(_, token)| token.expires_at).map(|(id, _)| id.clone());
            if let Some(oldest) = oldest {
                self.join_tokens.remove(&oldest);
            }
        }
        self.join_tokens.insert(id, JoinToken { secret_sha256, expires_at });
        Ok(Reply::Done)
    }

    fn use_token(&mut self, id: &str, secret_sha256: &str, now: i64) -> Result<(), String> {
        // One text for every cause but expiry: a guesser learns nothing.
        let unknown = || "the join token is not known, or was used already; make a new one".to_owned();
        let token = self.join_tokens.get(id).ok_or_else(unknown)?;
        if token.secret_sha256 != secret_sha256 {
            return Err(unknown());
        }
        let expired = token.expires_at <= now;
        self.join_tokens.remove(id);
        self.join_tokens.retain(|_, token| token.expires_at > now);
        if expired { Err("the join token has expired; make a new one".into()) } else { Ok(()) }
    }

    fn remove_member(&mut self, id: NodeId) -> Result<Reply, String> {
        self.member(id)?;
        // It may still stand in the synchronous set: elections then ask for more than they can hear, never for less,
        // and the active node takes it out next.
        if self.cluster.current().is_some_and(|record| record.holder == id) {
            return Err(format!("{id} holds the current epoch; switch over first"));
        }
        self.cluster.members.remove(&id);
        if self.cluster.switchover_to == Some(id) {
            self.cluster.switchover_to = None;
        }
        Ok(Reply::Done)
    }

    fn grant(&mut self, granted: EpochRecord, counted: &SyncSet) -> Result<Reply, String> {
        let (epoch, parent) = (granted.epoch, granted.parent);
        let current = self.cluster.current().map_or(Epoch(0), |record| record.epoch);
        if epoch != current.next() {
            return Err(format!("epoch {epoch} does not follow {current}"));
        }
        if parent >= epoch {
            return Err(format!("epoch {epoch} cannot continue {parent}"));
        }
        // Another set asks for other reports: the winner could lack a commit that this one vouches for.
        if self.cluster.sync != *counted {
            return Err(format!("the synchronous set has changed since the election for epoch {epoch} was counted"));
        }
        self.member(granted.holder)?;
        self.cluster.epochs.insert(epoch, granted);
        while self.cluster.epochs.len() > EPOCHS_KEPT {
            self.cluster.epochs.pop_first();
        }
        Ok(Reply::Done)
    }

    fn open(&mut self, epoch: Epoch, holder: NodeId, opened: Opened) -> Result<Reply, String> {
        let current = self.cluster.current().map_or(Epoch(0), |record| record.epoch);
        if epoch != current {
            return Err(format!("epoch {epoch} is not the current one, {current} is"));
        }
        let record = self.cluster.epochs.get_mut(&epoch).ok_or_else(|| format!("epoch {epoch} is not known"))?;
        if record.holder != holder {
            return Err(format!("epoch {epoch} belongs to {}", record.holder));
        }
        match record.opened {
            Some(before) if before != opened => return Err(format!("epoch {epoch} was opened elsewhere")),
            _ => record.opened = Some(opened),
        }
        self.cluster.switchover_to = None;
        Ok(Reply::Done)
    }

    fn set_sync(&mut self, epoch: Epoch, expected: &SyncSet, sync: SyncSet) -> Result<Reply, String> {
        let current = self.cluster.current().map_or(Epoch(0), |record| record.epoch);
        if epoch != current {
            return Err(format!("the synchronous set of epoch {epoch} cannot change in epoch {current}"));
        }
        if self.cluster.sync != *expected {
            return Err("the synchronous set has changed meanwhile".into());
        }
        if sync.members.is_empty() || sync.num_sync >= sync.members.len() {
            return Err("the synchronous set asks for more standbys than it has".into());
        }
        let known = |node: &NodeId| self.cluster.members.contains_key(node) || expected.members.contains(node);
        if let Some(stranger) = sync.members.iter().find(|node| !known(node)) {
            return Err(format!("{stranger} is no member"));
        }
        self.cluster.sync = sync;
        Ok(Reply::Done)
    }
}

#[cfg(test)]
mod tests {
    use quorate_types::{Lsn, TimelineId};

    use super::*;

    fn founded() -> Machine {
        let mut machine = Machine::default();
        let first = Member {
            id: NodeId(1),
            name: "a".into(),
            address: "127.0.0.1".parse().unwrap(),
            public_key_sha256: String::new(),
            voter: true,
        };
        assert_eq!(machine.apply(Command::Init { cluster_id: "c".into(), first }, 1), Reply::Done);
        machine
    }

    fn admit(machine: &mut Machine, token: &str, secret: &str, now: i64) -> Reply {
        let command = Command::Admit {
            token: token.into(),
            secret_sha256: secret.into(),
            now,
            name: "b".into(),
            address: "127.0.0.2".parse().unwrap(),
            public_key_sha256: String::new(),
        };
        machine.apply(command, 9)
    }

    #[test]
    fn a_token_admits_one_node_until_it_expires() {
        let mut machine = founded();
        for (id, expires_at) in [("t", 100), ("old", 10)] {
            let command = Command::AddJoinToken { id: id.into(), secret_sha256: "s".into(), expires_at };
            assert_eq!(machine.apply(command, 2), Reply::Done);
        }
        assert!(matches!(admit(&mut machine, "t", "wrong", 50), Reply::Refused(_)));
        assert!(matches!(admit(&mut machine, "old", "s", 50), Reply::Refused(why) if why.contains("expired")));
        assert_eq!(admit(&mut machine, "t", "s", 50), Reply::Admitted(NodeId(2)));
        assert!(matches!(admit(&mut machine, "t", "s", 50), Reply::Refused(_)));
        assert_eq!(machine.apply(Command::RemoveMember { id: NodeId(2) }, 3), Reply::Done);
        machine.apply(Command::AddJoinToken { id: "u".into(), secret_sha256: "s".into(), expires_at: 100 }, 4);
        assert_eq!(admit(&mut machine, "u", "s", 50), Reply::Admitted(NodeId(3)), "numbers are never used again");
    }

    #[test]
    fn an_epoch_is_granted_once_and_opened_by_its_holder() {
        let mut machine = founded();
        let counted = machine.cluster.sync.clone();
        let grant = |epoch| Command::Grant {
            epoch: Epoch(epoch),
            holder: NodeId(1),
            parent: Epoch(epoch - 1),
            counted: counted.clone(),
            reason: String::new(),
        };
        let open = |epoch, holder| Command::Open {
            epoch: Epoch(epoch),
            holder: NodeId(holder),
            timeline: TimelineId(2),
            start: Lsn(7),
        };
        assert_eq!(machine.apply(grant(1), 2), Reply::Done);
        assert!(matches!(machine.apply(grant(1), 3), Reply::Refused(_)));
        assert!(matches!(machine.apply(grant(3), 3), Reply::Refused(_)));
        assert!(matches!(machine.apply(open(1, 2), 4), Reply::Refused(_)));
        assert_eq!(machine.apply(open(1, 1), 4), Reply::Done);
        assert_eq!(machine.apply(grant(2), 5), Reply::Done);
        assert!(matches!(machine.apply(open(1, 1), 6), Reply::Refused(_)), "an old holder opens nothing");
    }

    #[test]
    fn a_grant_that_was_counted_with_another_set_is_refused() {
        let mut machine = founded();
        let counted = SyncSet { num_sync: 1, members: [NodeId(1), NodeId(2)].into() };
        let grant = Command::Grant {
            epoch: Epoch(1),
            holder: NodeId(1),
            parent: Epoch(0),
            counted: counted.clone(),
            reason: String::new(),
        };
        assert!(matches!(machine.apply(grant.clone(), 1), Reply::Refused(why) if why.contains("synchronous set")));
        machine.cluster.sync = counted;
        assert_eq!(machine.apply(grant, 2), Reply::Done);
    }

    #[test]
    fn the_synchronous_set_changes_only_from_what_was_seen() {
        let mut machine = founded();
        let now = machine.cluster.sync.clone();
        let to = SyncSet { num_sync: 1, members: [NodeId(1), NodeId(2)].into() };
        let stale = SyncSet { num_sync: 0, members: [NodeId(2)].into() };
        let set =
            |expected: &SyncSet| Command::SetSync { epoch: Epoch(0), expected: expected.clone(), sync: to.clone() };
        assert!(matches!(machine.apply(set(&stale), 1), Reply::Refused(_)));
        assert!(matches!(machine.apply(set(&now), 2), Reply::Refused(why) if why.contains("no member")));
    }
}
