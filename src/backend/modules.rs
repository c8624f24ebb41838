//! The compiled kernels, which build.rs embeds.

/// A compiled source: its kernels, and code for every architecture of the build.
pub(super) struct Module {
    pub kernels: &'static [&'static str],
    pub image: &'static [u8],
}

pub(super) static MODULES: &[Module] = &include!(concat!(env!("OUT_DIR"), "/modules.rs"));
