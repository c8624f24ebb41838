//! The launches of a pass over hidden states and a head as a plan issues them, without a device.

use bytemuck::Pod;
use candle_trie::launch::{
    DeviceLimits, DevicePtr, Element, Launch, Lifetime, LinearGradients, LinearPass, LinearResults,
    LinearTensors, LinearUpstream, Queue,
};
use candle_trie::{Error, MaskedSoftmaxLoss, Result, Temperature};

use crate::support::Shape;

/// A launch but for its parameters.
#[derive(Debug, Clone, Copy)]
pub struct Shaped {
    pub kernel: &'static str,
    pub blocks: u32,
    pub threads: u32,
    pub shared_bytes: u32,
}

/// What a pass has issued.
#[derive(Default)]
pub struct Recorder {
    pub launches: Vec<Shaped>,
    pub uploaded_bytes: usize,
}

/// Every buffer is said to be there.
const ANYWHERE: Option<DevicePtr> = DevicePtr::new(1 << 20);

impl Queue for Recorder {
    type Error = Error;

    fn allocate<const N: usize>(
        &mut self,
        _: Lifetime,
        parts: [(&'static str, usize); N],
    ) -> Result<[Option<DevicePtr>; N]> {
        Ok(parts.map(|(_, bytes)| ANYWHERE.filter(|_| bytes > 0)))
    }

    fn upload<const N: usize>(
        &mut self,
        parts: [(&'static str, &[u32]); N],
    ) -> Result<[Option<DevicePtr>; N]> {
        self.uploaded_bytes += parts
            .map(|(_, words)| size_of_val(words))
            .iter()
            .sum::<usize>();
        Ok(parts.map(|(_, words)| ANYWHERE.filter(|_| !words.is_empty())))
    }

    unsafe fn launch<P: Pod>(&mut self, launch: &Launch<P>) -> Result<()> {
        self.launches.push(Shaped {
            kernel: launch.kernel,
            blocks: launch.grid.iter().product(),
            threads: launch.block.iter().product(),
            shared_bytes: launch.shared_bytes,
        });
        Ok(())
    }
}

/// The plan of a pass with these gradients.
pub fn pass(
    shape: &Shape,
    width: usize,
    element: Element,
    gradients: LinearGradients,
    limits: &DeviceLimits,
) -> LinearPass {
    let loss = MaskedSoftmaxLoss::new(&shape.sets, Temperature::fixed(1.5)).expect("a loss");
    let rows = loss.linear_rows(&shape.rows).expect("rows");
    let most_scores = LinearPass::MOST_SCORES;
    LinearPass::new(rows, element, width, gradients, limits, most_scores).expect("a plan")
}

/// Issues such a pass, forward and backward.
pub fn issue(
    shape: &Shape,
    width: usize,
    element: Element,
    gradients: LinearGradients,
    limits: &DeviceLimits,
) -> Result<Recorder> {
    let pass = pass(shape, width, element, gradients, limits);
    let temperature = pass.rows().next(&Temperature::fixed(1.5))?;
    let anywhere = ANYWHERE.expect("an address");
    let tensors = LinearTensors {
        hidden: ANYWHERE,
        hidden_stride: width as u64,
        head: anywhere,
        head_stride: width as u64,
        bias: None,
        tokens: ANYWHERE,
        previous: None,
    };
    let results = LinearResults {
        loss: anywhere,
        statistics: anywhere,
        temperature: anywhere,
        hidden_gradient: ANYWHERE.filter(|_| gradients == LinearGradients::Direct),
    };
    let upstream = LinearUpstream {
        loss: anywhere,
        temperature: anywhere,
    };
    let mut recorder = Recorder::default();
    // SAFETY: nothing is launched, so no address is used.
    unsafe {
        let forwarded = pass.forward(&mut recorder, &tensors, temperature, &results)?;
        if gradients != LinearGradients::Direct {
            pass.hidden_gradient(&mut recorder, &forwarded, upstream, anywhere)?;
        }
        if let LinearGradients::All(_) = gradients {
            pass.head_gradient(&mut recorder, &forwarded, upstream, [ANYWHERE; 2])?;
        }
    }
    Ok(recorder)
}
