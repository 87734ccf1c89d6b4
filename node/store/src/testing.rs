//! A private PostgreSQL for tests: one server per test program, one database per test.
//!
//! The server is held by a shell that waits for the end of a pipe from us: however the test program ends, the pipe
//! closes, and the shell stops the server it started and removes its directory.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use quorate_types::Epoch;
use serde_json::{Value, json};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, PgConnection, PgPool};
use tokio::sync::OnceCell;

use crate::{Document, Store, migrate, open_epoch};

const BIN: &str = "/usr/lib/postgresql/15/bin";
const TEMPLATE: &str = "template_quorate";
/// What the stores of [`store`] serve.
pub const EPOCH: Epoch = Epoch(1);

const RUN: &str = r#"
set -eu
"$1/initdb" -D "$2/data" -U quorate --auth=trust --no-sync --encoding=UTF8 --locale=C >"$2/initdb.log" 2>&1
"$1/postgres" -D "$2/data" -c listen_addresses= -c unix_socket_directories="$2" -c fsync=off \
    -c synchronous_commit=off -c full_page_writes=off -c max_connections=400 -c shared_buffers=32MB \
    -c autovacuum=off >"$2/log" 2>&1 &
server=$!
for try in $(seq 200); do
    if "$1/pg_isready" -q -h "$2"; then break; fi
    kill -0 "$server"
    sleep 0.05
done
echo ready
read -r nothing || true
kill -QUIT "$server"
wait "$server" || true
rm -rf "$2"
"#;

struct Server {
    sockets: PathBuf,
    /// Its standard input is the pipe that keeps the server alive.
    _holder: Child,
}

/// A pool on an empty, migrated database of its own. No epoch is open.
///
/// # Panics
/// When PostgreSQL 15 is not installed or does not start.
pub async fn pool() -> PgPool {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    static MADE: OnceCell<()> = OnceCell::const_new();
    let server = server();
    let options = |database: &str| {
        PgConnectOptions::new_without_pgpass().socket(&server.sockets).username("quorate").database(database)
    };
    MADE.get_or_init(|| async {
        let mut connection = PgConnection::connect_with(&options("postgres")).await.expect("connect");
        let sql = format!("CREATE DATABASE {TEMPLATE}");
        sqlx::query(&sql).execute(&mut connection).await.expect("make the template database");
        let template = PgPoolOptions::new().max_connections(1).connect_with(options(TEMPLATE)).await.expect("connect");
        migrate(&template).await.expect("migrate");
        template.close().await;
    })
    .await;
    let database = format!("test_{}", COUNT.fetch_add(1, Ordering::Relaxed));
    let mut connection = PgConnection::connect_with(&options("postgres")).await.expect("connect");
    let sql = format!("CREATE DATABASE {database} TEMPLATE {TEMPLATE} STRATEGY file_copy");
    sqlx::query(&sql).execute(&mut connection).await.expect("make a database");
    PgPoolOptions::new().max_connections(10).connect_with(options(&database)).await.expect("connect")
}

/// A store on a database of its own, with [`EPOCH`] open.
///
/// # Panics
/// As [`pool`].
pub async fn store() -> Store {
    let pool = pool().await;
    open_epoch(&pool, EPOCH).await.expect("open the epoch");
    Store::new(pool, EPOCH)
}

/// A deployment of the default tenant's first user without going through a blueprint. `nodes`: objects with `id` and
/// `operations`, and the ids of the nodes they wait for in `after`; each has one instance `<id>_1`. Returns its key.
///
/// # Panics
/// When there is no such tenant, or the id is taken.
pub async fn deployment(store: &Store, id: &str, workflows: Value, nodes: &[Value]) -> i64 {
    let mut tx = store.begin().await.expect("begin");
    let blueprint: i64 = sqlx::query_scalar(
        "INSERT INTO blueprints (id, tenant_key, created_by, visibility, main_file_name, state) \
         SELECT $1, t.key, 0, 'tenant', 'blueprint.yaml', 'uploaded' FROM tenants t WHERE t.name = 'default_tenant' \
         RETURNING key",
    )
    .bind(format!("{id}-blueprint"))
    .fetch_one(&mut *tx)
    .await
    .expect("make a blueprint");
    let (key, tenant): (i64, i64) = sqlx::query_as(
        "INSERT INTO deployments (id, tenant_key, created_by, visibility, display_name, blueprint_key, workflows) \
         SELECT $1, b.tenant_key, 0, 'tenant', $1, b.key, $3 FROM blueprints b WHERE b.key = $2 \
         RETURNING key, tenant_key",
    )
    .bind(id)
    .bind(blueprint)
    .bind(Document(workflows))
    .fetch_one(&mut *tx)
    .await
    .expect("make a deployment");
    for node in nodes {
        let name = node["id"].as_str().expect("a node has an id");
        let after = node["after"].as_array().cloned().unwrap_or_default();
        let declared =
            after.iter().map(|target| json!({"type": "after", "type_hierarchy": ["after"], "target_id": target}));
        let made = after.iter().map(|target| {
            let instance = format!("{}_1", target.as_str().unwrap_or_default());
            json!({"type": "after", "target_id": instance, "target_name": target})
        });
        let node_key: i64 = sqlx::query_scalar(
            "INSERT INTO nodes (id, deployment_key, type, type_hierarchy, operations, relationships, plugins, \
             number_of_instances, planned_number_of_instances, deploy_number_of_instances, min_number_of_instances, \
             max_number_of_instances) VALUES ($1, $2, 'tests.Node', '[\"tests.Node\"]', $3, $4, \
             '[{\"name\": \"p\"}]', 1, 1, 1, 1, 1) RETURNING key",
        )
        .bind(name)
        .bind(key)
        .bind(Document(node["operations"].clone()))
        .bind(Document(declared.collect()))
        .fetch_one(&mut *tx)
        .await
        .expect("make a node");
        sqlx::query(
            "INSERT INTO node_instances (id, tenant_key, deployment_key, node_key, index, relationships) \
             VALUES ($1, $2, $3, $4, 1, $5)",
        )
        .bind(format!("{name}_1"))
        .bind(tenant)
        .bind(key)
        .bind(node_key)
        .bind(Document(made.collect()))
        .execute(&mut *tx)
        .await
        .expect("make a node instance");
    }
    tx.commit().await.expect("commit");
    key
}

fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let directory = tempfile::Builder::new().prefix("qpg").tempdir_in("/tmp").expect("make a directory").keep();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", RUN, "sh", BIN]).arg(&directory).current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        // PostgreSQL refuses to run as root.
        if let Some((uid, gid)) = postgres_when_root(&directory) {
            chown(&directory, Some(uid), Some(gid)).expect("give the directory to postgres");
            command.uid(uid).gid(gid);
        }
        let mut holder = command.spawn().expect("start a shell");
        let mut line = String::new();
        let output = holder.stdout.take().expect("it is a pipe");
        BufReader::new(output).read_line(&mut line).expect("read from the shell");
        assert_eq!(line, "ready\n", "PostgreSQL does not start, see {}", directory.display());
        Server { sockets: directory, _holder: holder }
    })
}

/// User and group of the account `postgres` when we are root: we are when what we make belongs to 0.
fn postgres_when_root(ours: &std::path::Path) -> Option<(u32, u32)> {
    use std::os::unix::fs::MetadataExt;
    if std::fs::metadata(ours).expect("it is ours").uid() != 0 {
        return None;
    }
    let accounts = std::fs::read_to_string("/etc/passwd").expect("read the accounts");
    let line = accounts.lines().find(|line| line.starts_with("postgres:")).expect("PostgreSQL is installed");
    let mut fields = line.split(':').skip(2).map(|field| field.parse().expect("a number"));
    Some((fields.next()?, fields.next()?))
}
