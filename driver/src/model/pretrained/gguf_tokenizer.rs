use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_core::quantized::gguf_file::Value;
use tokenizers::{
    AddedToken, PreTokenizerWrapper, Tokenizer,
    models::bpe::{BPE, Vocab},
    normalizers::{NormalizerWrapper, unicode::NFC},
    pre_tokenizers::{byte_level::ByteLevel, digits::Digits},
    processors::{PostProcessorWrapper, sequence, template::TemplateProcessing},
};

use super::gguf_header::Metadata;
use crate::data::tokenizer::{
    TextTokenizer,
    byte_level::{LLAMA_3_DIGITS, byte_level, split_words},
};

/// Builds the tokenizer that a GGUF file describes: byte-level byte-pair merges after the splitting that the file
/// names.
pub fn build(metadata: &Metadata, end_token: Option<&str>) -> Result<TextTokenizer> {
    let model = metadata.text("tokenizer.ggml.model")?;
    ensure!(
        model == "gpt2",
        "tokenizer.ggml.model is {model:?}, and this driver knows gpt2 (byte-level merges): take the model's Hugging \
         Face folder"
    );
    let splitting = metadata.text("tokenizer.ggml.pre");
    let splitting = splitting.context(
        "how its tokenizer splits a text before the merges is not said: take the model's Hugging Face folder",
    )?;
    let splitting = Splitting::of(splitting)?;
    let tokens = texts(metadata, "tokenizer.ggml.tokens")?;
    let vocab: Vocab = (0..)
        .zip(&tokens)
        .map(|(id, token)| ((*token).to_owned(), id))
        .collect();
    ensure!(
        vocab.len() == tokens.len(),
        "{} of the file's {} tokens occur twice",
        tokens.len() - vocab.len(),
        tokens.len()
    );
    let merges = texts(metadata, "tokenizer.ggml.merges")?
        .into_iter()
        .map(|merge| {
            let (left, right) = merge
                .split_once(' ')
                .with_context(|| format!("{merge:?} of tokenizer.ggml.merges is no pair"))?;
            Ok((left.to_owned(), right.to_owned()))
        })
        .collect::<Result<_>>()?;
    let merges = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .ignore_merges(splitting.ignore_merges)
        .build()
        .map_err(anyhow::Error::from_boxed)?;
    let mut tokenizer = byte_level(merges, splitting.normalizer, splitting.steps)?;
    add_marks(&mut tokenizer, metadata, &tokens)?;
    let end = match metadata.has(END) {
        true => Some(metadata.whole(END)?),
        false => None,
    };
    let begins = splitting.begins && metadata.has(BEGIN);
    if metadata.flag("tokenizer.ggml.add_bos_token", begins)? {
        begin_texts(&mut tokenizer, metadata, &tokens)?;
    }
    TextTokenizer::new(tokenizer, end_token, end.map(u32::try_from).transpose()?)
}

const END: &str = "tokenizer.ggml.eos_token_id";
const BEGIN: &str = "tokenizer.ggml.bos_token_id";
const KINDS: &str = "tokenizer.ggml.token_type";

/// The splitting of a text before the merges.
struct Splitting {
    normalizer: Option<NormalizerWrapper>,
    steps: Vec<PreTokenizerWrapper>,
    ignore_merges: bool,
    /// Whether texts begin with a token of their own where the file does not say, by llama.cpp's defaults.
    begins: bool,
}

impl Splitting {
    fn of(name: &str) -> Result<Self> {
        let gpt2 = ByteLevel::new(false, true, true);
        let (normalizer, steps) = match name {
            "smollm" => (None, vec![Digits::new(true).into(), gpt2.into()]),
            "gpt-2" => (None, vec![gpt2.into()]),
            "qwen2" => (Some(NFC.into()), split_words(r"\p{N}")?),
            "llama-bpe" => (None, split_words(LLAMA_3_DIGITS)?),
            other => bail!(
                "tokenizer.ggml.pre is {other:?}, and this driver knows smollm, gpt-2, qwen2 and llama-bpe: take the \
                 model's Hugging Face folder"
            ),
        };
        let llama_3 = name == "llama-bpe";
        Ok(Self {
            normalizer,
            steps,
            ignore_merges: llama_3,
            begins: llama_3,
        })
    }
}

/// The kinds of token in tokenizer.ggml.token_type that are special.
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

/// Adds the special tokens, which no merges lead to.
fn add_marks(tokenizer: &mut Tokenizer, metadata: &Metadata, tokens: &[&str]) -> Result<()> {
    if !metadata.has(KINDS) {
        return Ok(());
    }
    let kinds = metadata.get(KINDS)?.to_vec().context(KINDS)?;
    ensure!(
        kinds.len() == tokens.len(),
        "the file has {} tokens, but the kinds of {}",
        tokens.len(),
        kinds.len()
    );
    let mut marks = Vec::new();
    for (token, kind) in tokens.iter().zip(kinds) {
        match kind.to_i32().context(KINDS)? {
            CONTROL => marks.push(AddedToken::from(*token, true)),
            USER_DEFINED => marks.push(AddedToken::from(*token, false).normalized(false)),
            _ => {}
        }
    }
    tokenizer
        .add_tokens(marks)
        .map_err(|error| anyhow!("cannot add the special tokens: {error}"))?;
    Ok(())
}

/// Makes every text begin with the token that the file names.
fn begin_texts(tokenizer: &mut Tokenizer, metadata: &Metadata, tokens: &[&str]) -> Result<()> {
    let id = metadata.whole(BEGIN)?;
    let token = *(tokens.get(id)).with_context(|| format!("{BEGIN} is {id}, which is no token"))?;
    let template = TemplateProcessing::builder()
        .try_single(format!("{token} $A"))
        .map_err(|error| anyhow!("cannot put {token:?} before a text: {error}"))?
        .special_tokens(vec![(token, u32::try_from(id)?)])
        .build()?;
    let bytes = tokenizer.get_post_processor().cloned();
    let steps: Vec<PostProcessorWrapper> = bytes.into_iter().chain([template.into()]).collect();
    tokenizer.with_post_processor(Some(sequence::Sequence::new(steps)));
    Ok(())
}

fn texts<'a>(metadata: &'a Metadata, key: &str) -> Result<Vec<&'a str>> {
    let values = metadata.get(key)?.to_vec();
    let values = values.with_context(|| key.to_owned())?;
    values
        .iter()
        .map(|value: &Value| Ok(value.to_string().with_context(|| key.to_owned())?.as_str()))
        .collect()
}
