//! What a blueprint can be rejected for.

use std::fmt;
use std::sync::Arc;

/// A place in a YAML file. Lines count from 1, columns from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    pub file: Arc<str>,
    pub line: u32,
    pub column: u32,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// The families of rejections clients tell apart; [`ErrorClass::name`] is the wire name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    Parsing,
    Logic,
    Format,
    InputType,
    InvalidImport,
    Constraint,
    FunctionValidation,
    FunctionEvaluation,
    UnknownInput,
    MissingInput,
    InputEvaluation,
    UnknownSecret,
    UnsupportedSecret,
    UnknownSysEntity,
    UnknownSysProperty,
    RecursionLimit,
    ConnectionType,
    AllToOneInGroup,
    UnsupportedRelationship,
    NonRecoverable,
    Value,
    Key,
}

impl ErrorClass {
    /// The name by which clients know this class.
    pub fn name(self) -> &'static str {
        match self {
            Self::Parsing => "DSLParsingException",
            Self::Logic => "DSLParsingLogicException",
            Self::Format => "DSLParsingFormatException",
            Self::InputType => "DSLParsingInputTypeException",
            Self::InvalidImport => "InvalidBlueprintImport",
            Self::Constraint => "ConstraintException",
            Self::FunctionValidation => "FunctionValidationError",
            Self::FunctionEvaluation => "FunctionEvaluationError",
            Self::UnknownInput => "UnknownInputError",
            Self::MissingInput => "MissingRequiredInputError",
            Self::InputEvaluation => "InputEvaluationError",
            Self::UnknownSecret => "UnknownSecretError",
            Self::UnsupportedSecret => "UnsupportedGetSecretError",
            Self::UnknownSysEntity => "UnknownSysEntityError",
            Self::UnknownSysProperty => "UnknownSysPropertyError",
            Self::RecursionLimit => "EvaluationRecursionLimitReached",
            Self::ConnectionType => "IllegalConnectedToConnectionType",
            Self::AllToOneInGroup => "UnsupportedAllToOneInGroup",
            Self::UnsupportedRelationship => "UnsupportedRelationship",
            Self::NonRecoverable => "NonRecoverableError",
            Self::Value => "ValueError",
            Self::Key => "KeyError",
        }
    }

    /// Whether the blueprint ends in state `invalid` (the text is wrong) rather than `failed_parsing`.
    pub fn is_invalid_blueprint(self) -> bool {
        matches!(self, Self::Parsing | Self::Logic | Self::Format | Self::InputType | Self::InvalidImport)
    }
}

/// Why a blueprint does not compile. `Display` reads `file:line:column: message; remedy`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompileError {
    pub class: ErrorClass,
    /// The number clients know, where the class has numbers.
    pub code: Option<i16>,
    pub at: Option<Position>,
    pub message: String,
    /// What to do about it; empty when the message says it all.
    pub remedy: String,
}

impl fmt::Display for CompileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(at) = &self.at {
            write!(f, "{at}: ")?;
        }
        f.write_str(&self.message)?;
        if !self.remedy.is_empty() {
            write!(f, "; {}", self.remedy)?;
        }
        Ok(())
    }
}

impl std::error::Error for CompileError {}

pub(crate) type Compiled<T> = Result<T, Box<CompileError>>;

impl CompileError {
    pub(crate) fn new(
        class: ErrorClass,
        code: Option<i16>,
        at: Option<&Position>,
        message: impl Into<String>,
    ) -> Box<Self> {
        Box::new(Self { class, code, at: at.cloned(), message: message.into(), remedy: String::new() })
    }

    pub(crate) fn logic(code: i16, at: &Position, message: impl Into<String>) -> Box<Self> {
        Self::new(ErrorClass::Logic, Some(code), Some(at), message)
    }

    /// Wrong shape: kind, unknown or missing key.
    pub(crate) fn shape(at: &Position, message: impl Into<String>) -> Box<Self> {
        Self::new(ErrorClass::Format, Some(1), Some(at), message)
    }

    pub(crate) fn parsing(code: i16, at: &Position, message: impl Into<String>) -> Box<Self> {
        Self::new(ErrorClass::Parsing, Some(code), Some(at), message)
    }

    pub(crate) fn value(at: &Position, message: impl Into<String>) -> Box<Self> {
        Self::new(ErrorClass::Value, None, Some(at), message)
    }

    pub(crate) fn with_remedy(mut self: Box<Self>, remedy: impl Into<String>) -> Box<Self> {
        self.remedy = remedy.into();
        self
    }
}

/// Why a plan cannot become a deployment. The names in `MissingInputs` and `UnknownInputs` are sorted as declared
/// and as given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrepareError {
    #[error("Required inputs {} were not specified - expected inputs: [{}]", quoted(.missing), .expected.join(", "))]
    MissingInputs { missing: Vec<String>, expected: Vec<String> },
    #[error("Unknown inputs {} specified - expected inputs: [{}]", quoted(.unknown), .expected.join(", "))]
    UnknownInputs { unknown: Vec<String>, expected: Vec<String> },
    #[error(
        "Property type validation failed in 'inputs': input '{name}' type is '{expected}', yet it was assigned with the value '{value}'"
    )]
    InputType { name: String, expected: String, value: String },
    #[error(
        "Property type validation failed in 'inputs': an item of input '{name}' is '{value}', not of type '{expected}'"
    )]
    ItemType { name: String, expected: String, value: String },
    #[error("Input {name} cannot be an intrinsic function and also have constraints")]
    FunctionInput { name: String },
    #[error("Value {value} of input {name} violates constraint {constraint}")]
    InputConstraint { name: String, value: String, constraint: String },
    #[error("Required secrets: [{}] don't exist in this tenant", .0.join(", "))]
    UnknownSecrets(Vec<String>),
    #[error("The get_secret intrinsic function is not supported")]
    NoSecretStore,
    #[error(transparent)]
    Evaluation(#[from] EvalError),
    #[error(transparent)]
    Instances(#[from] InstancesError),
}

fn quoted(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("'{name}'")).collect();
    names.join(", ")
}

impl PrepareError {
    /// The class clients know this error by.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::MissingInputs { .. } => ErrorClass::MissingInput,
            Self::UnknownInputs { .. } => ErrorClass::UnknownInput,
            Self::InputType { .. } | Self::FunctionInput { .. } => ErrorClass::Parsing,
            Self::ItemType { .. } => ErrorClass::Logic,
            Self::InputConstraint { .. } => ErrorClass::Constraint,
            Self::UnknownSecrets(_) => ErrorClass::UnknownSecret,
            Self::NoSecretStore => ErrorClass::UnsupportedSecret,
            Self::Evaluation(error) => error.class,
            Self::Instances(error) => error.class(),
        }
    }

    /// The number clients know this error by, where it has one.
    pub fn code(&self) -> Option<i16> {
        match self {
            Self::InputType { .. } => Some(214),
            Self::FunctionInput { .. } => Some(213),
            Self::ItemType { .. } => Some(105),
            _ => None,
        }
    }
}

/// Why an intrinsic function is malformed or has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct EvalError {
    pub class: ErrorClass,
    pub message: String,
}

impl EvalError {
    pub(crate) fn new(class: ErrorClass, message: impl Into<String>) -> Self {
        Self { class, message: message.into() }
    }

    pub(crate) fn evaluation(message: impl Into<String>) -> Self {
        Self::new(ErrorClass::FunctionEvaluation, message)
    }

    pub(crate) fn validation(message: impl Into<String>) -> Self {
        Self::new(ErrorClass::FunctionValidation, message)
    }

    pub(crate) fn value(message: impl Into<String>) -> Self {
        Self::new(ErrorClass::Value, message)
    }

    pub(crate) fn key(message: impl Into<String>) -> Self {
        Self::new(ErrorClass::Key, message)
    }
}

/// Why the nodes of a plan cannot be laid out as instances.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InstancesError {
    #[error("node '{node}': relationship to '{target}' has connection_type {found}; write all_to_all or all_to_one")]
    ConnectionType { node: String, target: String, found: String },
    #[error(
        "node '{node}': connection_type all_to_one to '{target}' is not possible inside the scaling group '{group}'"
    )]
    AllToOneInGroup { node: String, target: String, group: String },
    #[error(
        "node '{node}': relationship type '{type_name}' derives from none of depends_on, connected_to, contained_in"
    )]
    Relationship { node: String, type_name: String },
    #[error("instance count of '{name}' is {found}; it must be a number from 0 to {limit}")]
    Count { name: String, found: String, limit: usize },
    #[error("more than {limit} node instances or connections between them")]
    TooMany { limit: usize },
    #[error("no free instance id for '{node}' after {tries} tries")]
    NoFreeId { node: String, tries: usize },
}

impl InstancesError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::ConnectionType { .. } => ErrorClass::ConnectionType,
            Self::AllToOneInGroup { .. } => ErrorClass::AllToOneInGroup,
            Self::Relationship { .. } => ErrorClass::UnsupportedRelationship,
            Self::Count { .. } | Self::TooMany { .. } | Self::NoFreeId { .. } => ErrorClass::Value,
        }
    }
}
