//! Measures what a catalogue's size costs: builds the trie of a synthetic catalogue, saves it, and opens the file in another process, which
//! takes training and decoding steps with it.
//!
//! ```sh
//! cargo run --release --example catalogue_scale -- --items 10000000
//! cargo run --release --example catalogue_scale -- --titles 2700000
//! ```
//!
//! `--items` makes items of three random codes out of 1,024 a level, as semantic IDs are. `--titles` makes paths of 3 to 16 tokens,
//! of which few are frequent, as titles are; each has about seven nodes of its own.
//! `--folder` says where the file is written, and it is deleted at the end. The default is small.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use candle_core::{Device, Tensor, Var};
use candle_trie::{BeamSearch, FrozenHead, MaskedSoftmaxLoss, Rows, TokenTrie};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const LEVELS: u32 = 3;
const CODES: u32 = 1024;
/// Tokens of titles, of which 0 ends one.
const WORDS: u32 = 49_152;

const RESPONSES: usize = 64;
const WIDTH: usize = 64;
const USERS: usize = 8;
const BEAMS: usize = 10;
const EXCLUDED: usize = 100;
const STEPS: usize = 50;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut options = HashMap::new();
    for pair in arguments.chunks(2) {
        let [name, value] = pair else {
            return Err(format!("{} needs a value", pair[0]).into());
        };
        options.insert(name.as_str(), value.as_str());
    }
    if let Some(path) = options.get("--open") {
        return use_file(path.as_ref());
    }
    let folder = options.get("--folder").map(PathBuf::from);
    let folder = folder.unwrap_or_else(std::env::temp_dir);
    let path = folder.join(format!("catalogue-scale-{}", std::process::id()));
    let paths = match (options.get("--items"), options.get("--titles")) {
        (None, Some(count)) => Paths::titles(count.parse()?),
        (count, _) => Paths::codes(count.unwrap_or(&"100000").parse()?),
    };
    build(paths, &path)?;
    // Where the system can do it, the file is read from the disk again.
    let uncached = format!("of={}", path.display());
    let dd = [
        "oflag=nocache",
        "conv=notrunc,fdatasync",
        "count=0",
        "status=none",
    ];
    let _ = Command::new("dd").arg(uncached).args(dd).status();
    let opened = Command::new(std::env::current_exe()?)
        .arg("--open")
        .arg(&path)
        .status()?;
    std::fs::remove_file(&path)?;
    match opened.success() {
        true => Ok(()),
        false => Err("the process that opens the file failed".into()),
    }
}

/// A catalogue as flat arrays.
struct Paths {
    ids: Vec<u64>,
    offsets: Vec<usize>,
    tokens: Vec<u32>,
}

impl Paths {
    fn codes(items: usize) -> Self {
        Self::random(items, LEVELS as usize, |random, path| {
            path.extend((0..LEVELS).map(|level| level * CODES + random.random_range(0..CODES)));
        })
    }

    fn titles(titles: usize) -> Self {
        Self::random(titles, 10, |random, path| {
            for _ in 0..random.random_range(2..16) {
                // The density of a rank falls as its reciprocal: Zipf's law.
                let rank = f64::from(WORDS - 1).powf(random.random::<f64>());
                path.push(rank as u32);
            }
            path.push(0);
        })
    }

    fn random(count: usize, length: usize, add: impl Fn(&mut StdRng, &mut Vec<u32>)) -> Self {
        let random = &mut StdRng::seed_from_u64(7);
        let mut tokens = Vec::with_capacity(count * length);
        let mut offsets = Vec::with_capacity(count + 1);
        offsets.push(0);
        for _ in 0..count {
            add(random, &mut tokens);
            offsets.push(tokens.len());
        }
        Self {
            ids: (0..count as u64).collect(),
            offsets,
            tokens,
        }
    }

    fn bytes(&self) -> usize {
        size_of_val(&*self.ids) + size_of_val(&*self.offsets) + size_of_val(&*self.tokens)
    }
}

fn build(paths: Paths, path: &Path) -> Result<()> {
    report("input", mebibytes(paths.bytes()));
    let start = Instant::now();
    let trie = TokenTrie::from_paths(&paths.ids, &paths.offsets, &paths.tokens)?;
    report("building", seconds(start));
    report("memory, input included", memory());
    drop(paths);
    report("items", trie.item_count().to_string());
    report("leaves", trie.leaf_count().to_string());
    report("nodes", trie.node_count().to_string());
    let (offsets, tokens) = trie.sets().as_raw().ok_or("listed sets")?;
    let on_gpu = size_of_val(offsets) + size_of_val(tokens);
    report("token sets, as they are copied to a GPU", mebibytes(on_gpu));
    let start = Instant::now();
    std::hint::black_box(tokens.iter().copied().max());
    let rate = size_of_val(tokens) as f64 / start.elapsed().as_secs_f64() / 1e9;
    report("reading memory with one thread", format!("{rate:.1} GB/s"));

    let start = Instant::now();
    trie.save(path)?;
    report("saving", seconds(start));
    let file = std::fs::metadata(path)?.len() as usize;
    report("file", mebibytes(file));
    drop(trie);
    let start = Instant::now();
    drop(TokenTrie::load(path)?);
    report("loading, from the system's cache", seconds(start));
    Ok(())
}

/// Trains and decodes with a saved catalogue, in a process of its own.
fn use_file(path: &Path) -> Result<()> {
    report("memory before opening", memory());
    let start = Instant::now();
    // SAFETY: the file is this example's own.
    let trie = unsafe { TokenTrie::open(path) }?;
    report("opening, from the disk", seconds(start));
    report("memory once open", memory());

    take_steps("of the opened file", &trie)?;
    report("memory after all steps", memory());

    let start = Instant::now();
    trie.verify()?;
    report("verifying, which reads the whole file", seconds(start));
    drop(trie);
    take_steps("of the loaded file", &TokenTrie::load(path)?)
}

/// Trains and decodes: the loss layer and the search alone, without a model.
fn take_steps(whose: &str, trie: &TokenTrie) -> Result<()> {
    let width = trie.max_token() as usize + 1;
    let head = Tensor::randn(0f32, 1.0, (width, WIDTH), &Device::Cpu)?;
    let start = Instant::now();
    let loss = MaskedSoftmaxLoss::new(trie, 1.0)?;
    let frozen = FrozenHead::new(&head, trie)?;
    report(&format!("loss and frozen head {whose}"), seconds(start));

    let labels: Vec<Vec<i64>> = (0..RESPONSES as u64)
        .map(|response| response * (trie.item_count() as u64 - 1) / RESPONSES as u64)
        .filter_map(|item| trie.leaves_of(item).next())
        .map(|leaf| path_to(trie, leaf))
        .collect();
    let train = || -> Result<()> {
        let rows = Rows::from_shifted(trie, &labels)?;
        let hidden = Var::randn(0f32, 1.0, (rows.positions(), WIDTH), &Device::Cpu)?;
        let output = loss.forward_at((&hidden, &frozen), &rows, 1.0)?;
        output.loss.backward()?;
        Ok(())
    };
    time(&format!("training step {whose}"), train)?;

    let excluded: Vec<Vec<u64>> = (0..USERS)
        .map(|user| {
            (0..EXCLUDED)
                .map(|item| (user + item * 97) as u64)
                .collect()
        })
        .collect();
    let mut steps = 0;
    let mut searches = 0;
    let search = || -> Result<()> {
        let search = BeamSearch::new(trie, USERS, BEAMS, 1.0)?;
        let mut search = search.exclude_items(&excluded)?;
        searches += 1;
        loop {
            let hidden = Tensor::randn(0f32, 1.0, (search.active_beams(), WIDTH), &Device::Cpu)?;
            steps += 1;
            if search.step((&hidden, &frozen))?.is_none() {
                return Ok(());
            }
        }
    };
    time(&format!("beam search {whose}"), search)?;
    let average = f64::from(steps) / f64::from(searches);
    report("steps of a beam search", format!("{average:.1}"));
    Ok(())
}

/// Returns the tokens from the root to a node.
fn path_to(trie: &TokenTrie, mut node: u32) -> Vec<i64> {
    let mut path = Vec::new();
    while let Some(parent) = trie.parent(node) {
        let first = trie.first_child(parent).unwrap_or(node);
        path.push(i64::from(trie.children(parent)[(node - first) as usize]));
        node = parent;
    }
    path.reverse();
    path
}

/// Reports the time of a first call, which reads what it needs from the disk, and of later ones: the fastest, and the median.
fn time(what: &str, mut run: impl FnMut() -> Result<()>) -> Result<()> {
    let mut times = Vec::with_capacity(STEPS);
    for _ in 0..STEPS {
        let start = Instant::now();
        run()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    report(&format!("first {what}"), format!("{:.2} ms", times[0]));
    times.sort_by(f64::total_cmp);
    let (fastest, median) = (times[0], times[STEPS / 2]);
    report(what, format!("{fastest:.2} ms, median {median:.2} ms"));
    Ok(())
}

fn report(what: &str, value: String) {
    println!("{what}: {value}");
}

fn seconds(start: Instant) -> String {
    format!("{:.4} s", start.elapsed().as_secs_f64())
}

fn mebibytes(bytes: usize) -> String {
    format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20))
}

/// The most memory that this process has had so far, and what of its memory now is its own and what is of mapped files, where
/// Linux says so.
fn memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let entry = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
        kilobytes.map_or("unknown".into(), |kilobytes: usize| {
            mebibytes(kilobytes << 10)
        })
    };
    let [peak, own, mapped] = ["VmHWM:", "RssAnon:", "RssFile:"].map(entry);
    format!("{peak} at most, {own} its own and {mapped} mapped now")
}
