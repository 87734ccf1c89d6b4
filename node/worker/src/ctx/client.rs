//! The `ctx` command that scripts call: one request to the worker, its answer printed as the Python command prints it.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};

use crate::python_text;

/// Where the worker listens for this operation's script.
pub(crate) const SOCKET_URL: &str = "CTX_SOCKET_URL";
/// Bytes of an answer the command reads.
const ANSWER_MAX: u64 = 64 << 20;

const USAGE: &str = "usage: ctx [-t SECONDS] [--socket-url URL] [--json-arg-prefix PREFIX] [-j] [ARGS ...]";

struct Call {
    timeout: Duration,
    url: String,
    json_output: bool,
    args: Vec<Value>,
}

enum Stop {
    Usage(String),
    Failed(String),
}

/// Runs the `ctx` command with the arguments after `argv[0]`. Exit codes: 0 answered, 1 failed or the operation was
/// stopped, 2 wrong usage.
pub fn ctx_main(args_after_argv0: impl IntoIterator<Item = OsString>) -> ExitCode {
    let outcome = parse(args_after_argv0).and_then(|call| match request(&call) {
        Ok(answer) => interpret(&call, &answer),
        Err(reason) => Err(Stop::Failed(format!("ctx: {reason}"))),
    });
    match outcome {
        Ok(text) => {
            let mut out = std::io::stdout();
            match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            }
        }
        Err(Stop::Failed(text)) => {
            eprintln!("{text}");
            ExitCode::FAILURE
        }
        Err(Stop::Usage(text)) => {
            eprintln!("{USAGE}\nctx: error: {text}");
            ExitCode::from(2)
        }
    }
}

fn parse(raw: impl IntoIterator<Item = OsString>) -> Result<Call, Stop> {
    let mut timeout = 30u64;
    let mut url = std::env::var(SOCKET_URL).ok().filter(|url| !url.is_empty());
    let mut prefix = String::from("@");
    let mut json_output = false;
    let mut words = Vec::new();
    let mut raw = raw.into_iter().map(|word| word.to_string_lossy().into_owned());
    while let Some(word) = raw.next() {
        let (name, attached) = match word.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name.to_owned(), Some(value.to_owned())),
            _ => (word.clone(), None),
        };
        let mut value =
            || attached.clone().or_else(|| raw.next()).ok_or_else(|| Stop::Usage(format!("{name} needs a value")));
        match name.as_str() {
            "--" => words.extend(raw.by_ref()),
            "-j" | "--json-output" => json_output = true,
            "--socket-url" => url = Some(value()?),
            "--json-arg-prefix" => prefix = value()?,
            "-t" | "--timeout" => {
                timeout = value()?.parse().map_err(|_| Stop::Usage("the timeout is a whole number".into()))?;
            }
            // As argparse: a negative number, a lone dash or anything with a blank is an argument.
            other if other.len() > 1 && other.starts_with('-') && !other.contains(' ') && !is_number(other) => {
                return Err(Stop::Usage(format!("unknown option {other}")));
            }
            _ => words.push(word),
        }
    }
    let mut args = Vec::new();
    for word in words {
        args.push(match word.strip_prefix(prefix.as_str()).filter(|_| !prefix.is_empty()) {
            Some(text) => serde_json::from_str(text)
                .map_err(|error| Stop::Failed(format!("ctx: an argument after {prefix} is not JSON: {error}")))?,
            None => Value::String(word),
        });
    }
    let url = url.ok_or_else(|| {
        Stop::Failed(format!("ctx: neither {SOCKET_URL} nor --socket-url is set: not inside an operation"))
    })?;
    Ok(Call { timeout: Duration::from_secs(timeout.max(1)), url, json_output, args })
}

fn is_number(word: &str) -> bool {
    word.parse::<f64>().is_ok()
}

fn request(call: &Call) -> Result<Value, String> {
    let rest = call.url.strip_prefix("http://").ok_or("only http:// socket URLs are known")?;
    let (authority, path) = rest.split_once('/').map_or((rest, String::new()), |(a, p)| (a, p.to_owned()));
    let addresses = authority.to_socket_addrs().map_err(|error| format!("resolve {authority}: {error}"))?;
    let mut last = String::from("no address");
    for address in addresses {
        match TcpStream::connect_timeout(&address, call.timeout) {
            Ok(stream) => return exchange(call, stream, authority, &path).map_err(|error| error.to_string()),
            Err(error) => last = error.to_string(),
        }
    }
    Err(format!("connect to the worker: {last}"))
}

fn exchange(call: &Call, mut stream: TcpStream, authority: &str, path: &str) -> std::io::Result<Value> {
    stream.set_read_timeout(Some(call.timeout))?;
    stream.set_write_timeout(Some(call.timeout))?;
    let body = json!({"args": call.args}).to_string();
    // HTTP/1.0: the answer then comes in one piece and ends with the connection.
    write!(
        stream,
        "POST /{path} HTTP/1.0\r\nHost: {authority}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer)?;
    let split = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let (head, body) = match split {
        Some(at) => (&answer[..at], &answer[at + 4..]),
        None => return Err(std::io::Error::other("the worker's answer is not HTTP")),
    };
    let status = String::from_utf8_lossy(head).split_whitespace().nth(1).unwrap_or_default().to_owned();
    if status != "200" {
        return Err(std::io::Error::other(format!("the worker answered {status}")));
    }
    serde_json::from_slice(body).map_err(std::io::Error::other)
}

fn interpret(call: &Call, answer: &Value) -> Result<String, Stop> {
    let payload = answer.get("payload").unwrap_or(&Value::Null);
    let text = |key: &str| payload.get(key).map(python_text::str).unwrap_or_default();
    match answer.get("type").and_then(Value::as_str) {
        Some("error") => Err(Stop::Failed(format!("ctx: {}: {}", text("type"), text("message")))),
        Some("stop_operation") => Err(Stop::Failed(text("message"))),
        _ if call.json_output => Ok(python_text::json(payload)),
        _ if python_text::is_falsy(payload) => Ok(String::new()),
        _ => Ok(python_text::str(payload)),
    }
}
