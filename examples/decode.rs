//! Recommends by beam search over the trie, proves the result by exact search, and excludes items that a user has had.
//!
//! ```sh
//! cargo run --release --example decode
//! ```

use candle_core::{Device, Tensor};
use candle_trie::{BeamSearch, TokenTrie, exact_top_k};

const TITLES: [&str; 6] = [
    "the left hand of darkness",
    "the left bank",
    "the dispossessed",
    "a wizard of earthsea",
    "a wizard alone",
    "kindred",
];
const WIDTH: usize = 8;

/// Numbers words as a tokenizer would. 0 ends a title.
struct Vocabulary(Vec<&'static str>);

impl Vocabulary {
    fn tokens(&mut self, text: &'static str) -> Vec<u32> {
        let mut number = |word| match self.0.iter().position(|known| *known == word) {
            Some(number) => number as u32,
            None => {
                self.0.push(word);
                self.0.len() as u32 - 1
            }
        };
        text.split(' ').map(&mut number).collect()
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut words = Vocabulary(vec!["<end>"]);
    let paths: Vec<Vec<u32>> = (TITLES.iter())
        .map(|title| [words.tokens(title), vec![0]].concat())
        .collect();
    let trie = TokenTrie::new((0..).zip(&paths))?;

    // In place of a language model: the hidden state after some tokens is the sum of their embeddings, later ones weighing more. A real
    // model keeps the keys and values of every beam, and picks those of `step.parents` before it reads `step.tokens`.
    let embedding = Tensor::randn(0f32, 1.0, (words.0.len(), WIDTH), &Device::Cpu)?;
    let head = Tensor::randn(0f32, 1.0, (words.0.len(), WIDTH), &Device::Cpu)?; // [V, H]
    let read = |prefixes: &[Vec<u32>]| -> candle_core::Result<Tensor> {
        let states = prefixes.iter().map(|prefix| {
            let tokens = embedding.index_select(&Tensor::new(&prefix[..], &Device::Cpu)?, 0)?;
            let weights: Vec<f32> = (1..=prefix.len()).map(|place| place as f32).collect();
            let weights = Tensor::new(weights, &Device::Cpu)?.unsqueeze(1)?;
            tokens.broadcast_mul(&weights)?.sum(0)
        });
        Tensor::stack(&states.collect::<candle_core::Result<Vec<_>>>()?, 0)
    };

    // Two users, each with a prompt. The second has had item 0.
    let prompts = [words.tokens("kindred"), words.tokens("a wizard")];
    let had: [&[u64]; 2] = [&[], &[0]];
    let temperature = 1.0; // that of training
    let mut search = BeamSearch::new(&trie, prompts.len(), 4, temperature)?.exclude_items(&had)?;

    // Tokens that all titles begin with follow the prompt. Then the search says, row by row, what each beam continues with.
    let mut prefixes: Vec<Vec<u32>> = (prompts.iter())
        .map(|prompt| [prompt, search.common_prefix()].concat())
        .collect();
    while let Some(step) = search.step((&read(&prefixes)?, &head))? {
        prefixes = (step.parents.iter().zip(&step.tokens))
            .map(|(&parent, tokens)| [&prefixes[parent as usize][..], tokens].concat())
            .collect();
    }

    for (user, prompt) in prompts.iter().enumerate() {
        let spoken: Vec<_> = prompt.iter().map(|&word| words.0[word as usize]).collect();
        println!("after \"{}\":", spoken.join(" "));
        for found in search.results(user) {
            let title = TITLES[found.items[0] as usize];
            println!("  {:.4} {title}", found.log_probability.exp());
        }
    }
    assert!(search.results(1).iter().all(|found| found.items != [0]));

    // Beam search may miss the best item. Best-first search cannot, and reads as many prefixes as that takes.
    let exact = exact_top_k(&trie, 1, temperature, |prefixes| {
        let prefixes: Vec<_> = prefixes
            .iter()
            .map(|prefix| [&prompts[0], &prefix[..]].concat())
            .collect();
        Ok(read(&prefixes)?.matmul(&head.t()?)?)
    })?;
    println!(
        "the best item of all for the first user: {}",
        TITLES[exact[0].items[0] as usize]
    );
    assert!(exact[0].log_probability > search.results(0)[0].log_probability - 1e-5);
    Ok(())
}
