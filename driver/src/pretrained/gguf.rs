use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    io::BufReader,
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{
    DType, Device, Tensor,
    quantized::gguf_file::{Content, Value},
};

use super::{Pretrained, gguf_tokenizer};
use crate::model::{EndTokens, LlamaConfig, RopeParameters, Weights};

pub fn open(path: &Path, end_token: Option<&str>) -> Result<Pretrained> {
    let mut file = BufReader::new(File::open(path).context("cannot open the file")?);
    let content = Content::read(&mut file).context("this is no GGUF file")?;
    let metadata = Metadata(&content.metadata);
    let tokenizer = gguf_tokenizer::build(&metadata, end_token)?;
    let factors = match content.tensor_infos.contains_key(ROTARY_FACTORS) {
        true => Some(read(&content, &mut file, ROTARY_FACTORS)?.to_vec1::<f32>()?),
        false => None,
    };
    let config = config(&metadata, &content, tokenizer.end(), factors)?;
    let left = content
        .tensor_infos
        .keys()
        .filter(|name| *name != ROTARY_FACTORS)
        .cloned()
        .collect();
    let weights = GgufWeights {
        permuted: (config.model_type == "llama").then_some(Heads {
            query: config.num_attention_heads,
            key: config.key_value_heads(),
        }),
        content,
        file,
        left,
    };
    Ok(Pretrained {
        config,
        stored: DType::F32,
        weights: Box::new(weights),
        tokenizer,
    })
}

/// What Llama 3's rotary frequencies are divided by.
const ROTARY_FACTORS: &str = "rope_freqs.weight";

/// What a GGUF file says of itself.
pub struct Metadata<'a>(pub &'a HashMap<String, Value>);

impl Metadata<'_> {
    pub fn get(&self, key: &str) -> Result<&Value> {
        let value = self.0.get(key);
        value.with_context(|| format!("the file has no {key}"))
    }

    pub fn text(&self, key: &str) -> Result<&str> {
        Ok(self.get(key)?.to_string().with_context(|| key.to_owned())?)
    }

    fn whole(&self, key: &str) -> Result<usize> {
        let value = self.get(key)?.to_u64().with_context(|| key.to_owned())?;
        Ok(value as usize)
    }

    /// A truth, or the default where the file does not tell.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.0.get(key) {
            Some(value) => value.to_bool().with_context(|| key.to_owned()),
            None => Ok(default),
        }
    }

    /// An f32 as the decimal number that it was: 1e-5, not 9.99999974e-6.
    fn number(&self, key: &str) -> Result<f64> {
        let value = self.get(key)?.to_f32().with_context(|| key.to_owned())?;
        Ok(value.to_string().parse()?)
    }
}

fn config(
    metadata: &Metadata,
    content: &Content,
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
    let optional = |name: &str| metadata.0.contains_key(&key(name));
    let Some(embedding) = content.tensor_infos.get(EMBEDDING) else {
        bail!("there is no tensor {EMBEDDING}");
    };
    let theta = match optional("rope.freq_base") {
        true => metadata.number(&key("rope.freq_base"))?,
        false => 10_000.0,
    };
    let stretched =
        optional("rope.scaling.type") && metadata.text(&key("rope.scaling.type"))? != "none";
    ensure!(
        !stretched,
        "{} is {:?}, which is not supported",
        key("rope.scaling.type"),
        metadata.text(&key("rope.scaling.type"))?
    );
    let config = LlamaConfig {
        architectures: vec![class.into()],
        model_type: architecture.into(),
        vocab_size: embedding.shape.dims().first().copied().unwrap_or(0),
        hidden_size: whole("embedding_length")?,
        intermediate_size: whole("feed_forward_length")?,
        num_hidden_layers: whole("block_count")?,
        num_attention_heads: whole("attention.head_count")?,
        num_key_value_heads: Some(whole("attention.head_count_kv")?),
        head_dim: optional("attention.key_length")
            .then(|| whole("attention.key_length"))
            .transpose()?,
        rms_norm_eps: metadata.number(&key("attention.layer_norm_rms_epsilon"))?,
        rope_theta: Some(theta),
        max_position_embeddings: whole("context_length")?,
        tie_word_embeddings: !content.tensor_infos.contains_key(HEAD),
        eos_token_id: Some(EndTokens::One(end)),
        ..LlamaConfig::default()
    };
    match factors {
        None => Ok(config),
        Some(factors) => stretched_as(config, &factors),
    }
}

/// The configuration whose rotary frequencies are the plain ones divided by `factors`: Llama 3's, or none.
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

/// Weights in a GGUF file, made dense when they are taken.
struct GgufWeights {
    content: Content,
    file: BufReader<File>,
    left: BTreeSet<String>,
    permuted: Option<Heads>,
}

struct Heads {
    query: usize,
    key: usize,
}

impl Weights for GgufWeights {
    fn take(&mut self, name: &str) -> Result<Option<Tensor>> {
        let Some(stored) = stored_name(name) else {
            return Ok(None);
        };
        if !self.left.remove(&stored) {
            return Ok(None);
        }
        let tensor = read(&self.content, &mut self.file, &stored)?;
        let heads = match &self.permuted {
            Some(heads) if stored.contains("attn_q.") => heads.query,
            Some(heads) if stored.contains("attn_k.") => heads.key,
            _ => return Ok(Some(tensor)),
        };
        Ok(Some(restore_rows(&tensor, heads).with_context(|| stored)?))
    }

    fn left(&self) -> Vec<String> {
        self.left.iter().cloned().collect()
    }
}

fn read(content: &Content, file: &mut BufReader<File>, name: &str) -> Result<Tensor> {
    let cannot = || format!("cannot read the tensor {name}");
    let tensor = content
        .tensor(file, name, &Device::Cpu)
        .with_context(cannot)?;
    tensor.dequantize(&Device::Cpu).with_context(cannot)
}

/// llama.cpp turns elements that lie beside each other, Hugging Face those that lie half a head apart: for Llama,
/// the rows of the queries' and keys' weights are stored in llama.cpp's order.
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

/// llama.cpp's name of what Hugging Face calls `name`.
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
