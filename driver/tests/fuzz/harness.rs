//! Runs a target on one damaged case after another, in a process of its own. The process may not panic, not hang, and not
//! take more memory than a bound; and an error must name the file, or the folder whose files do not fit together.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    env, fs,
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio, abort},
    ptr::null_mut,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use msl::random::Random;
use rand::{SeedableRng, seq::IndexedRandom};

use crate::damage::{Files, damage};

/// How many targets there are, which share the time.
const TARGETS: u32 = 9;
/// Seconds of all of them together, unless this variable asks for others.
const SECONDS: (&str, u64) = ("MSL_FUZZ_SECONDS", 2);
/// The number of the first case, to see one again.
const FIRST: &str = "MSL_FUZZ_CASE";
/// Set in the process that runs the cases.
const INSIDE: &str = "MSL_FUZZ_INSIDE";
/// No case takes longer.
const LONGEST: Duration = Duration::from_secs(20);
/// All cases are of some kilobytes.
const MOST_MEMORY: usize = 256 << 20;

/// Refuses more than the bound, as a system without more memory does.
struct Bounded;

static TAKEN: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed on to the system's allocator as it came, or refused; counting touches no memory of it.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let taken = TAKEN.fetch_add(layout.size(), Ordering::Relaxed);
        if taken.saturating_add(layout.size()) > MOST_MEMORY {
            TAKEN.fetch_sub(layout.size(), Ordering::Relaxed);
            return null_mut();
        }
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        TAKEN.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `dealloc`, and `alloc` is the system's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

/// Damages what `write` puts into a folder, and has `read` read it, until the time is over. `test` is the name of the test
/// that calls this, which is called again in another process.
pub fn fuzz(test: &str, write: impl Fn(&Path), read: impl Fn(&Path) -> Result<()>) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("fuzz")
        .join(test);
    let log = folder.with_extension("log");
    match env::var_os(INSIDE) {
        Some(_) => run_cases(&folder, &log, write, read),
        None => start(test, &folder, &log),
    }
}

fn start(test: &str, folder: &Path, log: &Path) {
    fs::create_dir_all(folder.parent().unwrap()).unwrap();
    File::create(log).unwrap();
    let status = Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "")
        .envs([("CANDLE_NUM_THREADS", "1"), ("RUST_BACKTRACE", "0")])
        .stdout(Stdio::null())
        .stderr(File::options().append(true).open(log).unwrap())
        .status()
        .unwrap();
    let said = String::from_utf8_lossy(&fs::read(log).unwrap()).into_owned();
    assert!(
        status.success(),
        "{status} over what is left in {}: {said}",
        folder.display()
    );
}

fn run_cases(folder: &Path, log: &Path, write: impl Fn(&Path), read: impl Fn(&Path) -> Result<()>) {
    empty(folder);
    write(folder);
    let good = files_of(folder);
    read(folder).expect("what is not damaged is read");
    let number = |name: &str, default: u64| match env::var(name) {
        Ok(value) => value.parse().unwrap(),
        Err(_) => default,
    };
    let time = Duration::from_secs(number(SECONDS.0, SECONDS.1)) / TARGETS;
    let first = number(FIRST, 0);
    thread::spawn(end_a_hang);
    let start = Instant::now();
    let (mut case, mut refused) = (first, 0);
    while case == first || start.elapsed() < time {
        // The log is of one case alone, however many there are.
        let log = File::options().write(true).open(log).unwrap();
        log.set_len(0).unwrap();
        eprintln!("{FIRST}={case}");
        write_damaged(&good, folder, &mut Random::seed_from_u64(case));
        *BEGUN.lock().unwrap() = Some(Instant::now());
        let result = read(folder);
        *BEGUN.lock().unwrap() = None;
        if let Err(error) = result {
            let text = format!("{error:#}");
            let is_named = text.contains(&*folder.to_string_lossy());
            assert!(is_named, "no file is named: {text}");
            refused += 1;
        }
        case += 1;
    }
    let cases = case - first;
    fs::write(log, format!("{cases} cases, {refused} of them refused\n")).unwrap();
}

/// When the case in hand was begun.
static BEGUN: Mutex<Option<Instant>> = Mutex::new(None);

/// Ends the process when a case takes too long.
fn end_a_hang() {
    loop {
        thread::sleep(Duration::from_millis(100));
        let begun = *BEGUN.lock().unwrap();
        if begun.is_some_and(|begun| begun.elapsed() > LONGEST) {
            eprintln!("it takes longer than {LONGEST:?}");
            abort();
        }
    }
}

fn write_damaged(good: &Files, folder: &Path, random: &mut Random) {
    let mut files = good.clone();
    for _ in 0..*[1, 1, 1, 2, 3].choose(random).unwrap() {
        damage(&mut files, random);
    }
    empty(folder);
    for (path, bytes) in &files {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

fn empty(folder: &Path) {
    if folder.exists() {
        fs::remove_dir_all(folder).unwrap();
    }
    fs::create_dir_all(folder).unwrap();
}

/// All files in a folder and in those that it holds, by their paths in it.
fn files_of(folder: &Path) -> Files {
    let mut files = Files::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(inner) = folders.pop() {
        for entry in fs::read_dir(folder.join(&inner)).unwrap() {
            let entry = entry.unwrap();
            let path = inner.join(entry.file_name());
            match entry.file_type().unwrap().is_dir() {
                true => folders.push(path),
                false => files.push((path, fs::read(entry.path()).unwrap())),
            }
        }
    }
    // A folder lists its files in any order, and a case is to be the same each time.
    files.sort();
    files
}
