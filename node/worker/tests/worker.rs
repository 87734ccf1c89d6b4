//! Whole workers against real brokers. One test, since starting brokers is what takes the time; its scenarios have
//! agents, managers and directories of their own and run side by side.

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use support::{Engine, Manager, PASSWORD, TestBroker, TestWorker, USER, lives, pid_in, program, until};

const BLUEPRINT: &str = "blueprints/default_tenant/bp";

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn operations_run_once_and_are_answered_whatever_dies() {
    let first = TestBroker::start("one", "127.32.0.1").await;
    let second = TestBroker::start("two", "127.32.0.2").await;
    first.ready().await;
    second.ready().await;
    tokio::join!(
        scripts_change_runtime_properties(&first),
        python_scripts_run_with_and_without_cloudify_common(&first),
        relationship_operations_see_both_sides(&first),
        ends_are_told_apart(&first),
        a_cancel_ends_the_whole_group_and_is_not_answered(&first),
        a_task_delivered_again_is_not_run_again(&first),
        a_killed_worker_ends_its_leftovers_and_begins_anew(&first),
        another_authority_is_not_trusted(&first),
        an_operation_outlives_its_manager_and_hides_its_token(&first),
        management_workers_share_operations_and_all_hear_services(&first),
    );
    a_result_reaches_the_next_broker(&first, &second).await;
    second.broker.stop().await.expect("stop");
}

async fn scripts_change_runtime_properties(broker: &TestBroker) {
    let manager = Manager::start("127.32.0.11").await;
    manager.world().operations.insert("t1".into(), "sent".into());
    // The deployment's file wins over the blueprint's.
    manager.file("deployments/default_tenant/dep/scripts/run.sh", RUN);
    manager.file(&format!("{BLUEPRINT}/scripts/run.sh"), "#!/bin/sh\nexit 9\n");
    manager.file(&format!("{BLUEPRINT}/conf.txt"), "port={{ ctx.node.properties.port }} who={{ who }}\n");
    manager.world().meddler = Some(("web_1".into(), "theirs".into(), json!("kept")));
    let worker = TestWorker::start("bash_1", broker.address(), &broker.ca, &manager, None);
    let engine = Engine::connect("bash_1", broker.address(), &broker.ca).await;
    let inputs = json!({
        "script_path": "scripts/run.sh", "greeting": "a b", "list": [1, {"k": true}],
        "process": {"env": {"EXTRA": "x"}, "args": ["first", "'second one'"]},
    });
    let message = engine.message("t1", inputs, json!({"has_intrinsic_functions": true}));
    engine.send("t1", &message).await;
    let reply = engine.reply("t1").await;
    assert_eq!(reply, json!({"ok": true, "result": {"done": [1, 2]}}), "{:?}", manager.lines());
    assert_eq!(
        manager.properties("web_1"),
        json!({
            "greeting": "a b", "list": "[1, {\"k\": true}]", "extra": "x", "args": "first/second one", "evaluated": "yes",
            "deep": {"er": {"n": 7}}, "port": "8080", "second": "b", "json": "[\"a\", \"b\"]", "none": "empty()",
            "missing": "failed 1", "ip": "10.0.0.7", "rendered": "port=8080 who=me", "theirs": "kept",
            "execution": engine.execution(), "operation": "cloudify.interfaces.lifecycle.start",
        })
    );
    assert_eq!(manager.states("t1"), ["started", "response-sent"]);
    let lines = manager.lines();
    for line in ["info: hello from ctx", "info: <out> on stdout", "info: <err> on stderr"] {
        assert!(lines.iter().any(|seen| seen == line), "{line} in {lines:?}");
    }
    // A path that leads out of the blueprint is refused before anybody is asked.
    let reply = engine.run("t2", json!({"script_path": "../../other/bp/run.sh"})).await;
    assert_eq!(reply["error"]["known_exception_type"], "NonRecoverableError");
    let reply = engine.run("t3", json!({"script_path": "scripts/none.sh"})).await;
    assert_eq!(reply["error"]["known_exception_type"], "HttpException");
    assert_eq!(reply["error"]["known_exception_type_args"][1], 404);
    engine.service("ping", json!({}), Some("bash_1_response_1")).await;
    assert!(engine.take("bash_1_response_1").await.1["time"].as_f64().is_some());
    worker.stop().await;
}

const RUN: &str = r#"#!/bin/bash -e
set_property() { ctx instance runtime-properties "$1" "$2"; }
set_property greeting "$greeting"
set_property list "$list"
set_property extra "$EXTRA"
set_property args "$1/$2"
set_property evaluated "$evaluated"
set_property deep.er.n @7
set_property port "$(ctx node properties port)"
set_property second "$(ctx node properties 'names[1]')"
set_property json "$(ctx -j node properties names)"
set_property none "empty($(ctx instance runtime-properties nothing 2>/dev/null || true))"
if ctx node properties nothing 2>/dev/null; then exit 7; else set_property missing "failed $?"; fi
set_property ip "$(ctx instance host_ip)"
set_property execution "$(ctx execution-id)"
set_property operation "$(ctx operation name)"
conf=$(ctx download-resource-and-render conf.txt '@{"template_variables": {"who": "me"}}')
set_property rendered "$(cat "$conf")"
ctx logger info "hello from ctx"
echo on stdout
echo on stderr >&2
ctx returns '@{"done": [1, 2]}' '@{}'
"#;

async fn python_scripts_run_with_and_without_cloudify_common(broker: &TestBroker) {
    let venv = std::env::var_os("QUORATE_VENV").map(PathBuf::from).filter(|venv| venv.join("bin/python").exists());
    if venv.is_none() {
        eprintln!("NOT TESTED: Python scripts with cloudify-common; QUORATE_VENV names no Python environment");
    }
    for (name, address, venv) in [("python_shim", "127.32.0.12", None), ("python_common", "127.32.0.13", venv)] {
        if name == "python_common" && venv.is_none() {
            continue;
        }
        let manager = Manager::start(address).await;
        manager.file(&format!("{BLUEPRINT}/run.py"), PYTHON);
        let worker = TestWorker::start(name, broker.address(), &broker.ca, &manager, venv.as_deref());
        let engine = Engine::connect(name, broker.address(), &broker.ca).await;
        let run = async |task: &str, end: &str| {
            engine.run(task, json!({"script_path": "run.py", "who": {"n": [1, 2]}, "end": end})).await
        };
        let reply = run("p1", "well").await;
        assert_eq!(reply, json!({"ok": true, "result": "fine"}), "{name}: {:?}", manager.lines());
        let expected = json!({"who": {"n": [1, 2]}, "port": 8080, "list": [1, 2], "id": "web_1"});
        assert_eq!(manager.properties("web_1"), expected, "{name}");
        assert!(manager.lines().iter().any(|line| line == "info: from python"), "{name}: {:?}", manager.lines());
        for (task, end, known, raised) in [
            ("p2", "fatal", "NonRecoverableError", "NonRecoverableError"),
            ("p3", "error", "RecoverableError", "KeyError"),
            ("p4", "retry", "OperationRetry", "OperationRetry"),
        ] {
            let error = &run(task, end).await["error"];
            assert_eq!(error["known_exception_type"], known, "{name}: {error}");
            assert_eq!(error["known_exception_type_kwargs"]["causes"][0]["type"], raised, "{name}: {error}");
            let after = if end == "retry" {
                json!([5])
            } else if end == "error" {
                json!([null])
            } else {
                json!([])
            };
            assert_eq!(error["known_exception_type_args"], after, "{name}: {error}");
        }
        let message = engine.message("p5", json!({}), json!({"task_name": "some_plugin.tasks.start"}));
        engine.send("p5", &message).await;
        let error = engine.reply("p5").await["error"].take();
        assert_eq!(error["known_exception_type"], "NonRecoverableError", "{name}: {error}");
        worker.stop().await;
    }
}

const PYTHON: &str = r#"
from cloudify import ctx
from cloudify.state import ctx_parameters as inputs
from cloudify.exceptions import NonRecoverableError

ctx.logger.info('from %s', 'python')
properties = ctx.instance.runtime_properties
properties['who'] = inputs['who']
properties['port'] = ctx.node.properties['port']
properties['list'] = [1]
properties['list'].append(2)
properties['id'] = ctx.instance.id
end = inputs['end']
if end == 'fatal':
    raise NonRecoverableError('no way')
elif end == 'error':
    {}['nothing']
elif end == 'retry':
    ctx.operation.retry(message='again', retry_after=5)
else:
    ctx.returns('fine')
"#;

async fn relationship_operations_see_both_sides(broker: &TestBroker) {
    let manager = Manager::start("127.32.0.14").await;
    let worker = TestWorker::start("rel_1", broker.address(), &broker.ca, &manager, None);
    let engine = Engine::connect("rel_1", broker.address(), &broker.ca).await;
    let script = "#!/bin/sh -e
        ctx source instance runtime-properties db \"$(ctx target instance runtime-properties port)\"
        ctx target instance runtime-properties user \"$(ctx source instance id)\"
        ctx returns \"$(ctx type)\"
        ctx node properties 2>&1 && exit 1 || true";
    let context = json!({"related": {"node_id": "db_1", "node_name": "db", "is_target": true}});
    engine.send("r1", &engine.message("r1", json!({"script_source": script}), context)).await;
    let reply = engine.reply("r1").await;
    assert_eq!(reply, json!({"ok": true, "result": "relationship-instance"}), "{:?}", manager.lines());
    assert_eq!(manager.properties("web_1"), json!({"db": "5432"}));
    assert_eq!(manager.properties("db_1"), json!({"port": 5432, "user": "web_1"}));
    worker.stop().await;
}

async fn ends_are_told_apart(broker: &TestBroker) {
    let manager = Manager::start("127.32.0.15").await;
    let worker = TestWorker::start("ends_1", broker.address(), &broker.ca, &manager, None);
    let engine = Engine::connect("ends_1", broker.address(), &broker.ca).await;
    let retry = "OperationRetry";
    let (recoverable, fatal) = ("RecoverableError", "NonRecoverableError");
    for (at, (script, known, args, words)) in [
        ("echo words; exit 3", recoverable, json!([null]), "exit_code: 3, stdout: words"),
        ("ctx operation retry later @7", retry, json!([7]), "later [retry_after=7]"),
        ("ctx operation retry later 8; exit 0", retry, json!([8]), "later [retry_after=8]"),
        ("ctx retry-operation again || exit 1", retry, json!([null]), "again"),
        ("ctx abort-operation 'no way'; exit 1", fatal, json!([]), "no way"),
        ("ctx returns 1; ctx returns 2; true", fatal, json!([]), "only abort or return once"),
        ("head -c 300000 /dev/zero | tr '\\0' x; exit 4", recoverable, json!([null]), "exit_code: 4, stdout: xxx"),
        ("kill -9 $$", recoverable, json!([null]), "exit_code: "),
    ]
    .into_iter()
    .enumerate()
    {
        let task = format!("e{at}");
        let source = format!("#!/bin/bash\n{script}\n");
        let error = engine.run(&task, json!({"script_source": source})).await["error"].take();
        assert_eq!(error["known_exception_type"], known, "{script}: {error}");
        assert_eq!(error["known_exception_type_args"], args, "{script}");
        assert!(error["message"].as_str().is_some_and(|text| text.contains(words)), "{script}: {error}");
    }
    let message = engine.message("late", json!({"script_source": "sleep 60 &\nwait\n"}), json!({"timeout": 0.3}));
    engine.send("late", &message).await;
    assert_eq!(engine.reply("late").await["error"]["known_exception_type"], fatal);
    // Another worker has it now: it is for that one to run and to answer.
    manager.world().operations.insert("taken".into(), "reassigned".into());
    let marker = worker.dir.path().join("marker");
    let touch = format!("echo run\ntouch {}\n", marker.display());
    engine.send("taken", &engine.message("taken", json!({"script_source": touch}), json!({}))).await;
    let refused = |call: &support::manager::Call| call.method == "PATCH" && call.path.ends_with("/operations/taken");
    until("it is refused", || manager.world().calls.iter().any(refused)).await;
    assert!(engine.no_reply().await);
    assert!(!marker.exists());
    // It comes back when that one is lost.
    manager.world().operations.insert("taken".into(), "sent".into());
    engine.send("taken", &engine.message("taken", json!({"script_source": touch}), json!({}))).await;
    assert_eq!(engine.reply("taken").await["ok"], true);
    assert!(marker.exists());
    fs::remove_file(&marker).unwrap();
    // Nobody waits for the operations of a cancelled execution.
    manager.world().execution_status = Some("cancelled".into());
    engine.send("gone", &engine.message("gone", json!({"script_source": touch}), json!({}))).await;
    manager.world().execution_status = Some("cancelled".into());
    until("the journal holds it", || journal(worker.dir.path().join("journal"), "gone")["settled"] == true).await;
    assert!(!marker.exists());
    assert!(engine.no_reply().await);
    worker.stop().await;
}

/// A task's journal entry.
fn journal(dir: PathBuf, task: &str) -> Value {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| serde_json::from_slice::<Value>(&fs::read(entry.path()).ok()?).ok())
        .find(|entry| entry["task"] == task)
        .unwrap_or_default()
}

async fn a_cancel_ends_the_whole_group_and_is_not_answered(broker: &TestBroker) {
    let manager = Manager::start("127.32.0.16").await;
    let worker = TestWorker::start("cancel_1", broker.address(), &broker.ca, &manager, None);
    let engine = Engine::connect("cancel_1", broker.address(), &broker.ca).await;
    let pids = worker.dir.path().join("pid");
    // The child ignores SIGTERM, so that the grace runs out too.
    let script = format!("#!/bin/bash\n(trap '' TERM; sleep 300) &\necho $! > {}\nsleep 300\n", pids.display());
    let message = engine.message("c1", json!({"script_source": script}), json!({}));
    engine.send("c1", &message).await;
    until("the script runs", || pid_in(&pids).is_some()).await;
    let pid = pid_in(&pids).expect("a pid");
    engine.service("cancel-operation", json!({"execution_id": "another"}), None).await;
    engine.service("cancel-operation", json!({"execution_id": engine.execution()}), None).await;
    until("the group is gone", || !lives(pid)).await;
    until("the journal holds it", || journal(worker.dir.path().join("journal"), "c1")["settled"] == true).await;
    assert!(engine.no_reply().await);
    worker.stop().await;
}

async fn a_task_delivered_again_is_not_run_again(broker: &TestBroker) {
    let manager = Manager::start("127.32.0.17").await;
    let worker = TestWorker::start("again_1", broker.address(), &broker.ca, &manager, None);
    let engine = Engine::connect("again_1", broker.address(), &broker.ca).await;
    let (count, go) = (worker.dir.path().join("count"), worker.dir.path().join("go"));
    let script = format!(
        "echo run >> {}\nwhile [ ! -e {} ]; do sleep 0.02; done\nctx returns \"$$\"\n",
        count.display(),
        go.display()
    );
    let message = engine.message("d1", json!({"script_source": script}), json!({}));
    engine.send("d1", &message).await;
    until("it runs", || count.exists()).await;
    engine.send("d1", &message).await;
    engine.send("other", &engine.message("other", json!({"script_source": "echo other\n"}), json!({}))).await;
    // The one sent after the second delivery is through, so that one has been seen.
    let _ = engine.reply("other").await;
    fs::write(&go, "").expect("write");
    let reply = engine.reply("d1").await;
    assert_eq!(reply["ok"], true, "{reply}");
    until("settled", || journal(worker.dir.path().join("journal"), "d1")["settled"] == true).await;
    engine.send("d1", &message).await;
    assert_eq!(engine.reply("d1").await, reply, "answered from the journal");
    assert_eq!(fs::read_to_string(&count).expect("read"), "run\n");
    worker.stop().await;
}

async fn a_killed_worker_ends_its_leftovers_and_begins_anew(broker: &TestBroker) {
    let manager = Manager::start("127.32.0.18").await;
    manager.world().operations.insert("k1".into(), "sent".into());
    let dir = tempfile::tempdir().expect("a folder");
    let settings = dir.path().join("settings.json");
    let body = json!({
        "name": "killed_1", "dir": dir.path().join("worker"), "broker": broker.address(), "broker_ca_pem": broker.ca,
        "user": USER, "password": PASSWORD, "rest_host": manager.address.ip(), "rest_port": manager.address.port(),
        "rest_ca_pem": manager.ca,
    });
    fs::write(&settings, body.to_string()).expect("write");
    let start = || -> Child {
        Command::new(program()).arg(&settings).stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("start")
    };
    let mut worker = start();
    let engine = Engine::connect("killed_1", broker.address(), &broker.ca).await;
    let (count, pids) = (dir.path().join("count"), dir.path().join("pid"));
    // The first time it hangs, with a child in a session of its own; the second time it ends.
    let script = format!(
        "#!/bin/bash\necho run >> {count}\n[ \"$(wc -l < {count})\" = 2 ] && exec ctx returns done\n\
         setsid sleep 300 &\necho $! > {pids}\nsleep 300\n",
        count = count.display(),
        pids = pids.display()
    );
    engine.send("k1", &engine.message("k1", json!({"script_source": script}), json!({}))).await;
    until("the script runs", || pid_in(&pids).is_some()).await;
    let pid = pid_in(&pids).expect("a pid");
    kill(Pid::from_raw(worker.id().cast_signed()), Signal::SIGKILL).expect("kill");
    worker.wait().expect("wait");
    assert!(lives(pid), "an operation does not end with its worker");
    let mut worker = start();
    let reply = engine.reply("k1").await;
    assert_eq!(reply, json!({"ok": true, "result": "done"}), "{:?}", manager.lines());
    assert!(!lives(pid), "what the first attempt left is ended");
    assert_eq!(fs::read_to_string(&count).expect("read"), "run\nrun\n");
    assert_eq!(journal(dir.path().join("worker/journal"), "k1")["attempt"], 2);
    worker.kill().expect("kill");
    worker.wait().expect("wait");
}

async fn management_workers_share_operations_and_all_hear_services(broker: &TestBroker) {
    let name = "cloudify.management";
    let manager = Manager::start("127.32.0.21").await;
    manager.world().operations.insert("g0".into(), "sent".into());
    let workers = [(); 2].map(|()| TestWorker::start(name, broker.address(), &broker.ca, &manager, None));
    let engine = Engine::connect(name, broker.address(), &broker.ca).await;
    for task in ["g0", "g1", "g2", "g3"] {
        let reply = engine.run(task, json!({"script_source": "echo $greeting there", "greeting": "hi"})).await;
        assert_eq!(reply, json!({"ok": true, "result": null}));
    }
    let world = manager.world().calls.clone();
    let report = world.iter().find(|call| call.body["state"] == "started").expect("a report");
    assert!(report.body["manager_name"].is_string() && report.body["agent_name"].is_null(), "{}", report.body);
    let journals = || workers.each_ref().map(|worker| worker.dir.path().join("journal"));
    let held = |task: &str| journals().into_iter().filter(|dir| !journal(dir.clone(), task).is_null()).count();
    assert_eq!(["g0", "g1", "g2", "g3"].map(held), [1, 1, 1, 1], "each task is begun by one of them");
    // Sent again and again while one runs it, as after a failover: whoever gets it, it is the one who answers.
    let (count, go) = (workers[0].dir.path().join("count"), workers[0].dir.path().join("go"));
    manager.world().operations.insert("g4".into(), "sent".into());
    let script = format!(
        "echo run >> {}\nwhile [ ! -e {} ]; do sleep 0.02; done\nctx returns once\n",
        count.display(),
        go.display()
    );
    let message = engine.message("g4", json!({"script_source": script}), json!({}));
    engine.send("g4", &message).await;
    until("it runs", || count.exists()).await;
    for _ in 0..3 {
        engine.send("g4", &message).await;
    }
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    fs::write(&go, "").expect("write");
    assert_eq!(engine.reply("g4").await["result"], "once");
    let held = journals().into_iter().filter(|dir| journal(dir.clone(), "g4")["attempt"] == 1).count();
    assert_eq!((held, fs::read_to_string(&count).expect("read").as_str()), (1, "run\n"));
    // Begun by one who is gone: taken over when its time is up.
    manager.world().operations.insert("g5".into(), "started".into());
    assert_eq!(engine.run_after_replies("g5", json!({"script_source": "echo taken over"})).await["ok"], true);
    // Both have made their service queues by now or do so soon; each is asked and answers.
    until("both serve", || workers.iter().all(|worker| worker.dir.path().join("instance").exists())).await;
    for worker in &workers {
        let instance = fs::read_to_string(worker.dir.path().join("instance")).expect("read");
        let queue = format!("cloudify-mgmtworker-service-{instance}_service");
        for _ in 0..200 {
            if engine.has_queue(&queue).await {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
    engine.service("ping", json!({}), Some("management_response_1")).await;
    for _ in &workers {
        assert!(engine.take("management_response_1").await.1["time"].as_f64().is_some());
    }
    for worker in workers {
        worker.stop().await;
    }
}

async fn an_operation_outlives_its_manager_and_hides_its_token(broker: &TestBroker) {
    let manager = Manager::start("127.32.0.22").await;
    manager.world().operations.insert("o1".into(), "sent".into());
    let worker = TestWorker::start("outlive_1", broker.address(), &broker.ca, &manager, None);
    let engine = Engine::connect("outlive_1", broker.address(), &broker.ca).await;
    let (marker, go) = (worker.dir.path().join("marker"), worker.dir.path().join("go"));
    let script = format!(
        "#!/bin/bash\nctx instance runtime-properties argv \"$(cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' |\
         grep -c 'the-toke[n]')\"\nctx instance runtime-properties env \"$(env | grep -c 'the-toke[n]')\"\n\
         touch {}\nwhile [ ! -e {} ]; do sleep 0.02; done\necho ended\n",
        marker.display(),
        go.display()
    );
    engine.send("o1", &engine.message("o1", json!({"script_source": script}), json!({}))).await;
    until("it runs", || marker.exists()).await;
    manager.world().is_away = true;
    fs::write(&go, "").expect("write");
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert!(engine.no_reply().await, "its runtime properties are not stored yet");
    manager.world().is_away = false;
    assert_eq!(engine.reply("o1").await, json!({"ok": true, "result": null}));
    assert_eq!(manager.properties("web_1"), json!({"argv": "0", "env": "0"}));
    assert_eq!(manager.states("o1").last().map(String::as_str), Some("response-sent"));
    assert!(manager.lines().iter().any(|line| line == "info: <out> ended"), "{:?}", manager.lines());
    let journal = journal(worker.dir.path().join("journal"), "o1");
    assert!(!journal.to_string().contains("the-token"), "{journal}");
    worker.stop().await;
}

async fn another_authority_is_not_trusted(broker: &TestBroker) {
    let manager = Manager::start("127.32.0.19").await;
    let worker = TestWorker::start("stranger_1", broker.address(), &manager.ca, &manager, None);
    let engine = Engine::connect("looker_1", broker.address(), &broker.ca).await;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert!(!engine.has_queue("stranger_1_operation").await);
    worker.stop().await;
}

async fn a_result_reaches_the_next_broker(first: &TestBroker, second: &TestBroker) {
    let manager = Manager::start("127.32.0.20").await;
    let authorities = format!("{}\n{}", first.ca, second.ca);
    let worker = TestWorker::start("moved_1", first.address(), &authorities, &manager, None);
    let engine = Engine::connect("moved_1", first.address(), &first.ca).await;
    let (count, go) = (worker.dir.path().join("count"), worker.dir.path().join("go"));
    let script = format!(
        "echo run >> {}\nwhile [ ! -e {} ]; do sleep 0.02; done\nctx returns survived\n",
        count.display(),
        go.display()
    );
    let message = engine.message("m1", json!({"script_source": script}), json!({}));
    engine.send("m1", &message).await;
    until("it runs", || count.exists()).await;
    let quorate_broker::BrokerStatus::Running { pid, .. } = first.broker.status() else { panic!("running") };
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).expect("kill");
    worker.active.send_replace(None);
    first.broker.stop().await.expect("stop");
    // It ends while there is no broker at all.
    fs::write(&go, "").expect("write");
    until("the result is recorded", || !journal(worker.dir.path().join("journal"), "m1")["ending"].is_null()).await;
    worker.active.send_replace(Some(second.address()));
    // The worker is there before anybody has made a queue for its reply: that must not lose it.
    let looker = Engine::connect("looker_2", second.address(), &second.ca).await;
    for _ in 0..200 {
        if looker.has_queue("moved_1_service").await {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let engine = Engine::connect("moved_1", second.address(), &second.ca).await;
    let reply = engine.reply("m1").await;
    assert_eq!(reply, json!({"ok": true, "result": "survived"}), "{:?}", manager.lines());
    // The engine sends it again, since it cannot know.
    engine.send("m1", &message).await;
    assert_eq!(engine.reply("m1").await, reply);
    assert_eq!(fs::read_to_string(&count).expect("read"), "run\n");
    worker.stop().await;
}
