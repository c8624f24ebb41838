//! Runs that are killed or interrupted, and gone on with: they end with the same bits.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use candle_core::{DType, Device};
use msl::{
    data::{synthetic::World, tokenizer::TextTokenizer},
    model::{Llama, LlamaConfig, pretrained},
};
use rand::{Rng, SeedableRng};

const ROWS: usize = 60;
/// Two epochs of eight steps.
const STEPS: usize = 16;

/// A catalogue in the paper's format.
fn data() -> tempfile::TempDir {
    let world = World::new(3, ROWS, 1).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let titles: BTreeMap<&str, &str> = (world.catalogue.items().iter())
        .map(|item| (item.id.as_str(), item.title.as_str()))
        .collect();
    let titles = serde_json::to_string(&titles).unwrap();
    fs::write(folder.path().join("id2name4Rec.json"), titles).unwrap();
    let mut rows = "user_id,item_ids,timestamp\n".to_owned();
    for row in &world.training {
        let mut items = row.history.clone();
        items.push(row.target);
        let ids: Vec<&str> = world.catalogue.ids(&items).collect();
        rows += &format!("{},\"[{}]\",0\n", row.user, ids.join(", "));
    }
    fs::write(folder.path().join("train.csv"), rows).unwrap();
    folder
}

fn msl() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_msl"));
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// A small run: ats with micro-batches, so that its temperature lags, and a validation that chooses. Its model is
/// pretrained, which is not done again when the run is resumed.
fn train(data: &Path, output: &Path) -> Command {
    let mut command = msl();
    command.arg("train").arg("--data").arg(data);
    command.arg("--output").arg(output);
    let options = "--validation 12 --pretraining-epochs 1 --epochs 2 --batch-size 6 --micro-batch-size 4 --save-every 5 --vocabulary 400 \
                   --hidden 16 --intermediate 24 --layers 1 --heads 2 --key-value-heads 1 --prompt titles --scope branching";
    command.args(options.split_whitespace());
    command
}

/// Adapters of the pretrained model in the folder of the data, some of whose inputs drop out.
fn train_adapters(data: &Path, output: &Path) -> Command {
    let mut command = msl();
    command.arg("train").arg("--data").arg(data);
    command.arg("--model").arg(data.join("base"));
    command.arg("--output").arg(output);
    let options = "--validation 12 --epochs 2 --batch-size 8 --save-every 5 --prompt titles --scope branching \
                   --learning-rate 1e-2 --lora-dropout 0.2 --dtype bf16";
    command.args(options.split_whitespace());
    if data.join("world.index.json").exists() {
        command.args(["--identifier", "codes-title"]);
    }
    command
}

fn write_pretrained_model(folder: &Path) {
    fs::create_dir(folder).unwrap();
    let tokenizer = TextTokenizer::train(["The Sea", "A Wall of Glass"].into_iter(), 280).unwrap();
    let config = LlamaConfig {
        vocab_size: tokenizer.vocabulary(),
        hidden_size: 16,
        intermediate_size: 32,
        ..LlamaConfig::default()
    };
    let model = Llama::random(config.clone(), 3, DType::F32, &Device::Cpu);
    let weights = model.unwrap().merged_weights().unwrap();
    pretrained::save(folder, &config, &tokenizer, &weights).unwrap();
}

fn resume(run: &Path) -> Command {
    let mut command = msl();
    command.arg("resume").arg(run);
    command
}

/// All that a finished run holds, but for what depends on the clock.
fn result(run: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![run.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let content = match name.as_str() {
                "metrics.jsonl" | "state.json" => without_clock(&path),
                _ if name.contains("tfevents") => continue,
                _ => fs::read(&path).unwrap(),
            };
            files.insert(path.strip_prefix(run).unwrap().to_owned(), content);
        }
    }
    files
}

/// A JSON text digit by digit, cut at its members, but for those that depend on the clock.
fn without_clock(path: &Path) -> Vec<u8> {
    let text = fs::read_to_string(path).unwrap();
    let clocks = ["\"tokens_per_second\"", "\"seconds\""];
    let timed = |member: &str| clocks.iter().any(|name| member.contains(name));
    let members = text.split([',', '{', '}']).filter(|member| !timed(member));
    members.collect::<Vec<_>>().join(",").into()
}

fn assert_same(found: &Path, expected: &Path) {
    let (found, expected) = (result(found), result(expected));
    let names = |files: &BTreeMap<PathBuf, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&found), names(&expected));
    for (name, content) in &expected {
        assert!(found[name] == *content, "{} differs", name.display());
    }
}

fn lines(run: &Path) -> usize {
    fs::read_to_string(run.join("metrics.jsonl")).map_or(0, |text| text.lines().count())
}

/// Waits until a run has taken so many steps or has ended.
fn wait_for_step(child: &mut Child, run: &Path, step: usize) {
    while child.try_wait().unwrap().is_none() && lines(run) < step {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_run_that_is_killed_at_random_steps_ends_with_the_bits_of_one_that_is_not() {
    let data = data();
    let runs = tempfile::tempdir().unwrap();
    let whole = runs.path().join("whole");
    assert!(train(data.path(), &whole).status().unwrap().success());
    assert_eq!(lines(&whole), STEPS);

    let mut random = rand::rngs::StdRng::seed_from_u64(11);
    for attempt in 0..4 {
        let killed = runs.path().join(format!("killed-{attempt}"));
        let mut child = train(data.path(), &killed).spawn().unwrap();
        let mut kills = 0;
        loop {
            wait_for_step(&mut child, &killed, random.random_range(1..=STEPS));
            // Anywhere in a step, or while a checkpoint is written.
            std::thread::sleep(Duration::from_micros(random.random_range(0..8_000)));
            if child.try_wait().unwrap().is_some() || kills == 4 {
                break;
            }
            child.kill().unwrap();
            child.wait().unwrap();
            kills += 1;
            child = resume(&killed).spawn().unwrap();
        }
        assert!(child.wait().unwrap().success());
        assert!(kills > 0, "nothing was killed");
        assert_same(&killed, &whole);
    }
}

#[test]
fn adapters_with_dropout_end_with_the_same_bits_after_a_kill() {
    let data = data();
    assert_kills_of_adapters_change_nothing(&data);
}

#[test]
fn added_tokens_end_with_the_same_bits_after_a_kill() {
    let data = data();
    let world = World::new(3, ROWS, 1).unwrap();
    let index: BTreeMap<&str, [String; 2]> = (world.catalogue.items().iter().enumerate())
        .map(|(number, item)| {
            let codes = [
                format!("<a_{}>", number % 13),
                format!("<b_{}>", number / 13),
            ];
            (item.id.as_str(), codes)
        })
        .collect();
    let index = serde_json::to_string(&index).unwrap();
    fs::write(data.path().join("world.index.json"), index).unwrap();
    let trained = assert_kills_of_adapters_change_nothing(&data);
    let rows = "model.embed_tokens.token_adapter.trainable_tokens_delta.first_moment";
    let moments = candle_core::safetensors::load(trained, &Device::Cpu).unwrap();
    assert_eq!(moments[rows].dims()[1], 16);
}

/// Returns the file of the moments of a training that was not killed.
fn assert_kills_of_adapters_change_nothing(data: &tempfile::TempDir) -> PathBuf {
    write_pretrained_model(&data.path().join("base"));
    let runs = tempfile::tempdir().unwrap();
    let whole = runs.path().join("whole");
    assert!(
        train_adapters(data.path(), &whole)
            .status()
            .unwrap()
            .success()
    );
    let steps = lines(&whole);
    assert!(steps > 10, "{steps} steps were taken");
    for step in [3, 8] {
        let killed = runs.path().join(format!("killed-{step}"));
        let mut child = train_adapters(data.path(), &killed).spawn().unwrap();
        wait_for_step(&mut child, &killed, step);
        assert!(
            child.try_wait().unwrap().is_none(),
            "it was too fast to be killed"
        );
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(lines(&killed) < steps);
        assert!(resume(&killed).status().unwrap().success());
        assert_same(&killed, &whole);
    }
    let moments = data.path().join("moments");
    let checkpoint = whole.join(format!("checkpoint-{steps}"));
    fs::rename(checkpoint.join("optimizer.safetensors"), &moments).unwrap();
    moments
}

#[cfg(unix)]
fn signal(child: &Child, signal: &str) {
    let mut kill = Command::new("kill");
    let sent = kill.args([signal, &child.id().to_string()]).status();
    assert!(sent.unwrap().success());
}

#[test]
#[cfg(unix)]
fn a_run_that_is_being_trained_is_left_alone() {
    let data = data();
    let runs = tempfile::tempdir().unwrap();
    let run = runs.path().join("run");
    let mut child = train(data.path(), &run).spawn().unwrap();
    wait_for_step(&mut child, &run, 1);
    signal(&child, "-STOP");
    assert!(!resume(&run).status().unwrap().success());
    signal(&child, "-CONT");
    assert!(child.wait().unwrap().success());
    assert_eq!(lines(&run), STEPS);
}

/// The tests themselves may have been started with nohup, and what they start would ignore hangups too.
#[cfg(unix)]
fn heed_hangups(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    let heed = || {
        // SAFETY: signal may be called between fork and exec, and no handler of ours is set.
        unsafe { libc::signal(libc::SIGHUP, libc::SIG_DFL) };
        Ok(())
    };
    // SAFETY: the closure allocates nothing and takes no lock.
    unsafe { command.pre_exec(heed) };
}

#[test]
#[cfg(unix)]
fn an_interrupt_finishes_and_saves_the_step_in_hand() {
    let data = data();
    let runs = tempfile::tempdir().unwrap();
    let (whole, broken) = (runs.path().join("whole"), runs.path().join("broken"));
    assert!(train(data.path(), &whole).status().unwrap().success());

    for (name, status) in [("-INT", 130), ("-TERM", 143), ("-HUP", 129), ("-USR1", 138)] {
        let mut command = train(data.path(), &broken);
        heed_hangups(&mut command);
        let mut child = command.spawn().unwrap();
        wait_for_step(&mut child, &broken, 2);
        signal(&child, name);
        let ended = child.wait().unwrap();
        assert_eq!(ended.code(), Some(status), "{name}");
        let steps = lines(&broken);
        assert!((2..STEPS).contains(&steps), "{steps} steps were taken");
        assert!(broken.join(format!("checkpoint-{steps}")).is_dir());
        assert!(resume(&broken).status().unwrap().success());
        assert_same(&broken, &whole);
        fs::remove_dir_all(&broken).unwrap();
    }
}

#[test]
#[cfg(unix)]
fn a_run_that_was_started_with_nohup_outlives_its_terminal() {
    let data = data();
    let runs = tempfile::tempdir().unwrap();
    let run = runs.path().join("run");
    let msl = train(data.path(), &run);
    let mut nohup = Command::new("nohup");
    nohup.arg(msl.get_program()).args(msl.get_args());
    nohup.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = nohup.spawn().unwrap();
    wait_for_step(&mut child, &run, 2);
    signal(&child, "-HUP");
    assert!(child.wait().unwrap().success());
    assert_eq!(lines(&run), STEPS);
}

#[test]
#[cfg(unix)]
fn a_run_that_is_being_trained_is_not_overwritten() {
    let data = data();
    let runs = tempfile::tempdir().unwrap();
    let run = runs.path().join("run");
    let mut child = train(data.path(), &run).spawn().unwrap();
    wait_for_step(&mut child, &run, 1);
    signal(&child, "-STOP");
    let overwrite = |arguments: &[&str]| {
        let mut command = train(data.path(), &run);
        command.args(arguments).status().unwrap()
    };
    assert!(!overwrite(&["--overwrite", "--seed", "7"]).success());
    assert!(!overwrite(&[]).success());
    signal(&child, "-CONT");
    assert!(child.wait().unwrap().success());
    assert_eq!(lines(&run), STEPS);
    assert!(overwrite(&["--overwrite", "--seed", "7"]).success());
}

#[test]
fn of_two_trainings_that_begin_at_once_on_one_folder_one_is_refused() {
    let data = data();
    let runs = tempfile::tempdir().unwrap();
    let run = runs.path().join("run");
    let seeds = ["1", "2"];
    let mut children = seeds.map(|seed| {
        let mut command = train(data.path(), &run);
        command.args(["--seed", seed]).spawn().unwrap()
    });
    let ended = [0, 1].map(|child| children[child].wait().unwrap().success());
    let [winner] = seeds
        .iter()
        .zip(ended)
        .filter(|(_, ended)| *ended)
        .collect::<Vec<_>>()[..]
    else {
        panic!("{ended:?}");
    };
    let alone = runs.path().join("alone");
    let mut command = train(data.path(), &alone);
    assert!(
        command
            .args(["--seed", winner.0])
            .status()
            .unwrap()
            .success()
    );
    assert_same(&run, &alone);
}

#[test]
#[cfg(unix)]
fn a_folder_that_is_moved_while_it_is_trained_in_is_an_error() {
    let data = data();
    let runs = tempfile::tempdir().unwrap();
    let (run, moved) = (runs.path().join("run"), runs.path().join("moved"));
    let mut child = train(data.path(), &run).spawn().unwrap();
    wait_for_step(&mut child, &run, 6);
    signal(&child, "-STOP");
    fs::rename(&run, &moved).unwrap();
    signal(&child, "-CONT");
    assert!(!child.wait().unwrap().success());
    assert!(!run.exists(), "nothing is written where the run was");
    assert!(resume(&moved).status().unwrap().success());
    assert_eq!(lines(&moved), STEPS);
}

#[test]
fn what_a_training_left_that_was_killed_before_its_first_step_is_removed_by_the_next() {
    let data = data();
    let runs = tempfile::tempdir().unwrap();
    let run = runs.path().join("run");
    let names = || -> Vec<String> {
        let entries = fs::read_dir(runs.path()).unwrap();
        let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
        entries.map(|entry| name(entry.unwrap())).collect()
    };
    let mut child = train(data.path(), &run).spawn().unwrap();
    while names().is_empty() {
        assert!(child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(5));
    child.kill().unwrap();
    child.wait().unwrap();
    let left = names();
    assert!(left[0].starts_with("run.partial-"), "{left:?}");
    assert!(train(data.path(), &run).status().unwrap().success());
    assert_eq!(names(), ["run"]);
}

#[test]
fn going_on_with_a_finished_run_changes_nothing() {
    let data = data();
    let runs = tempfile::tempdir().unwrap();
    let run = runs.path().join("run");
    assert!(train(data.path(), &run).status().unwrap().success());
    let before = result(&run);
    assert!(before.keys().any(|name| name.starts_with("checkpoint-16")));
    assert!(resume(&run).status().unwrap().success());
    assert_eq!(result(&run), before);
}
