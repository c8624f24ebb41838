//! What the binary does with the devices that there are and those that there are not.

use std::path::Path;

use crate::running::{SMALL, errors, json, msl, write_catalogue};
use candle_core::Device;

fn train(folder: &Path, device: &str) -> std::process::Output {
    let base = [
        "train",
        "--data",
        ".",
        "--loss",
        "msl",
        "--json",
        "--overwrite",
        "--output",
    ];
    msl(
        folder,
        &[&base[..], &["run", "--device", device], &SMALL].concat(),
    )
}

#[test]
fn without_a_gpu_the_processor_is_taken_with_a_reason_or_a_named_gpu_refused() {
    if Device::new_cuda(0).is_ok() {
        eprintln!("skipped: there is a GPU here");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    write_catalogue(folder.path());
    assert!(msl(folder.path(), &["--help"]).status.success());
    let on_cpu = train(folder.path(), "cpu");
    let found = train(folder.path(), "auto");
    assert_eq!(json(&found)["last_loss"], json(&on_cpu)["last_loss"]);
    let reason = "computing on the processor, because no GPU can be used: ";
    let said = errors(&found);
    // One that was built for processors alone has nothing to explain.
    assert_eq!(said.contains(reason), cfg!(feature = "cuda"), "{said}");

    let refused = train(folder.path(), "cuda:0");
    assert_eq!(refused.status.code(), Some(1));
    assert!(refused.stdout.is_empty());
    let why = match cfg!(feature = "cuda") {
        true => "CUDA_ERROR_NO_DEVICE",
        false => "build it with --features cuda",
    };
    let said = errors(&refused);
    assert!(
        said.starts_with("error: cannot use the device cuda:0: "),
        "{said}"
    );
    assert!(said.contains(why), "{said}");
}
