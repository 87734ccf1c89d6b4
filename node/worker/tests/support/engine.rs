//! The engine's side: sends tasks, takes replies.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use amq_protocol_tcp::OwnedTLSConfig;
use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};
use serde_json::{Value, json};

use super::{PASSWORD, SOON, USER};

pub struct Engine {
    worker: String,
    execution: String,
    channel: Channel,
    connection: Connection,
}

impl Engine {
    /// Connects and makes the worker's exchange and a reply queue.
    pub async fn connect(worker: &str, broker: SocketAddr, ca: &str) -> Self {
        let uri = AMQPUri {
            scheme: AMQPScheme::AMQPS,
            authority: AMQPAuthority {
                userinfo: AMQPUserInfo { username: USER.into(), password: PASSWORD.into() },
                host: broker.ip().to_string(),
                port: broker.port(),
            },
            vhost: "/".into(),
            query: AMQPQueryString::default(),
        };
        let tls = OwnedTLSConfig { cert_chain: Some(ca.into()), ..Default::default() };
        let runtime = lapin::runtime::default_runtime().expect("a runtime");
        let connection = Connection::connect_uri_with_config(uri, ConnectionProperties::default(), tls, runtime)
            .await
            .expect("connect");
        let channel = connection.create_channel().await.expect("a channel");
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
        let engine = Self { worker: worker.into(), execution: format!("x-{worker}"), channel, connection };
        let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
        let declared =
            engine.channel.exchange_declare(worker.into(), ExchangeKind::Direct, durable, FieldTable::default());
        declared.await.expect("an exchange");
        engine.bind(&engine.replies()).await;
        engine
    }

    fn replies(&self) -> String {
        format!("execution_responses_{}", self.execution)
    }

    async fn bind(&self, queue: &str) {
        let durable = QueueDeclareOptions { durable: true, ..Default::default() };
        self.channel.queue_declare(queue.into(), durable, FieldTable::default()).await.expect("a queue");
        let (exchange, options) = (self.worker.as_str().into(), QueueBindOptions::default());
        self.channel
            .queue_bind(queue.into(), exchange, queue.into(), options, FieldTable::default())
            .await
            .expect("a binding");
    }

    /// The message of one script operation.
    pub fn message(&self, task: &str, kwargs: Value, context: Value) -> Value {
        let mut kwargs = kwargs;
        let mut all = json!({
            "__cloudify_context": "0.3", "type": "operation", "task_id": task,
            "task_name": "script_runner.tasks.run", "task_queue": self.worker, "task_target": self.worker,
            "execution_id": self.execution, "workflow_id": "install", "workflow_parameters": {},
            "tenant": {"name": "default_tenant"}, "blueprint_id": "bp", "deployment_id": "dep",
            "deployment_display_name": "Dep", "deployment_creator": "admin", "deployment_resource_tags": {},
            "node_id": "web_1", "node_name": "web", "host_id": "web_1", "executor": "host_agent",
            "plugin": {"name": "script", "package_name": "script", "package_version": null, "properties": {}},
            "operation": {"name": "cloudify.interfaces.lifecycle.start", "retry_number": 0, "max_retries": 60},
            "has_intrinsic_functions": false, "local": false, "rest_host": ["127.32.0.1"], "rest_port": 443,
            "rest_token": "the-token", "execution_token": "the-token",
        });
        if let (Value::Object(all), Value::Object(more)) = (&mut all, context) {
            all.extend(more);
        }
        kwargs["__cloudify_context"] = all;
        json!({"id": task, "cloudify_task": {"kwargs": kwargs}})
    }

    /// Sends an operation, waiting for the worker's queue first.
    pub async fn send(&self, task: &str, message: &Value) {
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_reply_to(self.replies().into())
            .with_correlation_id(task.into());
        self.publish(&self.worker, "operation", message, properties).await;
    }

    pub async fn run(&self, task: &str, kwargs: Value) -> Value {
        self.send(task, &self.message(task, kwargs, json!({}))).await;
        self.reply(task).await
    }

    /// As [`Engine::run`], passing over replies of earlier tasks: one that was sent again may be answered again.
    pub async fn run_after_replies(&self, task: &str, kwargs: Value) -> Value {
        self.send(task, &self.message(task, kwargs, json!({}))).await;
        loop {
            let (id, body) = self.take(&self.replies()).await;
            if id.as_deref() == Some(task) {
                return body;
            }
        }
    }

    pub async fn service(&self, task_name: &str, kwargs: Value, reply_to: Option<&str>) {
        let mut properties = BasicProperties::default().with_delivery_mode(2);
        if let Some(queue) = reply_to {
            self.bind(queue).await;
            properties = properties.with_reply_to(queue.into());
        }
        let body = json!({"service_task": {"task_name": task_name, "kwargs": kwargs}});
        let exchange =
            if self.worker == "cloudify.management" { "cloudify-mgmtworker-service" } else { self.worker.as_str() };
        self.publish(exchange, "service", &body, properties).await;
    }

    async fn publish(&self, exchange: &str, key: &str, body: &Value, properties: BasicProperties) {
        let deadline = Instant::now() + SOON;
        loop {
            let options = BasicPublishOptions { mandatory: true, ..Default::default() };
            let (exchange, bytes) = (exchange.into(), body.to_string().into_bytes());
            let sent = self.channel.basic_publish(exchange, key.into(), options, &bytes, properties.clone()).await;
            if sent.expect("publish").await.expect("confirm").take_message().is_none() {
                return;
            }
            assert!(Instant::now() < deadline, "the worker made its queues");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Whether a queue exists; on a channel of its own, since asking may close it.
    pub async fn has_queue(&self, queue: &str) -> bool {
        let channel = self.connection.create_channel().await.expect("a channel");
        let look = QueueDeclareOptions { passive: true, durable: true, ..Default::default() };
        channel.queue_declare(queue.into(), look, FieldTable::default()).await.is_ok()
    }

    /// A message that is there now.
    pub async fn get(&self, queue: &str) -> Option<(Option<String>, Value)> {
        let got = self.channel.basic_get(queue.into(), BasicGetOptions { no_ack: true }).await.expect("get")?;
        let id = got.properties.correlation_id().as_ref().map(ToString::to_string);
        Some((id, serde_json::from_slice(&got.data).expect("JSON")))
    }

    pub async fn no_reply(&self) -> bool {
        !self.has_queue(&self.replies()).await || self.get(&self.replies()).await.is_none()
    }

    /// The next reply, which must be this task's.
    pub async fn reply(&self, task: &str) -> Value {
        let (id, body) = self.take(&self.replies()).await;
        assert_eq!(id.as_deref(), Some(task), "{body}");
        body
    }

    pub async fn take(&self, queue: &str) -> (Option<String>, Value) {
        let deadline = Instant::now() + 2 * SOON;
        loop {
            if let Some(message) = self.get(queue).await {
                return message;
            }
            assert!(Instant::now() < deadline, "a message in {queue}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn execution(&self) -> &str {
        &self.execution
    }
}
