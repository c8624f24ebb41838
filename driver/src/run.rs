//! The folder of a run: its settings, checkpoints and lock, and how files are written.

pub mod checkpoint;
pub mod folder;
pub mod layout;
pub mod lock;
pub mod made_with;
pub mod output;
pub mod settings;
