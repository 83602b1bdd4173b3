//! Samples: what a pod takes of itself, and how it reaches the store.
