//! How much is moved, and in how many launches.
