//! Times as clients write them: `2024-05-06 07:08`, ISO with or without a zone, `+10h`, `+1 day+30 min`.

use quorate_app::AppError;
use time::format_description::BorrowedFormatItem;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{Duration, OffsetDateTime, PrimitiveDateTime};

/// Without a zone, UTC is meant.
const FORMATS: [&[BorrowedFormatItem<'static>]; 2] = [
    format_description!("[year]-[month]-[day] [hour]:[minute][optional [:[second][optional [.[subsecond]]]]]"),
    format_description!("[year]-[month]-[day]T[hour]:[minute][optional [:[second][optional [.[subsecond]]]]]"),
];

/// Reads a time; `now` is what `+…` counts from.
///
/// # Errors
/// `bad_parameters_error`.
pub fn parse(text: &str, now: OffsetDateTime) -> Result<OffsetDateTime, AppError> {
    let bad = || AppError::bad(format!("`{text}` is not a time such as 2030-01-31 12:00 or +10h"));
    if let Some(rest) = text.trim().strip_prefix('+') {
        return rest.split('+').try_fold(now, add).ok_or_else(bad);
    }
    if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(time);
    }
    let parsed = FORMATS.iter().find_map(|format| PrimitiveDateTime::parse(text.trim_end_matches('Z'), format).ok());
    parsed.map(PrimitiveDateTime::assume_utc).ok_or_else(bad)
}

fn add(at: OffsetDateTime, delta: &str) -> Option<OffsetDateTime> {
    let delta = delta.trim();
    let digits = delta.bytes().take_while(u8::is_ascii_digit).count();
    let number: i64 = delta[..digits].parse().ok()?;
    let seconds = match delta[digits..].trim_start() {
        "min" | "mins" | "minute" | "minutes" => 60,
        "h" | "hs" | "hour" | "hours" => 3600,
        "d" | "ds" | "day" | "days" => 86_400,
        "w" | "ws" | "week" | "weeks" => 7 * 86_400,
        "mo" | "mos" | "month" | "months" => return add_months(at, number),
        "y" | "ys" | "year" | "years" => return add_months(at, number.checked_mul(12)?),
        _ => return None,
    };
    at.checked_add(Duration::seconds(number.checked_mul(seconds)?))
}

/// The same day of a later month; what the month lacks runs into the next.
fn add_months(at: OffsetDateTime, months: i64) -> Option<OffsetDateTime> {
    let month = (i64::from(u8::from(at.month())) - 1).checked_add(months)?;
    let year = i32::try_from(i64::from(at.year()).checked_add(month / 12)?).ok()?;
    let month = time::Month::try_from(u8::try_from(month % 12 + 1).ok()?).ok()?;
    let first = at.replace_day(1).ok()?.replace_year(year).ok()?.replace_month(month).ok()?;
    first.checked_add(Duration::days(i64::from(at.day()) - 1))
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn all_forms_are_read() {
        let now = datetime!(2024-01-31 10:00 UTC);
        let cases = [
            ("2030-01-02 03:04", datetime!(2030-01-02 03:04 UTC)),
            ("2030-01-02 03:04:05", datetime!(2030-01-02 03:04:05 UTC)),
            ("2030-01-02T03:04:05.600Z", datetime!(2030-01-02 03:04:05.6 UTC)),
            ("2030-01-02T03:04:05+01:00", datetime!(2030-01-02 03:04:05 +1)),
            ("+10h", datetime!(2024-01-31 20:00 UTC)),
            ("+1day+30 min", datetime!(2024-02-01 10:30 UTC)),
            ("+2 weeks", datetime!(2024-02-14 10:00 UTC)),
            ("+1mo", datetime!(2024-03-02 10:00 UTC)),
            ("+12 months", datetime!(2025-01-31 10:00 UTC)),
            ("+1y", datetime!(2025-01-31 10:00 UTC)),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text, now).unwrap(), expected, "{text}");
        }
        for bad in [
            "",
            "+",
            "+h",
            "+10",
            "+10 parsecs",
            "+99999999999999999999h",
            "+9000000000000000y",
            "+9223372036854775807mo",
            "soon",
            "2030",
        ] {
            assert!(parse(bad, now).is_err(), "{bad}");
        }
    }
}
