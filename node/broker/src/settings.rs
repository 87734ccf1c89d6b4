//! Where things are.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// How to run RabbitMQ.
#[derive(Clone)]
pub struct BrokerSettings {
    /// RabbitMQ's own `rabbitmq-server`, on Debian `/usr/lib/rabbitmq/bin/rabbitmq-server`. The wrapper in `/usr/sbin`
    /// does not do: it insists on Debian's directories.
    pub program: PathBuf,
    /// The account to run it as when this process is root. `None`: as this process.
    pub user: Option<String>,
    /// Ours alone: configuration, database, logs. Absolute; the account must be able to reach it.
    pub node_dir: PathBuf,
    /// Where AMQP is listened on.
    pub node_address: IpAddr,
    /// For AMQP over TLS; there is no other AMQP listener.
    pub amqps_port: u16,
    /// For the management interface, TLS too; see [`Self::management_address`].
    pub management_port: u16,
    /// For Erlang's own traffic, on a loopback address; nothing but this broker uses it.
    pub distribution_port: u16,
    /// Who signed the certificate; the management interface is checked against it.
    pub ca_pem_path: PathBuf,
    /// The certificate, valid for `node_address`.
    pub cert_pem_path: PathBuf,
    /// Its key.
    pub key_pem_path: PathBuf,
    /// The administrator, the only user a new broker has.
    pub admin_user: String,
    /// The administrator's password. It may change from one start to the next.
    pub admin_password: String,
}

impl BrokerSettings {
    /// Where AMQP over TLS is.
    #[must_use]
    pub fn amqps_address(&self) -> SocketAddr {
        SocketAddr::new(self.node_address, self.amqps_port)
    }

    /// Where the management interface is: never reachable from other hosts. On a loopback node address it is there, so
    /// that several nodes share one machine.
    #[must_use]
    pub fn management_address(&self) -> SocketAddr {
        let address = if self.node_address.is_loopback() { self.node_address } else { Ipv4Addr::LOCALHOST.into() };
        SocketAddr::new(address, self.management_port)
    }

    /// The loopback address of Erlang's own traffic.
    pub(crate) fn distribution_address(&self) -> Ipv4Addr {
        match self.node_address {
            IpAddr::V4(address) if address.is_loopback() => address,
            _ => Ipv4Addr::LOCALHOST,
        }
    }

    /// Erlang's name of the broker. The part after the `@` is an address, so that no name service is asked.
    pub(crate) fn erlang_name(&self) -> String {
        format!("quorate@{}", self.distribution_address())
    }

    pub(crate) fn conf(&self, name: &str) -> PathBuf {
        self.node_dir.join("conf").join(name)
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.node_dir.join("home")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.node_dir.join("log")
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.node_dir.join("mnesia")
    }
}

impl fmt::Debug for BrokerSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BrokerSettings")
            .field("program", &self.program)
            .field("user", &self.user)
            .field("node_dir", &self.node_dir)
            .field("amqps", &self.amqps_address())
            .field("management", &self.management_address())
            .field("admin_user", &self.admin_user)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: &str) -> BrokerSettings {
        BrokerSettings {
            program: "/p".into(),
            user: None,
            node_dir: "/d".into(),
            node_address: address.parse().expect("an address"),
            amqps_port: 5671,
            management_port: 15671,
            distribution_port: 25672,
            ca_pem_path: "/ca".into(),
            cert_pem_path: "/cert".into(),
            key_pem_path: "/key".into(),
            admin_user: "admin".into(),
            admin_password: "hunter2".into(),
        }
    }

    #[test]
    fn management_and_distribution_stay_on_loopback() {
        let demo = at("127.0.10.2");
        assert_eq!(demo.management_address().to_string(), "127.0.10.2:15671");
        assert_eq!(demo.erlang_name(), "quorate@127.0.10.2");
        let host = at("10.1.2.3");
        assert_eq!(host.amqps_address().to_string(), "10.1.2.3:5671");
        assert_eq!(host.management_address().to_string(), "127.0.0.1:15671");
        assert_eq!(host.erlang_name(), "quorate@127.0.0.1");
        assert_eq!(at("fd00::1").management_address().to_string(), "127.0.0.1:15671");
    }

    #[test]
    fn debug_shows_no_password() {
        assert!(!format!("{:?}", at("127.0.0.1")).contains("hunter2"));
    }
}
