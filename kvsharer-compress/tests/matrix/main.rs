//! Every policy, alone and under sharing of keys and values, of values alone and of keys alone, in full, 8-bit and
//! 4-bit storage, with a cache in f32 and in f16: what must hold whatever is combined. the table in `src/testing` lists the policies.

mod branch;
mod bytes;
mod edges;
mod endless;
mod equal;
mod padding;
mod simulation;
mod support;
