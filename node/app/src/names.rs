//! What names may look like.

use rand::Rng;
use rand::distr::Alphanumeric;

use crate::AppError;

/// Characters in a name, at most.
const NAME_CHARACTERS_MAX: usize = 256;

/// Letters, digits and `-._~`, a letter first.
///
/// # Errors
/// `bad_parameters_error`.
pub fn check(what: &str, name: &str) -> Result<(), AppError> {
    check_any(what, name)?;
    if name.starts_with(|first: char| first.is_ascii_alphabetic()) {
        return Ok(());
    }
    Err(AppError::bad(format!("The `{what}` argument must begin with a letter. Received value: `{name}`")))
}

/// The same, with any first character: deployments.
///
/// # Errors
/// `bad_parameters_error`.
pub fn check_any(what: &str, name: &str) -> Result<(), AppError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-._~".contains(c);
    if name.is_empty() || name.len() > NAME_CHARACTERS_MAX {
        let message = format!("The `{what}` argument must have 1 to {NAME_CHARACTERS_MAX} characters");
        return Err(AppError::bad(message));
    }
    // A name becomes the name of a directory.
    if !name.chars().all(fits) || name == "." || name == ".." {
        let message =
            format!("The `{what}` argument may hold only letters, digits and `-._~`. Received value: `{name}`");
        return Err(AppError::bad(message));
    }
    Ok(())
}

/// `length` random letters and digits: six bits each, nearly.
#[must_use]
pub fn random(length: usize) -> String {
    rand::rng().sample_iter(Alphanumeric).take(length).map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_their_directory_are_refused() {
        for bad in ["", ".", "..", "a/b", "a\0", "ä", "a b", &"a".repeat(257)] {
            assert!(check_any("id", bad).is_err(), "{bad:?}");
        }
        assert!(check("id", "1a").is_err());
        assert!(check_any("id", "1a").is_ok());
        assert!(check("id", "a.-_~9").is_ok());
    }
}
