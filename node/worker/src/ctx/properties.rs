//! Paths into properties, as the `ctx` command writes them, and merging of two people's changes.

use serde_json::{Map, Value};

use crate::wire::Object;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("illegal path: {0}")]
pub(crate) struct IllegalPath(pub(crate) String);

/// `name[3]` as its parts.
fn indexed(segment: &str) -> Option<(&str, usize)> {
    let (name, index) = segment.strip_suffix(']')?.rsplit_once('[')?;
    if name.is_empty() {
        return None;
    }
    Some((name, index.parse().ok()?))
}

/// Reads what a path names: dots descend, `name[3]` takes an item of a list.
pub(crate) fn read<'a>(map: &'a Object, path: &str) -> Result<&'a Value, IllegalPath> {
    let illegal = || IllegalPath(path.to_owned());
    let mut current: Option<&Value> = None;
    for segment in path.split('.') {
        let inside = match current {
            None => map,
            Some(value) => value.as_object().ok_or_else(illegal)?,
        };
        let next = match indexed(segment) {
            Some((name, index)) => inside.get(name).and_then(Value::as_array).and_then(|list| list.get(index)),
            None => inside.get(segment),
        };
        current = Some(next.ok_or_else(illegal)?);
    }
    current.ok_or_else(illegal)
}

/// Writes what a path names; missing objects on the way are made, missing lists are not.
pub(crate) fn write(map: &mut Object, path: &str, value: Value) -> Result<(), IllegalPath> {
    let illegal = || IllegalPath(path.to_owned());
    let (parents, last) = match path.rsplit_once('.') {
        Some((parents, last)) => (Some(parents), last),
        None => (None, path),
    };
    let mut current = map;
    for segment in parents.into_iter().flat_map(|parents| parents.split('.')) {
        let next = match indexed(segment) {
            Some((name, index)) => {
                current.get_mut(name).and_then(Value::as_array_mut).and_then(|list| list.get_mut(index))
            }
            None => Some(current.entry(segment).or_insert_with(|| Value::Object(Map::new()))),
        };
        current = next.and_then(Value::as_object_mut).ok_or_else(illegal)?;
    }
    current.insert(last.to_owned(), value);
    Ok(())
}

/// Applies what `ours` changed since `base` to `theirs`. `Err` names a property both changed, differently.
pub(crate) fn merge(base: &Object, ours: &Object, theirs: &Object) -> Result<Object, String> {
    let mut merged = theirs.clone();
    for key in base.keys().chain(ours.keys().filter(|key| !base.contains_key(*key))) {
        let (before, mine, stored) = (base.get(key), ours.get(key), theirs.get(key));
        if mine == before || mine == stored {
            continue;
        }
        match (mine, stored) {
            (Some(Value::Object(mine)), Some(Value::Object(stored))) => {
                let empty = Map::new();
                let before = before.and_then(Value::as_object).unwrap_or(&empty);
                let inner = merge(before, mine, stored).map_err(|inner| format!("{key}.{inner}"))?;
                merged.insert(key.clone(), Value::Object(inner));
            }
            _ if stored != before => return Err(key.clone()),
            (Some(mine), _) => {
                merged.insert(key.clone(), mine.clone());
            }
            (None, _) => {
                merged.shift_remove(key);
            }
        }
    }
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(value: Value) -> Object {
        match value {
            Value::Object(map) => map,
            other => panic!("not an object: {other}"),
        }
    }

    #[test]
    fn reads_nested_and_listed_values() {
        let map = object(json!({"a": {"b": [{"c": 1}, {"c": 2}]}, "x": null}));
        assert_eq!(read(&map, "a.b[1].c"), Ok(&json!(2)));
        assert_eq!(read(&map, "x"), Ok(&Value::Null));
        assert_eq!(read(&map, "a.z"), Err(IllegalPath("a.z".into())));
        assert_eq!(read(&map, "a.b[7]"), Err(IllegalPath("a.b[7]".into())));
    }

    #[test]
    fn writes_make_the_objects_on_their_way() {
        let mut map = object(json!({"l": [{}]}));
        write(&mut map, "a.b.c", json!(1)).expect("write");
        write(&mut map, "l[0].k", json!(2)).expect("write");
        assert_eq!(Value::Object(map.clone()), json!({"l": [{"k": 2}], "a": {"b": {"c": 1}}}));
        assert!(write(&mut map, "a.b.c.d", json!(1)).is_err());
    }

    #[test]
    fn changes_of_two_are_merged_unless_they_meet() {
        let base = object(json!({"keep": 1, "mine": 1, "gone": 1, "deep": {"a": 1, "b": 1}}));
        let ours = object(json!({"keep": 1, "mine": 2, "deep": {"a": 2, "b": 1}, "new": 1}));
        let theirs = object(json!({"keep": 5, "mine": 1, "gone": 1, "deep": {"a": 1, "b": 3}}));
        let merged = merge(&base, &ours, &theirs).expect("merge");
        assert_eq!(Value::Object(merged), json!({"keep": 5, "mine": 2, "deep": {"a": 2, "b": 3}, "new": 1}));
        let theirs = object(json!({"keep": 1, "mine": 9, "gone": 1, "deep": {"a": 1, "b": 1}}));
        assert_eq!(merge(&base, &ours, &theirs), Err("mine".into()));
    }
}
