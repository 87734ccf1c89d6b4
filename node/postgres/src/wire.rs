//! The little of PostgreSQL's protocol that the keeper needs: startup packets, and simple queries over a local socket
//! where the operating system vouches for the user.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Protocol 3.0.
const PROTOCOL: u32 = 196_608;
/// Asks whether the server speaks TLS.
pub const SSL_REQUEST: u32 = 80_877_103;
/// Asks whether the server speaks GSSAPI.
pub const GSS_REQUEST: u32 = 80_877_104;
/// Cancels a running query; carries a secret that only the right server knows.
pub const CANCEL_REQUEST: u32 = 80_877_102;
/// PostgreSQL's own limit for a startup packet.
const STARTUP_BYTES_MAX: usize = 10_000;
/// An answer longer than this is not one of ours.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The connection broke or was never made.
    #[error("talk to PostgreSQL")]
    Io(#[from] io::Error),
    /// The server refused the query.
    #[error("{message} (SQLSTATE {code})")]
    Server {
        /// Five characters.
        code: String,
        /// PostgreSQL's text.
        message: String,
    },
    /// The server wants a password: the socket is not what it should be.
    #[error("PostgreSQL asks for a password where it should know this process by its user")]
    Password,
    /// The server was not done in time; the outcome is unknown.
    #[error("PostgreSQL did not answer within {0:?}")]
    TooSlow(Duration),
}

/// A startup packet: what a client wants before it says anything else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Startup {
    /// One of the requests that come before.
    Request(u32),
    /// The real one.
    Session {
        /// user, database, application_name, replication …
        parameters: BTreeMap<String, String>,
        /// The packet as it came, to be passed on.
        raw: Vec<u8>,
    },
    /// A cancel request as it came.
    Cancel(Vec<u8>),
}

impl Startup {
    /// Reads one packet.
    ///
    /// # Errors
    /// When it is malformed or too long.
    pub async fn read<S: tokio::io::AsyncRead + Unpin>(stream: &mut S) -> io::Result<Self> {
        let malformed = || io::Error::new(io::ErrorKind::InvalidData, "not a PostgreSQL startup packet");
        let length = stream.read_u32().await? as usize;
        if !(8..=STARTUP_BYTES_MAX).contains(&length) {
            return Err(malformed());
        }
        let mut raw = (length as u32).to_be_bytes().to_vec();
        raw.resize(length, 0);
        stream.read_exact(&mut raw[4..]).await?;
        let code = u32::from_be_bytes([raw[4], raw[5], raw[6], raw[7]]);
        match code {
            SSL_REQUEST | GSS_REQUEST => Ok(Self::Request(code)),
            CANCEL_REQUEST => Ok(Self::Cancel(raw)),
            code if code >> 16 == 3 => {
                let mut parameters = BTreeMap::new();
                let mut words = raw[8..].split(|byte| *byte == 0).map(String::from_utf8_lossy);
                while let Some(name) = words.next().filter(|name| !name.is_empty()) {
                    let value = words.next().ok_or_else(malformed)?;
                    parameters.insert(name.into_owned(), value.into_owned());
                }
                Ok(Self::Session { parameters, raw })
            }
            _ => Err(malformed()),
        }
    }
}

/// The message that refuses a client in its own protocol.
#[must_use]
pub fn refusal(code: &str, text: &str) -> Vec<u8> {
    let mut body = Vec::new();
    for (field, value) in [(b'S', "FATAL"), (b'V', "FATAL"), (b'C', code), (b'M', text)] {
        body.push(field);
        body.extend_from_slice(value.as_bytes());
        body.push(0);
    }
    body.push(0);
    let mut message = vec![b'E'];
    message.extend_from_slice(&u32::try_from(body.len() + 4).unwrap_or(u32::MAX).to_be_bytes());
    message.extend(body);
    message
}

/// Rows of texts; `None` is NULL.
pub type Rows = Vec<Vec<Option<String>>>;

/// One connection over a local socket.
pub struct Session {
    stream: UnixStream,
}

impl Session {
    /// Connects as `user`; `replication` opens a walsender instead of a backend.
    ///
    /// # Errors
    /// [`WireError`]; a server that still starts answers SQLSTATE 57P03.
    pub async fn connect(
        socket: &Path,
        user: &str,
        database: &str,
        replication: bool,
        limit: Duration,
    ) -> Result<Self, WireError> {
        let connect = async {
            let mut session = Self { stream: UnixStream::connect(socket).await? };
            let mut body = PROTOCOL.to_be_bytes().to_vec();
            let mut parameters = vec![("user", user), ("database", database), ("application_name", "quorate-keeper")];
            if replication {
                parameters.push(("replication", "database"));
            }
            for (name, value) in parameters {
                body.extend_from_slice(name.as_bytes());
                body.push(0);
                body.extend_from_slice(value.as_bytes());
                body.push(0);
            }
            body.push(0);
            let length = u32::try_from(body.len() + 4).map_err(io::Error::other)?;
            session.stream.write_all(&length.to_be_bytes()).await?;
            session.stream.write_all(&body).await?;
            session.answer().await?;
            Ok(session)
        };
        tokio::time::timeout(limit, connect).await.map_err(|_| WireError::TooSlow(limit))?
    }

    /// Runs SQL (or a replication command) and returns the rows of its last result.
    ///
    /// # Errors
    /// [`WireError`]. After an `Io` or `TooSlow` error the session must be dropped and the outcome is unknown.
    pub async fn query(&mut self, sql: &str, limit: Duration) -> Result<Rows, WireError> {
        let exchange = async {
            let length = u32::try_from(sql.len() + 5).map_err(io::Error::other)?;
            let mut message = vec![b'Q'];
            message.extend_from_slice(&length.to_be_bytes());
            message.extend_from_slice(sql.as_bytes());
            message.push(0);
            self.stream.write_all(&message).await?;
            self.answer().await
        };
        tokio::time::timeout(limit, exchange).await.map_err(|_| WireError::TooSlow(limit))?
    }

    /// Reads until the server is ready again.
    async fn answer(&mut self) -> Result<Rows, WireError> {
        let mut rows = Rows::new();
        let mut failure = None;
        loop {
            let kind = self.stream.read_u8().await?;
            let length = (self.stream.read_u32().await? as usize).saturating_sub(4);
            if length > MESSAGE_BYTES_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is too long").into());
            }
            let mut body = vec![0; length];
            self.stream.read_exact(&mut body).await?;
            match kind {
                b'Z' => return failure.map_or(Ok(rows), Err),
                b'R' if body.get(..4) != Some(&[0; 4]) => return Err(WireError::Password),
                b'T' => rows.clear(),
                b'D' => rows.push(row(&body)?),
                b'E' => {
                    let error = server_error(&body);
                    // A fatal error before the first "ready" ends the connection.
                    if error.1 {
                        return Err(error.0);
                    }
                    failure = Some(error.0);
                }
                _ => {}
            }
        }
    }
}

fn row(body: &[u8]) -> Result<Vec<Option<String>>, WireError> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "malformed row");
    let mut rest = body.get(2..).ok_or_else(malformed)?;
    let mut values = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        match usize::try_from(i32::from_be_bytes(*length)) {
            Err(_) => {
                values.push(None);
                rest = after;
            }
            Ok(length) => {
                let (value, after) = after.split_at_checked(length).ok_or_else(malformed)?;
                values.push(Some(String::from_utf8_lossy(value).into_owned()));
                rest = after;
            }
        }
    }
    Ok(values)
}

fn server_error(body: &[u8]) -> (WireError, bool) {
    let (mut code, mut message, mut fatal) = (String::new(), String::new(), false);
    for field in body.split(|byte| *byte == 0) {
        let Some((kind, text)) = field.split_first() else { continue };
        let text = String::from_utf8_lossy(text).into_owned();
        match kind {
            b'C' => code = text,
            b'M' => message = text,
            b'V' => fatal = text == "FATAL" || text == "PANIC",
            _ => {}
        }
    }
    (WireError::Server { code, message }, fatal)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(code: u32, text: &[u8]) -> Vec<u8> {
        let mut bytes = (8 + text.len() as u32).to_be_bytes().to_vec();
        bytes.extend_from_slice(&code.to_be_bytes());
        bytes.extend_from_slice(text);
        bytes
    }

    #[tokio::test]
    async fn startup_packets_are_read_and_nonsense_is_refused() {
        let raw = packet(PROTOCOL, b"user\0repl_n2\0application_name\0n2\0\0");
        let startup = Startup::read(&mut raw.as_slice()).await.unwrap();
        let Startup::Session { parameters, raw: kept } = startup else { panic!("{startup:?}") };
        assert_eq!((parameters["user"].as_str(), parameters["application_name"].as_str()), ("repl_n2", "n2"));
        assert_eq!(kept, raw);
        let ssl = packet(SSL_REQUEST, b"");
        assert_eq!(Startup::read(&mut ssl.as_slice()).await.unwrap(), Startup::Request(SSL_REQUEST));
        for bad in [packet(7, b""), packet(PROTOCOL, b"user"), vec![0xFF; 8], vec![0, 0]] {
            assert!(Startup::read(&mut bad.as_slice()).await.is_err(), "{bad:?}");
        }
    }
}
