//! Roll-ups: hourly rows, reliability and scores.
