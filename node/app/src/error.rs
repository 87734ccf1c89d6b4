//! Refusals and failures, in the words of the REST API.

use quorate_store::StoreError;
use serde_json::{Map, Value};

/// Which kind; clients choose their exception by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Code {
    Unauthorized,
    Forbidden,
    NotFound,
    Conflict,
    AmbiguousName,
    BadParameters,
    NoSuchIncludeField,
    UnsupportedContentType,
    MethodNotAllowed,
    IllegalAction,
    InvalidBlueprint,
    ImportedBlueprintNotFound,
    BlueprintInUse,
    UploadMissingFile,
    DependentExists,
    DeploymentCreation,
    EnvironmentInProgress,
    EnvironmentPending,
    MissingDeploymentInput,
    UnknownDeploymentInput,
    DeploymentInputEvaluation,
    Constraint,
    DeploymentPluginNotFound,
    NonexistentWorkflow,
    UnavailableWorkflow,
    IllegalExecutionParameters,
    ExistingRunningExecution,
    InvalidExecutionStatus,
    FunctionsEvaluation,
    FileSync,
    /// This node's epoch is over, or the database cannot be reached: ask again.
    NoActiveNode,
    /// It may or may not have been carried out.
    OutcomeUnknown,
    Internal,
}

impl Code {
    /// The value of `error_code`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unauthorized => "unauthorized_error",
            Self::Forbidden => "forbidden_error",
            Self::NotFound => "not_found_error",
            Self::Conflict => "conflict_error",
            Self::AmbiguousName => "ambiguous_name",
            Self::BadParameters => "bad_parameters_error",
            Self::NoSuchIncludeField => "no_such_include_field_error",
            Self::UnsupportedContentType => "unsupported_content_type_error",
            Self::MethodNotAllowed => "method_not_allowed_error",
            Self::IllegalAction => "illegal_action_error",
            Self::InvalidBlueprint => "invalid_blueprint_error",
            Self::ImportedBlueprintNotFound => "imported_blueprint_not_found",
            Self::BlueprintInUse => "blueprint_in_use",
            Self::UploadMissingFile => "upload_missing_file",
            Self::DependentExists => "dependent_exists_error",
            Self::DeploymentCreation => "deployment_creation_error",
            Self::EnvironmentInProgress => "deployment_environment_creation_in_progress_error",
            Self::EnvironmentPending => "deployment_environment_creation_pending_error",
            Self::MissingDeploymentInput => "missing_required_deployment_input_error",
            Self::UnknownDeploymentInput => "unknown_deployment_input_error",
            Self::DeploymentInputEvaluation => "deployment_input_evaluation_error",
            Self::Constraint => "constraint_error",
            Self::DeploymentPluginNotFound => "deployment_plugin_not_found",
            Self::NonexistentWorkflow => "nonexistent_workflow_error",
            Self::UnavailableWorkflow => "unavailable_workflow_error",
            Self::IllegalExecutionParameters => "illegal_execution_parameters_error",
            Self::ExistingRunningExecution => "existing_running_execution_error",
            Self::InvalidExecutionStatus => "invalid_exception_status_update",
            Self::FunctionsEvaluation => "functions_evaluation_error",
            Self::FileSync => "file_sync_service_error",
            Self::NoActiveNode => "no_active_node_error",
            Self::OutcomeUnknown => "outcome_unknown_error",
            Self::Internal => "internal_server_error",
        }
    }
}

/// A use case was refused or failed.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct AppError {
    /// Which kind.
    pub code: Code,
    /// For people. Names no secret.
    pub message: String,
    /// Further keys of the answer.
    pub extra: Map<String, Value>,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl AppError {
    /// A refusal without a cause beneath it.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), extra: Map::new(), source: None }
    }

    /// A failure with a cause, which is logged and not shown.
    #[must_use]
    pub fn caused(
        code: Code,
        message: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { source: Some(source.into()), ..Self::new(code, message) }
    }

    /// `model` as clients call it: `Deployment`, `Tenant`. They look for "not found" in the text.
    #[must_use]
    pub fn not_found(model: &str, id: &str) -> Self {
        Self::new(Code::NotFound, format!("Requested `{model}` with ID `{id}` was not found"))
    }

    /// The name of a tenant's resource is taken.
    #[must_use]
    pub fn taken(model: &str, id: &str, tenant: &str) -> Self {
        let message = format!(
            "<{model} id=`{id}` tenant=`{tenant}`> already exists on <Tenant name=`{tenant}`> or with global visibility"
        );
        Self::new(Code::Conflict, message)
    }

    /// The caller sent something that cannot be used.
    #[must_use]
    pub fn bad(message: impl Into<String>) -> Self {
        Self::new(Code::BadParameters, message)
    }
}

impl From<StoreError> for AppError {
    fn from(error: StoreError) -> Self {
        let (code, message) = match &error {
            StoreError::Fenced => (Code::NoActiveNode, "this node is not active any more".to_owned()),
            StoreError::Conflict { .. } => (Code::Conflict, "it exists already".to_owned()),
            StoreError::Reference { .. } => (Code::Conflict, "other resources depend on it".to_owned()),
            StoreError::Refused(_) => (Code::BadParameters, "the database refused a value".to_owned()),
            StoreError::UnknownField(name) => (Code::BadParameters, format!("`{name}` is not a field of this list")),
            StoreError::Unavailable(_) | StoreError::Serialization(_) => {
                (Code::NoActiveNode, "the database cannot be reached at the moment".to_owned())
            }
            StoreError::CommitUnknown(_) => {
                let message = "the database went away while this was saved: it may or may not have been carried out; \
                               look before you repeat it";
                (Code::OutcomeUnknown, message.to_owned())
            }
            StoreError::Unexpected(_) | StoreError::Migrate(_) => {
                (Code::Internal, "Internal error occurred in manager REST server - database error".to_owned())
            }
        };
        Self::caused(code, message, error)
    }
}
