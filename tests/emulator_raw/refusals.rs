//! Refusals of tensors, sets and allocators that do not fit.

use super::*;
use crate::emulated::Recorder;
use candle_trie::Error;
use candle_trie::raw::{DenseTensors, LinearGradients, LinearTensors};

/// Asserts that both passes are refused, and that nothing was allocated, uploaded or launched.
fn refused(
    loss: &MaskedSoftmaxLoss,
    rows: &Rows,
    temperature: Option<f64>,
    [positions, vocabulary]: [usize; 2],
    expected: impl Fn(&Error) -> bool,
) {
    let mut stream = Recorder::default();
    let pass = Pass {
        loss,
        rows,
        temperature,
        limits: &LIMITS,
        element: Element::F32,
        results: Recorder::RESULTS,
    };
    let dense = DenseTensors {
        logits: Recorder::matrix(vocabulary),
        sets: Recorder::SETS,
        previous: None,
    };
    let linear = LinearTensors {
        hidden: Recorder::matrix(8),
        head: Recorder::matrix(8),
        base: None,
        bias: None,
        sets: Recorder::SETS,
        previous: None,
    };
    let (of_logits, of_hidden) = ([positions, vocabulary], [positions, vocabulary, 8]);
    // SAFETY: the recorder runs nothing.
    let errors = unsafe {
        [
            pass.dense(&mut stream, &dense, of_logits, None)
                .unwrap_err(),
            pass.linear(
                &mut stream,
                &linear,
                of_hidden,
                LinearGradients::Hidden,
                None,
            )
            .unwrap_err(),
        ]
    };
    for error in &errors {
        assert!(expected(error), "{error}");
    }
    assert!(stream.launches.is_empty() && stream.allocated.is_empty());
    assert_eq!(stream.uploaded_bytes, 0);
}

#[test]
fn what_does_not_fit_is_refused_before_any_launch() {
    let batch = Batch::new(8, 3);
    let options = &every_option()[0];
    let (loss, rows) = (batch.loss(options), batch.rows(options));
    let fits @ [positions, vocabulary] = [batch.positions, batch.vocabulary];
    let last = loss.sets().max_token() as usize;
    refused(&loss, &rows, None, [positions, last], |error| {
        matches!(error, Error::TokenOutsideVocabulary { .. })
    });
    refused(&loss, &rows, None, [positions + 1, vocabulary], |error| {
        matches!(error, Error::PositionMismatch { .. })
    });
    refused(&loss, &rows, Some(0.0), fits, |error| {
        matches!(error, Error::OutOfRange { .. })
    });
    let checked = loss.check_finite();
    refused(&checked, &rows, None, fits, |error| {
        matches!(error, Error::Unsupported { .. })
    });
}
