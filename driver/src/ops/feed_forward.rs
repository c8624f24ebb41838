//! A frozen feed-forward block that saves little for its backward pass.

use candle_core::{Result, Tensor};

use super::{
    differentiable::differentiable,
    linear::{add_product, input_gradient, project},
    rms_norm, swiglu,
};

/// The frozen weights of a feed-forward block.
pub struct FeedForwardWeights {
    /// The weight of the norm before the block, `[hidden]`.
    pub norm: Tensor,
    /// What is added to the mean square before its root is taken.
    pub epsilon: f64,
    /// `[intermediate, hidden]`.
    pub gate: Tensor,
    /// `[intermediate, hidden]`.
    pub up: Tensor,
    /// `[hidden, intermediate]`.
    pub down: Tensor,
}

/// Computes `x + down · swiglu(gate · n, up · n)` with `n = rms_norm(x)`, for `x [.., hidden]`.
///
/// It saves only the outputs of `gate` and `up` for the backward pass. The same block out of [`rms_norm`](super::rms_norm),
/// [`linear`](super::linear) and [`swiglu`](super::swiglu) also saves `n` and the input of `down`, which is a quarter
/// of what training holds in memory for a layer with adapters in its attention alone.
pub fn frozen_feed_forward(x: &Tensor, weights: FeedForwardWeights) -> Result<Tensor> {
    let FeedForwardWeights {
        norm,
        epsilon,
        gate,
        up,
        down,
    } = weights;
    let input = x.detach();
    let normalised = rms_norm::normalise(&input, &norm, epsilon)?;
    let (gate_output, up_output) = (project(&normalised, &gate)?, project(&normalised, &up)?);
    let change = project(&swiglu::gated(&gate_output, &up_output)?, &down)?;
    differentiable(
        [x],
        |[x]| x + change,
        move |[x], gradient, _| {
            let of_inner = input_gradient(&down, gradient)?;
            let [of_gate, of_up] = swiglu::gradients(&gate_output, &up_output, &of_inner)?;
            let of_normalised = add_product(input_gradient(&gate, &of_gate)?, &of_up, &up)?;
            let of_x = rms_norm::input_gradient(x, &norm, &of_normalised, epsilon)?;
            Ok([Some((of_x + gradient)?)])
        },
    )
}
