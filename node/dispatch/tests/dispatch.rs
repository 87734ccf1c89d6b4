//! Against real brokers, with a worker written in plain AMQP.

mod proxy;
#[path = "../../broker/tests/support/mod.rs"]
mod support;
mod worker;

use std::fs;
use std::future::Future;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use lapin::ExchangeKind;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proxy::Proxy;
use quorate_broker::{Broker, BrokerSettings, BrokerStatus, Desired, Permission, UserDef, VhostDef};
use quorate_dispatch::{
    AmqpTarget, LinkError, MANAGEMENT, MANAGEMENT_SERVICE, ManagerAccess, OperationMessage, Outcome, RESPONSES_QUEUE,
    Reply, Responses, ResponsesError, SendError, Sender, TaskError,
};
use serde_json::{Value, json};
use support::{PASSWORD, READY, settings};
use tokio::runtime::Runtime;
use worker::Worker;

const SOON: Duration = Duration::from_secs(10);

/// The broker of all tests but one. It dies with the test program.
struct Bed {
    runtime: Runtime,
    settings: BrokerSettings,
    _broker: Broker,
}

static BED: LazyLock<Bed> = LazyLock::new(|| {
    let runtime = Runtime::new().expect("a runtime");
    let settings = settings("dispatch", "127.31.0.11");
    let broker = runtime.block_on(async {
        let broker = Broker::start(settings.clone()).await.expect("start");
        broker.ready(READY).await.expect("ready");
        let vhosts: Vec<VhostDef> = ["trip", "mixed", "odd", "tls"].map(|name| VhostDef { name: name.into() }).into();
        let reader = Permission { configure: "^$".into(), write: "^$".into(), ..Permission::everything("trip") };
        let users =
            vec![UserDef { name: "reader".into(), password: "read".into(), tags: vec![], permissions: vec![reader] }];
        broker.reconcile(&Desired { vhosts, users }).await.expect("reconcile");
        broker
    });
    Bed { runtime, settings, _broker: broker }
});

fn on_bed(test: impl Future<Output = ()>) {
    BED.runtime.block_on(test);
}

fn target(settings: &BrokerSettings, vhost: &str) -> AmqpTarget {
    AmqpTarget {
        address: settings.amqps_address(),
        ca_pem: fs::read_to_string(&settings.ca_pem_path).expect("the authority"),
        user: settings.admin_user.clone(),
        password: PASSWORD.into(),
        vhost: vhost.into(),
    }
}

fn operation(task_id: &str) -> OperationMessage {
    let kwargs = json!({"port": 8080, "__cloudify_context": {"task_id": task_id, "task_name": "plugin.tasks.run"}});
    let manager = ManagerAccess { hosts: vec!["10.0.0.1".into()], port: 53333, token: "t0ken".into() };
    OperationMessage::new(task_id, kwargs, &manager).expect("a message")
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}

#[test]
fn an_operation_goes_out_and_its_reply_comes_back_until_acknowledged() {
    on_bed(async {
        let target = target(&BED.settings, "trip");
        let mut responses = Responses::new(target.clone());
        assert!(matches!(responses.next().await, Err(ResponsesError::NotConnected)));
        responses.connect().await.expect("connect");
        let worker = Worker::start(&target, "web_host_x1").await;
        let sender = Sender::new(target.clone());
        sender.send_operation("web_host_x1", &operation("task-1")).await.expect("send");

        let delivery = worker.take("web_host_x1_operation").await.expect("an operation");
        assert_eq!(delivery.properties.correlation_id().as_ref().expect("an id").as_str(), "task-1");
        assert_eq!(delivery.properties.reply_to().as_ref().expect("a queue").as_str(), RESPONSES_QUEUE);
        assert_eq!(delivery.properties.delivery_mode(), &Some(2));
        assert_eq!(delivery.properties.content_type(), &None);
        let body: Value = serde_json::from_slice(&delivery.data).expect("JSON");
        assert_eq!(OperationMessage::from_wire(body).expect("an operation"), operation("task-1"));

        // What cannot be read is dropped and stands in nobody's way.
        worker.reply(None, b"{\"ok\": true}").await;
        worker.reply(Some("task-0"), b"no json").await;
        let mut error = TaskError::new("RecoverableError", "busy [retry_after=5]");
        error.retry_after = Some(5.0);
        let outcome = Outcome::Failed { recoverable: true, error };
        worker.reply(Some("task-1"), outcome.to_wire().to_string().as_bytes()).await;
        let received = tokio::time::timeout(SOON, responses.next()).await.expect("in time").expect("a reply");
        assert_eq!(received.reply.task_id, "task-1");
        assert_eq!(received.reply.outcome, outcome);
        assert!(!received.redelivered);

        // Not acknowledged, it comes again after a reconnect; acknowledged, it does not.
        responses.connect().await.expect("connect again");
        assert!(received.ack().await.is_err(), "its connection is gone");
        let received = tokio::time::timeout(SOON, responses.next()).await.expect("in time").expect("a reply");
        assert!(received.redelivered);
        assert_eq!(received.reply.task_id, "task-1");
        received.ack().await.expect("acknowledge");
        responses.connect().await.expect("connect again");
        worker.reply(Some("task-2"), b"{\"ok\": true, \"result\": 7}").await;
        let received = tokio::time::timeout(SOON, responses.next()).await.expect("in time").expect("a reply");
        assert_eq!(received.reply.task_id, "task-2", "the first one is gone");
        assert_eq!(received.reply.outcome, Outcome::Succeeded(json!(7)));
        received.ack().await.expect("acknowledge");
    });
}

#[test]
fn each_of_many_sends_at_once_gets_its_own_answer() {
    on_bed(async {
        let target = target(&BED.settings, "mixed");
        let worker = Worker::start(&target, "there").await;
        let sender = Arc::new(Sender::new(target));
        let mut sends = tokio::task::JoinSet::new();
        for number in 0..120 {
            let sender = Arc::clone(&sender);
            sends.spawn(async move {
                let name = if number % 3 == 0 { "not_there" } else { "there" };
                (name, sender.send_operation(name, &operation(&format!("task-{number}"))).await)
            });
        }
        while let Some(done) = sends.join_next().await {
            match done.expect("a send") {
                ("there", result) => result.expect("sent"),
                (_, result) => {
                    let error = result.expect_err("nobody is there");
                    assert!(matches!(&error, SendError::Unroutable { worker } if worker == "not_there"), "{error:?}");
                    assert!(!error.may_have_been_kept());
                }
            }
        }
        let mut tasks = std::collections::BTreeSet::new();
        while let Some(delivery) = worker.get("there_operation").await {
            tasks.insert(delivery.properties.correlation_id().as_ref().expect("an id").as_str().to_owned());
        }
        assert_eq!(tasks.len(), 80);

        // A worker that was there and left, queue and all, and came back.
        worker.delete("there").await;
        let error = sender.send_operation("there", &operation("late")).await.expect_err("it left");
        assert!(matches!(error, SendError::Unroutable { .. }), "{error:?}");
        worker.declare("there", ExchangeKind::Direct).await;
        sender.send_operation("there", &operation("late")).await.expect("it came back");
        worker.take("there_operation").await.expect("the operation");
        let shown = format!("{sender:?}");
        assert!(!shown.contains(PASSWORD) && !shown.contains("t0ken"), "{shown}");
    });
}

#[test]
fn a_response_queue_that_was_deleted_works_again() {
    on_bed(async {
        let target = target(&BED.settings, "tls");
        let mut responses = Responses::new(target.clone());
        responses.connect().await.expect("connect");
        let worker = Worker::start(&target, "killer").await;
        let sender = Sender::new(target);
        sender.send_operation("killer", &operation("killed")).await.expect("send");
        worker.delete_queue(RESPONSES_QUEUE).await;
        let lost = tokio::time::timeout(SOON, responses.next()).await.expect("in time");
        assert!(matches!(lost, Err(ResponsesError::Lost(_))), "{lost:?}");
        responses.connect().await.expect("connect again");
        sender.send_operation("killer", &operation("next")).await.expect("send");
        worker.reply(Some("next"), b"{\"ok\": true}").await;
        let received = tokio::time::timeout(SOON, responses.next()).await.expect("in time").expect("a reply");
        assert_eq!(received.reply.task_id, "next");
    });
}

#[test]
fn a_worker_of_cloudify_common_understands_and_is_understood() {
    let Some(venv) = std::env::var_os("QUORATE_VENV") else {
        eprintln!("skipped: QUORATE_VENV does not say where cloudify-common is (make clients)");
        return;
    };
    let good = target(&BED.settings, "/");
    let mut python = Command::new(Path::new(&venv).join("bin/python"))
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/worker.py"))
        .arg(good.address.ip().to_string())
        .arg(&BED.settings.ca_pem_path)
        .args([&good.user, "snake"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start Python");
    let mut stdin = python.stdin.take().expect("a pipe");
    writeln!(stdin, "{}", good.password).expect("write");
    let mut line = String::new();
    BufReader::new(python.stdout.take().expect("a pipe")).read_line(&mut line).expect("read");
    assert_eq!(line, "ready\n");
    on_bed(async {
        let mut responses = Responses::new(good.clone());
        responses.connect().await.expect("connect");
        let sender = Sender::new(good);
        let mut number = 0;
        let mut ask = async |inputs: Value| {
            number += 1;
            let mut message = operation(&format!("snake-{number}"));
            message.kwargs.extend(inputs.as_object().expect("inputs").clone());
            sender.send_operation("snake", &message).await.expect("send");
            let received = tokio::time::timeout(SOON, responses.next()).await.expect("in time").expect("a reply");
            let Reply { task_id, outcome } = received.reply.clone();
            assert_eq!(task_id, message.task_id);
            received.ack().await.expect("acknowledge");
            outcome
        };

        let result = ask(json!({"behave": "succeed"})).await;
        assert_eq!(result, Outcome::Succeeded(json!({"inputs": {"behave": "succeed", "port": 8080}})));
        for (behave, recoverable, class, message, retry_after) in [
            ("recoverable", true, "RecoverableError", "busy [retry_after=5]", Some(5.0)),
            ("never", false, "NonRecoverableError", "never", None),
            ("http", false, "HttpException", "404 (http://x) : not found", None),
            ("user", true, "KeyError", "'k'", None),
        ] {
            let outcome = ask(json!({"behave": behave})).await;
            let Outcome::Failed { recoverable: is, error } = outcome else { panic!("{behave}: {outcome:?}") };
            assert_eq!((is, error.exception_type.as_str(), error.retry_after), (recoverable, class, retry_after));
            assert!(error.message.contains(message), "{}", error.message);
            assert!(error.traceback.is_some_and(|traceback| traceback.contains("worker.py")));
        }
        let outcome = ask(json!({"behave": "retry"})).await;
        assert!(matches!(&outcome, Outcome::Rescheduled(error) if error.retry_after == Some(0.0)), "{outcome:?}");

        // And what it makes of ours.
        let mut error = TaskError::new("ProcessException", "exit 3");
        error.causes = vec![json!({"type": "T"})];
        let mut waiting = error.clone();
        waiting.retry_after = Some(7.0);
        for (outcome, expected) in [
            (
                Outcome::Failed { recoverable: true, error: waiting.clone() },
                json!(["RecoverableError", "exit 3 [retry_after=7]", 7, [{"type": "T"}]]),
            ),
            (
                Outcome::Failed { recoverable: true, error: error.clone() },
                json!(["RecoverableError", "exit 3", null, [{"type": "T"}]]),
            ),
            (
                Outcome::Failed { recoverable: false, error },
                json!(["NonRecoverableError", "exit 3", null, [{"type": "T"}]]),
            ),
            (Outcome::Rescheduled(waiting), json!(["OperationRetry", "exit 3 [retry_after=7]", 7, [{"type": "T"}]])),
        ] {
            let rebuilt = ask(json!({"behave": "rebuild", "error": outcome.to_wire()["error"]})).await;
            assert_eq!(rebuilt, Outcome::Succeeded(expected));
        }
    });
    drop(stdin);
    python.wait().expect("reap Python");
}

#[test]
fn a_cancel_reaches_one_agent_or_every_management_worker() {
    on_bed(async {
        let target = target(&BED.settings, "odd");
        let expected = json!({
            "service_task": {"task_name": "cancel-operation", "kwargs": {"execution_id": "e1"}},
        });
        let sender = Sender::new(target.clone());
        let alone = sender.cancel_operation(MANAGEMENT, "e1").await.expect_err("nobody listens");
        assert!(matches!(alone, SendError::Unroutable { .. }), "{alone:?}");

        let agent = Worker::start(&target, "agent").await;
        agent.declare(MANAGEMENT_SERVICE, ExchangeKind::Fanout).await;
        agent.bind("one_service", MANAGEMENT_SERVICE, "service").await;
        agent.bind("two_service", MANAGEMENT_SERVICE, "service").await;
        sender.cancel_operation("agent", "e1").await.expect("told");
        sender.cancel_operation(MANAGEMENT, "e1").await.expect("told");
        for queue in ["agent_service", "one_service", "two_service"] {
            let delivery = agent.take(queue).await.expect("a service task");
            assert_eq!(serde_json::from_slice::<Value>(&delivery.data).expect("JSON"), expected);
            assert_eq!(delivery.properties.reply_to(), &None);
        }
    });
}

#[test]
fn only_the_right_authority_and_password_connect() {
    on_bed(async {
        let good = target(&BED.settings, "tls");
        Responses::new(good.clone()).connect().await.expect("connect");

        let other = support::certificates(&support::folder("other-ca"), good.address.ip());
        let ca_pem = fs::read_to_string(other.ca).expect("the other authority");
        let error = Responses::new(AmqpTarget { ca_pem, ..good.clone() }).connect().await.expect_err("a stranger");
        assert!(matches!(error, LinkError::Connect { .. }), "{error:?}");
        assert!(causes(&error).contains("invalid peer certificate"), "{}", causes(&error));
        // The right broker, but not at the address that its certificate is for.
        let elsewhere = Proxy::start("127.31.0.13".parse().expect("an address"), good.address).await;
        let error = Responses::new(AmqpTarget { address: elsewhere.address, ..good.clone() }).connect().await;
        let error = error.expect_err("another address");
        assert!(causes(&error).contains("not valid for name"), "{}", causes(&error));
        let error = Responses::new(AmqpTarget { ca_pem: "rubbish".into(), ..good.clone() }).connect().await;
        assert!(matches!(error, Err(LinkError::Authority(_))), "{error:?}");

        let wrong = AmqpTarget { password: "wrong-secret".into(), ..good.clone() };
        assert!(!format!("{wrong:?}").contains("wrong-secret"));
        let error = Sender::new(wrong).send_operation("w", &operation("t")).await.expect_err("a wrong password");
        assert!(matches!(error, SendError::Link(LinkError::Connect { .. })), "{error:?}");
        assert!(!error.may_have_been_kept());
        assert!(!causes(&error).contains("wrong-secret"));
        let nowhere = AmqpTarget { vhost: "nowhere".into(), ..good };
        let error = Responses::new(nowhere).connect().await.expect_err("no such virtual host");
        assert!(matches!(error, LinkError::Connect { .. }), "{error:?}");
    });
}

#[test]
fn a_send_cut_off_before_the_confirm_may_have_been_kept() {
    on_bed(async {
        let straight = target(&BED.settings, "odd");
        let worker = Worker::start(&straight, "far").await;
        let proxy = Proxy::start(straight.address.ip(), straight.address).await;
        let sender = Sender::new(AmqpTarget { address: proxy.address, ..straight });
        sender.send_operation("far", &operation("whole")).await.expect("send");
        worker.take("far_operation").await.expect("the operation");
        // The broker's answers to three declarations and the look pass, its confirm does not.
        proxy.cut_after(4);
        let error = sender.send_operation("far", &operation("cut")).await.expect_err("cut off");
        assert!(matches!(error, SendError::Unknown(_)), "{error:?}");
        assert!(error.may_have_been_kept());
        let kept = worker.take("far_operation").await.expect("it was kept indeed");
        assert_eq!(kept.properties.correlation_id().as_ref().expect("an id").as_str(), "cut");
        proxy.mend();
        sender.send_operation("far", &operation("again")).await.expect("the sender connects anew");
    });
}

#[test]
fn what_is_not_allowed_is_refused() {
    on_bed(async {
        let target = target(&BED.settings, "trip");
        let _worker = Worker::start(&target, "guarded").await;
        let reader = AmqpTarget { user: "reader".into(), password: "read".into(), ..target.clone() };
        let error = Sender::new(reader).send_operation("guarded", &operation("t")).await.expect_err("may only read");
        assert!(matches!(&error, SendError::Refused { why, .. } if why.contains("ACCESS_REFUSED")), "{error:?}");

        let sender = Sender::new(target);
        let error = sender.send_operation(&"x".repeat(250), &operation("t")).await.expect_err("too long");
        assert!(matches!(error, SendError::Refused { .. }), "{error:?}");
        let mut large = operation("t");
        large.kwargs.insert("blob".into(), json!("x".repeat(17 * 1024 * 1024)));
        let error = sender.send_operation("guarded", &large).await.expect_err("too large");
        assert!(matches!(error, SendError::Refused { .. }), "{error:?}");
        sender.send_operation("guarded", &operation("t")).await.expect("the sender still works");
    });
}

#[test]
fn what_was_confirmed_outlives_a_killed_broker() {
    let runtime = Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let settings = settings("dispatch-kill", "127.31.0.12");
        let broker = Broker::start(settings.clone()).await.expect("start");
        broker.ready(READY).await.expect("ready");
        let target = target(&settings, "/");
        let mut responses = Responses::new(target.clone());
        responses.connect().await.expect("connect");
        let worker = Worker::start(&target, MANAGEMENT).await;
        let sender = Sender::new(target.clone());
        for number in 0..20 {
            sender.send_operation(MANAGEMENT, &operation(&format!("task-{number}"))).await.expect("send");
        }
        let BrokerStatus::Running { pid, .. } = broker.status() else { panic!("{:?}", broker.status()) };
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).expect("kill");
        let lost = tokio::time::timeout(SOON, responses.next()).await.expect("in time");
        assert!(matches!(lost, Err(ResponsesError::Lost(_))), "{lost:?}");
        drop(worker);
        let error = sender.send_operation(MANAGEMENT, &operation("down")).await.expect_err("it is down");
        assert!(matches!(error, SendError::Link(_) | SendError::Unknown(_)), "{error:?}");
        let mut changes = broker.status_changes();
        let again = changes.wait_for(|status| matches!(status, BrokerStatus::Running { pid: now, .. } if *now != pid));
        tokio::time::timeout(SOON, again).await.expect("in time").expect("a status");
        broker.ready(READY).await.expect("ready again");

        responses.connect().await.expect("connect again");
        sender.send_operation(MANAGEMENT, &operation("after")).await.expect("the same sender");
        let worker = Worker::start(&target, MANAGEMENT).await;
        for number in 0..20 {
            let delivery = worker.take("cloudify.management_operation").await.expect("an operation");
            let expected = format!("task-{number}");
            assert_eq!(delivery.properties.correlation_id().as_ref().expect("an id").as_str(), expected);
        }
        worker.reply(Some("after"), b"{\"ok\": true}").await;
        let received = tokio::time::timeout(SOON, responses.next()).await.expect("in time").expect("a reply");
        assert_eq!(received.reply.task_id, "after");
    });
}
