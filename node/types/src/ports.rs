//! The default ports: one place, the same on every node.

/// Redirects to [`HTTPS`].
pub const HTTP: u16 = 80;
/// REST v3.1 and `/resources`.
pub const HTTPS: u16 = 443;
/// REST and the file server for agents.
pub const AGENTS: u16 = 53333;
/// RabbitMQ over TLS.
pub const AMQPS: u16 = 5671;
/// RabbitMQ's management API over TLS; localhost or the node's own address only.
pub const AMQP_MANAGEMENT: u16 = 15671;
/// Erlang's distribution port of the local broker, bound to loopback.
pub const AMQP_DISTRIBUTION: u16 = 25672;
/// Raft and node-to-node control, gRPC with mutual TLS.
pub const RAFT: u16 = 8300;
/// Gossip, UDP and TCP, encrypted with the cluster key.
pub const GOSSIP: u16 = 8301;
/// The Consul-shaped HTTPS API.
pub const CONSUL: u16 = 8500;
/// PostgreSQL sessions, spliced to the primary.
pub const POSTGRES: u16 = 5432;
/// PostgreSQL replication, mutual TLS, checked for peer, role and epoch.
pub const REPLICATION: u16 = 15432;
/// Replication of the resources directory, gRPC with mutual TLS.
pub const RESOURCES: u16 = 22000;
