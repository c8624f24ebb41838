//! Damages files, each kind where it hurts.

use std::path::PathBuf;

use msl::random::Random;
use rand::{
    Rng,
    seq::{IndexedMutRandom, IndexedRandom},
};
use serde_json::{Value, json};

/// Files by their paths in a folder.
pub type Files = Vec<(PathBuf, Vec<u8>)>;

/// Numbers as text that few expect.
const NUMBERS: [&str; 16] = [
    "",
    "-1",
    "0",
    "-0.0",
    "1e400",
    "-1e308",
    "1e-400",
    "NaN",
    "inf",
    "null",
    "4294967296",
    "1099511627776",
    "9223372036854775807",
    "-9223372036854775808",
    "18446744073709551615",
    "123456789012345678901234567890",
];

/// Numbers as bytes.
const WORDS: [u64; 12] = [
    0,
    1,
    0xff,
    1 << 20,
    u32::MAX as u64,
    1 << 31,
    1 << 40,
    i64::MAX as u64,
    1 << 63,
    u64::MAX,
    // NaN and −∞ of f32, twice.
    0x7fc0_0000_7fc0_0000,
    0xff80_0000_ff80_0000,
];

/// Damages one of the files, in one way.
pub fn damage(files: &mut Files, random: &mut Random) {
    let other = files.choose(random).unwrap().1.clone();
    let (path, bytes) = files.choose_mut(random).unwrap();
    let extension = path.extension().unwrap_or_default();
    if random.random_bool(0.7) {
        let damaged = match extension.to_str().unwrap() {
            "json" => damage_json(bytes, random),
            "safetensors" => damage_header(bytes, random),
            "gguf" => damage_behind_name(bytes, random),
            _ => damage_line(bytes, random),
        };
        if let Some(damaged) = damaged {
            *bytes = damaged;
            return;
        }
    }
    if bytes.is_empty() {
        *bytes = other;
        return;
    }
    let at = place(bytes.len(), random);
    match random.random_range(0..6) {
        0 => bytes[at] ^= 1 << random.random_range(0..8),
        1 => bytes.truncate(at),
        2 => overwrite(bytes, at, random),
        3 => {
            let taken = bytes[at..].iter().take(random.random_range(1..200));
            let taken: Vec<u8> = taken.copied().collect();
            let to = place(bytes.len(), random);
            bytes.splice(to..to, taken);
        }
        4 => {
            let from = place(other.len().max(1), random).min(other.len());
            bytes.truncate(at);
            bytes.extend(&other[from..]);
        }
        _ => replace_number(bytes, at, random),
    }
}

/// A place in so many bytes: the beginning of a file says more than its end.
fn place(length: usize, random: &mut Random) -> usize {
    let within = length >> random.random_range(0..8);
    random.random_range(0..within.max(1))
}

/// A number as bytes in the place of others.
fn overwrite(bytes: &mut [u8], at: usize, random: &mut Random) {
    let number = WORDS.choose(random).unwrap().to_le_bytes();
    let width = *[1, 2, 4, 8].choose(random).unwrap();
    let place = bytes[at..].iter_mut().take(width);
    place.zip(number).for_each(|(byte, new)| *byte = new);
}

/// Another number in the place of the first that is written in digits behind a place.
fn replace_number(bytes: &mut Vec<u8>, at: usize, random: &mut Random) {
    let is_digit = |byte: &u8| byte.is_ascii_digit();
    let Some(start) = bytes[at..].iter().position(is_digit) else {
        return;
    };
    let start = at + start;
    let digits = bytes[start..].iter().take_while(|byte| is_digit(byte));
    let end = start + digits.count();
    bytes.splice(start..end, NUMBERS.choose(random).unwrap().bytes());
}

/// A line twice, not at all, or in the place of another.
fn damage_line(bytes: &[u8], random: &mut Random) -> Option<Vec<u8>> {
    let mut lines: Vec<&[u8]> = bytes.split_inclusive(|&byte| byte == b'\n').collect();
    let (one, other) = (
        random.random_range(0..lines.len().max(1)),
        place(lines.len(), random),
    );
    let line = *lines.get(one)?;
    match random.random_range(0..4) {
        0 => lines.insert(one, line),
        1 => drop(lines.remove(one)),
        2 => lines.swap(one, other),
        _ => {
            let mut changed = line.to_vec();
            replace_number(&mut changed, random.random_range(0..line.len()), random);
            lines[one] = &changed;
            return Some(lines.concat());
        }
    }
    Some(lines.concat())
}

/// What stands behind a name in a binary file: a length, a type, a value.
fn damage_behind_name(bytes: &[u8], random: &mut Random) -> Option<Vec<u8>> {
    let names: Vec<usize> = bytes
        .windows(8)
        .enumerate()
        .filter(|(_, window)| {
            window[..7].is_ascii() && window[..6].iter().all(u8::is_ascii_graphic)
        })
        .filter(|(_, window)| !window[6].is_ascii_graphic() || !window[7].is_ascii_graphic())
        .map(|(start, _)| start + 6)
        .collect();
    let at = *names.choose(random)? + random.random_range(0..32);
    let mut bytes = bytes.to_vec();
    overwrite(bytes.get_mut(at..)?, 0, random);
    Some(bytes)
}

/// The JSON at the beginning of a safetensors file, with its true length before it.
fn damage_header(bytes: &[u8], random: &mut Random) -> Option<Vec<u8>> {
    let length = u64::from_le_bytes(bytes.get(..8)?.try_into().unwrap()) as usize;
    let (header, data) = bytes[8..].split_at_checked(length)?;
    let header = damage_json(header, random)?;
    let length = header.len() as u64;
    Some([&length.to_le_bytes()[..], &header, data].concat())
}

/// One value of a JSON document: another one, one from elsewhere in it, or none.
fn damage_json(bytes: &[u8], random: &mut Random) -> Option<Vec<u8>> {
    let mut document: Value = serde_json::from_slice(bytes).ok()?;
    let elsewhere = value_in(&mut document, random).clone();
    let value = value_in(&mut document, random);
    match (random.random_range(0..4), value) {
        (0, Value::Object(members)) if !members.is_empty() => {
            let key = members.keys().nth(random.random_range(0..members.len()));
            let key = key.unwrap().clone();
            let removed = members.remove(&key).unwrap();
            if random.random_bool(0.5) {
                members.insert(strange_text(random), removed);
            }
        }
        (0, Value::Array(values)) if !values.is_empty() => {
            let at = random.random_range(0..values.len());
            let removed = values.remove(at);
            values.resize(values.len() + 2 * random.random_range(0..2), removed);
        }
        (1, value) => *value = elsewhere,
        (_, value) => *value = strange_value(random),
    }
    Some(document.to_string().into_bytes())
}

/// A value of a document, of any depth.
fn value_in<'a>(document: &'a mut Value, random: &mut Random) -> &'a mut Value {
    let mut value = document;
    loop {
        let inside = match value {
            Value::Object(members) => members.len(),
            Value::Array(values) => values.len(),
            _ => 0,
        };
        if inside == 0 || random.random_bool(0.15) {
            return value;
        }
        let chosen = random.random_range(0..inside);
        value = match value {
            Value::Object(members) => members.values_mut().nth(chosen).unwrap(),
            Value::Array(values) => &mut values[chosen],
            _ => unreachable!("it holds no values"),
        };
    }
}

fn strange_value(random: &mut Random) -> Value {
    let numbers = [
        json!(0),
        json!(-1),
        json!(1),
        json!(3),
        json!(255),
        json!(1u64 << 31),
        json!(u32::MAX),
        json!(1u64 << 40),
        json!(i64::MIN),
        json!(u64::MAX),
        json!(0.5),
        json!(-0.0),
        json!(1e308),
        json!(1e-308),
    ];
    match random.random_range(0..8) {
        0 => Value::Null,
        1 => json!(random.random_bool(0.5)),
        2 => json!({}),
        3 => json!([]),
        4 => json!(strange_text(random)),
        5 => json!(vec![numbers.choose(random); random.random_range(1..5_000)]),
        _ => numbers.choose(random).unwrap().clone(),
    }
}

fn strange_text(random: &mut Random) -> String {
    let long = "x".repeat(random.random_range(1..10_000));
    let texts = [
        "",
        "a",
        "\0",
        "\n",
        "é本",
        "\u{202e}",
        "../../etc/passwd",
        "/dev/zero",
        "(",
        "(.+)+\\1z",
        "(?=)*",
        "linear",
        "llama3",
        "F64",
        "I64",
        "BPE",
        &long,
    ];
    (*texts.choose(random).unwrap()).to_owned()
}
