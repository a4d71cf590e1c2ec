//! BackUpStore: a copy of the whole store, while it is served.

use std::fs::File;

use crate::error::{Error, Kind};
use crate::service::{Call, Kms};

impl Kms {
    /// Copies the store into a file without a name, which is the store as it is now.
    pub async fn back_up(&self, call: &Call<'_>) -> Result<File, Error> {
        call.allowed()?;
        let Some(store) = &self.backup else {
            return Err(Error::from(Kind::MethodNotSupported)
                .detail("The server's store is not a file. Back it up by its own means."));
        };
        Ok(store.back_up().await?)
    }
}
