//! The CPU backend: parallel over rows, and vectorised within a row.

mod balance;
pub(crate) mod dense;
pub(crate) mod element;
pub(crate) mod linear;
mod matrix;
pub(crate) mod row_weights;
pub(crate) mod softmax;
mod vector;

use pulp::{Arch, Simd, WithSimd};

/// A loop that is compiled once for every instruction set.
///
/// The closure is not passed to pulp directly, because pulp calls closures as `FnOnce`. For a closure that is `FnMut`, this is
/// a separate shim function, which the compiler does not inline into the vectorised one and compiles for the baseline
/// instruction set.
struct Loop<F>(F);

impl<R, F: FnMut() -> R> WithSimd for Loop<F> {
    type Output = R;

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, _: S) -> R {
        (self.0)()
    }
}

/// Runs a loop with the best instruction set of this machine, and returns its result.
#[inline(always)]
fn vectorized<R>(body: impl FnMut() -> R) -> R {
    Arch::new().dispatch(Loop(body))
}
