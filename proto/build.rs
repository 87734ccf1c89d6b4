//! Compiles every `.proto` file beside this one; protox is a compiler in Rust, so no `protoc` is needed.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut files: Vec<_> = std::fs::read_dir(".")?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|ending| ending == "proto"))
        .filter_map(|path| path.file_name().map(|name| Path::new(name).to_owned()))
        .collect();
    files.sort();
    // The folder too: a new file must be seen.
    println!("cargo:rerun-if-changed=.");
    for file in &files {
        println!("cargo:rerun-if-changed={}", file.display());
    }
    let descriptors = protox::compile(&files, ["."])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
