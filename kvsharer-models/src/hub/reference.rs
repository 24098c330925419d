//! Names of what lies on the hub.

use super::HubError;
use std::fmt;

/// What a repository holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepositoryKind {
    /// A model.
    Model,
    /// A data set.
    Dataset,
}

/// `hf:ORG/NAME[/FILE][@REVISION]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubReference {
    /// Model or data set.
    pub kind: RepositoryKind,
    /// `ORG/NAME`.
    pub repository: String,
    /// A branch, a tag or a commit.
    pub revision: String,
    /// One file of the repository.
    pub file: Option<String>,
}

impl HubReference {
    /// Whether a text is meant for the hub.
    pub fn is_one(text: &str) -> bool {
        text.starts_with("hf:")
    }

    /// Reads a reference.
    ///
    /// # Errors
    /// [`HubError::BadReference`]: names and revisions have letters, digits and `-_.`, paths do not leave their folder.
    pub fn parse(kind: RepositoryKind, text: &str) -> Result<Self, HubError> {
        let bad = |problem| HubError::BadReference { text: text.into(), problem };
        let name = text.strip_prefix("hf:").ok_or_else(|| bad("does not begin with hf:"))?;
        let (path, revision) = name.rsplit_once('@').unwrap_or((name, "main"));
        let mut parts = path.splitn(3, '/');
        let (org, name) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        if !is_name(org) || !is_name(name) {
            return Err(bad("is no ORG/NAME"));
        }
        if !revision.split('/').all(is_name) {
            return Err(bad("the revision after @ is no branch, tag or commit"));
        }
        let file = parts.next();
        if file.is_some_and(|file| !is_path(file)) {
            return Err(bad("the file is no path in a repository"));
        }
        let (revision, file) = (revision.into(), file.map(Into::into));
        Ok(Self { kind, repository: format!("{org}/{name}"), revision, file })
    }

    /// Whether the revision can never mean anything else.
    pub(super) fn is_pinned(&self) -> bool {
        is_commit(&self.revision)
    }
}

impl fmt::Display for HubReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hf:{}", self.repository)?;
        if let Some(file) = &self.file {
            write!(f, "/{file}")?;
        }
        if self.revision == "main" { Ok(()) } else { write!(f, "@{}", self.revision) }
    }
}

fn is_name(text: &str) -> bool {
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    plain && !text.is_empty() && text.len() <= 128 && !text.starts_with('.')
}

/// Whether a name from a repository is a relative path that stays inside it.
pub(super) fn is_path(text: &str) -> bool {
    let inside = |part: &str| !part.is_empty() && part != "." && part != "..";
    text.len() <= 1024 && !text.contains(['\\', ':']) && !text.contains(char::is_control) && text.split('/').all(inside)
}

/// Whether a text is a whole commit hash.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_have_repository_revision_and_file() {
        let parse = |text| HubReference::parse(RepositoryKind::Dataset, text);
        for (text, repository, revision, file) in [
            ("hf:org/name", "org/name", "main", None),
            ("hf:o-1/n.2_x@refs/pr/3", "o-1/n.2_x", "refs/pr/3", None),
            ("hf:org/name/data/a b.jsonl@v1.0", "org/name", "v1.0", Some("data/a b.jsonl")),
        ] {
            let found = parse(text).unwrap();
            assert_eq!((found.repository.as_str(), found.revision.as_str()), (repository, revision));
            assert_eq!(found.file.as_deref(), file);
            assert_eq!(found.to_string(), text);
        }
        for text in [
            "org/name",
            "hf:",
            "hf:name",
            "hf:org/",
            "hf:/name",
            "hf:org/name@",
            "hf:org/name/",
            "hf:a b/c",
            "hf:org/../x",
            "hf:org/name/../x",
            "hf:org/name/a//b",
            "hf:org/name@a/../b",
            "hf:org/name/a\\b",
            "hf:org/name@x y",
            "hf:../name",
            "hf:org/n?x",
            "hf:org/name/c:d",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
