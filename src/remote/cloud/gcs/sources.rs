//! Credentials as Google's libraries find them: the file that GOOGLE_APPLICATION_CREDENTIALS names, that of
//! `gcloud auth application-default login`, and the machine.
//!
//! What is in a file (a service account, a user, a workload identity) is the library's affair; a service account is
//! exchanged for a token here, so that it can be kept.

use reqsign_core::{Context, ProvideCredential};
use reqsign_google::{
    Credential, FileCredentialProvider, ServiceAccountTokenCredentialProvider,
    VmMetadataCredentialProvider,
};

use super::Token;
use crate::remote::cloud::context::{self, Machine, Source, source};
use crate::remote::{RemoteError, RemoteOptions, Secret};

/// All that a cache needs.
const SCOPE: &str = "https://www.googleapis.com/auth/devstorage.read_write";

/// What to do when nothing is found.
const ADVICE: &str = "name a service account's file in GOOGLE_APPLICATION_CREDENTIALS, run `gcloud auth \
                      application-default login`, or use -o anonymous for a public bucket";

/// All that may have credentials.
pub(super) struct Chest {
    context: Context,
    sources: Vec<Source<Credential>>,
}

/// A file of any kind, as a token.
#[derive(Debug)]
struct File(String);

impl ProvideCredential for File {
    type Credential = Credential;

    async fn provide_credential(
        &self,
        context: &Context,
    ) -> reqsign_core::Result<Option<Credential>> {
        let provider = FileCredentialProvider::new(&self.0).with_scope(SCOPE);
        let found = provider.provide_credential(context).await?;
        match found {
            Some(Credential {
                service_account: Some(account),
                token: None,
                ..
            }) => {
                let provider =
                    ServiceAccountTokenCredentialProvider::new(account).with_scope(SCOPE);
                provider.provide_credential(context).await
            }
            found => Ok(found),
        }
    }
}

impl Chest {
    pub(super) fn new(options: &RemoteOptions) -> Result<Self, RemoteError> {
        Ok(Self::in_context(
            options,
            context::context(options, Vec::new())?,
        ))
    }

    fn in_context(options: &RemoteOptions, context: Context) -> Self {
        let environment = &options.environment;
        let mut sources = Vec::new();
        if let Some(path) = environment.get("GOOGLE_APPLICATION_CREDENTIALS") {
            sources.push(source(
                &format!("GOOGLE_APPLICATION_CREDENTIALS ({path})"),
                File(path.to_owned()),
            ));
        }
        let usual = environment
            .get("HOME")
            .map(|home| format!("{home}/.config/gcloud/application_default_credentials.json"));
        if let Some(path) = usual.filter(|path| std::path::Path::new(path).exists()) {
            sources.push(source(&path, File(path.clone())));
        }
        if options.imds.unwrap_or(true) {
            let machine = VmMetadataCredentialProvider::new().with_scope(SCOPE);
            sources.push(source("metadata service", Machine(machine)));
        }
        Self { context, sources }
    }

    pub(super) async fn open(&self) -> Result<Token, RemoteError> {
        let found = context::first(&self.sources, &self.context, ADVICE).await?;
        let token = found.token.ok_or_else(|| {
            RemoteError::Refused(format!(
                "get credentials: what was found gives no token; {ADVICE}"
            ))
        })?;
        Ok(Token {
            token: Secret::new(token.access_token),
            until: token.expires_at.map(|stamp| stamp.as_system_time()),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::{Arc, Mutex};

    use bytes::Bytes;
    use reqsign_core::HttpSend;

    use super::*;
    use crate::remote::Environment;

    /// The token service of Google, which stands at one place in the world.
    #[derive(Clone, Debug, Default)]
    struct Google(Arc<Mutex<Vec<(String, String)>>>);

    impl HttpSend for Google {
        async fn http_send(
            &self,
            request: http::Request<Bytes>,
        ) -> reqsign_core::Result<http::Response<Bytes>> {
            let body = String::from_utf8_lossy(request.body()).into_owned();
            let known = body.contains("assertion=ey") || body.contains("s3cret-refresh");
            self.0
                .lock()
                .unwrap()
                .push((request.uri().to_string(), body));
            let mut answer = http::Response::new(Bytes::from(
                r#"{"access_token":"s3cret-token","expires_in":3599}"#,
            ));
            if !known {
                *answer.status_mut() = http::StatusCode::UNAUTHORIZED;
            }
            Ok(answer)
        }
    }

    fn open(variables: &[(&str, &str)], google: &Google) -> Result<Token, RemoteError> {
        let pairs = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let options = RemoteOptions {
            environment: Environment::new(pairs),
            imds: Some(false),
            ..RemoteOptions::default()
        };
        let context = context::context(&options, Vec::new())
            .unwrap()
            .with_http_send(google.clone());
        let chest = Chest::in_context(&options, context);
        crate::remote::runtime::shared().unwrap().run(chest.open())
    }

    #[test]
    fn a_service_account_is_exchanged_for_a_token() {
        let key = Command::new("openssl")
            .args([
                "genpkey",
                "-algorithm",
                "RSA",
                "-pkeyopt",
                "rsa_keygen_bits:2048",
            ])
            .output()
            .expect("openssl is there: scripts/setup servers");
        let key = String::from_utf8(key.stdout).unwrap();
        let dir = tempfile::TempDir::new().unwrap();
        let file = dir.path().join("service.json");
        let account = serde_json::json!({
            "type": "service_account", "client_email": "ci@project.iam.gserviceaccount.com", "private_key": key,
        });
        std::fs::write(&file, account.to_string()).unwrap();
        let google = Google::default();
        let token = open(
            &[("GOOGLE_APPLICATION_CREDENTIALS", file.to_str().unwrap())],
            &google,
        )
        .unwrap();
        assert!(token.token.reveal() == "s3cret-token" && token.until.is_some());
        assert_eq!(
            google.0.lock().unwrap()[0].0,
            "https://oauth2.googleapis.com/token"
        );
    }

    #[test]
    fn the_login_of_gcloud_is_found_below_home() {
        let home = tempfile::TempDir::new().unwrap();
        let dir = home.path().join(".config/gcloud");
        std::fs::create_dir_all(&dir).unwrap();
        let login = |refresh: &str| {
            let text = serde_json::json!({
                "type": "authorized_user", "client_id": "i", "client_secret": "s3cret", "refresh_token": refresh,
            });
            std::fs::write(
                dir.join("application_default_credentials.json"),
                text.to_string(),
            )
            .unwrap();
            open(
                &[("HOME", home.path().to_str().unwrap())],
                &Google::default(),
            )
        };
        assert_eq!(
            login("s3cret-refresh").unwrap().token.reveal(),
            "s3cret-token"
        );
        let error = login("s3cret-other").err().unwrap();
        let text = format!("{error} {error:?}");
        assert!(
            matches!(error, RemoteError::Refused(_)) && !text.contains("s3cret-other"),
            "{text}"
        );
    }
}
