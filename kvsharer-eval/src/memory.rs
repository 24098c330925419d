//! What a run takes, held against what the device has, before anything is allocated.

use bytesize::ByteSize;
use kvsharer_models::ModelFiles;
use sysinfo::{MemoryRefreshKind, ProcessRefreshKind, ProcessesToUpdate, System};
use thiserror::Error;

/// A run that the memory has no room for.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{model} takes {} of weights and {} of keys and values, but {} of memory are free: ask for fewer tokens or sequences, add an evicting policy or `quant`, take a smaller --dtype, or try it with --no-memory-check",
    ByteSize(*.weights as u64), ByteSize(*.cache as u64), ByteSize(*.free)
)]
pub struct DoesNotFit {
    /// The model.
    pub model: String,
    /// Bytes of its weights.
    pub weights: usize,
    /// Bytes of caches, and of what else is kept for every token.
    pub cache: usize,
    /// Bytes that are free.
    pub free: u64,
}

/// Refuses a model with weights of `element_bytes` and caches of `cache` bytes if they are more than `free`; what is not
/// known is not checked. Activations, which depend on the backend, are not counted.
///
/// # Errors
/// [`DoesNotFit`] with the numbers.
pub fn check_memory(
    files: &ModelFiles,
    element_bytes: usize,
    cache: usize,
    free: Option<u64>,
) -> Result<(), DoesNotFit> {
    let weights = files.config().parameters().saturating_mul(element_bytes);
    match free.filter(|&free| weights.saturating_add(cache) as u64 > free) {
        Some(free) => Err(DoesNotFit { model: files.name().into(), weights, cache, free }),
        None => Ok(()),
    }
}

/// Bytes that the host's memory has left for this process, within the limits of its control groups; `None` where the
/// system does not tell.
pub fn free_host_memory() -> Option<u64> {
    let mut system = System::new();
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    let process = sysinfo::get_current_pid().ok();
    if let Some(pid) = process {
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, ProcessRefreshKind::nothing());
    }
    let own = process.and_then(|pid| system.process(pid)?.cgroup_limits());
    // Files that were read count as used there, but give way.
    let left = |limits: sysinfo::CGroupLimits| limits.total_memory.saturating_sub(limits.rss);
    let free = own.into_iter().chain(system.cgroup_limits()).map(left).chain([system.available_memory()]).min();
    free.filter(|&free| free > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvsharer_models::open_model;

    #[test]
    fn what_does_not_fit_is_refused_with_the_numbers() {
        let files = open_model("random:tiny", 0).unwrap();
        let weights = files.config().parameters() * 4;
        let free = weights as u64 + 1000;
        assert_eq!(check_memory(&files, 4, 1000, Some(free)), Ok(()));
        assert_eq!(check_memory(&files, 4, usize::MAX, None), Ok(()));
        let refused = check_memory(&files, 4, 1001, Some(free)).unwrap_err();
        assert_eq!(refused, DoesNotFit { model: "random:tiny".into(), weights, cache: 1001, free });
        assert!(check_memory(&files, 4, usize::MAX, Some(free)).is_err());
    }

    #[test]
    fn linux_tells_what_is_free() {
        if cfg!(target_os = "linux") {
            assert!(free_host_memory().is_some_and(|bytes| bytes > 1 << 20));
        }
    }
}
