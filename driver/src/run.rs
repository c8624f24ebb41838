//! The folder of a run: its settings, checkpoints and lock, and the training that fills it.

pub mod apart;
pub mod checkpoint;
pub mod folder;
pub mod layout;
pub mod lock;
pub mod made_with;
pub mod output_folder;
pub mod rows;
pub mod settings;
pub mod training;
