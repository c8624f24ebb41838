use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Tensor, quantized::GgmlDType};

use super::{
    Pretrained, described,
    gguf_header::{GgufFile, Metadata},
    gguf_tokenizer,
};
use crate::{
    data::tokenizer::TextTokenizer,
    model::{EndTokens, LlamaConfig, RopeParameters, Weights},
};

/// Opens a GGUF file, or all files of a model that is split.
pub fn open(path: &Path, end_token: Option<&str>) -> Result<Pretrained> {
    let mut weights = GgufWeights::open(path)?;
    let tensors = weights.files.iter().flat_map(|file| file.tensors.values());
    let described = described(
        weights.files.iter().map(|file| file.path.as_path()),
        tensors.map(|info| format!("{:?}", info.ggml_dtype)),
    );
    let embedding = weights.left.get(EMBEDDING);
    let stored = match embedding.map(|&file| weights.files[file].tensors[EMBEDDING].ggml_dtype) {
        Some(GgmlDType::F16) => DType::F16,
        Some(GgmlDType::BF16) => DType::BF16,
        _ => DType::F32,
    };
    let path = weights.files[0].path.clone();
    let parts = weights.parts(end_token);
    let (config, tokenizer) = parts.with_context(|| path.display().to_string())?;
    Ok(Pretrained {
        path,
        described,
        config,
        stored,
        weights: Box::new(weights),
        tokenizer,
    })
}

/// Opens the file that is named, or all files of a model that is split.
fn open_files(path: &Path) -> Result<Vec<GgufFile>> {
    let named = GgufFile::open(path)?;
    let count = match Metadata(&named.metadata).has(SPLIT_COUNT) {
        true => Metadata(&named.metadata).whole(SPLIT_COUNT)?,
        false => 1,
    };
    if count <= 1 {
        return Ok(vec![named]);
    }
    let what = || {
        format!(
            "{} is one of the {count} files of a split model",
            path.display()
        )
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let ending = format!("-of-{count:05}.gguf");
    let beginning = (name.strip_suffix(&ending))
        .and_then(|name| Some(name.rsplit_once('-')?.0))
        .with_context(|| format!("{}, whose name must end with -00001{ending}", what()))?;
    let mut files = Vec::new();
    for number in 1..=count {
        let path = path.with_file_name(format!("{beginning}-{number:05}{ending}"));
        let file = GgufFile::open(&path).with_context(what)?;
        let metadata = Metadata(&file.metadata);
        ensure!(
            metadata.whole(SPLIT_COUNT).ok() == Some(count)
                && metadata.whole(SPLIT_NUMBER).ok() == Some(number - 1),
            "{}: {} is another file than its name says, by its {SPLIT_NUMBER} and {SPLIT_COUNT}",
            what(),
            path.display()
        );
        files.push(file);
    }
    let found: usize = files.iter().map(|file| file.tensors.len()).sum();
    let expected = Metadata(&named.metadata).whole("split.tensors.count");
    ensure!(
        expected
            .as_ref()
            .ok()
            .is_none_or(|&expected| expected == found),
        "{}, which hold {found} tensors, where its split.tensors.count asks for another number",
        what()
    );
    Ok(files)
}

const SPLIT_COUNT: &str = "split.count";
const SPLIT_NUMBER: &str = "split.no";

/// The tensor by which Llama 3's rotary frequencies are divided.
const ROTARY_FACTORS: &str = "rope_freqs.weight";

fn config(
    metadata: &Metadata,
    tensors: &BTreeMap<String, usize>,
    vocabulary: usize,
    end: u32,
    factors: Option<Vec<f32>>,
) -> Result<LlamaConfig> {
    let architecture = metadata.text("general.architecture")?;
    let class = match architecture {
        "llama" => "LlamaForCausalLM",
        "qwen2" => "Qwen2ForCausalLM",
        "qwen3" => "Qwen3ForCausalLM",
        other => {
            bail!("the architecture is {other:?}, and this driver knows llama, qwen2 and qwen3")
        }
    };
    let key = |name: &str| format!("{architecture}.{name}");
    let whole = |name: &str| metadata.whole(&key(name));
    let has = |name: &str| metadata.has(&key(name));
    let or = |name: &str, default: usize| match has(name) {
        true => whole(name),
        false => Ok(default),
    };
    let number = |name: &str, default: f64| match has(name) {
        true => metadata.number(&key(name)),
        false => Ok(default),
    };
    let (hidden, heads) = (whole("embedding_length")?, whole("attention.head_count")?);
    let head_width = or("attention.key_length", hidden / heads.max(1))?;
    let turned = or("rope.dimension_count", head_width)?;
    ensure!(
        turned == head_width,
        "{} is {turned} of a head's {head_width}, which is not supported",
        key("rope.dimension_count")
    );
    let stretching = match has("rope.scaling.type") {
        true => metadata.text(&key("rope.scaling.type"))?,
        false => "linear",
    };
    let factor = number("rope.scaling.factor", number("rope.scale_linear", 1.0)?)?;
    let rope_scaling = match stretching {
        "none" => None,
        "linear" if factor == 1.0 => None,
        "linear" => Some(RopeParameters {
            rope_type: Some(stretching.into()),
            factor: Some(factor),
            ..RopeParameters::default()
        }),
        other => bail!(
            "{} is {other:?}, which is not supported",
            key("rope.scaling.type")
        ),
    };
    let config = LlamaConfig {
        architectures: vec![class.into()],
        model_type: architecture.into(),
        vocab_size: vocabulary,
        hidden_size: hidden,
        intermediate_size: whole("feed_forward_length")?,
        num_hidden_layers: whole("block_count")?,
        num_attention_heads: heads,
        num_key_value_heads: Some(or("attention.head_count_kv", heads)?),
        head_dim: Some(head_width),
        rms_norm_eps: metadata.number(&key("attention.layer_norm_rms_epsilon"))?,
        rope_theta: Some(number("rope.freq_base", 10_000.0)?),
        rope_scaling,
        max_position_embeddings: whole("context_length")?,
        tie_word_embeddings: !tensors.contains_key(HEAD),
        eos_token_id: Some(EndTokens::One(end)),
        ..LlamaConfig::default()
    };
    match factors {
        None => Ok(config),
        Some(_) if config.rope_scaling.is_some() => {
            bail!(
                "{ROTARY_FACTORS} beside a rotary embedding that is stretched otherwise is not supported"
            )
        }
        Some(factors) => stretched_as(config, &factors),
    }
}

/// Returns the configuration whose rotary frequencies are the plain ones divided by `factors`. Factors other than those
/// of Llama 3 are an error.
fn stretched_as(config: LlamaConfig, factors: &[f32]) -> Result<LlamaConfig> {
    let largest = factors
        .iter()
        .fold(1f32, |largest, &factor| largest.max(factor));
    let plain = config.rotary_frequencies()?;
    let stretched = LlamaConfig {
        rope_scaling: Some(RopeParameters {
            rope_type: Some("llama3".into()),
            factor: Some(largest.into()),
            low_freq_factor: Some(1.0),
            high_freq_factor: Some(4.0),
            original_max_position_embeddings: Some(8_192.0),
            ..RopeParameters::default()
        }),
        ..config
    };
    let found = stretched.rotary_frequencies()?;
    let same = found.len() == factors.len()
        && found
            .iter()
            .zip(plain)
            .zip(factors)
            .all(|((found, plain), &factor)| {
                (found * f64::from(factor) / plain - 1.0).abs() < 1e-4
            });
    ensure!(
        same,
        "{ROTARY_FACTORS} are not those of Llama 3, and no others are supported"
    );
    Ok(stretched)
}

const EMBEDDING: &str = "token_embd.weight";
const HEAD: &str = "output.weight";

/// Weights in GGUF files, which are dequantised when they are taken.
struct GgufWeights {
    files: Vec<GgufFile>,
    /// The tensors that were not taken yet, each with the number of its file.
    left: BTreeMap<String, usize>,
    permuted: Option<Heads>,
}

struct Heads {
    query: usize,
    key: usize,
}

impl GgufWeights {
    fn open(path: &Path) -> Result<Self> {
        let files = open_files(path)?;
        let mut left = BTreeMap::new();
        for (number, file) in files.iter().enumerate() {
            for name in file.tensors.keys() {
                if let Some(other) = left.insert(name.clone(), number) {
                    let other: &GgufFile = &files[other];
                    let paths = [&other.path, &file.path].map(|path| path.display().to_string());
                    bail!("both {} have a tensor {name}", paths.join(" and "));
                }
            }
        }
        Ok(Self {
            files,
            left,
            permuted: None,
        })
    }

    /// Reads the configuration and the tokenizer that the first file describes.
    fn parts(&mut self, end_token: Option<&str>) -> Result<(LlamaConfig, TextTokenizer)> {
        let factors = match self.read(ROTARY_FACTORS)? {
            Some(factors) => Some(factors.to_vec1::<f32>()?),
            None => None,
        };
        let embedding = (self.left.get(EMBEDDING))
            .and_then(|&file| self.files[file].tensors.get(EMBEDDING))
            .with_context(|| format!("there is no tensor {EMBEDDING}"))?;
        let vocabulary = embedding.shape.dims().first().copied().unwrap_or(0);
        let metadata = Metadata(&self.files[0].metadata);
        let tokenizer = gguf_tokenizer::build(&metadata, end_token)?;
        let config = config(&metadata, &self.left, vocabulary, tokenizer.end(), factors)?;
        self.permuted = (config.model_type == "llama").then_some(Heads {
            query: config.num_attention_heads,
            key: config.key_value_heads(),
        });
        Ok((config, tokenizer))
    }

    /// Takes a tensor, by its name in the file.
    fn read(&mut self, stored: &str) -> Result<Option<Tensor>> {
        let Some(file) = self.left.remove(stored) else {
            return Ok(None);
        };
        let tensor = self.files[file].read(stored);
        (tensor.map(Some)).with_context(|| format!("cannot read the tensor {stored}"))
    }
}

impl Weights for GgufWeights {
    fn take(&mut self, name: &str) -> Result<Option<Tensor>> {
        let Some(stored) = stored_name(name) else {
            return Ok(None);
        };
        let Some(tensor) = self.read(&stored)? else {
            return Ok(None);
        };
        let heads = match &self.permuted {
            Some(heads) if stored.contains("attn_q.") => heads.query,
            Some(heads) if stored.contains("attn_k.") => heads.key,
            _ => return Ok(Some(tensor)),
        };
        Ok(Some(restore_rows(&tensor, heads).with_context(|| stored)?))
    }

    fn left(&self) -> Vec<String> {
        self.left.keys().cloned().collect()
    }
}

/// Puts the rows of the queries' or keys' weight into the order of Hugging Face. llama.cpp rotates elements that lie
/// beside each other, Hugging Face those that lie half a head apart.
fn restore_rows(weight: &Tensor, heads: usize) -> Result<Tensor> {
    let (rows, columns) = weight.dims2()?;
    ensure!(
        heads > 0 && rows.is_multiple_of(2 * heads),
        "{rows} rows are not {heads} heads of even width"
    );
    let pairs = weight.reshape((heads, rows / heads / 2, 2, columns))?;
    Ok(pairs
        .transpose(1, 2)?
        .contiguous()?
        .reshape((rows, columns))?)
}

/// Returns llama.cpp's name for what Hugging Face calls `name`.
fn stored_name(name: &str) -> Option<String> {
    match name {
        "model.embed_tokens.weight" => return Some(EMBEDDING.into()),
        "model.norm.weight" => return Some("output_norm.weight".into()),
        "lm_head.weight" => return Some(HEAD.into()),
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (module, kind) = rest.rsplit_once('.')?;
    let stored = match module {
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        _ => return None,
    };
    Some(format!("blk.{layer}.{stored}.{kind}"))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn rows_go_back_to_where_hugging_face_had_them() {
        // Two heads of width 6; llama.cpp's converter moves row (head, half, pair) to (head, pair, half).
        let stored: Vec<f32> = (0..2)
            .flat_map(|head| (0..3).flat_map(move |pair| [head * 6 + pair, head * 6 + 3 + pair]))
            .map(|row| row as f32)
            .collect();
        let stored = Tensor::from_vec(stored, (12, 1), &Device::Cpu).unwrap();
        let rows: Vec<f32> = restore_rows(&stored, 2)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1()
            .unwrap();
        assert_eq!(rows, (0..12).map(|row| row as f32).collect::<Vec<_>>());
        assert!(restore_rows(&stored, 5).is_err());
    }
}
