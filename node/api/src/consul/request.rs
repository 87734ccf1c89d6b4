//! What a request says: flags, token, consistency, how long it waits, its key and its body.

use std::time::Duration;

use axum::body::Body;
use futures::StreamExt;
use http::request::Parts;

use super::reply::Refusal;

/// The longest value.
pub const VALUE_BYTES_MAX: usize = 512 << 10;
/// The longest key.
const KEY_BYTES_MAX: usize = 4096;
/// Of a body that is too long, this much is read, so that the client hears the answer instead of a reset.
const DRAINED_BYTES_MAX: usize = 4 << 20;
/// How long a body may take.
const BODY_DEADLINE: Duration = Duration::from_secs(30);
/// A blocking query without `wait`.
const WAIT_DEFAULT: Duration = Duration::from_secs(5 * 60);
/// The longest wait; more is cut.
const WAIT_MAX: Duration = Duration::from_secs(10 * 60);

/// The query string and the token. No `Debug`: it holds the token.
pub struct Query {
    pairs: Vec<(String, String)>,
    token: Option<String>,
}

/// How fresh a read must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consistency {
    /// Nothing was said: linearizable, which is more than Consul promises.
    Default,
    /// Linearizable.
    Consistent,
    /// What is here, if it is not older than the bound.
    Stale(Option<Duration>),
}

impl Consistency {
    /// As `X-Consul-Effective-Consistency` names it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Default => "leader",
            Self::Consistent => "consistent",
            Self::Stale(_) => "stale",
        }
    }
}

/// A blocking query: until the index is above `index`, or `wait` has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocking {
    pub index: u64,
    pub wait: Duration,
}

impl Query {
    pub fn read(parts: &Parts) -> Result<Self, Refusal> {
        let axum::extract::Query(pairs) = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(&parts.uri)
            .map_err(|_| Refusal::Malformed("Invalid query".into()))?;
        let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok());
        let token = pairs
            .iter()
            .find(|(name, _)| name == "token")
            .map(|(_, value)| value.as_str())
            .filter(|token| !token.is_empty())
            .or_else(|| header("x-consul-token").filter(|token| !token.is_empty()))
            .or_else(|| header("authorization").and_then(bearer))
            .map(str::to_owned);
        Ok(Self { pairs, token })
    }

    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// A flag is on when it is there, whatever its value.
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.pairs.iter().filter(move |(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// A number, if it is there. An empty one counts as absent, as Consul has it.
    pub fn number(&self, name: &str) -> Result<Option<u64>, Refusal> {
        match self.get(name) {
            None | Some("") => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_| Refusal::Malformed(format!("Invalid {name}"))),
        }
    }

    /// There is one datacenter and neither namespaces, partitions nor peers.
    pub fn check_place(&self, datacenter: &str) -> Result<(), Refusal> {
        for name in ["ns", "partition", "peer"] {
            if self.get(name).is_some_and(|value| !value.is_empty()) {
                return Err(Refusal::Malformed(format!("Invalid query parameter: \"{name}\" is not supported")));
            }
        }
        match self.get("dc") {
            Some(name) if !name.is_empty() && !name.eq_ignore_ascii_case(datacenter) => Err(Refusal::NoPath),
            _ => Ok(()),
        }
    }

    /// Ignoring a filter would answer with too much, so one is refused.
    pub fn refuse_filter(&self) -> Result<(), Refusal> {
        if self.get("filter").is_some_and(|filter| !filter.is_empty()) {
            return Err(Refusal::Malformed("Failed to create filter: filter expressions are not supported".into()));
        }
        Ok(())
    }

    /// # Errors
    /// When two of the flags are there. The text names only these two: the rest may hold a token.
    pub fn refuse_both(&self, flags: &[&str]) -> Result<(), Refusal> {
        let there: Vec<&str> = flags.iter().copied().filter(|flag| self.has(flag)).collect();
        if there.len() > 1 {
            return Err(Refusal::Malformed(format!("Conflicting flags: {}", there.join(", "))));
        }
        Ok(())
    }

    pub fn consistency(&self) -> Result<Consistency, Refusal> {
        let stale = self.has("stale") || self.has("max_stale");
        if self.has("consistent") {
            if stale {
                let text = "Cannot specify ?stale with ?consistent, conflicting semantics.";
                return Err(Refusal::Malformed(text.into()));
            }
            return Ok(Consistency::Consistent);
        }
        if !stale {
            return Ok(Consistency::Default);
        }
        let bound = match self.get("max_stale") {
            None | Some("") => None,
            Some(text) => Some(duration(text).ok_or_else(|| Refusal::Malformed("Invalid max_stale value".into()))?),
        };
        Ok(Consistency::Stale(bound))
    }

    /// `None`: answer at once.
    pub fn blocking(&self) -> Result<Option<Blocking>, Refusal> {
        let wait = match self.get("wait") {
            None | Some("") => Duration::ZERO,
            Some(text) => duration(text).ok_or_else(|| Refusal::Malformed("Invalid wait time".into()))?,
        };
        let wait = if wait.is_zero() { WAIT_DEFAULT } else { wait.min(WAIT_MAX) };
        Ok(self.number("index")?.filter(|index| *index > 0).map(|index| Blocking { index, wait }))
    }
}

fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// Go's notation: `10s`, `1m30s`, `9.998s`, `500us`; a bare number only if it is 0.
fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..unit_at].parse().ok()?;
        rest = &rest[unit_at..];
        let unit_end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        seconds += number
            * match &rest[..unit_end] {
                "ns" => 1e-9,
                "us" | "\u{b5}s" | "\u{3bc}s" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
        rest = &rest[unit_end..];
    }
    if text.is_empty() { None } else { Duration::try_from_secs_f64(seconds).ok() }
}

/// Undoes the percent-encoding, once.
pub fn decode(path: &str) -> Result<String, Refusal> {
    let malformed = || Refusal::Malformed("Invalid URL path".into());
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        let (Some(high), Some(low)) = (digit(rest.next()), digit(rest.next())) else {
            return Err(malformed());
        };
        bytes.push(u8::try_from(high * 16 + low).map_err(|_| malformed())?);
    }
    String::from_utf8(bytes).map_err(|_| malformed())
}

/// A key, decoded and checked. Everything goes but line feeds, zero bytes and steps upwards.
pub fn key(path: &str) -> Result<String, Refusal> {
    let key = decode(path)?;
    if key.len() > KEY_BYTES_MAX {
        return Err(Refusal::Malformed(format!("Invalid key name: longer than {KEY_BYTES_MAX} bytes")));
    }
    if key.contains(['\n', '\0']) || key.split('/').any(|part| part == "..") {
        return Err(Refusal::Malformed("Invalid key name: no line feed, zero byte or `..` allowed".into()));
    }
    Ok(key)
}

/// A value: the raw bytes, whatever the content type claims.
pub async fn value(body: Body) -> Result<Vec<u8>, Refusal> {
    let too_large = Refusal::TooLarge { max: VALUE_BYTES_MAX };
    if hyper::body::Body::size_hint(&body).lower() > DRAINED_BYTES_MAX as u64 {
        return Err(too_large);
    }
    let deadline = tokio::time::Instant::now() + BODY_DEADLINE;
    let mut chunks = body.into_data_stream();
    let mut value = Vec::new();
    let mut seen = 0;
    while let Some(chunk) = tokio::time::timeout_at(deadline, chunks.next()).await.map_err(|_| Refusal::Slow)? {
        let chunk = chunk.map_err(|_| Refusal::Malformed("The body ended early".into()))?;
        seen += chunk.len();
        if seen > DRAINED_BYTES_MAX {
            break;
        }
        if seen <= VALUE_BYTES_MAX {
            value.extend_from_slice(&chunk);
        }
    }
    if seen > VALUE_BYTES_MAX { Err(too_large) } else { Ok(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(uri: &str) -> Query {
        let (parts, ()) = http::Request::get(uri).header("authorization", "Bearer b").body(()).unwrap().into_parts();
        Query::read(&parts).ok().unwrap()
    }

    #[test]
    fn durations_are_gos() {
        let cases = [
            ("10s", 10_000_000),
            ("1m30s", 90_000_000),
            ("120000ms", 120_000_000),
            ("9.998s", 9_998_000),
            ("500us", 500),
            ("0.001s", 1000),
            ("0", 0),
        ];
        for (text, micros) in cases {
            assert_eq!(duration(text), Some(Duration::from_micros(micros)), "{text}");
        }
        for text in ["", "5", "s", "-1s", "1x", "1.2.3s", "1s2", "1e400h", "NaNs"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    #[test]
    fn waits_have_a_default_and_a_cap() {
        let wait = |uri| query(uri).blocking().ok().unwrap().map(|blocking| blocking.wait);
        assert_eq!(wait("/?wait=1s"), None);
        assert_eq!(wait("/?index=0"), None);
        assert_eq!(wait("/?index=1"), Some(WAIT_DEFAULT));
        assert_eq!(wait("/?index=1&wait=3h"), Some(WAIT_MAX));
        assert!(query("/?index=x").blocking().is_err());
        assert!(query("/?index=1&wait=5").blocking().is_err());
    }

    #[test]
    fn the_query_token_goes_before_the_header() {
        assert_eq!(query("/?token=a").token(), Some("a"));
        assert_eq!(query("/?token=").token(), Some("b"));
    }

    #[test]
    fn keys_are_decoded_once() {
        assert_eq!(key("a%2Fb/%C3%A4%252F").ok().unwrap(), "a/b/\u{e4}%2F");
        assert_eq!(key("a+b../c").ok().unwrap(), "a+b../c");
        for bad in ["a%0ab", "a/%2e%2e/b", "%zz", "%f", "%ff", "a%00"] {
            assert!(key(bad).is_err(), "{bad}");
        }
    }
}
