//! `--device`: what is typed, what it opens, and what to do where it does not open.

use super::error::CliError;
use super::panics::quietly;
use burn::tensor::{Device, Tensor};
use kvsharer_eval::experiment::Work;
use kvsharer_eval::score::ScoreOptions;
use std::fmt;
use std::str::FromStr;

/// A device as typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DeviceArg {
    /// The CPU, through burn's flex backend.
    Cpu,
    /// An NVIDIA GPU.
    #[cfg(feature = "cuda")]
    Cuda(usize),
    /// A device of Vulkan, Metal or DX12: one of those that `kvsharer devices` lists, or the one wgpu prefers.
    #[cfg(feature = "wgpu")]
    Wgpu(Option<usize>),
}

impl FromStr for DeviceArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, index) = text.split_once(':').map_or((text, None), |(kind, index)| (kind, Some(index)));
        let number = index.map(str::parse::<usize>).transpose().ok();
        match (kind, number) {
            ("cpu", Some(None)) => Ok(Self::Cpu),
            #[cfg(feature = "cuda")]
            ("cuda", Some(index)) => Ok(Self::Cuda(index.unwrap_or(0))),
            #[cfg(feature = "wgpu")]
            ("wgpu", Some(index)) => Ok(Self::Wgpu(index)),
            #[cfg(not(all(feature = "cuda", feature = "wgpu")))]
            #[allow(unreachable_patterns)] // One of the two, where the build has the other.
            ("cuda" | "wgpu", Some(_)) => Err(format!("this build has no {kind} backend: {}", rebuild(kind))),
            _ => Err("expected cpu, cuda[:INDEX] or wgpu[:INDEX]".into()),
        }
    }
}

impl fmt::Display for DeviceArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceArg::Cpu => f.write_str("cpu"),
            #[cfg(feature = "cuda")]
            DeviceArg::Cuda(index) => write!(f, "cuda:{index}"),
            #[cfg(feature = "wgpu")]
            DeviceArg::Wgpu(None) => f.write_str("wgpu"),
            #[cfg(feature = "wgpu")]
            DeviceArg::Wgpu(Some(index)) => write!(f, "wgpu:{index}"),
        }
    }
}

/// How to get a backend that is not built in.
#[cfg(not(all(feature = "cuda", feature = "wgpu")))]
pub(super) fn rebuild(kind: &str) -> String {
    format!("build it with `cargo build --release --features {kind}`")
}

impl DeviceArg {
    /// The burn device, after a first computation on it.
    ///
    /// # Errors
    /// What is missing, and what to do about it: backends panic where a driver is missing.
    pub(super) fn open(&self) -> Result<Device, CliError> {
        let tried = quietly(|| {
            let device = self.device()?;
            if *self == Self::Cpu {
                return Ok(device);
            }
            let sum = (Tensor::<1>::ones([8], &device) * 2.0).sum().try_into_scalar::<f32>();
            match sum.map_err(|error| error.to_string()) {
                Ok(16.0) => Ok(device),
                Ok(sum) => Err(format!("it computes 8 x 2 = {sum}")),
                Err(error) => Err(error),
            }
        });
        tried.unwrap_or_else(Err).map_err(|what| {
            let what = what.lines().next().unwrap_or_default().to_owned();
            CliError::Failure(format!("device {self} does not work: {what}; {}", self.remedy(&what)).into())
        })
    }

    fn device(&self) -> Result<Device, String> {
        match self {
            DeviceArg::Cpu => Ok(Device::flex()),
            #[cfg(feature = "cuda")]
            DeviceArg::Cuda(index) => Ok(Device::cuda(*index)),
            #[cfg(feature = "wgpu")]
            DeviceArg::Wgpu(None) => Ok(Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)),
            #[cfg(feature = "wgpu")]
            DeviceArg::Wgpu(Some(index)) => {
                let found = Device::enumerate(burn::tensor::DeviceType::Wgpu);
                let count = found.iter().count();
                found.into_iter().nth(*index).ok_or_else(|| format!("there are {count} wgpu devices"))
            }
        }
    }

    fn remedy(&self, what: &str) -> String {
        let _ = what;
        match self {
            DeviceArg::Cpu => "this is a fault of the program".into(),
            #[cfg(feature = "cuda")]
            DeviceArg::Cuda(_) => cuda_remedy(what).into(),
            #[cfg(feature = "wgpu")]
            DeviceArg::Wgpu(_) => WGPU_REMEDY.into(),
        }
    }

    /// Tells the bytes that it has left, where that is known: GPU backends tell of their own pools only.
    pub(super) fn free_memory(&self) -> fn() -> Option<u64> {
        match self {
            DeviceArg::Cpu => kvsharer_eval::free_host_memory,
            #[cfg(any(feature = "cuda", feature = "wgpu"))]
            _ => || None,
        }
    }

    /// How much is scored at once: on a CPU as much as a thread likes, on a GPU as much as keeps it busy.
    pub(super) fn scoring(&self) -> ScoreOptions {
        match self {
            DeviceArg::Cpu => ScoreOptions::default(),
            #[cfg(any(feature = "cuda", feature = "wgpu"))]
            _ => ScoreOptions {
                tokens: 32_768,
                rows: 4096,
                // A pass over a small model costs an H100 some 80 ms in f32, as if it were 5,600 tokens, even if it has
                // fewer: its products fill one wave. In bf16 it costs the host some 15 ms, in which 7,000 tokens run.
                padding: 8192,
                reduce: kvsharer_eval::Reduce::Device,
                one_at_a_time: true,
                ..ScoreOptions::default()
            },
        }
    }

    /// Whether the host can be ahead of it, so that steps are worth planning.
    pub(super) fn runs_ahead(&self) -> bool {
        !matches!(self, DeviceArg::Cpu)
    }

    /// How calibration samples are run.
    pub(super) fn work(&self) -> Work {
        match self {
            DeviceArg::Cpu => Work::Threads,
            #[cfg(any(feature = "cuda", feature = "wgpu"))]
            _ => Work::Tokens(8192),
        }
    }
}

/// What a missing piece of CUDA is called in the loaders' messages, and where it comes from.
#[cfg(feature = "cuda")]
pub(super) fn cuda_remedy(what: &str) -> &'static str {
    if what.to_lowercase().contains("nvrtc") {
        "libnvrtc compiles its kernels: install a CUDA toolkit, or `pip install nvidia-cuda-nvrtc-cu12` and put its lib folder into LD_LIBRARY_PATH"
    } else {
        "install the NVIDIA driver (libcuda.so), and see with `nvidia-smi` and `kvsharer devices` which devices there are"
    }
}

#[cfg(feature = "wgpu")]
pub(super) const WGPU_REMEDY: &str = "see `kvsharer devices`; on Linux install a Vulkan driver: the GPU's own, or Debian's mesa-vulkan-drivers, which has one that runs on the CPU";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_read_from_its_own_name() {
        let mut names = vec!["cpu"];
        if cfg!(feature = "cuda") {
            names.extend(["cuda:0", "cuda:3"]);
        }
        if cfg!(feature = "wgpu") {
            names.extend(["wgpu", "wgpu:1"]);
        }
        for name in names {
            assert_eq!(name.parse::<DeviceArg>().unwrap().to_string(), name);
        }
    }

    #[test]
    fn what_is_no_device_is_refused() {
        for name in ["", "cpu:0", "cpu:x", "gpu", "cuda:x", "wgpu:-1", "cuda:0:1"] {
            assert!(name.parse::<DeviceArg>().unwrap_err().contains("expected cpu"), "{name}");
        }
        if cfg!(not(feature = "wgpu")) {
            let error = "wgpu:1".parse::<DeviceArg>().unwrap_err();
            assert!(error.contains("no wgpu backend") && error.contains("--features wgpu"), "{error}");
        }
    }

    #[test]
    fn the_cpu_opens() {
        assert!(DeviceArg::Cpu.open().is_ok());
    }
}
