//! The unmodified `cfy` 7.0.5 against the cluster address, over TLS with the CA file: every command that people begin
//! with, as the administrator and as an ordinary user of a second tenant.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use quorate_cluster_tests::bed::Bed;
use quorate_cluster_tests::cluster::{Cluster, Timing};
use serde_json::Value;

const NODES: u8 = 3;
/// How long one command may take.
const COMMAND_SECONDS: &str = "180";
const CANCEL_LIMIT: Duration = Duration::from_secs(60);
/// The sample that the demo installs.
const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../node/src/demo/sample/blueprint.yaml");

struct Cfy<'a> {
    cluster: &'a Cluster,
    program: PathBuf,
    home: PathBuf,
}

impl<'a> Cfy<'a> {
    /// A user's own configuration directory.
    fn new(cluster: &'a Cluster, who: &str) -> Self {
        let venv = std::env::var("QUORATE_VENV").expect("`make test` sets QUORATE_VENV to where cfy is installed");
        let home = cluster.bed().dir().join(who);
        fs::create_dir_all(&home).unwrap();
        Self { cluster, program: Path::new(&venv).join("bin/cfy"), home }
    }

    fn output(&self, args: &[&str]) -> (bool, String) {
        let mut command = self.cluster.bed().client_command("timeout").unwrap();
        command.arg(COMMAND_SECONDS).arg(&self.program).args(args);
        command.env("HOME", &self.home).env("CFY_WORKDIR", &self.home).env("LC_ALL", "C.UTF-8");
        let output = command.current_dir(&self.home).stdin(Stdio::null()).output().unwrap();
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        (output.status.success(), text)
    }

    /// Runs a command that must succeed.
    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let (success, text) = self.output(args);
        assert!(success, "cfy {} failed:\n{text}", args.join(" "));
        text
    }

    /// Runs a command that must fail.
    #[track_caller]
    fn refused(&self, args: &[&str]) -> String {
        let (success, text) = self.output(args);
        assert!(!success, "cfy {} must fail:\n{text}", args.join(" "));
        text
    }

    /// Runs a command and reads its JSON.
    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        let text = self.ok(&[&["--json"], args].concat());
        let json = &text[text.find(['[', '{']).unwrap_or(text.len())..];
        let mut values = serde_json::Deserializer::from_str(json).into_iter();
        values.next().and_then(Result::ok).unwrap_or_else(|| panic!("cfy {} printed no JSON:\n{text}", args.join(" ")))
    }

    fn log_in(&self, user: &str, password: &str, tenant: &str) {
        let access = self.cluster.access().unwrap();
        let ca = self.home.join("ca.pem");
        fs::write(&ca, &access.ca_pem).unwrap();
        let (address, ca) = (access.address.to_string(), ca.display().to_string());
        self.ok(&[
            "profiles",
            "use",
            &address,
            "-u",
            user,
            "-p",
            password,
            "-t",
            tenant,
            "--ssl",
            "--rest-port",
            "443",
            "-c",
            &ca,
        ]);
    }
}

#[test]
fn everything_that_people_begin_with() {
    assert!(Bed::is_possible(), "this test needs root and network namespaces: run `make test` as root");
    let cluster = Cluster::start(12, NODES, Timing::Patient).unwrap();
    let password = cluster.access().unwrap().password;
    let cfy = Cfy::new(&cluster, "admin");
    cfy.log_in("admin", &password, "default_tenant");
    let status = cfy.ok(&["status"]);
    println!("{status}");
    assert!(status.contains("Active"), "{status}");

    blueprints_and_deployments(&cfy);
    install_and_uninstall(&cfy);
    executions(&cfy);
    other_tenants(&cluster, &cfy);
}

fn blueprints_and_deployments(cfy: &Cfy<'_>) {
    cfy.ok(&["blueprints", "upload", "-b", "shop", SAMPLE]);
    assert!(cfy.ok(&["blueprints", "list"]).contains("shop"));
    assert!(cfy.ok(&["blueprints", "get", "shop"]).contains("blueprint.yaml"));
    let archive = cfy.home.join("shop.archive");
    cfy.ok(&["blueprints", "download", "shop", "-o", &archive.display().to_string()]);
    assert!(fs::metadata(&archive).unwrap().len() > 500, "the archive came back");

    cfy.ok(&["deployments", "create", "-b", "shop", "-i", "greeting=good morning", "d1"]);
    assert!(cfy.ok(&["deployments", "list"]).contains("d1"));
    assert!(cfy.ok(&["deployments", "inputs", "d1"]).contains("good morning"));
    assert!(cfy.refused(&["deployments", "create", "-b", "shop", "-i", "nonsense=1", "d2"]).contains("nonsense"));
    assert!(cfy.refused(&["blueprints", "delete", "shop"]).contains("d1"), "a used blueprint stays");
    cfy.ok(&["deployments", "create", "-b", "shop", "short-lived"]);
    cfy.ok(&["deployments", "delete", "short-lived"]);
    assert!(!cfy.ok(&["deployments", "list"]).contains("short-lived"));

    let broken = cfy.home.join("broken");
    fs::create_dir_all(&broken).unwrap();
    let path = broken.join("blueprint.yaml");
    fs::write(&path, "tosca_definitions_version: cloudify_dsl_1_3\nnode_templates:\n  a: [\n").unwrap();
    let said = cfy.refused(&["blueprints", "upload", "-b", "broken", &path.display().to_string()]);
    assert!(said.contains("blueprint.yaml"), "the file is named: {said}");
}

fn install_and_uninstall(cfy: &Cfy<'_>) {
    cfy.ok(&["executions", "start", "install", "-d", "d1"]);
    let outputs = cfy.ok(&["deployments", "outputs", "d1"]);
    assert!(outputs.contains("good morning"), "a script's runtime property is in the outputs: {outputs}");
    assert!(outputs.contains("postgresql://"), "a Python script's too: {outputs}");
    let nodes = cfy.ok(&["nodes", "list", "-d", "d1"]);
    assert!(["machine", "database", "application"].iter().all(|node| nodes.contains(node)), "{nodes}");
    let instances = cfy.json(&["node-instances", "list", "-d", "d1"]);
    let instances = instances.as_array().unwrap();
    assert_eq!(instances.len(), 3);
    assert!(instances.iter().all(|instance| instance["state"] == "started"), "{instances:?}");
    let id = instances[0]["id"].as_str().unwrap();
    assert!(cfy.ok(&["node-instances", "get", id]).contains(id));

    cfy.ok(&["uninstall", "d1"]);
    assert!(!cfy.ok(&["deployments", "list"]).contains("d1"), "uninstall deletes the deployment");
    cfy.ok(&["install", SAMPLE, "-b", "again", "-d", "again", "-i", "greeting=hello"]);
    assert!(cfy.ok(&["deployments", "outputs", "again"]).contains("hello"));
}

fn executions(cfy: &Cfy<'_>) {
    let all = cfy.json(&["executions", "list", "-d", "again"]);
    let install = all.as_array().unwrap().iter().find(|one| one["workflow_id"] == "install").unwrap();
    let id = install["id"].as_str().unwrap();
    assert!(cfy.ok(&["executions", "get", id]).contains("completed"));
    let events = cfy.ok(&["events", "list", id]);
    assert!(events.contains("'install' workflow execution succeeded"), "{events}");

    let slow = cfy.home.join("slow");
    fs::create_dir_all(&slow).unwrap();
    let path = slow.join("blueprint.yaml");
    let text = "tosca_definitions_version: cloudify_dsl_1_3\nimports: [cloudify/types/types.yaml]\nnode_templates:\n  \
                a:\n    type: cloudify.nodes.Root\n    interfaces:\n      cloudify.interfaces.lifecycle:\n        create:\n          \
                implementation: wait.sh\n          executor: central_deployment_agent\n";
    fs::write(&path, text).unwrap();
    fs::write(slow.join("wait.sh"), "#!/bin/bash\nsleep 120\n").unwrap();
    cfy.ok(&["blueprints", "upload", "-b", "slow", &path.display().to_string()]);
    cfy.ok(&["deployments", "create", "-b", "slow", "slow"]);
    // It gives up waiting, the execution goes on.
    cfy.refused(&["executions", "start", "install", "-d", "slow", "--timeout", "3"]);
    let running = cfy.json(&["executions", "list", "-d", "slow"]);
    let running = running.as_array().unwrap().iter().find(|one| one["workflow_id"] == "install").unwrap();
    let id = running["id"].as_str().unwrap();
    cfy.ok(&["executions", "cancel", id, "--force"]);
    let until = Instant::now() + CANCEL_LIMIT;
    while !cfy.ok(&["executions", "get", id]).contains("cancelled") {
        assert!(Instant::now() < until, "the execution was not cancelled");
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn other_tenants(cluster: &Cluster, cfy: &Cfy<'_>) {
    cfy.ok(&["tenants", "create", "second"]);
    assert!(cfy.ok(&["tenants", "list"]).contains("second"));
    cfy.ok(&["users", "create", "jane", "-p", "jane-has-a-password", "-t", "second", "-l", "user"]);
    let jane = Cfy::new(cluster, "jane");
    jane.log_in("jane", "jane-has-a-password", "second");
    jane.ok(&["status"]);
    jane.ok(&["blueprints", "upload", "-b", "hers", SAMPLE]);
    assert!(jane.ok(&["blueprints", "list"]).contains("hers"));
    let hers = jane.ok(&["blueprints", "list"]);
    assert!(!hers.contains("again"), "another tenant's blueprint shows: {hers}");
    assert!(!cfy.ok(&["blueprints", "list"]).contains("hers"));
    jane.refused(&["blueprints", "get", "again"]);
    jane.refused(&["deployments", "outputs", "again"]);
    jane.refused(&["blueprints", "list", "-t", "default_tenant"]);
    jane.refused(&["tenants", "create", "third"]);
    jane.refused(&["users", "create", "joe", "-p", "some-password"]);
    let token = jane.json(&["tokens", "create", "--description", "for scripts"]);
    assert!(token["value"].as_str().is_some_and(|value| value.len() > 20), "{token}");
    jane.ok(&["blueprints", "delete", "hers"]);
}
