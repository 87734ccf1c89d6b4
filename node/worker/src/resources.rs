//! Files of blueprints and deployments, and rendering them.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use minijinja::{Environment, UndefinedBehavior, Value as Jinja};
use serde_json::Value;

use crate::context::Context;
use crate::rest::{Caller, Rest};
use crate::settings::{TEMPLATE_BYTES_MAX, TEMPLATE_FUEL};
use crate::wire::{Failure, Object};

/// Marks a path of an imported blueprint: `<namespace>--<path>`.
const NAMESPACE_DELIMITER: &str = "--";

pub(crate) struct Resources {
    rest: Arc<Rest>,
    caller: Caller,
    context: Arc<Context>,
    /// Where files without a wanted place go; gone with the operation.
    scratch: PathBuf,
    /// What relative wanted places are relative to.
    cwd: PathBuf,
    count: AtomicU64,
}

impl Resources {
    pub(crate) fn new(rest: Arc<Rest>, caller: Caller, context: Arc<Context>, scratch: &Path, cwd: &Path) -> Self {
        let (scratch, cwd) = (scratch.to_owned(), cwd.to_owned());
        Self { rest, caller, context, scratch, cwd, count: AtomicU64::new(0) }
    }

    /// Downloads a resource: the deployment's own, else the blueprint's, else a global one. Without a target it is
    /// stored under its own name in a new directory of the operation's scratch space.
    pub(crate) async fn download(&self, path: &str, target: Option<&str>) -> Result<PathBuf, Failure> {
        let mut blueprint = self.context.text("blueprint_id");
        let mut wanted = path.to_owned();
        if let Some((namespace, inner)) = namespaced(path) {
            wanted = inner;
            if let Some(id) = &blueprint {
                let got = self.rest.get(&self.caller, &["blueprints", id], &[("_include", "plan")]).await;
                let plan = got.map_err(|error| error.failure())?;
                if let Some(mapped) = plan.pointer("/plan/namespaces_mapping").and_then(|map| map.get(&namespace)) {
                    blueprint = mapped.as_str().map(str::to_owned);
                }
            }
        }
        let segments = segments(&wanted)?;
        let name = segments.last().copied().unwrap_or_default();
        let to = match target {
            Some(target) => self.cwd.join(target),
            None => self.place(name)?,
        };
        let tenant = self.context.tenant();
        let mut tried = Vec::new();
        if let Some(deployment) = self.context.text("deployment_id") {
            let from = join(&["deployments", &tenant, &deployment], &segments);
            if self.try_one(&from, &to, &mut tried).await? {
                return Ok(to);
            }
        }
        if let Some(blueprint) = blueprint {
            let owner = self.blueprint_tenant(&blueprint).await?.unwrap_or_else(|| tenant.clone());
            let from = join(&["blueprints", &owner, &blueprint], &segments);
            if self.try_one(&from, &to, &mut tried).await? {
                return Ok(to);
            }
        }
        if self.try_one(&segments, &to, &mut tried).await? {
            return Ok(to);
        }
        Err(Failure::http(tried.join(","), 404, format!("Resource not found: {wanted}")))
    }

    async fn try_one(&self, from: &[&str], to: &Path, tried: &mut Vec<String>) -> Result<bool, Failure> {
        match self.rest.download(&self.caller, from, to).await {
            Ok(()) => Ok(true),
            Err(error) if error.status().is_some_and(|status| status.as_u16() == 404) => {
                tried.push(format!("/resources/{}", from.join("/")));
                Ok(false)
            }
            Err(error) => Err(error.failure()),
        }
    }

    /// The tenant a globally visible blueprint belongs to; `None`: the operation's.
    async fn blueprint_tenant(&self, id: &str) -> Result<Option<String>, Failure> {
        match self.rest.get(&self.caller, &["blueprints", id], &[]).await {
            Ok(blueprint) if blueprint.get("visibility").and_then(Value::as_str) == Some("global") => {
                Ok(blueprint.get("tenant_name").and_then(Value::as_str).map(str::to_owned))
            }
            Ok(_) => Ok(None),
            Err(error) if error.status().is_some_and(|status| status.as_u16() == 404) => Ok(None),
            Err(error) => Err(error.failure()),
        }
    }

    /// A place of its own for a file of this name.
    pub(crate) fn place(&self, name: &str) -> Result<PathBuf, Failure> {
        let dir = self.scratch.join(format!("r{}", self.count.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir(&dir)
            .map_err(|error| Failure::recoverable("OSError", format!("make {}: {error}", dir.display())))?;
        Ok(dir.join(name))
    }

    /// Reads a downloaded file as a template's text.
    pub(crate) async fn read(&self, path: &Path) -> Result<String, Failure> {
        let failed = |error: std::io::Error| Failure::recoverable("OSError", format!("{}: {error}", path.display()));
        let size = tokio::fs::metadata(path).await.map_err(failed)?.len();
        if size > TEMPLATE_BYTES_MAX {
            return Err(Failure::fatal(format!("{} is larger than {TEMPLATE_BYTES_MAX} bytes", path.display())));
        }
        let bytes = tokio::fs::read(path).await.map_err(failed)?;
        String::from_utf8(bytes).map_err(|_| Failure::fatal(format!("{} is not UTF-8 text", path.display())))
    }
}

fn join<'a>(front: &[&'a str], back: &[&'a str]) -> Vec<&'a str> {
    front.iter().chain(back).copied().collect()
}

/// A path's parts; one that leads upwards is refused.
fn segments(path: &str) -> Result<Vec<&str>, Failure> {
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.is_empty() || parts.iter().any(|part| *part == ".." || part.contains(['\\', '\0'])) {
        return Err(Failure::fatal(format!("{path} is not a path inside the blueprint")));
    }
    Ok(parts)
}

/// `scripts/ns--run.sh` and `ns--scripts/run.sh` both name `run.sh`'s namespace `ns`.
fn namespaced(path: &str) -> Option<(String, String)> {
    let (front, inner) = path.split_once(NAMESPACE_DELIMITER)?;
    let (dir, namespace) = match front.rsplit_once('/') {
        Some((dir, namespace)) => (format!("{dir}/"), namespace),
        None => (String::new(), front),
    };
    Some((namespace.to_owned(), format!("{dir}{inner}")))
}

/// Renders a template of Jinja's language. Text without template marks is passed through.
pub(crate) fn render(template: &str, variables: &Object) -> Result<String, Failure> {
    if !["{{", "{%", "{#"].iter().any(|mark| template.contains(mark)) {
        return Ok(template.to_owned());
    }
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_fuel(Some(TEMPLATE_FUEL));
    environment.set_unknown_method_callback(|_, value, method, args| mapping_method(value, method, args));
    environment
        .render_str(template, jinja_object(variables))
        .map_err(|error| Failure::recoverable("TemplateError", format!("render the template: {error}")))
}

/// By hand: numbers keep their digits as text in this build's JSON, which a serializer would show as an object.
fn jinja(value: &Value) -> Jinja {
    match value {
        Value::Null => Jinja::from(()),
        Value::Bool(flag) => Jinja::from(*flag),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => Jinja::from(whole),
            (None, Some(real)) => Jinja::from(real),
            (None, None) => Jinja::from(number.to_string()),
        },
        Value::String(text) => Jinja::from(text.as_str()),
        Value::Array(items) => Jinja::from(items.iter().map(jinja).collect::<Vec<_>>()),
        Value::Object(map) => jinja_object(map),
    }
}

fn jinja_object(map: &Object) -> Jinja {
    Jinja::from_pairs(map.iter().map(|(key, value)| (key.clone(), jinja(value))))
}

/// The methods of Python's dictionaries that templates use.
fn mapping_method(value: &Jinja, method: &str, args: &[Jinja]) -> Result<Jinja, minijinja::Error> {
    let keys = || value.try_iter().map(Iterator::collect::<Vec<_>>);
    match (method, args) {
        ("get", [key]) => Ok(Some(value.get_item(key)?).filter(|item| !item.is_undefined()).unwrap_or(Jinja::from(()))),
        ("get", [key, default]) => {
            Ok(Some(value.get_item(key)?).filter(|item| !item.is_undefined()).unwrap_or_else(|| default.clone()))
        }
        ("keys", []) => Ok(Jinja::from(keys()?)),
        ("values", []) => {
            Ok(Jinja::from(keys()?.iter().map(|key| value.get_item(key)).collect::<Result<Vec<_>, _>>()?))
        }
        ("items", []) => {
            let pair = |key: &Jinja| Ok(Jinja::from(vec![key.clone(), value.get_item(key)?]));
            Ok(Jinja::from(keys()?.iter().map(pair).collect::<Result<Vec<_>, minijinja::Error>>()?))
        }
        _ => Err(minijinja::Error::from(minijinja::ErrorKind::UnknownMethod)),
    }
}

/// Writes a file only this user reads.
pub(crate) fn write_private(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    use std::io::Write;
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
    file.write_all(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_path_that_leads_upwards_is_refused() {
        assert_eq!(segments("/scripts/./run.sh").expect("inside"), ["scripts", "run.sh"]);
        assert!(segments("scripts/../../etc/passwd").is_err());
        assert!(segments("..\\x").is_err());
        assert!(segments("/").is_err());
    }

    #[test]
    fn an_imported_blueprints_path_names_its_namespace() {
        assert_eq!(namespaced("ns--scripts/run.sh"), Some(("ns".into(), "scripts/run.sh".into())));
        assert_eq!(namespaced("scripts/ns--run.sh"), Some(("ns".into(), "scripts/run.sh".into())));
        assert_eq!(namespaced("scripts/run.sh"), None);
    }

    #[test]
    fn templates_see_variables_and_dictionary_methods() {
        let Value::Object(variables) = json!({"p": {"port": 80, "l": [1, 2]}}) else { panic!("object") };
        let text = "{{ p.port }} {{ p.get('x', 'y') }}{% for k, v in p.items() %} {{ k }}{% endfor %}\n";
        assert_eq!(render(text, &variables).expect("render"), "80 y port l");
        assert_eq!(render("plain\n", &variables).expect("render"), "plain\n");
        assert!(render("{{ p.", &variables).is_err());
    }
}
