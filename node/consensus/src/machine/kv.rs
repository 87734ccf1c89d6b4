//! The key-value store with Consul's index rules.

use super::Machine;
use crate::command::{KvCommand, KvEntry, Reply};

impl Machine {
    pub(super) fn apply_kv(&mut self, command: KvCommand, index: u64) -> Reply {
        let changed = match command {
            KvCommand::Put { key, value, flags, cas } => self.put(key, value, flags, cas, index),
            KvCommand::Delete { key, cas } => self.delete(&key, cas),
            KvCommand::DeleteTree { prefix } => {
                let keys: Vec<String> = self
                    .kv
                    .range(prefix.clone()..)
                    .take_while(|(key, _)| key.starts_with(&prefix))
                    .map(|(key, _)| key.clone())
                    .collect();
                for key in &keys {
                    self.kv.remove(key);
                }
                if !keys.is_empty() {
                    self.kv_index = index;
                }
                return Reply::Kv { changed: true, index };
            }
        };
        if changed {
            self.kv_index = index;
        }
        Reply::Kv { changed, index }
    }

    fn put(&mut self, key: String, value: Vec<u8>, flags: u64, cas: Option<u64>, index: u64) -> bool {
        let before = self.kv.get(&key);
        let allowed = match cas {
            None => true,
            Some(0) => before.is_none(),
            Some(want) => before.is_some_and(|entry| entry.modify_index == want),
        };
        if allowed {
            let create_index = before.map_or(index, |entry| entry.create_index);
            self.kv.insert(key, KvEntry { value, flags, create_index, modify_index: index });
        }
        allowed
    }

    fn delete(&mut self, key: &str, cas: Option<u64>) -> bool {
        match cas {
            Some(want) if self.kv.get(key).is_none_or(|entry| entry.modify_index != want) => false,
            _ => {
                self.kv.remove(key);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(machine: &mut Machine, cas: Option<u64>, index: u64) -> bool {
        let command = KvCommand::Put { key: "a/b".into(), value: b"1".to_vec(), flags: 0, cas };
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
        let command = KvCommand::Delete { key: "a/b".into(), cas: Some(5) };
        assert_eq!(machine.apply_kv(command, 8), Reply::Kv { changed: false, index: 8 });
        machine.apply_kv(KvCommand::DeleteTree { prefix: "a/".into() }, 9);
        assert!(machine.kv.is_empty());
    }
}
