//! Sessions: how each incarnation began and ended.
