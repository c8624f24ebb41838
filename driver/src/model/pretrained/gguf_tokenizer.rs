use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_core::quantized::gguf_file::Value;
use tokenizers::{
    AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer, TokenizerBuilder,
    models::bpe::{BPE, Vocab},
    normalizers::{NormalizerWrapper, unicode::NFC},
    pre_tokenizers::{
        byte_level::ByteLevel,
        digits::Digits,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
    processors::{PostProcessorWrapper, sequence, template::TemplateProcessing},
};

use super::gguf_header::Metadata;
use crate::data::tokenizer::TextTokenizer;

/// The tokenizer that a GGUF file describes: byte-level byte-pair merges behind the splitting that it names.
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
        "{} of the file's {} tokens are there twice",
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
    let bytes = ByteLevel::new(false, true, false);
    let tokenizer = TokenizerBuilder::new()
        .with_model(merges)
        .with_normalizer(splitting.normalizer)
        .with_pre_tokenizer(Some(Sequence::new(splitting.steps)))
        .with_post_processor(Some(bytes))
        .with_decoder(Some(bytes))
        .build()
        .map_err(anyhow::Error::from_boxed)?;
    let mut tokenizer: Tokenizer = tokenizer.into();
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

/// How a text is split before the merges.
struct Splitting {
    normalizer: Option<NormalizerWrapper>,
    steps: Vec<PreTokenizerWrapper>,
    ignore_merges: bool,
    /// Whether texts begin with a token of their own, where the file does not say; llama.cpp's defaults.
    begins: bool,
}

/// The expression of Llama 3; Qwen's differs in how many digits go together.
const WORDS: [&str; 2] = [
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];

impl Splitting {
    fn of(name: &str) -> Result<Self> {
        let words = |digits: &str| -> Result<Vec<PreTokenizerWrapper>> {
            let pattern = SplitPattern::Regex(WORDS.join(digits));
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
                .map_err(anyhow::Error::from_boxed)?;
            Ok(vec![
                split.into(),
                ByteLevel::new(false, true, false).into(),
            ])
        };
        let gpt2 = ByteLevel::new(false, true, true);
        let (normalizer, steps) = match name {
            "smollm" => (None, vec![Digits::new(true).into(), gpt2.into()]),
            "gpt-2" => (None, vec![gpt2.into()]),
            "qwen2" => (Some(NFC.into()), words(r"\p{N}")?),
            "llama-bpe" => (None, words(r"\p{N}{1,3}")?),
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

/// Kinds of token, of tokenizer.ggml.token_type.
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

/// Makes whole tokens of the marks that no text is merged to.
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

/// Has every text begin with the token that the file names, as Hugging Face's `tokenizer.json` would say it.
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
