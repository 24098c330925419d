//! The policies with the SPECs they are tested with: a new policy needs a row here.

/// SPECs of one policy, for a prompt of 40 tokens and 12 generated ones in 5 layers.
#[derive(Debug)]
pub struct Row {
    /// Name of the policy.
    pub policy: &'static str,
    /// Budgets that evict from the prompt and while decoding, but leave enough for a block of the quantised storage.
    pub small: &'static [&'static str],
    /// Budgets that all 52 tokens just fit, or all of the prompt if the cache grows after it.
    pub ample: &'static [&'static str],
    /// Absolute budgets for rows of different lengths. What depends on the length of the prompt counts the longest row.
    pub padded: &'static [&'static str],
}

/// The quantised storages; the head dimension of the toy model must be a multiple of their groups.
pub const QUANTISED: [&str; 2] = ["quant:bits=8,group=8,residual=8", "quant:bits=4,group=8,residual=8"];

/// All policies.
pub const ROWS: &[Row] = &[
    Row { policy: "full", small: &["full"], ample: &["full"], padded: &["full"] },
    Row {
        policy: "streaming-llm",
        small: &[
            "streaming-llm:sinks=3,window=19",
            "streaming-llm:sinks=3,window=19,positions=original",
            "streaming-llm:sinks=2,window=28..12",
            "streaming-llm:sinks=4,window=40%",
        ],
        ample: &[
            "streaming-llm:sinks=4,window=48",
            "streaming-llm:budget=52,positions=original",
            "streaming-llm:sinks=1,window=100%",
        ],
        padded: &["streaming-llm:sinks=2,window=6", "streaming-llm:sinks=2,window=9,positions=original"],
    },
    Row {
        policy: "window",
        small: &["window:budget=22", "window:budget=22,protect=2", "window:budget=28/24/20/18/16", "window:budget=40%"],
        ample: &["window:budget=52", "window:budget=52/53/52/60/52,protect=5", "window:budget=100%"],
        padded: &["window:budget=8", "window:budget=12,protect=2", "window:budget=12..7"],
    },
    Row {
        policy: "h2o",
        small: &[
            "h2o:heavy=11,recent=11",
            "h2o:variant=streaming,heavy=11,recent=11",
            "h2o:variant=ratio,heavy=20%,recent=25%",
            "h2o:variant=observed,budget=50%",
            "h2o:variant=observed,budget=20,decode=each",
            "h2o:heavy=18..6,recent=9,protect=3",
            "h2o:heavy=11,recent=11/10/9/8/7,group=max",
            "h2o:heavy=11,recent=11,group=sum,readers=donor",
            "h2o:heavy=11,recent=11,readers=sum,decode=grow",
            "h2o:heavy=11,recent=11,readers=max",
        ],
        ample: &[
            "h2o:heavy=26,recent=26",
            "h2o:variant=streaming,budget=52",
            "h2o:variant=ratio,heavy=50%,recent=50%,decode=grow",
            "h2o:variant=observed,budget=100%",
        ],
        padded: &[
            "h2o:heavy=4,recent=4",
            "h2o:heavy=5,recent=5,protect=2",
            "h2o:variant=streaming,heavy=4,recent=4",
            "h2o:variant=observed,budget=8",
            "h2o:variant=observed,budget=8,decode=each",
            "h2o:heavy=4,recent=4,readers=max,group=max",
        ],
    },
    Row {
        policy: "snapkv",
        small: &[
            "snapkv:budget=22,window=6",
            "snapkv:budget=22,window=6,pool=max,kernel=7",
            "snapkv:budget=22,window=6,decode=evict",
            "snapkv:budget=26..18,window=6,decode=evict,positions=cache",
            "snapkv:variant=kvpress,budget=50%,window=6",
        ],
        ample: &[
            "snapkv:budget=52,window=6",
            "snapkv:budget=52,window=6,pool=max,decode=evict",
            "snapkv:variant=kvpress,budget=100%,window=6",
        ],
        padded: &["snapkv:budget=8,window=3,kernel=3", "snapkv:budget=8,window=3,pool=max,decode=evict"],
    },
    Row {
        policy: "pyramidkv",
        small: &[
            "pyramidkv:beta=4,budget=18,window=6",
            "pyramidkv:beta=4,budget=18,window=6,pool=max,decode=evict",
            "pyramidkv:variant=kvpress,beta=3,budget=45%,window=6",
        ],
        ample: &["pyramidkv:budget=52,window=6", "pyramidkv:variant=kvpress,budget=100%,window=6"],
        // If the cache grows, the pyramid depends on the length of the prompt.
        padded: &["pyramidkv:beta=2,budget=6,window=3,kernel=3,decode=evict"],
    },
    Row {
        policy: "pyramidinfer-cache",
        small: &[
            "pyramidinfer-cache:final=20%,min=2",
            "pyramidinfer-cache:final=0,recent=30%,min=4,decode=evict,protect=2",
        ],
        ample: &["pyramidinfer-cache:final=100%,min=1", "pyramidinfer-cache:min=64"],
        // Budgets are shares of the prompt.
        padded: &[],
    },
    Row {
        policy: "tova",
        small: &["tova:budget=22", "tova:budget=28/24/20/18/16,protect=2", "tova:budget=45%,decode=grow"],
        ample: &["tova:budget=52", "tova:budget=100%,decode=grow"],
        padded: &["tova:budget=8", "tova:budget=8,protect=2", "tova:budget=12,decode=grow"],
    },
    Row {
        policy: "knorm",
        small: &["knorm:budget=22", "knorm:budget=28..16,positions=cache", "knorm:budget=45%,decode=grow"],
        ample: &["knorm:budget=52", "knorm:budget=100%,decode=grow"],
        padded: &["knorm:budget=8", "knorm:budget=12..7,protect=1", "knorm:budget=8,decode=grow"],
    },
    Row {
        policy: "random",
        small: &["random:budget=22,seed=3", "random:budget=60%..35%,protect=2", "random:budget=22,decode=grow"],
        ample: &["random:budget=52", "random:budget=100%,decode=grow"],
        padded: &["random:budget=8,seed=3", "random:budget=12", "random:budget=8,protect=2,decode=grow"],
    },
    Row { policy: "quant", small: &QUANTISED, ample: &QUANTISED, padded: &[] },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policies;

    #[test]
    fn every_policy_has_a_row() {
        let rows: Vec<&str> = ROWS.iter().map(|row| row.policy).collect();
        let registered: Vec<&str> = policies().iter().map(|entry| entry.name).collect();
        assert_eq!(rows, registered, "a new policy needs a row in the table");
        for row in ROWS {
            let specs = [row.small, row.ample, row.padded].concat();
            assert!(!row.small.is_empty() && !row.ample.is_empty(), "{}", row.policy);
            assert!(specs.iter().all(|spec| spec.split(':').next() == Some(row.policy)), "{specs:?}");
        }
    }
}
