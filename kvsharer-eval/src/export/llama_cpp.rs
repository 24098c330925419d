//! llama.cpp: nothing that it reads can say which layer reads which cache.
//!
//! Its only sharing is that of Gemma 3n and Gemma 4: `ARCH.attention.shared_kv_layers` counts layers at the end of the
//! model, and the code of these two architectures has the donor (the last layer with a cache and the same window). No
//! key of a GGUF file and no option names a donor, and the other architectures do not read the count.

use super::ExportError;

pub(super) fn refusal() -> ExportError {
    ExportError::unsupported(
        "llama.cpp",
        "a GGUF file cannot say which layer reads which layer's cache (Gemma 3n's and 4's shared_kv_layers only counts \
         layers at the end, in these architectures), and weights with fitted maps are wrong without sharing; export to \
         transformers or vllm, or run the GGUF file with kvsharer",
    )
}
