//! GGUF files.

use std::fs;

use candle_core::{Device, quantized::gguf_file::Value};
use msl::{
    data::tokenizer::TextTokenizer,
    model::{precision::Precision, pretrained::Pretrained},
};

use crate::{
    hidden,
    models::{Metadata, converted, text, write_gguf},
    read, refusal,
};

#[test]
fn a_gguf_file_is_the_model_and_the_tokenizer_that_it_was_made_of() {
    let folder = tempfile::tempdir().unwrap();
    let (metadata, tensors) = converted(folder.path());
    let path = folder.path().join("model.gguf");
    let write = |changed: &[(&str, Option<Value>)]| write_gguf(&path, &metadata, changed, &tensors);
    let (model, tokenizer) = Pretrained::open(&write(&[]), None)
        .unwrap()
        .read(Precision::F32, &Device::Cpu)
        .unwrap();
    assert_eq!(hidden(&model), hidden(&read(folder.path())));
    assert_eq!(model.config().rms_norm_eps, 1e-5);
    assert_eq!(
        (tokenizer.end(), tokenizer.end_text().as_deref()),
        (0, Some("<|endoftext|>"))
    );
    // Digits stand alone, whatever merges there are.
    assert_eq!(tokenizer.encode("1984").unwrap().len(), 4);
    let add = |flag: bool| ("tokenizer.ggml.add_bos_token", Some(Value::Bool(flag)));
    let llama_3 = || ("tokenizer.ggml.pre", Some(text("llama-bpe")));
    for (changed, begin) in [
        (vec![], vec![]),
        (vec![add(true)], vec![7]),
        (vec![llama_3()], vec![7]),
        (vec![llama_3(), add(false)], vec![]),
        (
            vec![llama_3(), ("tokenizer.ggml.bos_token_id", None)],
            vec![],
        ),
    ] {
        let tokenizer = Pretrained::open(&write(&changed), None).unwrap().tokenizer;
        // A run keeps the tokenizer in Hugging Face's form.
        let kept = folder.path().join("kept.json");
        tokenizer.save(&kept).unwrap();
        for tokenizer in [&tokenizer, &TextTokenizer::load(&kept, None).unwrap()] {
            let tokens = tokenizer.encode("The Sea").unwrap();
            let prompt = tokenizer.encode_prompt("The Sea").unwrap();
            assert_eq!(prompt, [&begin[..], &tokens].concat(), "{changed:?}");
        }
    }
    for (key, value) in [
        ("general.architecture", "mamba"),
        ("tokenizer.ggml.model", "llama"),
        ("tokenizer.ggml.pre", "tekken"),
        ("llama.rope.scaling.type", "yarn"),
    ] {
        let refusal = refusal(&write(&[(key, Some(text(value)))]));
        assert!(refusal.contains(value), "{refusal}");
    }
}

#[test]
fn keys_that_the_format_lets_out_have_its_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let (metadata, tensors) = converted(folder.path());
    let path = folder.path().join("model.gguf");
    let write = |changed: &[(&str, Option<Value>)]| write_gguf(&path, &metadata, changed, &tensors);
    let expected = hidden(&read(&write(&[])));
    let layers = |number| Value::Array(vec![Value::I32(number); 2]);
    for changed in [
        ("tokenizer.ggml.eos_token_id", None),
        ("tokenizer.ggml.token_type", None),
        ("llama.attention.head_count_kv", Some(layers(2))),
        ("llama.feed_forward_length", Some(layers(32))),
        ("llama.rope.freq_base", Some(Value::F32(10_000.0))),
        ("llama.rope.dimension_count", Some(Value::U32(4))),
        ("llama.rope.scaling.type", Some(text("none"))),
        ("general.alignment", Some(Value::U32(32))),
    ] {
        assert_eq!(
            hidden(&read(&write(std::slice::from_ref(&changed)))),
            expected,
            "{changed:?}"
        );
    }
    // As many heads of keys and values as of queries, which this file does not have.
    let refused = refusal(&write(&[("llama.attention.head_count_kv", None)]));
    assert!(
        refused.contains("k_proj.weight has the shape [8, 16]"),
        "{refused}"
    );
    let stretched = read(&write(&[(
        "llama.rope.scale_linear",
        Some(Value::F32(4.0)),
    )]));
    assert_ne!(hidden(&stretched), expected);
    for (key, value) in [
        ("llama.rope.dimension_count", Value::U32(2)),
        (
            "llama.attention.head_count_kv",
            Value::Array(vec![Value::U32(2), Value::U32(1)]),
        ),
        ("llama.attention.head_count", Value::U64(1 << 40)),
        ("llama.embedding_length", Value::U64(u64::MAX)),
        ("general.alignment", Value::U32(0)),
    ] {
        let refused = refusal(&write(&[(key, Some(value))]));
        assert!(refused.contains("model.gguf"), "{key}: {refused}");
    }
    let refused = refusal(&write(&[("tokenizer.ggml.pre", None)]));
    assert!(refused.contains("tokenizer.ggml.pre"), "{refused}");
}

#[test]
fn a_split_model_is_read_from_any_of_its_files_and_refused_where_one_is_another() {
    let folder = tempfile::tempdir().unwrap();
    let (metadata, tensors) = converted(folder.path());
    let path = |number: u16| folder.path().join(format!("m-0000{number}-of-00003.gguf"));
    let write_parts = |changed: &[(u16, &'static str, Value)]| {
        for number in 1..=3u16 {
            let mut own: Metadata = vec![
                ("split.no", Value::U16(number - 1)),
                ("split.count", Value::U16(3)),
                ("split.tensors.count", Value::I32(tensors.len() as i32)),
            ];
            if number == 1 {
                own.extend(metadata.iter().cloned());
            }
            let changed: Vec<_> = (changed.iter())
                .filter(|(part, _, _)| *part == number)
                .map(|(_, key, value)| (*key, Some(value.clone())))
                .collect();
            let chunks: Vec<_> = tensors.chunks(tensors.len().div_ceil(3)).collect();
            write_gguf(
                &path(number),
                &own,
                &changed,
                chunks[usize::from(number) - 1],
            );
        }
    };
    write_parts(&[]);
    let whole = folder.path().join("whole");
    fs::create_dir(&whole).unwrap();
    let expected = hidden(&read(&write_gguf(
        &whole.join("whole.gguf"),
        &metadata,
        &[],
        &tensors,
    )));
    for number in 1..=3 {
        assert_eq!(hidden(&read(&path(number))), expected);
    }
    // The folder holds the Hugging Face files too; without them it is the split model's.
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    assert_eq!(hidden(&read(folder.path())), expected);

    for (part, key, value) in [
        (2, "split.no", Value::U16(2)),
        (2, "split.count", Value::U16(4)),
        (1, "split.tensors.count", Value::I32(1)),
    ] {
        write_parts(&[(part, key, value)]);
        let refused = refusal(&path(1));
        assert!(
            refused.contains("one of the 3 files of a split model") && refused.contains(key),
            "{refused}"
        );
    }
    write_parts(&[]);
    fs::remove_file(path(3)).unwrap();
    assert!(refusal(&path(2)).contains("m-00003-of-00003.gguf"));
    let renamed = folder.path().join("renamed.gguf");
    fs::rename(path(1), &renamed).unwrap();
    let refused = refusal(&renamed);
    assert!(
        refused.contains("renamed.gguf") && refused.contains("-00001-of-00003.gguf"),
        "{refused}"
    );
}

/// Where a number stands behind a text in a file.
fn behind(bytes: &[u8], text: &str) -> usize {
    let found = bytes
        .windows(text.len())
        .position(|window| window == text.as_bytes());
    found.unwrap() + text.len()
}

#[test]
fn a_file_that_cannot_be_read_is_named_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let (metadata, tensors) = converted(folder.path());
    let path = write_gguf(&folder.path().join("model.gguf"), &metadata, &[], &tensors);
    let good = fs::read(&path).unwrap();
    let norm = behind(&good, "blk.0.attn_norm.weight");
    // Behind a tensor's name stand its number of dimensions, these, its type and its place.
    let (rank, dimension, kind) = (norm, norm + 4, norm + 12);
    let array = behind(&good, "tokenizer.ggml.tokens") + 8;
    for (place, bytes, said) in [
        (0, &b"PK\x03\x04"[..], "no GGUF file"),
        (4, &[0, 0, 0, 3], "big-endian"),
        (4, &[9, 0, 0, 0], "version 9"),
        (8, &u64::MAX.to_le_bytes(), "tensors are to follow"),
        (
            16,
            &(1u64 << 40).to_le_bytes(),
            "metadata entries are to follow",
        ),
        (24, &u64::MAX.to_le_bytes(), "bytes of text"),
        (array, &(1u64 << 40).to_le_bytes(), "tokenizer.ggml.tokens"),
        (rank, &[200, 0, 0, 0], "200 dimensions"),
        (
            dimension,
            &(1u64 << 63).to_le_bytes(),
            "blk.0.attn_norm.weight",
        ),
        (dimension, &0u64.to_le_bytes(), "cannot be [0]"),
        (
            dimension,
            &(1u64 << 40).to_le_bytes(),
            "before its tensors do",
        ),
        (kind, &[20, 0, 0, 0], "IQ4_NL"),
        (kind, &[39, 0, 0, 0], "MXFP4"),
        (kind, &[77, 0, 0, 0], "number 77"),
    ] {
        let mut bad = good.clone();
        bad[place..place + bytes.len()].copy_from_slice(bytes);
        fs::write(&path, bad).unwrap();
        let refused = refusal(&path);
        assert!(
            refused.contains(said) && refused.contains("model.gguf"),
            "{said}: {refused}"
        );
    }
    for length in [3, 20, 100, norm + 2, good.len() - 100] {
        fs::write(&path, &good[..length]).unwrap();
        assert!(refusal(&path).contains("model.gguf"));
    }
    fs::write(&path, b"version https://git-lfs.github.com/spec/v1\n").unwrap();
    assert!(refusal(&path).contains("git-lfs"));
    assert!(refusal(&folder.path().join("none.gguf")).contains("none.gguf"));
}
