//! YAML 1.1 plain scalars.

use serde_json::{Number, Value};

use super::Yaml;

/// A float as JSON; infinities and not-a-number have no JSON form and become null.
pub(crate) fn number_of_float(value: f64) -> Value {
    Number::from_f64(value).map_or(Value::Null, Value::Number)
}

/// What an unquoted, untagged scalar means.
pub(super) fn resolve(text: &str) -> Yaml {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Yaml::Null,
        "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Yaml::Bool(true);
        }
        "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Yaml::Bool(false);
        }
        _ => {}
    }
    if let Some(value) = integer(text) {
        return Yaml::Int(value);
    }
    if let Some(value) = float(text) {
        return Yaml::Float(value);
    }
    Yaml::Text(text.to_owned())
}

fn split_sign(text: &str) -> (bool, &str) {
    match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    }
}

/// Decimal, `0b`, `0x`, octal with a leading zero, base 60 with colons; underscores anywhere after the first digit.
pub(super) fn integer(text: &str) -> Option<Number> {
    let (negative, digits) = split_sign(text);
    if !digits.as_bytes().first()?.is_ascii_digit() {
        return None;
    }
    let plain: String = digits.chars().filter(|c| *c != '_').collect();
    let radix = |digits: &str, radix: u32| -> Option<Number> {
        if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
            return None;
        }
        // Wider numbers than 128 bits only make sense in decimal, which is kept as text below.
        let value = u128::from_str_radix(digits, radix).ok()?;
        decimal(negative, &value.to_string())
    };
    if let Some(rest) = plain.strip_prefix("0b") {
        return radix(rest, 2);
    }
    if let Some(rest) = plain.strip_prefix("0x") {
        return radix(rest, 16);
    }
    if plain.contains(':') {
        if digits.starts_with('0') {
            return None;
        }
        let value = base_60(&plain, |last| last.parse::<u64>().ok().map(|v| v as f64))?;
        return decimal(negative, &format!("{value:.0}"));
    }
    if !plain.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    if plain == "0" {
        return decimal(false, "0");
    }
    if plain.starts_with('0') {
        return radix(&plain, 8);
    }
    decimal(negative, &plain)
}

fn decimal(negative: bool, digits: &str) -> Option<Number> {
    let digits = digits.trim_start_matches('0');
    let text = match (negative, digits) {
        (_, "") => "0".to_owned(),
        (true, digits) => format!("-{digits}"),
        (false, digits) => digits.to_owned(),
    };
    serde_json::from_str(&text).ok()
}

/// `1:30:05`: each part after the first is below 60.
fn base_60(text: &str, last: impl Fn(&str) -> Option<f64>) -> Option<f64> {
    let parts: Vec<&str> = text.split(':').collect();
    let mut value = 0.0;
    for (i, part) in parts.iter().enumerate() {
        let part_value = if i + 1 == parts.len() {
            last(part)?
        } else {
            if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            part.parse::<f64>().ok()?
        };
        if part.len() > 20 || (i > 0 && part_value >= 60.0) {
            return None;
        }
        value = value * 60.0 + part_value;
    }
    Some(value)
}

/// Floats need a dot, and an exponent needs a sign.
pub(super) fn float(text: &str) -> Option<f64> {
    let (negative, rest) = split_sign(text);
    let sign = if negative { -1.0 } else { 1.0 };
    match rest {
        ".inf" | ".Inf" | ".INF" => return Some(sign * f64::INFINITY),
        ".nan" | ".NaN" | ".NAN" if rest.len() == text.len() => return Some(f64::NAN),
        _ => {}
    }
    let plain: String = rest.chars().filter(|c| *c != '_').collect();
    let (whole, fraction) = plain.split_once('.')?;
    if plain.contains(':') {
        let value = base_60(&plain, |last| {
            let ok = last.bytes().all(|b| b.is_ascii_digit() || b == b'.');
            (ok && !last.starts_with('.')).then(|| last.parse().ok())?
        })?;
        return Some(sign * value);
    }
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let (fraction, exponent) = match fraction.find(['e', 'E']) {
        Some(i) => (&fraction[..i], Some(&fraction[i + 1..])),
        None => (fraction, None),
    };
    if !digits(whole) || !digits(fraction) || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    if let Some(exponent) = exponent {
        let power = exponent.strip_prefix(['+', '-'])?;
        if power.is_empty() || !digits(power) {
            return None;
        }
    }
    let normal = format!(
        "{}.{}e{}",
        if whole.is_empty() { "0" } else { whole },
        if fraction.is_empty() { "0" } else { fraction },
        exponent.unwrap_or("0")
    );
    normal.parse::<f64>().ok().map(|value| sign * value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> String {
        match resolve(text) {
            Yaml::Null => "null".into(),
            Yaml::Bool(b) => b.to_string(),
            Yaml::Int(n) => n.to_string(),
            Yaml::Float(f) => format!("float {f}"),
            Yaml::Text(t) => format!("text {t}"),
            Yaml::List(_) | Yaml::Map(_) => unreachable!("a scalar"),
        }
    }

    #[test]
    fn follows_yaml_1_1() {
        for (text, want) in [
            ("yes", "true"),
            ("Off", "false"),
            ("y", "text y"),
            ("010", "8"),
            ("0o10", "text 0o10"),
            ("0x1F", "31"),
            ("-0b101", "-5"),
            ("1_000", "1000"),
            ("1:30", "90"),
            ("1e3", "text 1e3"),
            ("1.0e3", "text 1.0e3"),
            ("1.0e+3", "float 1000"),
            (".5", "float 0.5"),
            ("~", "null"),
            ("1.2.3", "text 1.2.3"),
            ("08", "text 08"),
            ("-", "text -"),
            (".", "text ."),
            ("123456789012345678901234567890", "123456789012345678901234567890"),
        ] {
            assert_eq!(json(text), want, "{text}");
        }
    }
}
