//! Labels in answers.

use quorate_app::Label;
use serde::Serialize;

use super::answer::time_text;

/// A label of a blueprint or a deployment.
#[derive(Serialize)]
pub struct LabelView {
    key: String,
    value: String,
    created_at: String,
    created_by: String,
}

impl From<Label> for LabelView {
    fn from(label: Label) -> Self {
        Self { key: label.name, value: label.value, created_at: time_text(label.created_at), created_by: label.creator }
    }
}

/// All of a resource.
pub fn views(labels: Vec<Label>) -> Vec<LabelView> {
    labels.into_iter().map(LabelView::from).collect()
}
