//! Text to tokens: a byte-pair tokenizer, read from a file or trained on the catalogue.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::de::IgnoredAny;
use tokenizers::{
    AddedToken, Encoding, SplitDelimiterBehavior, Tokenizer, TokenizerBuilder,
    models::{
        ModelWrapper,
        bpe::{BPE, BpeTrainer},
    },
    normalizers::NormalizerWrapper,
    pre_tokenizers::{
        PreTokenizerWrapper,
        byte_level::ByteLevel,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
};

use crate::data::{input::catch_panic, text_file::read_text};

/// The end token of a tokenizer that is trained here.
pub const END_TOKEN: &str = "<|endoftext|>";

/// End tokens of the model families, in the order in which they are looked for.
const KNOWN_END_TOKENS: [&str; 5] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    END_TOKEN,
    "</s>",
];

/// Llama 3's splitting. It keeps an opening quote with the first letters of a title; where the quote stands alone,
/// every title begins with the same token, the root of the trie has no fan-out, and the published temperature strategy
/// is not defined there.
const WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The longest piece of a text that merges are learned in, in characters. What a merge costs rises with the square of
/// the longest word.
const LONGEST_PIECE: usize = 4_096;

/// The largest id of a token, far beyond those of the largest vocabularies. tokenizers lists all ids below that no token
/// has, where it writes a file.
const LARGEST_ID: u32 = 1 << 24;

/// A tokenizer, what it has prompts begin with and the token that ends a response.
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    begin: Vec<u32>,
    end: u32,
    /// How many tokens the model has a row for, where that is known.
    rows: Option<usize>,
}

impl TextTokenizer {
    /// Trains byte-pair merges on texts, to at most `vocabulary` tokens.
    pub fn train<'a>(
        texts: impl Iterator<Item = &'a str> + Clone + Send,
        vocabulary: usize,
    ) -> Result<Self> {
        let smallest = ByteLevel::alphabet().len() + 1;
        ensure!(
            vocabulary >= smallest,
            "--vocabulary is {vocabulary}, expected at least {smallest}: a token for each byte and the one that ends a \
             response"
        );
        // Each merge joins two tokens of a text: there cannot be more than the texts have bytes.
        let bytes: usize = texts.clone().map(str::len).sum();
        let largest = smallest + bytes;
        let words = Split::new(
            SplitPattern::Regex(WORDS.into()),
            SplitDelimiterBehavior::Isolated,
            false,
        )
        .map_err(anyhow::Error::from_boxed)?;
        let bytes = ByteLevel::new(false, true, false);
        let mut tokenizer = TokenizerBuilder::new()
            .with_model(BPE::default())
            .with_normalizer(None::<NormalizerWrapper>)
            .with_pre_tokenizer(Some(Sequence::new(vec![
                PreTokenizerWrapper::Split(words),
                PreTokenizerWrapper::ByteLevel(bytes),
            ])))
            .with_post_processor(Some(bytes))
            .with_decoder(Some(bytes))
            .build()
            .map_err(anyhow::Error::from_boxed)?;
        let mut trainer = BpeTrainer::builder()
            .vocab_size(vocabulary.min(largest))
            .show_progress(false)
            .special_tokens(vec![AddedToken::from(END_TOKEN, true)])
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build();
        tokenizer
            .train(&mut trainer, texts.flat_map(pieces))
            .map_err(anyhow::Error::from_boxed)?;
        Self::new(tokenizer.into(), None, None)
    }

    /// Reads a `tokenizer.json`. `end_token` names the token that ends a response; without it a known one is looked for.
    pub fn load(path: &Path, end_token: Option<&str>) -> Result<Self> {
        Self::load_for(path, end_token, None)
    }

    /// As [`load`](Self::load), for a model that ends its texts with a token of its own.
    pub fn load_for(path: &Path, end_token: Option<&str>, end: Option<u32>) -> Result<Self> {
        let cannot = || format!("cannot read the tokenizer {}", path.display());
        let text = read_text(path)?;
        // tokenizers panics at some of the texts that are no JSON.
        serde_json::from_str::<IgnoredAny>(&text).with_context(cannot)?;
        let tokenizer = catch_panic(|| Tokenizer::from_bytes(text.as_bytes()))
            .and_then(|tokenizer| tokenizer.map_err(anyhow::Error::from_boxed))
            .with_context(cannot)?;
        Self::new(tokenizer, end_token, end).with_context(|| path.display().to_string())
    }

    /// A tokenizer with its end token: that of a name, that of an id, or a known one. Texts are neither cut nor padded,
    /// and no merges drop out, whatever its file says.
    pub fn new(
        mut tokenizer: Tokenizer,
        end_token: Option<&str>,
        end: Option<u32>,
    ) -> Result<Self> {
        tokenizer
            .with_padding(None)
            .with_truncation(None)
            .map_err(anyhow::Error::from_boxed)?;
        let tokens = tokenizer.get_vocab(true);
        if let Some((token, id)) = tokens.iter().max_by_key(|(_, id)| **id) {
            ensure!(
                *id <= LARGEST_ID,
                "the token {token:?} has the id {id}, expected at most {LARGEST_ID}: as many rows would a model need"
            );
        }
        if let ModelWrapper::BPE(pairs) = tokenizer.get_model()
            && pairs.dropout.is_some()
        {
            // A text would be other tokens each time.
            let mut pairs = pairs.clone();
            pairs.dropout = None;
            tokenizer.with_model(pairs);
        }
        let end = match (end_token, end) {
            (Some(name), _) => tokenizer
                .token_to_id(name)
                .with_context(|| format!("there is no token {name:?}"))?,
            (None, Some(end)) => {
                ensure!(
                    tokenizer.id_to_token(end).is_some(),
                    "the model ends its texts with token {end}, which the tokenizer does not have"
                );
                end
            }
            (None, None) => match KNOWN_END_TOKENS
                .iter()
                .find_map(|name| tokenizer.token_to_id(name))
            {
                Some(end) => end,
                None => bail!("none of {KNOWN_END_TOKENS:?} is a token: name the end token"),
            },
        };
        Ok(Self {
            begin: leading_marks(&tokenizer)?,
            tokenizer,
            end,
            rows: None,
        })
    }

    /// The same for a model that has so many tokens. The tokenizer may have others, which are refused where a text uses
    /// them.
    pub fn for_rows(mut self, rows: usize) -> Result<Self> {
        self.rows = Some(rows);
        self.check_rows(&[self.end])
            .context("the token that ends a response")?;
        self.check_rows(&self.begin)
            .context("what a prompt begins with")?;
        Ok(self)
    }

    fn check_rows(&self, tokens: &[u32]) -> Result<()> {
        let rows = self.rows.unwrap_or(usize::MAX);
        match tokens.iter().find(|&&token| token as usize >= rows) {
            None => Ok(()),
            Some(&token) => bail!(
                "the tokenizer makes it the token {token}, {:?}, and the model has {rows} tokens",
                self.tokenizer.id_to_token(token).unwrap_or_default()
            ),
        }
    }

    /// Writes a `tokenizer.json`.
    pub fn save(&self, path: &Path) -> Result<()> {
        self.tokenizer
            .save(path, true)
            .map_err(|error| anyhow!("cannot write {}: {error}", path.display()))
    }

    /// The tokens of a text, with nothing added before or after.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = encode(&self.tokenizer, text, false)?;
        let tokens = encoding.get_ids();
        self.check_rows(tokens)
            .with_context(|| format!("the text {text:?}"))?;
        Ok(tokens.to_vec())
    }

    /// The tokens of a prompt: those of the text, behind what the tokenizer puts before a text, as Llama's do.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        Ok([&self.begin[..], &self.encode(text)?].concat())
    }

    /// The same, with nothing before a prompt.
    pub fn without_begin(self) -> Self {
        Self {
            begin: Vec::new(),
            ..self
        }
    }

    /// The token that ends a response.
    pub fn end(&self) -> u32 {
        self.end
    }

    /// The text of the token that ends a response.
    pub fn end_text(&self) -> Option<String> {
        self.tokenizer.id_to_token(self.end)
    }

    /// One more than the largest token: what an embedding must hold.
    pub fn vocabulary(&self) -> usize {
        self.tokenizer
            .get_vocab(true)
            .into_values()
            .max()
            .map_or(0, |largest| largest as usize + 1)
    }
}

/// A damaged tokenizer may be found out only when it is used.
fn encode(tokenizer: &Tokenizer, text: &str, marks: bool) -> Result<Encoding> {
    catch_panic(|| tokenizer.encode_fast(text, marks))
        .and_then(|encoding| encoding.map_err(anyhow::Error::from_boxed))
        .context("the tokenizer cannot be used")
}

/// A text in pieces of a bounded length.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (end, _) = (rest.char_indices().nth(LONGEST_PIECE)).unwrap_or((rest.len(), ' '));
        let (piece, after) = rest.split_at(end);
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}

/// The special tokens that a tokenizer puts before any text.
fn leading_marks(tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let encoding = encode(tokenizer, "a", true)?;
    let mut marks = encoding.get_special_tokens_mask().iter();
    let text = marks.position(|&mark| mark == 0).unwrap_or(0);
    Ok(encoding.get_ids()[..text].to_vec())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const TITLES: [&str; 3] = [
        "\"The Sea\", \"The Sea Wall\"",
        "\"A Sea of Glass\"",
        "\"Glass Walls\"",
    ];

    #[test]
    fn training_is_repeatable_and_loses_nothing() {
        let first = TextTokenizer::train(TITLES.into_iter(), 300).unwrap();
        let second = TextTokenizer::train(TITLES.into_iter(), 300).unwrap();
        for text in ["\"The Sea\"", "\"Ünïcode – 本\"\n"] {
            let tokens = first.encode(text).unwrap();
            assert_eq!(tokens, second.encode(text).unwrap());
            assert_eq!(first.tokenizer.decode(&tokens, false).unwrap(), text);
        }
        assert!(first.vocabulary() <= 300);
    }

    #[test]
    fn titles_begin_with_different_tokens() {
        let tokenizer = TextTokenizer::train(TITLES.into_iter(), 400).unwrap();
        let first = |text| tokenizer.encode(text).unwrap()[0];
        assert_ne!(first("\"The Sea\""), first("\"A Sea of Glass\""));
    }

    #[test]
    fn a_long_word_and_a_large_vocabulary_are_bounded_by_what_the_texts_hold() {
        let long = "x".repeat(200_000);
        let begun = std::time::Instant::now();
        let tokenizer = TextTokenizer::train([long.as_str()].into_iter(), usize::MAX).unwrap();
        assert!(begun.elapsed().as_secs() < 10);
        assert!(tokenizer.vocabulary() < 1_000);
        let text = "é".repeat(LONGEST_PIECE + 1);
        assert_eq!(pieces(&text).collect::<String>(), text);
        assert_eq!(pieces(&text).count(), 2);
    }

    /// A tokenizer read from a file whose members of these names were replaced.
    fn read(members: &[(&str, Value)]) -> TextTokenizer {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        let tokenizer = TextTokenizer::train(TITLES.into_iter(), 300).unwrap();
        tokenizer.save(&path).unwrap();
        let mut json: Value = crate::data::json::read_json(&path).unwrap();
        for (name, value) in members {
            json[name] = value.clone();
        }
        crate::data::json::write_json(&path, &json).unwrap();
        TextTokenizer::load(&path, None).unwrap()
    }

    #[test]
    fn a_prompt_begins_with_what_the_tokenizer_puts_before_a_text_and_a_response_does_not() {
        let mark = |name: &str| json!({"SpecialToken": {"id": name, "type_id": 0}});
        let text = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
        let template = |single: Vec<Value>| {
            let ids = |id: u32, name: &str| json!({"id": name, "ids": [id], "tokens": [name]});
            json!({
                "type": "TemplateProcessing",
                "single": single,
                "pair": [text("A"), text("B")],
                "special_tokens": {"<s>": ids(7, "<s>"), "</s>": ids(8, "</s>")},
            })
        };
        let plain = read(&[]);
        let tokens = plain.encode(TITLES[0]).unwrap();
        assert_eq!(plain.encode_prompt(TITLES[0]).unwrap(), tokens);
        for (single, expected) in [
            (vec![mark("<s>"), text("A")], vec![7]),
            (vec![mark("<s>"), text("A"), mark("</s>")], vec![7]),
            (vec![text("A"), mark("</s>")], vec![]),
        ] {
            let tokenizer = read(&[("post_processor", template(single))]);
            assert_eq!(tokenizer.encode(TITLES[0]).unwrap(), tokens);
            let prompt = tokenizer.encode_prompt(TITLES[0]).unwrap();
            assert_eq!(prompt, [expected, tokens.clone()].concat());
            let kept = tokenizer.without_begin();
            assert_eq!(kept.encode_prompt(TITLES[0]).unwrap(), tokens);
        }
    }

    #[test]
    fn a_text_is_neither_cut_nor_padded() {
        let tokens = read(&[]).encode(TITLES[0]).unwrap();
        let direction = "Right";
        let cut = json!({"direction": direction, "max_length": 2, "strategy": "LongestFirst", "stride": 0});
        let padded = json!({
            "strategy": {"Fixed": 64}, "direction": direction, "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": END_TOKEN,
        });
        let tokenizer = read(&[("truncation", cut), ("padding", padded)]);
        assert_eq!(tokenizer.encode(TITLES[0]).unwrap(), tokens);
    }

    #[test]
    fn a_text_is_the_same_tokens_each_time_though_merges_are_to_drop_out() {
        let plain = read(&[]);
        let mut model = serde_json::to_value(plain.tokenizer.get_model()).unwrap();
        model["dropout"] = json!(0.5);
        let tokenizer = read(&[("model", model)]);
        let text = TITLES.concat();
        for _ in 0..20 {
            assert_eq!(
                tokenizer.encode(&text).unwrap(),
                plain.encode(&text).unwrap()
            );
        }
    }
}
