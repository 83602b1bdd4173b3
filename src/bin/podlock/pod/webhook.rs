//! The webhook of the reference pod: its flags, and where its secrets come from.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use podlock::http::Webhook;

use crate::failure::Failure;

/// The variable that has the secrets.
const VARIABLE: &str = "PODLOCK_WEBHOOK_SECRET";
/// How much of the file is read: 4 KiB. The most secrets that a webhook takes are shorter.
const FILE_MOST: u64 = 4096;

#[derive(Debug, clap::Args)]
pub(super) struct WebhookArgs {
    /// Where alerts are posted: lost pods, quarantined runs, inactive workers. They are signed with the secret in
    /// PODLOCK_WEBHOOK_SECRET; several secrets, separated by spaces, all sign
    #[arg(long, value_name = "URL")]
    webhook: Option<String>,
    /// The file that has the secret, in place of PODLOCK_WEBHOOK_SECRET
    #[arg(long, value_name = "PATH", requires = "webhook")]
    webhook_secret_file: Option<PathBuf>,
    /// Take an http URL of another host as well
    #[arg(long, requires = "webhook")]
    webhook_plain_http: bool,
}

impl WebhookArgs {
    /// The webhook that the command line asks for.
    pub(super) fn webhook(&self) -> Result<Option<Webhook>, Failure> {
        let Some(url) = &self.webhook else { return Ok(None) };
        let text = match (std::env::var_os(VARIABLE).filter(|text| !text.is_empty()), &self.webhook_secret_file) {
            (Some(_), Some(_)) => {
                return Err(Failure::Usage(format!(
                    "{VARIABLE} is set, and --webhook-secret-file is given: leave one out"
                )));
            }
            (None, None) => {
                return Err(Failure::Usage(format!(
                    "--webhook needs a secret: set {VARIABLE}, or give --webhook-secret-file"
                )));
            }
            (Some(text), None) => text.into_string().map_err(|_| Failure::Usage(format!("{VARIABLE} is not UTF-8")))?,
            (None, Some(path)) => read(path)?,
        };
        let mut secrets = text.split_whitespace();
        // The first one may be missing: the library then says what is wrong with an empty one.
        let mut webhook = Webhook::new(url, secrets.next().unwrap_or_default()).map_err(usage)?;
        for secret in secrets {
            webhook = webhook.secret(secret).map_err(usage)?;
        }
        if self.webhook_plain_http {
            webhook = webhook.allow_plain_http();
        }
        webhook.validate().map_err(usage)?;
        Ok(Some(webhook))
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    let failed = |why: &dyn std::fmt::Display| {
        Failure::Failed(format!("cannot read the secret of the webhook from {}: {why}", path.display()))
    };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|e| failed(&e))?;
    file.take(FILE_MOST).read_to_string(&mut text).map_err(|e| failed(&e))?;
    Ok(text)
}

// No error of the library contains a secret.
fn usage(error: podlock::Error) -> Failure {
    Failure::Usage(error.to_string())
}
