//! Events of the YAML grammar to a tree.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, Tag};

use super::{Key, Limits, Map, Node, Yaml, scalar};
use crate::errors::{CompileError, Compiled, ErrorClass, Position};

/// Places of one file that are rewritten before it is read again.
const MAX_REPAIRS: usize = 50;
/// Larger files are not rewritten.
const MAX_REPAIRED_BYTES: usize = 1 << 20;

/// Reads one document. An empty file is an empty mapping.
///
/// `budget` is what remains of [`Limits::values`] for this compilation.
pub(crate) fn read(file: &str, text: &str, limits: &Limits, budget: &mut usize) -> Compiled<Node> {
    let file: Arc<str> = file.into();
    if text.len() > limits.file_bytes {
        let start = Position { file, line: 1, column: 1 };
        return Err(syntax(&start, format!("the file has {} bytes, the limit is {}", text.len(), limits.file_bytes)));
    }
    let mut text = Cow::Borrowed(text);
    for _ in 0..MAX_REPAIRS {
        let mut left = *budget;
        let error = match read_once(&file, &text, limits, &mut left) {
            Ok(node) => {
                *budget = left;
                return Ok(node);
            }
            Err(Failure::Refused(error)) => return Err(error),
            Err(Failure::Grammar(error)) => error,
        };
        match repaired(&text, &error) {
            Some(better) => text = Cow::Owned(better),
            None => return Err(grammar(&file, &error)),
        }
    }
    match read_once(&file, &text, limits, budget) {
        Ok(node) => Ok(node),
        Err(Failure::Refused(error)) => Err(error),
        Err(Failure::Grammar(error)) => Err(grammar(&file, &error)),
    }
}

enum Failure {
    Grammar(ScanError),
    Refused(Box<CompileError>),
}

fn grammar(file: &Arc<str>, error: &ScanError) -> Box<CompileError> {
    let marker = error.marker();
    syntax(&position(file, marker.line(), marker.col()), format!("Illegal yaml; {}", error.info()))
}

fn read_once(file: &Arc<str>, text: &str, limits: &Limits, budget: &mut usize) -> Result<Node, Failure> {
    let start = Position { file: file.clone(), line: 1, column: 1 };
    let mut tree = Tree {
        file: file.clone(),
        anchors: HashMap::new(),
        open: Vec::new(),
        result: None,
        depth_limit: limits.depth,
        budget,
    };
    let mut documents = 0;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(Failure::Grammar)?;
        if let Event::DocumentStart(_) = event {
            documents += 1;
            if documents > 1 {
                let at = position(file, span.start.line(), span.start.col());
                let error = syntax(&at, "expected a single document in the stream");
                return Err(Failure::Refused(error.with_remedy("keep one blueprint in a file")));
            }
        }
        tree.event(event, span).map_err(Failure::Refused)?;
    }
    Ok(tree.result.unwrap_or(Node { at: start, yaml: Yaml::Map(Map::default()) }))
}

fn position(file: &Arc<str>, line: usize, column: usize) -> Position {
    Position {
        file: file.clone(),
        line: u32::try_from(line).unwrap_or(u32::MAX),
        column: u32::try_from(column + 1).unwrap_or(u32::MAX),
    }
}

/// Rewrites what YAML 1.1 allows and this grammar does not: quoted text whose further lines stand too far left, and
/// `key:[` inside braces. Existing blueprints have both.
fn repaired(text: &str, error: &ScanError) -> Option<String> {
    if text.len() > MAX_REPAIRED_BYTES {
        return None;
    }
    let marker = error.marker();
    let line_start = text.split_inclusive('\n').take(marker.line().checked_sub(1)?).map(str::len).sum::<usize>();
    let line = text[line_start..].lines().next()?;
    let (within, mark) = line.char_indices().nth(marker.col())?;
    let place = line_start + within;
    if error.info().contains("invalid indentation in quoted scalar") && matches!(mark, '\'' | '"') {
        let end = place + 1 + end_of_quoted(&text[place + 1..], mark)?;
        let mut better = String::with_capacity(text.len() + 100);
        better.push_str(&text[..place]);
        for (i, part) in text[place..end].split('\n').enumerate() {
            let part = if i == 0 { part } else { part.trim_start() };
            if i > 0 {
                better.push('\n');
                if !part.is_empty() {
                    better.extend(std::iter::repeat_n(' ', marker.col() + 1));
                }
            }
            better.push_str(part);
        }
        better.push_str(&text[end..]);
        return (better != text).then_some(better);
    }
    if error.info().contains("':' may not precede") && mark == ':' {
        return Some(format!("{} {}", &text[..=place], &text[place + 1..]));
    }
    None
}

/// Bytes up to the closing mark.
fn end_of_quoted(text: &str, mark: char) -> Option<usize> {
    let mut chars = text.char_indices().peekable();
    while let Some((i, c)) = chars.next() {
        if c == '\\' && mark == '"' {
            chars.next();
        } else if c == mark {
            if mark == '\'' && chars.peek().is_some_and(|(_, next)| *next == '\'') {
                chars.next();
            } else {
                return Some(i);
            }
        }
    }
    None
}

fn syntax(at: &Position, message: impl Into<String>) -> Box<CompileError> {
    CompileError::new(ErrorClass::Format, Some(-1), Some(at), message)
}

struct Tree<'a> {
    file: Arc<str>,
    /// Anchored values with the number of values they hold and their depth.
    anchors: HashMap<usize, (Node, usize, usize)>,
    open: Vec<Open>,
    result: Option<Node>,
    depth_limit: usize,
    budget: &'a mut usize,
}

/// A list or mapping whose end has not come yet.
struct Open {
    at: Position,
    anchor: usize,
    values: usize,
    depth: usize,
    kind: OpenKind,
}

enum OpenKind {
    List(Vec<Node>),
    Map {
        own: Vec<(Node, Node)>,
        key: Option<Node>,
        /// The key being held is an unquoted `<<`.
        merge: bool,
        merged: Vec<(Key, Node)>,
    },
}

impl Tree<'_> {
    fn event(&mut self, event: Event<'_>, span: Span) -> Compiled<()> {
        let at = position(&self.file, span.start.line(), span.start.col());
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain;
                let merge = plain && tag.is_none() && text == "<<";
                let yaml = self.scalar(&at, &text, plain, tag.as_deref())?;
                let node = Node { at, yaml };
                if anchor > 0 {
                    self.anchors.insert(anchor, (node.clone(), 1, 1));
                }
                self.add(node, 1, 1, merge)
            }
            Event::SequenceStart(anchor, tag) => {
                self.check_tag(&at, tag.as_deref(), &["seq"])?;
                self.push(at, anchor, OpenKind::List(Vec::new()))
            }
            Event::MappingStart(anchor, tag) => {
                self.check_tag(&at, tag.as_deref(), &["map"])?;
                let kind = OpenKind::Map { own: Vec::new(), key: None, merge: false, merged: Vec::new() };
                self.push(at, anchor, kind)
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Alias(id) => {
                // An alias inside its own anchor is not finished yet and so not known.
                let Some((node, values, depth)) = self.anchors.get(&id).cloned() else {
                    return Err(syntax(&at, "alias of an anchor that is not complete")
                        .with_remedy("define the anchor before its use"));
                };
                self.spend(values, &at)?;
                self.add(node, values, depth, false)
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) | Event::DocumentEnd => {
                Ok(())
            }
        }
    }

    fn push(&mut self, at: Position, anchor: usize, kind: OpenKind) -> Compiled<()> {
        if self.open.len() >= self.depth_limit {
            return Err(syntax(&at, format!("nested deeper than {} levels", self.depth_limit)));
        }
        self.open.push(Open { at, anchor, values: 1, depth: 1, kind });
        Ok(())
    }

    fn spend(&mut self, values: usize, at: &Position) -> Compiled<()> {
        match self.budget.checked_sub(values) {
            Some(rest) => {
                *self.budget = rest;
                Ok(())
            }
            None => Err(syntax(at, "the blueprint holds too many values").with_remedy("use fewer or smaller aliases")),
        }
    }

    fn scalar(&mut self, at: &Position, text: &str, plain: bool, tag: Option<&Tag>) -> Compiled<Yaml> {
        self.spend(1, at)?;
        let yaml = match tag {
            Some(tag) if tag.handle == "!" && tag.suffix.is_empty() => Yaml::Text(text.to_owned()),
            Some(tag) if tag.is_yaml_core_schema() => {
                let as_tagged = match tag.suffix.as_str() {
                    "str" => Some(Yaml::Text(text.to_owned())),
                    "int" => scalar::integer(text).map(Yaml::Int),
                    "float" => scalar::float(text).or_else(|| text.parse().ok()).map(Yaml::Float),
                    "bool" => match scalar::resolve(text) {
                        Yaml::Bool(value) => Some(Yaml::Bool(value)),
                        _ => None,
                    },
                    "null" => Some(Yaml::Null),
                    "timestamp" | "binary" => Some(Yaml::Text(text.to_owned())),
                    _ => None,
                };
                as_tagged.ok_or_else(|| syntax(at, format!("cannot read {text:?} as !!{}", tag.suffix)))?
            }
            Some(tag) => {
                return Err(syntax(
                    at,
                    format!("could not determine a constructor for the tag '{}{}'", tag.handle, tag.suffix),
                ));
            }
            None if plain => scalar::resolve(text),
            None => Yaml::Text(text.to_owned()),
        };
        if matches!(&yaml, Yaml::Text(text) if !text.is_ascii()) {
            return Err(CompileError::new(
                ErrorClass::InputType,
                Some(108),
                Some(at),
                format!(
                    "illegal characters in line: {}, column: {}. Only valid ascii chars are supported.",
                    at.line,
                    at.column - 1
                ),
            ));
        }
        Ok(yaml)
    }

    fn check_tag(&self, at: &Position, tag: Option<&Tag>, known: &[&str]) -> Compiled<()> {
        let Some(tag) = tag else {
            return Ok(());
        };
        let plain = tag.handle == "!" && tag.suffix.is_empty();
        if plain || (tag.is_yaml_core_schema() && known.contains(&tag.suffix.as_str())) {
            return Ok(());
        }
        Err(syntax(at, format!("could not determine a constructor for the tag '{}{}'", tag.handle, tag.suffix)))
    }

    fn add(&mut self, node: Node, values: usize, depth: usize, is_merge: bool) -> Compiled<()> {
        let level = self.open.len();
        if level + depth > self.depth_limit + 1 {
            return Err(syntax(&node.at, format!("nested deeper than {} levels", self.depth_limit)));
        }
        let Some(parent) = self.open.last_mut() else {
            self.result = Some(node);
            return Ok(());
        };
        parent.values += values;
        parent.depth = parent.depth.max(depth + 1);
        match &mut parent.kind {
            OpenKind::List(items) => items.push(node),
            OpenKind::Map { own, key, merge, merged } => match key.take() {
                None => {
                    *key = Some(node);
                    *merge = is_merge;
                }
                Some(_) if *merge => merge_in(merged, node)?,
                Some(key) => own.push((key, node)),
            },
        }
        Ok(())
    }

    fn close(&mut self) -> Compiled<()> {
        let Some(open) = self.open.pop() else {
            return Ok(());
        };
        self.spend(1, &open.at)?;
        let yaml = match open.kind {
            OpenKind::List(items) => Yaml::List(items),
            OpenKind::Map { own, merged, .. } => {
                let mut map = Map::default();
                for (key, node) in merged {
                    map.insert(key, node);
                }
                for (key, node) in own {
                    map.insert(key_of(key)?, node);
                }
                Yaml::Map(map)
            }
        };
        let node = Node { at: open.at, yaml };
        if open.anchor > 0 {
            self.anchors.insert(open.anchor, (node.clone(), open.values, open.depth));
        }
        self.add(node, open.values, open.depth, false)
    }
}

/// Entries a `<<` brings in. Of a list of mappings the earlier wins.
fn merge_in(merged: &mut Vec<(Key, Node)>, node: Node) -> Compiled<()> {
    let wrong = |at: &Position| syntax(at, "expected a mapping or list of mappings for merging after '<<'");
    match node.yaml {
        Yaml::Map(map) => merged.extend(map.into_entries()),
        Yaml::List(items) => {
            for item in items.into_iter().rev() {
                let Yaml::Map(map) = item.yaml else {
                    return Err(wrong(&item.at));
                };
                merged.extend(map.into_entries());
            }
        }
        _ => return Err(wrong(&node.at)),
    }
    Ok(())
}

fn key_of(node: Node) -> Compiled<Key> {
    let kind = node.kind();
    let (name, odd) = match node.yaml {
        Yaml::Text(text) => (text, None),
        Yaml::Null => ("null".to_owned(), Some(kind)),
        Yaml::Bool(value) => (value.to_string(), Some(kind)),
        Yaml::Int(value) => (value.to_string(), Some(kind)),
        Yaml::Float(value) => (number_text(value), Some(kind)),
        Yaml::List(_) | Yaml::Map(_) => {
            return Err(syntax(&node.at, format!("a {kind} cannot be a mapping key")));
        }
    };
    Ok(Key { at: node.at, name, odd })
}

fn number_text(value: f64) -> String {
    scalar::number_of_float(value).to_string()
}
