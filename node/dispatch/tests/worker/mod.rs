//! A worker's side of the wire, through lapin's own way of connecting.

use std::time::{Duration, Instant};

use amq_protocol_tcp::OwnedTLSConfig;
use lapin::message::BasicGetMessage;
use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, ExchangeDeleteOptions,
    QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};
use quorate_dispatch::{AmqpTarget, OPERATION_KEY, RESPONSES_QUEUE, SERVICE_KEY, operation_queue, service_queue};

const SOON: Duration = Duration::from_secs(10);

pub struct Worker {
    name: String,
    channel: Channel,
    _connection: Connection,
}

impl Worker {
    /// Declares what a worker of this name declares.
    pub async fn start(target: &AmqpTarget, name: &str) -> Self {
        let uri = AMQPUri {
            scheme: AMQPScheme::AMQPS,
            authority: AMQPAuthority {
                userinfo: AMQPUserInfo { username: target.user.clone(), password: target.password.clone() },
                host: target.address.ip().to_string(),
                port: target.address.port(),
            },
            vhost: target.vhost.clone(),
            query: AMQPQueryString::default(),
        };
        let tls = OwnedTLSConfig { cert_chain: Some(target.ca_pem.clone()), ..Default::default() };
        let runtime = lapin::runtime::default_runtime().expect("a runtime");
        let connection = Connection::connect_uri_with_config(uri, ConnectionProperties::default(), tls, runtime)
            .await
            .expect("connect");
        let channel = connection.create_channel().await.expect("a channel");
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
        let worker = Self { name: name.into(), channel, _connection: connection };
        worker.declare(name, ExchangeKind::Direct).await;
        worker
    }

    /// An exchange, and for a direct one its two queues.
    pub async fn declare(&self, exchange: &str, kind: ExchangeKind) {
        let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
        let direct = kind == ExchangeKind::Direct;
        let none = FieldTable::default();
        self.channel.exchange_declare(exchange.into(), kind, durable, none).await.expect("an exchange");
        if direct {
            self.bind(&operation_queue(exchange), exchange, OPERATION_KEY).await;
            self.bind(&service_queue(exchange), exchange, SERVICE_KEY).await;
        }
    }

    pub async fn bind(&self, queue: &str, exchange: &str, key: &str) {
        let durable = QueueDeclareOptions { durable: true, ..Default::default() };
        let none = FieldTable::default;
        self.channel.queue_declare(queue.into(), durable, none()).await.expect("a queue");
        let options = QueueBindOptions::default();
        self.channel.queue_bind(queue.into(), exchange.into(), key.into(), options, none()).await.expect("a binding");
    }

    pub async fn delete(&self, name: &str) {
        for queue in [operation_queue(name), service_queue(name)] {
            self.delete_queue(&queue).await;
        }
        self.channel.exchange_delete(name.into(), ExchangeDeleteOptions::default()).await.expect("delete");
    }

    pub async fn delete_queue(&self, queue: &str) {
        self.channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.expect("delete");
    }

    /// What is in the queue now.
    pub async fn get(&self, queue: &str) -> Option<BasicGetMessage> {
        self.channel.basic_get(queue.into(), BasicGetOptions { no_ack: true }).await.expect("get")
    }

    /// What comes into the queue soon.
    pub async fn take(&self, queue: &str) -> Option<BasicGetMessage> {
        let deadline = Instant::now() + SOON;
        while Instant::now() < deadline {
            if let Some(message) = self.get(queue).await {
                return Some(message);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        None
    }

    /// Publishes as a worker does: to its own exchange, with the key of `reply_to`.
    pub async fn reply(&self, task_id: Option<&str>, body: &[u8]) {
        let mut properties = BasicProperties::default().with_delivery_mode(2);
        if let Some(task_id) = task_id {
            properties = properties.with_correlation_id(task_id.into());
        }
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let exchange = self.name.as_str().into();
        let published = self.channel.basic_publish(exchange, RESPONSES_QUEUE.into(), options, body, properties).await;
        let confirmed = published.expect("publish").await.expect("confirm");
        assert_eq!(confirmed.take_message(), None, "the response queue is not bound");
    }
}
