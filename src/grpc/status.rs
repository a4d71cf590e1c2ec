//! How a failed request is told over gRPC: a status with the row's name in its details.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt};

use crate::error::{Error, Retry};

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let row = error.kind().row();
        let mut details = ErrorDetails::with_error_info(row.name, "kmsgate", HashMap::new());
        if row.retry == Retry::Backoff {
            details.set_retry_info(Some(Duration::from_secs(1)));
        }
        let mut status = Self::with_error_details(row.grpc, error.to_string(), details);
        status.set_source(Arc::new(error));
        status
    }
}
