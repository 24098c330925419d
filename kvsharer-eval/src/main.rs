//! The program `kvsharer`: find a sharing strategy, run it, and measure what it saves and costs.
#![forbid(unsafe_code)]

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
