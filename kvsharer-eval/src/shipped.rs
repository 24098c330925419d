//! Strategies that travel with the program, for models of the catalogue: `builtin:NAME` wherever a strategy file can be
//! given.

use crate::EvalError;
use kvsharer_core::{Fingerprint, Strategy, hex, write_atomically};
use kvsharer_models::home;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

const PREFIX: &str = "builtin:";

/// A strategy file with every step of its search (`--at`), and the fitted maps beside it.
#[derive(Debug)]
pub struct Shipped {
    /// Its name behind `builtin:`.
    pub name: &'static str,
    /// What it is, and where it was measured.
    pub about: &'static str,
    strategy: &'static str,
    /// File name and content of its fitted maps, as the strategy refers to them.
    maps: Option<(&'static str, &'static [u8])>,
}

static SHIPPED: [Shipped; 1] = [Shipped {
    name: "smollm2-135m-instruct",
    about: "whole layers by their effect on the next token's distribution, up to 36.7 % of the bytes",
    strategy: include_str!("../data/smollm2-135m-instruct.json"),
    maps: None,
}];

/// All of them.
pub fn shipped() -> &'static [Shipped] {
    &SHIPPED
}

/// The first one that was made for a model.
pub fn shipped_for(model: &Fingerprint) -> Option<&'static Shipped> {
    let fits = |one: &&Shipped| serde_json::from_str::<Strategy>(one.strategy).is_ok_and(|s| s.check(model).is_ok());
    SHIPPED.iter().find(fits)
}

impl Shipped {
    /// Puts its files into the folder of downloaded models, unless they are there, and says where the strategy is.
    ///
    /// # Errors
    /// [`EvalError`] if the folder cannot be found or written.
    pub fn place(&self) -> Result<PathBuf, EvalError> {
        let hash = hex(&Sha256::digest(self.strategy));
        let folder = home()?.join("strategies").join(&hash[..16]);
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| EvalError::Io { path, source }
        };
        std::fs::create_dir_all(&folder).map_err(io(&folder))?;
        let strategy = folder.join(format!("{}.json", self.name));
        // The strategy comes last: where it is, its maps are.
        let maps = self.maps.map(|(name, content)| (folder.join(name), content));
        for (path, content) in maps.into_iter().chain([(strategy.clone(), self.strategy.as_bytes())]) {
            if std::fs::read(&path).is_ok_and(|there| there == content) {
                continue;
            }
            write_atomically(&path, content).map_err(io(&path))?;
        }
        Ok(strategy)
    }
}

/// Where a strategy file is: `builtin:NAME` is put into the folder of downloaded models first, any other path is itself.
///
/// # Errors
/// [`EvalError::UnknownStrategy`] for a name that is none, and as [`Shipped::place`].
pub fn strategy_path(path: &Path) -> Result<PathBuf, EvalError> {
    let Some(name) = path.to_str().and_then(|path| path.strip_prefix(PREFIX)) else {
        return Ok(path.to_owned());
    };
    let known = || SHIPPED.iter().map(|one| one.name).collect::<Vec<_>>().join(", ");
    let found = SHIPPED.iter().find(|one| one.name == name);
    found.ok_or_else(|| EvalError::UnknownStrategy { name: name.into(), known: known() })?.place()
}
