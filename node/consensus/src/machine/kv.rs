//! The key-value store with Consul's index rules.

use std::ops::Bound::{Included, Unbounded};

use super::{KV_TOMBSTONES_MAX, Machine};
use crate::command::{KvCommand, KvEntry, Reply};

impl Machine {
    /// The keys with this prefix, in order; no prefix: all of them.
    pub fn kv_under<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a String, &'a KvEntry)> {
        self.kv.range::<str, _>((Included(prefix), Unbounded)).take_while(move |(key, _)| key.starts_with(prefix))
    }

    /// The log index of this key's last change or removal. For a key that is not there it may be too high, since
    /// tombstones are forgotten in time, but never too low.
    #[must_use]
    pub fn kv_key_changed(&self, key: &str) -> u64 {
        match self.kv.get(key) {
            Some(entry) => entry.modify_index,
            None => self.kv_tombstones.get(key).copied().unwrap_or(0).max(self.kv_forgotten),
        }
    }

    /// The log index of the last change or removal among the keys with this prefix; may be too high, never too low.
    #[must_use]
    pub fn kv_prefix_changed(&self, prefix: &str) -> u64 {
        let gone = self
            .kv_tombstones
            .range::<str, _>((Included(prefix), Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix));
        let there = self.kv_under(prefix).map(|(_, entry)| entry.modify_index);
        there.chain(gone.map(|(_, index)| *index)).fold(self.kv_forgotten, u64::max)
    }

    pub(super) fn apply_kv(&mut self, command: KvCommand, index: u64) -> Reply {
        let changed = match command {
            KvCommand::Put { key, value, flags, cas } => self.put(key, value, flags, cas, index),
            KvCommand::Delete { key, cas } => self.delete(&key, cas, index),
            KvCommand::DeleteTree { prefix } => {
                let keys: Vec<String> = self.kv_under(&prefix).map(|(key, _)| key.clone()).collect();
                for key in keys {
                    self.remove(&key, index);
                }
                self.forget_tombstones();
                true
            }
        };
        Reply::Kv { changed, index }
    }

    fn put(&mut self, key: String, value: Vec<u8>, flags: u64, cas: Option<u64>, index: u64) -> bool {
        let before = self.kv.get(&key);
        let allowed = match cas {
            None => true,
            Some(0) => before.is_none(),
            Some(want) => before.is_some_and(|entry| entry.modify_index == want),
        };
        if !allowed {
            return false;
        }
        if before.is_some_and(|entry| entry.value == value && entry.flags == flags) {
            return true;
        }
        let create_index = before.map_or(index, |entry| entry.create_index);
        self.kv_tombstones.remove(&key);
        self.kv.insert(key, KvEntry { value, flags, create_index, modify_index: index });
        self.kv_index = index;
        true
    }

    fn delete(&mut self, key: &str, cas: Option<u64>, index: u64) -> bool {
        if let (Some(want), Some(entry)) = (cas, self.kv.get(key))
            && entry.modify_index != want
        {
            return false;
        }
        self.remove(key, index);
        self.forget_tombstones();
        true
    }

    fn remove(&mut self, key: &str, index: u64) {
        if let Some((key, _)) = self.kv.remove_entry(key) {
            self.kv_tombstones.insert(key, index);
            self.kv_index = index;
        }
    }

    /// Half at a time, so that sorting them is rare.
    fn forget_tombstones(&mut self) {
        if self.kv_tombstones.len() <= KV_TOMBSTONES_MAX {
            return;
        }
        let mut indexes: Vec<u64> = self.kv_tombstones.values().copied().collect();
        indexes.sort_unstable();
        let newest_forgotten = indexes[indexes.len() - KV_TOMBSTONES_MAX / 2 - 1];
        self.kv_tombstones.retain(|_, index| *index > newest_forgotten);
        self.kv_forgotten = self.kv_forgotten.max(newest_forgotten);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(machine: &mut Machine, cas: Option<u64>, index: u64) -> bool {
        put_value(machine, "a/b", &index.to_string(), cas, index)
    }

    fn put_value(machine: &mut Machine, key: &str, value: &str, cas: Option<u64>, index: u64) -> bool {
        let command = KvCommand::Put { key: key.into(), value: value.into(), flags: 0, cas };
        matches!(machine.apply_kv(command, index), Reply::Kv { changed: true, .. })
    }

    fn delete(machine: &mut Machine, key: &str, cas: Option<u64>, index: u64) -> bool {
        let command = KvCommand::Delete { key: key.into(), cas };
        matches!(machine.apply_kv(command, index), Reply::Kv { changed: true, .. })
    }

    #[test]
    fn check_and_set_compares_the_modify_index() {
        let mut machine = Machine::default();
        assert!(!put(&mut machine, Some(3), 4));
        assert!(put(&mut machine, Some(0), 5));
        assert!(!put(&mut machine, Some(0), 6));
        assert!(put(&mut machine, Some(5), 7));
        let entry = &machine.kv["a/b"];
        assert_eq!((entry.create_index, entry.modify_index), (5, 7));
        assert!(!delete(&mut machine, "a/b", Some(5), 8));
        assert!(!delete(&mut machine, "a/b", Some(0), 8));
        machine.apply_kv(KvCommand::DeleteTree { prefix: "a/".into() }, 9);
        assert!(machine.kv.is_empty());
        assert!(delete(&mut machine, "a/b", Some(5), 10), "it is gone, as was asked");
        assert_eq!(machine.kv_index, 9, "which changed nothing");
    }

    #[test]
    fn the_same_value_again_is_no_change() {
        let mut machine = Machine::default();
        assert!(put_value(&mut machine, "k", "1", None, 3));
        assert!(put_value(&mut machine, "k", "1", Some(3), 4));
        assert_eq!((machine.kv["k"].modify_index, machine.kv_index), (3, 3));
    }

    #[test]
    fn a_removal_is_a_change_of_the_key_and_its_prefixes() {
        let mut machine = Machine::default();
        for (index, key) in [(1, "a/1"), (2, "a/2"), (3, "b")] {
            put_value(&mut machine, key, "", None, index);
        }
        assert_eq!((machine.kv_prefix_changed("a/"), machine.kv_prefix_changed("")), (2, 3));
        delete(&mut machine, "a/1", None, 4);
        assert_eq!((machine.kv_prefix_changed("a/"), machine.kv_prefix_changed("b")), (4, 3));
        assert_eq!((machine.kv_key_changed("a/1"), machine.kv_key_changed("a/2")), (4, 2));
        put_value(&mut machine, "a/1", "x", None, 5);
        assert_eq!((machine.kv_key_changed("a/1"), machine.kv_tombstones.len()), (5, 0));
        let under: Vec<&str> = machine.kv_under("a").map(|(key, _)| key.as_str()).collect();
        assert_eq!(under, ["a/1", "a/2"]);
    }

    #[test]
    fn forgotten_tombstones_leave_the_index_high_enough() {
        let mut machine = Machine::default();
        let mut index = 0;
        for number in 0..=KV_TOMBSTONES_MAX {
            let key = format!("k{number}");
            put_value(&mut machine, &key, "", None, index + 1);
            delete(&mut machine, &key, None, index + 2);
            index += 2;
        }
        assert_eq!(machine.kv_tombstones.len(), KV_TOMBSTONES_MAX / 2);
        assert!(machine.kv_key_changed("k0") >= 2);
        assert_eq!(machine.kv_prefix_changed(""), index);
        // One command may remove more keys than are kept.
        for number in 0..=KV_TOMBSTONES_MAX {
            put_value(&mut machine, &format!("t/{number}"), "", None, index + 1);
        }
        machine.apply_kv(KvCommand::DeleteTree { prefix: "t/".into() }, index + 2);
        assert!(machine.kv_tombstones.len() <= KV_TOMBSTONES_MAX);
        assert_eq!(machine.kv_prefix_changed("t/"), index + 2);
    }
}
