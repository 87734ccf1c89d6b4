//! A worker by itself, told everything by one JSON file; called as `ctx` it is that command. The tests run it where they
//! must kill a worker.

use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use quorate_worker::{AmqpAccess, RestTarget, Worker, WorkerSettings, ctx_main};
use serde::Deserialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

#[derive(Deserialize)]
struct Settings {
    name: String,
    dir: PathBuf,
    broker: SocketAddr,
    broker_ca_pem: String,
    user: String,
    password: String,
    rest_host: String,
    rest_port: u16,
    rest_ca_pem: String,
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let mut args = std::env::args_os();
    if args.next().is_some_and(|name| name.to_string_lossy().ends_with("ctx")) {
        return Ok(ctx_main(args));
    }
    let file = args.next().ok_or("usage: worker SETTINGS.json")?;
    let settings: Settings = serde_json::from_slice(&std::fs::read(file)?)?;
    let (_active, broker) = watch::channel(Some(settings.broker));
    let settings = WorkerSettings {
        name: settings.name,
        dir: settings.dir,
        exe: std::env::current_exe()?,
        amqp: AmqpAccess {
            active: broker,
            ca_pem: settings.broker_ca_pem,
            user: settings.user,
            password: settings.password,
            vhost: "/".into(),
        },
        rest: RestTarget {
            hosts: vec![settings.rest_host],
            port: settings.rest_port,
            ca_pem: settings.rest_ca_pem,
            patience: Duration::from_secs(20),
        },
        operations_max: 4,
    };
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(Worker::run(settings, CancellationToken::new()))?;
    Ok(ExitCode::SUCCESS)
}
