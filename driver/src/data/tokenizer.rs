//! Turns text into tokens, with a tokenizer that is read from a file or trained on the catalogue.

pub mod byte_level;
mod training;

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::de::IgnoredAny;
use tokenizers::{Encoding, Tokenizer, models::ModelWrapper};

use crate::io::{binary::catch_panic, text::read_text};
pub use training::TokenizerArguments;

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

/// The largest id of a token, far beyond those of the largest vocabularies. tokenizers lists all ids below that no token
/// has, where it writes a file.
const LARGEST_ID: u32 = 1 << 24;

/// A tokenizer with the tokens that begin a prompt and the one that ends a response.
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    begin: Vec<u32>,
    end: u32,
    /// Number of tokens that the model has, if it is known.
    rows: Option<usize>,
}

impl TextTokenizer {
    /// Reads a `tokenizer.json`. `end_token` names the token that ends a response; without it, it is the first
    /// of the known ones that the tokenizer has.
    pub fn load(path: &Path, end_token: Option<&str>) -> Result<Self> {
        Self::load_for(path, end_token, None)
    }

    /// Reads a `tokenizer.json` for a model that ends its texts with the token `end`.
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

    /// Chooses the end token of a tokenizer: that of a name, that of an id, or a known one. Texts are neither cut nor
    /// padded, and no merges drop out, whatever its file says.
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

    /// Limits the tokens to those of a model. The tokenizer may have others, which are refused where a text uses them.
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

    /// Returns the tokens of a text, with nothing added before or after.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = encode(&self.tokenizer, text, false)?;
        let tokens = encoding.get_ids();
        self.check_rows(tokens)
            .with_context(|| format!("the text {text:?}"))?;
        Ok(tokens.to_vec())
    }

    /// Returns the tokens of a prompt: first those that the tokenizer puts before any text, as Llama's do.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        Ok([&self.begin[..], &self.encode(text)?].concat())
    }

    /// Removes the tokens that begin a prompt.
    pub fn without_begin(self) -> Self {
        Self {
            begin: Vec::new(),
            ..self
        }
    }

    /// Returns the id of a token, if there is one of this text.
    pub fn token(&self, text: &str) -> Option<u32> {
        self.tokenizer.token_to_id(text)
    }

    /// Returns the token that ends a response.
    pub fn end(&self) -> u32 {
        self.end
    }

    /// Returns the text of the token that ends a response.
    pub fn end_text(&self) -> Option<String> {
        self.tokenizer.id_to_token(self.end)
    }

    /// Returns the number of rows that an embedding needs: one more than the largest token.
    pub fn vocabulary(&self) -> usize {
        self.tokenizer
            .get_vocab(true)
            .into_values()
            .max()
            .map_or(0, |largest| largest as usize + 1)
    }
}

/// Tokenizes a text. A damaged tokenizer may fail only here.
fn encode(tokenizer: &Tokenizer, text: &str, marks: bool) -> Result<Encoding> {
    catch_panic(|| tokenizer.encode_fast(text, marks))
        .and_then(|encoding| encoding.map_err(anyhow::Error::from_boxed))
        .context("the tokenizer cannot be used")
}

/// Returns the special tokens that a tokenizer puts before any text.
fn leading_marks(tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let encoding = encode(tokenizer, "a", true)?;
    let mut marks = encoding.get_special_tokens_mask().iter();
    let text = marks.position(|&mark| mark == 0).unwrap_or(0);
    Ok(encoding.get_ids()[..text].to_vec())
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::*;

    pub(super) const TITLES: [&str; 3] = [
        "\"The Sea\", \"The Sea Wall\"",
        "\"A Sea of Glass\"",
        "\"Glass Walls\"",
    ];

    /// Returns a tokenizer read from a file whose members of these names were replaced.
    fn read(members: &[(&str, Value)]) -> TextTokenizer {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        let tokenizer = TextTokenizer::train(TITLES.into_iter(), 300).unwrap();
        tokenizer.save(&path).unwrap();
        let mut json: Value = crate::io::json::read_json(&path).unwrap();
        for (name, value) in members {
            json[name] = value.clone();
        }
        crate::io::json::write_json(&path, &json).unwrap();
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
