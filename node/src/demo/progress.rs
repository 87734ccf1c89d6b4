//! What a person sees while the demo starts: one line a step, on standard error.

use std::time::{Duration, Instant};

use console::style;
use indicatif::{ProgressBar, ProgressStyle};

/// One step at a time.
pub struct Progress {
    terminal: bool,
    bar: Option<ProgressBar>,
    began: Instant,
    step: String,
}

impl Progress {
    pub fn new() -> Self {
        let terminal = console::Term::stderr().features().is_attended();
        Self { terminal, bar: None, began: Instant::now(), step: String::new() }
    }

    /// Begins a step; the one before is done.
    pub fn begin(&mut self, step: &str) {
        self.done();
        step.clone_into(&mut self.step);
        self.began = Instant::now();
        if self.terminal {
            let style = ProgressStyle::with_template("  {spinner:.cyan} {msg} {elapsed:.dim}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner());
            let bar = ProgressBar::new_spinner().with_style(style).with_message(step.to_owned());
            bar.enable_steady_tick(Duration::from_millis(100));
            self.bar = Some(bar);
        }
    }

    /// More about the step that runs.
    pub fn say(&self, detail: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{}: {detail}", self.step));
        }
    }

    /// Ends the step that runs.
    pub fn done(&mut self) {
        if self.step.is_empty() {
            return;
        }
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        let seconds = format!("{:.1} s", self.began.elapsed().as_secs_f64());
        eprintln!("  {} {} {}", style("✓").green().for_stderr(), self.step, style(seconds).dim().for_stderr());
        self.step.clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
