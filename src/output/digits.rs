//! Decides which numbers a value can keep.

/// How many significant digits identify a double.
const OF_A_DOUBLE: usize = 17;

/// Whether a value keeps the number `token`, in JSON's notation: as an integer of 64 bits, or as a double. A double
/// keeps a number if it is written as the same number again. A fraction of up to 17 digits counts as the double that it
/// identifies.
pub(super) fn are_kept(token: &str) -> bool {
    if token.parse::<i64>().is_ok() || token.parse::<u64>().is_ok() {
        return true;
    }
    let Ok(double) = token.parse::<f64>() else { return false };
    if !double.is_finite() {
        return false;
    }
    let spelt = Decimal::of(token);
    let is_fraction = token.contains(['.', 'e', 'E']);
    spelt == Decimal::of(&format!("{double:e}")) || (is_fraction && double != 0.0 && spelt.digits.len() <= OF_A_DOUBLE)
}

/// A number by its digits. Two spellings of the same number are equal.
#[derive(Debug, PartialEq)]
struct Decimal {
    /// The digits without zeros at either end. Empty for zero.
    digits: String,
    /// The power of ten of the last digit.
    exponent: i64,
}

impl Decimal {
    fn of(token: &str) -> Self {
        let token = token.trim_start_matches(['-', '+']);
        let (mantissa, exponent) = token.split_once(['e', 'E']).unwrap_or((token, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = format!("{whole}{fraction}");
        let kept = digits.trim_end_matches('0');
        let zeros = digits.len() - kept.len();
        let digits = kept.trim_start_matches('0').to_owned();
        if digits.is_empty() {
            return Self { digits, exponent: 0 };
        }
        // A number with more digits than that is not a finite double, or rounds to zero.
        let exponent = exponent.parse::<i64>().unwrap_or(i64::MAX / 2);
        let shift = i64::try_from(zeros).unwrap_or(0) - i64::try_from(fraction.len()).unwrap_or(0);
        Self { digits, exponent: exponent.saturating_add(shift) }
    }
}
