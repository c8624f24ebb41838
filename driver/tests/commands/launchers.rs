//! Tests that a binary built without MPI refuses to be started as several processes by `mpirun` or `srun`.
#![cfg(not(feature = "mpi"))]

use std::process::{Command, Output};

use crate::running::{SMALL, errors, write_catalogue};

/// Trains in a folder, as a launcher would start it that says so in these environment variables.
fn train(folder: &std::path::Path, variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_msl"));
    command.current_dir(folder).envs(variables.iter().copied());
    command.args(["train", "--data", ".", "--loss", "msl", "--output", "run"]);
    command.args(SMALL).output().unwrap()
}

#[test]
fn one_of_several_processes_is_refused_before_it_writes_where_all_would_write() {
    let folder = tempfile::tempdir().unwrap();
    write_catalogue(folder.path());
    for variables in [
        // Open MPI, whose processes have a rank of PMIx too.
        &[
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_RANK", "0"),
            ("PMIX_RANK", "0"),
        ][..],
        &[("PMI_SIZE", "4"), ("PMI_RANK", "3")],
        &[("SLURM_STEP_NUM_TASKS", "16"), ("SLURM_PROCID", "1")],
        &[("PMIX_RANK", "1"), ("PMIX_NAMESPACE", "prterun-host-1@1")],
        &[("PMIX_RANK", "18446744073709551615")],
    ] {
        let output = train(folder.path(), variables);
        let said = errors(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        let (name, value) = variables[0];
        for part in [
            &format!("one of several processes ({name}={value})"),
            "--features mpi",
        ] {
            assert!(said.contains(part), "expected {part:?} in: {said}");
        }
        assert!(!folder.path().join("run").exists());
    }

    let output = train(folder.path(), &[("PMI_SIZE", "two")]);
    let said = errors(&output);
    assert!(
        said.contains("PMI_SIZE is \"two\", expected a number"),
        "{said}"
    );
}

#[test]
fn the_only_process_of_a_launcher_trains() {
    let folder = tempfile::tempdir().unwrap();
    write_catalogue(folder.path());
    let variables = [
        ("OMPI_COMM_WORLD_SIZE", "1"),
        ("SLURM_STEP_NUM_TASKS", "1"),
        ("PMIX_RANK", "0"),
    ];
    let output = train(folder.path(), &variables);
    assert!(output.status.success(), "{}", errors(&output));
    assert!(folder.path().join("run").exists());
}
