//! Anywhere but on Linux, one line instead of a page of unresolved imports.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let system = std::env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    if system != "linux" {
        println!(
            "cargo::error=these programs need Linux: on Windows use WSL 2, on macOS a container or a VM"
        );
    }
}
