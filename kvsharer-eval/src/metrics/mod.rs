//! What is made of the scores of many items: means, corpus measures, ROUGE, each with how far chance may move it.

mod bootstrap;
mod mean;
mod rouge;

pub use bootstrap::bootstrap;
pub use mean::mean;
pub use rouge::{Rouge, rouge};
