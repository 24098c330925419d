//! Chat: a model's own template turns messages into its text, and a conversation says which tokens are new.
//!
//! Templates come with models and are untrusted: they run in minijinja's sandbox, which reaches neither files nor the
//! network, with bounded time, memory and recursion.

mod conversation;
mod error;
mod json;
mod render;
mod source;
mod tags;

pub use conversation::{Conversation, Turn};
pub use error::ChatError;
pub use render::{ChatTemplate, Message};
