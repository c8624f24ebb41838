//! The CPU: parallel over rows, vectorised along them.

mod balance;
pub(crate) mod dense;
pub(crate) mod element;
pub(crate) mod linear;
mod matrix;
pub(crate) mod row_weights;
pub(crate) mod softmax;
mod vector;

use pulp::{Arch, Simd, WithSimd};

/// A loop to be compiled once for every instruction set.
///
/// Not handed to pulp as the closure that it is: pulp would call it as an `FnOnce`, and of a closure
/// that could be called again that is a function of its own, which the compiler leaves outside of
/// the vectorized one and compiles for the oldest machine.
struct Loop<F>(F);

impl<R, F: FnMut() -> R> WithSimd for Loop<F> {
    type Output = R;

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, _: S) -> R {
        (self.0)()
    }
}

/// Runs a loop with the instructions that this machine has, and returns what it returns.
#[inline(always)]
fn vectorized<R>(body: impl FnMut() -> R) -> R {
    Arch::new().dispatch(Loop(body))
}
