//! Figures as JSON lines: one object a measurement.

use std::io::Write;

use serde::Serialize;

/// What was measured over many runs.
#[derive(Debug, Serialize)]
pub struct Figure<'a> {
    name: &'a str,
    unit: &'a str,
    n: usize,
    p50: f64,
    p99: f64,
    max: f64,
    note: &'a str,
}

/// Prints one figure, and appends it to the file that `QUORATE_FIGURES` names.
pub fn report(name: &str, unit: &str, values: &[f64], note: &str) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |percent: usize| sorted.get((sorted.len() * percent).div_ceil(100).saturating_sub(1)).copied();
    let (Some(p50), Some(p99), Some(max)) = (at(50), at(99), sorted.last().copied()) else { return };
    let figure = Figure { name, unit, n: sorted.len(), p50, p99, max, note };
    let line = serde_json::to_string(&figure).unwrap_or_default();
    println!("{line}");
    if let Some(path) = std::env::var_os("QUORATE_FIGURES") {
        let appended = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|mut file| writeln!(file, "{line}"));
        if let Err(error) = appended {
            eprintln!("the figure was not written to {}: {error}", path.display());
        }
    }
}
