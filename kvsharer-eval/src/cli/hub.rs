//! Downloads from the Hugging Face hub, with a bar.

use super::error::CliError;
use super::output::complain;
use indicatif::{ProgressBar, ProgressStyle};
use kvsharer_models::ModelError;
use kvsharer_models::hub::{Hub, HubProgress, HubReference, RepositoryKind};
use std::io::IsTerminal;
use std::path::PathBuf;

/// Fetches `hf:ORG/NAME[@REVISION]`, or one file of it, if it is missing; gives its folder or file.
pub(super) fn fetch(text: &str) -> Result<PathBuf, CliError> {
    let reference = HubReference::parse(RepositoryKind::Model, text).map_err(ModelError::from)?;
    let style = ProgressStyle::with_template("{prefix:>30} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    let plain = !std::io::stderr().is_terminal();
    let mut bar = ProgressBar::hidden();
    let mut begun = String::new();
    let mut progress = |told: HubProgress<'_>| match told {
        HubProgress::Begins { file, size, have } => {
            if begun != file {
                begun = file.to_owned();
                bar = ProgressBar::new(size.unwrap_or(0)).with_style(style.clone()).with_prefix(file.to_owned());
                if plain {
                    complain(&format!("fetching {file} …"));
                }
            }
            // The rate is that of this run.
            bar.set_position(have);
            bar.reset_eta();
        }
        HubProgress::Bytes(bytes) => bar.inc(bytes),
        HubProgress::Done => bar.finish_and_clear(),
    };
    let path = Hub::from_env().and_then(|hub| hub.fetch(&reference, &mut progress)).map_err(ModelError::from)?;
    bar.finish_and_clear();
    Ok(path)
}
