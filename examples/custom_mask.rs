//! Uses the loss with masks that come from no trie: here every user was shown a slate of items, and the softmax is over the slate.
//!
//! ```sh
//! cargo run --release --example custom_mask
//! ```

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::ops::log_softmax;
use candle_trie::{MaskedSoftmaxLoss, Row, Rows, TokenSets};

const ITEMS: usize = 12;
/// What each slate shows, rising, and which of it was chosen.
const SLATES: [(&[u32], u32); 3] = [(&[0, 3, 4, 9], 4), (&[1, 2], 1), (&[5], 5)];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = Device::Cpu;
    // Sets in compressed rows: set s holds tokens[offsets[s]..offsets[s + 1]]. Rows may share a set.
    let mut offsets = vec![0];
    let mut tokens = Vec::new();
    for (slate, _) in SLATES {
        tokens.extend_from_slice(slate);
        offsets.push(tokens.len() as u32);
    }
    let sets = TokenSets::from_raw(offsets, tokens)?;

    // A row says which position of the scores it is about, its set and its target. Positions without a row get no gradient.
    let rows = (0..).zip(SLATES).map(|(user, (_, target))| Row {
        position: user,
        set: user,
        target,
    });
    let rows = Rows::from_raw(SLATES.len(), rows.collect())?;

    let users = Var::randn(0f32, 1.0, (SLATES.len(), 8), &device)?; // [N, H]
    let items = Tensor::randn(0f32, 1.0, (ITEMS, 8), &device)?; // [V, H]
    let mut loss = MaskedSoftmaxLoss::new(&sets, 0.7)?;
    let output = loss.forward((&users, &items), &rows)?; // scores of shown items alone are computed
    let gradient = output
        .loss
        .backward()?
        .remove(&users)
        .ok_or("no gradient")?;

    // The same by candle's own operations, which compute all scores and mask them.
    let mut shown = vec![0u8; SLATES.len() * ITEMS];
    for (user, (slate, _)) in SLATES.iter().enumerate() {
        slate
            .iter()
            .for_each(|&item| shown[user * ITEMS + item as usize] = 1);
    }
    let shown = Tensor::from_vec(shown, (SLATES.len(), ITEMS), &device)?;
    let targets = Tensor::new(SLATES.map(|(_, target)| target).to_vec(), &device)?.unsqueeze(1)?;
    let scores = (users.matmul(&items.t()?)? / 0.7)?;
    let hidden = Tensor::full(f32::NEG_INFINITY, scores.shape(), &device)?;
    let composed = log_softmax(&shown.where_cond(&scores, &hidden)?, 1)?;
    let composed = composed.gather(&targets, 1)?.neg()?.mean_all()?;
    let expected = composed.backward()?.remove(&users).ok_or("no gradient")?;

    let [value, by_candle] = [&output.loss, &composed].map(|loss| loss.to_scalar::<f32>());
    println!(
        "loss {} here, {} by candle's operations",
        value?, by_candle?
    );
    let difference = (gradient - expected)?
        .abs()?
        .max_all()?
        .to_dtype(DType::F32)?;
    println!(
        "gradients are at most {:e} apart",
        difference.to_scalar::<f32>()?
    );
    assert!(difference.to_scalar::<f32>()? < 1e-5);
    Ok(())
}
