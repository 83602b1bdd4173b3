//! What operators and HTTP clients read of the history.
