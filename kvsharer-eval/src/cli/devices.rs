//! `kvsharer devices`.

use super::Global;
use super::device::DeviceArg;
#[cfg(not(all(feature = "cuda", feature = "wgpu")))]
use super::device::rebuild;
use super::error::CliError;
use super::output::{emit, emit_json, table};
use burn::tensor::{DType, Device};
use serde::Serialize;

/// A device of this build and machine, or why there is none of a kind.
#[derive(Serialize)]
struct Row {
    /// As `--device` takes it.
    device: String,
    available: bool,
    /// What it is, or what is missing and what to do about it.
    what: String,
    dtypes: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    threads: Option<usize>,
}

impl Row {
    fn missing(device: &str, what: String) -> Self {
        Self { device: device.into(), available: false, what, dtypes: Vec::new(), threads: None }
    }
}

pub(super) fn run(global: &Global) -> Result<(), CliError> {
    let threads = rayon::current_num_threads();
    let cpu = Row { threads: Some(threads), ..row("cpu", &format!("{threads} threads")) };
    let rows: Vec<Row> = [cpu].into_iter().chain(cuda()).chain(wgpu()).collect();
    if global.json {
        return emit_json(&serde_json::json!({ "devices": rows, "library": env!("CARGO_PKG_VERSION") }));
    }
    let cells = |row: &Row| {
        let there = if row.available { "yes" } else { "no" };
        vec![row.device.clone(), there.into(), row.dtypes.join(", "), row.what.clone()]
    };
    emit(&table(
        &["device", "there", "dtypes", "what it is, or what is missing"],
        &rows.iter().map(cells).collect::<Vec<_>>(),
        true,
    ))
}

/// A device that is tried.
fn row(name: &str, what: &str) -> Row {
    let device = match name.parse::<DeviceArg>().map_err(CliError::usage).and_then(|device| device.open()) {
        Ok(device) => device,
        Err(error) => return Row::missing(name, error.to_string()),
    };
    let dtypes = [("f32", DType::F32), ("f16", DType::F16), ("bf16", DType::BF16)];
    let dtypes = dtypes.into_iter().filter(|(_, dtype)| device.supports_dtype(*dtype)).map(|(name, _)| name);
    let what = identity(&device).unwrap_or_else(|| what.into());
    Row { device: name.into(), available: true, what, dtypes: dtypes.collect(), threads: None }
}

/// The name that the backend tells.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn identity(device: &Device) -> Option<String> {
    super::panics::quietly(|| device.identity()).ok().flatten().map(|identity| identity.name)
}

#[cfg(not(any(feature = "cuda", feature = "wgpu")))]
fn identity(_device: &Device) -> Option<String> {
    None
}

/// All devices of a kind, each tried; if there are none, the device of that name is tried for the reason.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn all(kind: &str, list: fn() -> usize) -> Vec<Row> {
    match super::panics::quietly(list) {
        Ok(count) if count > 0 => (0..count).map(|index| row(&format!("{kind}:{index}"), "")).collect(),
        _ => vec![row(kind, "")],
    }
}

fn cuda() -> Vec<Row> {
    #[cfg(feature = "cuda")]
    return all("cuda", || Device::enumerate(burn::tensor::DeviceType::Cuda).iter().count());
    #[cfg(not(feature = "cuda"))]
    vec![Row::missing("cuda", format!("not built in: {}", rebuild("cuda")))]
}

fn wgpu() -> Vec<Row> {
    #[cfg(feature = "wgpu")]
    return all("wgpu", || Device::enumerate(burn::tensor::DeviceType::Wgpu).iter().count());
    #[cfg(not(feature = "wgpu"))]
    vec![Row::missing("wgpu", format!("not built in: {}", rebuild("wgpu")))]
}
