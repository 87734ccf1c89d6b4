//! What a request asks of its answer: filters, search, order, paging, `_include`, flags.

use axum::extract::{FromRequestParts, Query};
use http::request::Parts;
use quorate_app::{AppError, ListQuery, Sort};

use super::error::ApiError;

/// Items on a page when the client does not say.
pub const PAGE_SIZE: i64 = quorate_app::config::PAGE_SIZE;

/// The query of a request. Names that begin with `_` are ours, all others are filters.
pub struct Params {
    pairs: Vec<(String, String)>,
}

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let query = Query::<Vec<(String, String)>>::from_request_parts(parts, state).await;
        let Query(pairs) = query.map_err(|error| AppError::bad(format!("the query cannot be read: {error}")))?;
        Ok(Self { pairs })
    }
}

impl Params {
    /// The last value of a name; empty values count as absent.
    pub fn value(&self, name: &str) -> Option<&str> {
        let mut values = self.pairs.iter().rev().filter(|(key, value)| key == name && !value.is_empty());
        values.next().map(|(_, value)| value.as_str())
    }

    /// Every value of a name.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.pairs.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// `True` or `False` in any letter case; `false` when absent.
    ///
    /// # Errors
    /// `bad_parameters_error`.
    pub fn flag(&self, name: &str) -> Result<bool, AppError> {
        match self.value(name).map(str::to_ascii_lowercase).as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(other) => Err(AppError::bad(format!("{name} must be true/false, got `{other}`"))),
        }
    }

    /// The fields that `_include` names; `None`: all.
    pub fn include(&self) -> Option<Vec<&str>> {
        Some(self.value("_include")?.split(',').map(str::trim).filter(|field| !field.is_empty()).collect())
    }

    /// Where the page begins.
    ///
    /// # Errors
    /// `bad_parameters_error`.
    pub fn offset(&self) -> Result<i64, AppError> {
        Ok(self.count("_offset")?.unwrap_or(0))
    }

    /// How many items the page has at most.
    ///
    /// # Errors
    /// `bad_parameters_error`.
    pub fn size(&self, default: i64) -> Result<i64, AppError> {
        Ok(self.count("_size")?.unwrap_or(default))
    }

    /// Everything about a list.
    ///
    /// # Errors
    /// `bad_parameters_error`; whether fields exist is checked where they are known.
    pub fn list(&self) -> Result<ListQuery, AppError> {
        self.list_sized(PAGE_SIZE)
    }

    /// The same with another default size.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub fn list_sized(&self, default: i64) -> Result<ListQuery, AppError> {
        let mut query = ListQuery { search: self.value("_search").map(str::to_owned), ..ListQuery::default() };
        for (name, value) in self.pairs.iter().filter(|(name, _)| !name.starts_with('_')) {
            match query.filters.iter_mut().find(|(known, _)| known == name) {
                Some((_, values)) => values.push(value.clone()),
                None => query.filters.push((name.clone(), vec![value.clone()])),
            }
        }
        for text in self.values("_sort") {
            let (field, descending) = match text.strip_prefix('-') {
                Some(field) => (field, true),
                None => (text.strip_prefix('+').unwrap_or(text).trim_start(), false),
            };
            query.sort.push(Sort { field: field.to_owned(), descending });
        }
        for text in self.values("_range") {
            let parts: Vec<&str> = text.split(',').collect();
            let [field, from, until] = parts[..] else {
                return Err(AppError::bad(format!("_range must be field,from,to, got `{text}`")));
            };
            let end = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            query.ranges.push((field.to_owned(), end(from), end(until)));
        }
        if !self.flag("_get_all_results")? {
            query.offset = self.offset()?;
            query.size = Some(self.size(default)?);
        }
        Ok(query)
    }

    fn count(&self, name: &str) -> Result<Option<i64>, AppError> {
        let parse = |text: &str| match text.parse::<i64>() {
            Ok(number) if number >= 0 => Ok(number),
            _ => Err(AppError::bad(format!("{name} must be a number from 0 on, got `{text}`"))),
        };
        self.value(name).map(parse).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(pairs: &[(&str, &str)]) -> Params {
        Params { pairs: pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect() }
    }

    #[test]
    fn filters_repeat_and_our_own_names_are_no_filters() {
        let query = params(&[("a", "1"), ("b", "2"), ("a", "3"), ("_sort", "-x"), ("_sort", "y"), ("_unknown", "z")]);
        let query = query.list().unwrap();
        assert_eq!(query.filters.len(), 2);
        assert_eq!(query.filters[0], ("a".to_owned(), vec!["1".to_owned(), "3".to_owned()]));
        assert!(query.sort[0].descending && !query.sort[1].descending);
        assert_eq!((query.offset, query.size), (0, Some(PAGE_SIZE)));
        assert_eq!(params(&[("_get_all_results", "True"), ("_size", "3")]).list().unwrap().size, None);
    }

    #[test]
    fn what_is_not_a_number_or_a_flag_is_refused() {
        assert!(params(&[("_size", "-1")]).list().is_err());
        assert!(params(&[("_offset", "x")]).list().is_err());
        assert!(params(&[("_get_data", "yes")]).flag("_get_data").is_err());
        assert!(params(&[("_range", "a,b")]).list().is_err());
    }
}
