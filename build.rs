//! Compiles `proto/` into Rust, with no `protoc` to install.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

/// Messages that carry plaintext or additional authenticated data: they get no `Debug`, so that
/// none can be printed.
const UNPRINTABLE: &[&str] = &[
    ".kmsgate.v1.EncryptDataRequest",
    ".kmsgate.v1.DecryptDataRequest",
    ".kmsgate.v1.DecryptDataResponse",
];

/// Where etcd's API is described, as far as the store uses it.
const ETCD: &str = "src/store/etcd";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed={ETCD}");

    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler
        .include_imports(true)
        .include_source_info(true)
        .open_files([
            "kmsgate/v1/crypto.proto",
            "kmsgate/v1/keys.proto",
            "kmsgate/v1/operator.proto",
            "kmsgate/v1/errors.proto",
        ])?;
    let out = PathBuf::from(env::var("OUT_DIR")?).join("kmsgate.v1.descriptors.bin");
    fs::write(out, compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure()
        .skip_debug(UNPRINTABLE)
        .compile_fds(compiler.file_descriptor_set())?;
    tonic_prost_build::configure()
        .build_server(false)
        .skip_debug([
            ".etcdserverpb.AuthenticateRequest",
            ".etcdserverpb.AuthenticateResponse",
        ])
        .compile_fds(protox::compile(["rpc.proto"], [ETCD])?)?;
    Ok(())
}
