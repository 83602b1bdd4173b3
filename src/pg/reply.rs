//! Reads a row that the server sent. The driver's own `get` panics if a column is NULL or has another type, and a
//! server may hide a column from a role. So each value is read by [`Reply::at`], whose error a caller must handle.

use std::fmt;

use tokio_postgres::Row;
use tokio_postgres::row::RowIndex;
use tokio_postgres::types::FromSql;

use crate::error::{Error, ErrorKind, Result, chain};

pub(crate) trait Reply {
    /// The value of a column, by its name, or by its place from 0 on if it has no name. A column that may be NULL is an
    /// `Option`.
    fn at<'a, T: FromSql<'a>>(&'a self, column: impl RowIndex + fmt::Display + Copy) -> Result<T>;
}

impl Reply for Row {
    fn at<'a, T: FromSql<'a>>(&'a self, column: impl RowIndex + fmt::Display + Copy) -> Result<T> {
        self.try_get(column).map_err(|e| {
            let columns: Vec<_> = self.columns().iter().map(|column| column.name()).collect();
            let text = format!("column {column} of the answer ({}) cannot be used: {}", columns.join(", "), chain(&e));
            Error::new(ErrorKind::Database, text)
                .help("see whether the server hides the column from this role, or an extension or a proxy changes it")
                .caused_by(e)
        })
    }
}
