//! Roll-ups at once, for operators and tests that do not wait for the pods'.

use uuid::Uuid;

use super::Operator;
use crate::error::Result;
use crate::history::roll_up::{Maker, RolledUp};

impl Operator {
    /// Makes the hourly rows and the scores now, as the pods do every `roll_up_interval`. If a pod is at it, this waits
    /// until the pod is done, and makes them once more. Scores are made by the label `score_by` of this operator's
    /// configuration, or else as the pods last made them.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Timeout`](crate::ErrorKind::Timeout) if a pod was at it for more than a minute.
    /// [`ErrorKind::Forbidden`](crate::ErrorKind::Forbidden) if the role may not write the rows. Others as
    /// [`Operator::pods`]. An error of one of the two roll-ups does not stop the other. Rows that were written stay.
    ///
    /// # Cancel safety
    ///
    /// A dropped call has written some rows and not others. Calling it again continues. Pods continue it after a minute.
    pub async fn roll_up(&self) -> Result<RolledUp> {
        let (db, label) = (self.database.clone(), self.score_by.clone());
        Maker { db, token: Uuid::now_v7(), by: None, label }.now().await
    }
}
