//! Runs that several processes share, started by `mpirun`. `scripts/check-mpi` runs these.
#![cfg(feature = "mpi")]

#[path = "commands/running.rs"]
#[allow(dead_code)]
mod running;

use std::{
    env, fs,
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use candle_core::{DType, Device, Tensor};
use msl::exchange;
use running::{SMALL, json, last_checkpoint, write_catalogue, write_pretrained_model};

/// The root scope is not defined in this catalogue, where all titles begin alike.
const BRANCHING: [&str; 2] = ["--scope", "branching"];

const MSL: &str = env!("CARGO_BIN_EXE_msl");

/// Starts `msl` as so many processes in a folder. Each leaves its process id in the file `pid.RANK`.
fn ranks(folder: &Path, ranks: usize, arguments: &[&str]) -> Command {
    let mut command = mpirun(folder, ranks);
    command.arg(MSL).args(arguments);
    command
}

/// Starts so many processes of the program that is to be given with its arguments.
fn mpirun(folder: &Path, ranks: usize) -> Command {
    let mut command = Command::new("mpirun");
    command.current_dir(folder);
    // A test may be run by root, on a machine with fewer cores than ranks.
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1");
    command.env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    command.env("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe");
    command.env("OMPI_MCA_rmaps_base_oversubscribe", "1");
    command.env("OMPI_MCA_mpi_yield_when_idle", "1");
    command.args(["-n", &ranks.to_string(), "sh", "-c"]);
    command.arg("echo $$ > pid.${OMPI_COMM_WORLD_RANK:-$PMI_RANK}; exec \"$0\" \"$@\"");
    command
}

/// A catalogue, a pretrained model and the options of a small training.
fn world(options: &[&'static str]) -> (tempfile::TempDir, Vec<&'static str>) {
    let folder = tempfile::tempdir().unwrap();
    write_catalogue(folder.path());
    write_pretrained_model(&folder.path().join("base"));
    let mut arguments = vec![
        "train",
        "--data",
        ".",
        "--validation",
        "20", // two batches of users
        "--prompt",
        "titles",
    ];
    arguments.extend(options);
    (folder, arguments)
}

fn run(folder: &Path, count: usize, arguments: &[&str], run: &str) {
    let mut arguments = arguments.to_vec();
    arguments.extend(["--output", run]);
    let output = match count {
        1 => running::msl(folder, &arguments),
        _ => ranks(folder, count, &arguments).output().unwrap(),
    };
    assert!(output.status.success(), "{}", running::errors(&output));
}

/// The weights that a run ended with.
fn weights(run: &Path) -> Vec<u8> {
    let folder = last_checkpoint(run);
    let names = ["adapter_model.safetensors", "model.safetensors"];
    let file = names
        .map(|name| folder.join(name))
        .into_iter()
        .find(|file| file.exists());
    fs::read(file.unwrap()).unwrap()
}

/// The numbers of each step that depend on the batch alone; 0 for the item NLL of validation rows where it was not computed.
fn steps(run: &Path) -> Vec<[f64; 5]> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let step = |line: &str| {
        let step: serde_json::Value = serde_json::from_str(line).unwrap();
        let numbers = ["loss", "temperature", "gradient_norm", "rows"];
        let [loss, temperature, norm, rows] = numbers.map(|name| step[name].as_f64().unwrap());
        let validation_nll = step["validation_nll"].as_f64().unwrap_or_default();
        [loss, temperature, norm, rows, validation_nll]
    };
    text.lines().map(step).collect()
}

fn assert_alike(found: &Path, expected: &Path) {
    let (found, expected) = (steps(found), steps(expected));
    assert_eq!(found.len(), expected.len());
    for (step, (found, expected)) in (1..).zip(found.iter().zip(&expected)) {
        for (found, expected) in found.iter().zip(expected) {
            let error = (found - expected).abs() / expected.abs().max(1.0);
            assert!(
                error < 1e-6,
                "step {step}: {found:?}, expected {expected:?}"
            );
        }
    }
}

#[test]
fn mpi_sums_and_gathers_in_the_order_of_the_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = mpirun(folder.path(), 3);
    command.arg(env::current_exe().unwrap());
    let output = command.args(["--ignored", "--exact", "one_of_three_ranks"]);
    let output = output.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.matches("1 passed").count() == 3,
        "{said}{}",
        running::errors(&output)
    );
}

#[test]
#[ignore = "another test starts this as three ranks"]
fn one_of_three_ranks() {
    let exchange = exchange::open().unwrap();
    assert_eq!(exchange.size(), 3);
    let rank = exchange.rank();
    let tensor = |values: Vec<f64>| Tensor::new(values, &Device::Cpu).unwrap();

    // Every other order of these three has another sum.
    let [first, second, third] = [5e15, -4e15, 0.3];
    let own = tensor(vec![[first, second, third][rank], rank as f64]);
    let sums = exchange.sum(&own).unwrap().to_vec1::<f64>().unwrap();
    assert_eq!(sums, [(first + second) + third, 3.0]);
    let sum = exchange.sum(&tensor(Vec::new())).unwrap();
    assert_eq!(sum.elem_count(), 0);

    // More than one message holds, and no multiple of the number of ranks.
    let count = (2 << 20) + 5;
    let values = (0..count).map(|place| (place * (rank + 1) % 1024) as f32);
    let values = Tensor::from_iter(values, &Device::Cpu).unwrap();
    let sums: Vec<f32> = exchange.sum(&values).unwrap().to_vec1().unwrap();
    assert_eq!(sums.len(), count);
    for (place, sum) in sums.into_iter().enumerate() {
        let expected = place % 1024 + 2 * place % 1024 + 3 * place % 1024;
        assert_eq!(sum, expected as f32, "value {place}");
    }

    let gathered = exchange.gather(&vec![rank as u8; 1000 * rank]).unwrap();
    assert_eq!(gathered, [vec![], vec![1; 1000], vec![2; 2000]]);
    exchange.barrier().unwrap();
}

/// Measures a sum of as many values as the adapters of SmolLM2-135M have.
#[test]
#[ignore = "a measurement: mpirun -n 2 TEST_BINARY --ignored --exact seconds_of_a_sum --nocapture"]
fn seconds_of_a_sum() {
    let exchange = exchange::open().unwrap();
    let values = Tensor::ones(2_442_240, DType::F32, &Device::Cpu).unwrap();
    let sum = |_| {
        exchange.barrier().unwrap();
        let begun = Instant::now();
        exchange.sum(&values).unwrap();
        begun.elapsed().as_secs_f64()
    };
    let mut seconds: Vec<f64> = (0..201).map(sum).collect();
    seconds.sort_by(f64::total_cmp);
    if exchange.rank() == 0 {
        println!("median {:.4} s, least {:.4} s", seconds[100], seconds[0]);
    }
}

#[test]
fn processes_that_mpi_does_not_join_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    write_catalogue(folder.path());
    let mut command = Command::new(MSL);
    command.current_dir(folder.path());
    command.args(["train", "--data", ".", "--output", "run"]);
    // As srun without --mpi=pmix starts them: each is the only process of its MPI.
    let output = command.env("SLURM_STEP_NUM_TASKS", "4").output().unwrap();
    assert!(!output.status.success());
    let errors = running::errors(&output);
    assert!(
        errors.contains("SLURM_STEP_NUM_TASKS=4") && errors.contains("srun --mpi=pmix"),
        "{errors}"
    );
    assert!(!folder.path().join("run").exists());
}

#[test]
fn every_loss_trains_as_one_process_does_and_twice_to_the_same_bits() {
    for (loss, count) in [
        (&["--loss", "lml"][..], 2),
        (&["--loss", "msl", "--temperature", "1"], 3),
        (
            &["--loss", "ats", "--scope", "root", "--allow-degenerate"],
            4,
        ),
        (&["--loss", "bear-ats", "--scope", "branching"], 2),
    ] {
        let (folder, mut arguments) = world(&SMALL);
        arguments.extend(loss);
        let folder = folder.path();
        for (ranks, name) in [(1, "one"), (count, "several"), (count, "again")] {
            run(folder, ranks, &arguments, name);
        }
        assert_alike(&folder.join("several"), &folder.join("one"));
        assert_eq!(
            weights(&folder.join("several")),
            weights(&folder.join("again"))
        );
    }
}

#[test]
fn adapters_with_dropout_train_as_on_one_process_also_where_a_rank_has_no_row() {
    let options = [
        "--model",
        "base",
        "--batch-size",
        "3",
        "--epochs",
        "1",
        "--lora-dropout",
        "0.2",
        "--scope",
        "branching",
    ];
    let (folder, arguments) = world(&options);
    let folder = folder.path();
    run(folder, 1, &arguments, "one");
    run(folder, 4, &arguments, "several");
    assert_alike(&folder.join("several"), &folder.join("one"));
}

#[test]
fn an_evaluation_by_several_ranks_is_the_same_file() {
    let (folder, mut arguments) = world(&SMALL);
    let folder = folder.path();
    arguments.extend(BRANCHING);
    run(folder, 1, &arguments, "one");
    let evaluate = ["evaluate", "one", "--batch-size", "5", "--json", "--ranks"];
    let evaluated = |count: usize, name: &str| {
        let arguments = [&evaluate[..], &[name]].concat();
        let output = match count {
            1 => running::msl(folder, &arguments),
            _ => ranks(folder, count, &arguments).output().unwrap(),
        };
        let mut result = json(&output);
        for row in result["rows"].as_array_mut().unwrap() {
            row.as_object_mut().unwrap().remove("users_per_second");
        }
        result["notes"].take();
        (result, fs::read(folder.join(name)).unwrap())
    };
    let expected = evaluated(1, "one.csv");
    for count in [2, 3] {
        assert_eq!(evaluated(count, "several.csv"), expected);
    }
}

/// Waits until a training has taken some steps.
fn wait_for_steps(child: &mut Child, run: &Path, count: usize) {
    let begun = Instant::now();
    while fs::read_to_string(run.join("metrics.jsonl")).map_or(0, |text| text.lines().count())
        < count
    {
        assert!(
            child.try_wait().unwrap().is_none(),
            "the training has ended"
        );
        assert!(
            begun.elapsed() < Duration::from_secs(120),
            "no step was taken"
        );
        sleep(Duration::from_millis(20));
    }
}

/// Waits until the launcher has ended its ranks and itself.
fn wait_for_end(mut child: Child) -> Output {
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > Duration::from_secs(20) {
            child.kill().unwrap();
            panic!("the ranks did not end");
        }
        sleep(Duration::from_millis(20));
    }
    child.wait_with_output().unwrap()
}

fn signal(folder: &Path, rank: usize, signal: &str) {
    let process = fs::read_to_string(folder.join(format!("pid.{rank}"))).unwrap();
    let sent = Command::new("kill").args([signal, process.trim()]).status();
    assert!(sent.unwrap().success());
}

#[test]
fn a_killed_rank_ends_all_within_seconds_and_another_number_of_ranks_goes_on() {
    // The last option of SMALL is the number of epochs.
    let (folder, mut arguments) = world(&SMALL[..12]);
    let folder = folder.path();
    arguments.extend(BRANCHING);
    arguments.extend(["--save-every", "2", "--epochs", "2000", "--output", "run"]);
    let begin = |count: usize, arguments: &[&str]| {
        let mut command = ranks(folder, count, arguments);
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let path = folder.join("run");

    let mut training = begin(4, &arguments);
    wait_for_steps(&mut training, &path, 5);
    signal(folder, 2, "-KILL");
    assert!(!wait_for_end(training).status.success());

    let mut resumed = begin(2, &["resume", "run"]);
    let before = steps(&path).len();
    wait_for_steps(&mut resumed, &path, before + 5);
    // To one rank alone: both end after the same step, and the checkpoint of that step is there.
    signal(folder, 1, "-TERM");
    let errors = running::errors(&wait_for_end(resumed));
    assert_eq!(errors.matches("which is saved").count(), 1, "{errors}");
    let saved = last_checkpoint(&path);
    assert!(
        saved.ends_with(format!("checkpoint-{}", steps(&path).len())),
        "{saved:?}"
    );
}

/// Sends a signal to the launcher of two ranks after some steps, calls `check` with what it said and the run, and resumes it.
fn interrupt_and_resume(name: &str, check: impl FnOnce(&Output, &Path)) {
    let (folder, mut arguments) = world(&SMALL[..12]);
    let folder = folder.path();
    arguments.extend(BRANCHING);
    // One that is saved is saved because of the signal.
    arguments.extend(["--save-every", "1000", "--epochs", "60"]);
    run(folder, 2, &arguments, "whole");
    arguments.extend(["--output", "broken"]);
    let mut command = ranks(folder, 2, &arguments);
    let output = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut launcher = output.spawn().unwrap();
    let broken = folder.join("broken");
    wait_for_steps(&mut launcher, &broken, 5);
    let sent = Command::new("kill")
        .args([name, &launcher.id().to_string()])
        .status();
    assert!(sent.unwrap().success());
    let output = wait_for_end(launcher);
    assert!(!output.status.success());
    check(&output, &broken);

    let resumed = ranks(folder, 2, &["resume", "broken"]).output().unwrap();
    assert!(resumed.status.success(), "{}", running::errors(&resumed));
    assert_eq!(steps(&broken), steps(&folder.join("whole")));
    assert_eq!(weights(&broken), weights(&folder.join("whole")));
}

#[test]
fn a_launcher_that_is_sent_sigusr1_passes_it_on_and_all_ranks_end_with_one_checkpoint() {
    interrupt_and_resume("-USR1", |output, run| {
        let errors = running::errors(output);
        assert_eq!(errors.matches("which is saved").count(), 1, "{errors}");
        let saved = format!("checkpoint-{}", steps(run).len());
        assert!(last_checkpoint(run).ends_with(&saved), "{saved}: {errors}");
    });
}

/// Open MPI kills its ranks soon after, which may be before they have saved: then the last checkpoint stands.
#[test]
fn a_launcher_that_is_interrupted_or_terminated_leaves_a_checkpoint_to_resume_from() {
    for name in ["-INT", "-TERM"] {
        interrupt_and_resume(name, |output, run| {
            let (saved, taken) = (last_checkpoint(run), steps(run).len());
            println!(
                "{name}: {taken} steps, {saved:?}: {}",
                running::errors(output)
            );
            let whole = [0, taken].map(|step| format!("checkpoint-{step}"));
            assert!(whole.iter().any(|name| saved.ends_with(name)), "{saved:?}");
        });
    }
}

#[test]
fn a_rank_that_fails_says_why_and_ends_the_others() {
    let (folder, mut arguments) = world(&SMALL);
    let folder = folder.path();
    arguments.extend(BRANCHING);
    let twice = [&arguments[..], &["--output", "run"]].concat();
    run(folder, 1, &arguments, "run");
    let output = ranks(folder, 2, &twice).output().unwrap();
    let errors = running::errors(&output);
    assert!(!output.status.success());
    assert!(
        errors.contains("error of rank 0") && errors.contains("--overwrite"),
        "{errors}"
    );
}

#[test]
fn a_command_that_cannot_be_shared_says_so() {
    let folder = tempfile::tempdir().unwrap();
    write_catalogue(folder.path());
    let output = ranks(folder.path(), 2, &["inspect", "."]).output().unwrap();
    assert!(!output.status.success());
    let errors = running::errors(&output);
    assert!(
        errors.contains("train, resume and evaluate can be shared"),
        "{errors}"
    );
}
