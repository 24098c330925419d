//! config.json of a Hugging Face folder.

use crate::ModelError;
use serde_json::{Map, Value};
use std::path::Path;

/// config.json with the path it came from, for errors.
pub struct HfConfig<'a> {
    /// The file.
    pub path: &'a Path,
    /// Its content.
    pub fields: &'a Map<String, Value>,
}

impl HfConfig<'_> {
    /// A field that is there and not null.
    pub fn get(&self, field: &str) -> Option<&Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    /// A whole number.
    ///
    /// # Errors
    /// [`ModelError::ConfigField`] if it is missing or no whole number.
    pub fn size(&self, field: &str) -> Result<usize, ModelError> {
        let size = self.get(field).and_then(Value::as_u64).and_then(|size| usize::try_from(size).ok());
        size.ok_or_else(|| self.problem(field, "a whole number"))
    }

    /// A whole number, or `default` if it is missing.
    ///
    /// # Errors
    /// As [`size`](Self::size), for a field of another type.
    pub fn size_or(&self, field: &str, default: usize) -> Result<usize, ModelError> {
        self.get(field).map_or(Ok(default), |_| self.size(field))
    }

    /// A number, or `default` if it is missing.
    ///
    /// # Errors
    /// [`ModelError::ConfigField`] for a field of another type.
    pub fn number_or(&self, field: &str, default: f64) -> Result<f64, ModelError> {
        self.get(field).map_or(Ok(default), |value| value.as_f64().ok_or_else(|| self.problem(field, "a number")))
    }

    /// A flag, false if it is missing.
    ///
    /// # Errors
    /// [`ModelError::ConfigField`] for a field of another type.
    pub fn flag(&self, field: &str) -> Result<bool, ModelError> {
        self.flag_or(field, false)
    }

    /// A flag, or `default` if it is missing.
    ///
    /// # Errors
    /// [`ModelError::ConfigField`] for a field of another type.
    pub fn flag_or(&self, field: &str, default: bool) -> Result<bool, ModelError> {
        self.get(field).map_or(Ok(default), |value| value.as_bool().ok_or_else(|| self.problem(field, "true or false")))
    }

    /// Which layers have a sliding window: `layer_types` if it is there, `slides` if not.
    ///
    /// # Errors
    /// [`ModelError::ConfigField`] for a list of another length or with names of neither kind.
    pub fn sliding_layers(&self, layers: usize, slides: impl Fn(usize) -> bool) -> Result<Vec<bool>, ModelError> {
        let expected = "\"full_attention\" or \"sliding_attention\" for each layer";
        let Some(types) = self.get("layer_types") else {
            return Ok((0..layers).map(slides).collect());
        };
        let types = types.as_array().filter(|types| types.len() == layers);
        let types = types.ok_or_else(|| self.problem("layer_types", expected))?;
        let slides = |kind: &Value| match kind.as_str() {
            Some("sliding_attention") => Ok(true),
            Some("full_attention") => Ok(false),
            _ => Err(self.problem("layer_types", expected)),
        };
        types.iter().map(slides).collect()
    }

    /// The error for a field that is not `expected`.
    pub fn problem(&self, field: &str, expected: &str) -> ModelError {
        let problem = match self.get(field) {
            None => format!("is missing, expected {expected}"),
            Some(value) => format!("is {value}, expected {expected}"),
        };
        ModelError::ConfigField { path: self.path.into(), field: field.into(), problem }
    }

    /// Refuses a setting this version cannot run.
    pub fn unsupported(&self, field: &str, remedy: &str) -> ModelError {
        let found = self.get(field).map_or_else(|| "null".into(), Value::to_string);
        ModelError::UnsupportedConfig { path: self.path.into(), field: field.into(), found, remedy: remedy.into() }
    }
}
