//! The storage account, and credentials as Azure's tools find them: connection string, key, SAS token, client secret,
//! workload identity, and the machine.

use reqsign_azure_storage::{
    ClientSecretCredentialProvider, Credential, ImdsCredentialProvider,
    WorkloadIdentityCredentialProvider,
};
use reqsign_core::{Context, ProvideCredential};
use url::Url;

use super::Pass;
use crate::remote::cloud::context::{self, Machine, Source, source};
use crate::remote::cloud::{endpoint, made};
use crate::remote::{RemoteError, RemoteOptions, Secret};

/// What to do when nothing is found.
const ADVICE: &str = "set AZURE_STORAGE_KEY, AZURE_STORAGE_SAS_TOKEN or AZURE_STORAGE_CONNECTION_STRING, or \
                      AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET, or use -o anonymous for a public container";

/// The account, and what was said about it.
pub(super) struct Account {
    name: Option<String>,
    endpoint: Option<(String, &'static str)>,
    key: Option<(Secret, &'static str)>,
    sas: Option<(Secret, &'static str)>,
}

impl Account {
    /// What options and environment say. The option outweighs the account's variable, and that the connection string.
    pub(super) fn new(options: &RemoteOptions) -> Result<Self, RemoteError> {
        let get = |name: &'static str| options.environment.get(name).map(|value| (value, name));
        let secret = |found: Option<(&str, &'static str)>| {
            found.map(|(value, name)| (Secret::new(value), name))
        };
        let variable = "AZURE_STORAGE_CONNECTION_STRING";
        let string = Strings(options.environment.get(variable).unwrap_or_default());
        let said = |name: &str| string.get(name).map(|value| (value, variable));
        let of_string = string
            .get("BlobEndpoint")
            .map(str::to_owned)
            .or_else(|| string.host());
        Ok(Self {
            name: options
                .account
                .clone()
                .or_else(|| get("AZURE_STORAGE_ACCOUNT").map(|(value, _)| value.to_owned()))
                .or_else(|| string.get("AccountName").map(str::to_owned)),
            endpoint: options
                .endpoint
                .clone()
                .map(|url| (url, "option endpoint"))
                .or_else(|| get("AZURE_STORAGE_ENDPOINT").map(|(url, name)| (url.to_owned(), name)))
                .or_else(|| of_string.map(|url| (url, variable))),
            key: secret(get("AZURE_STORAGE_KEY").or_else(|| said("AccountKey"))),
            sas: secret(get("AZURE_STORAGE_SAS_TOKEN").or_else(|| said("SharedAccessSignature"))),
        })
    }

    /// Where it is.
    pub(super) fn endpoint(&self) -> Result<Url, RemoteError> {
        if let Some((url, from)) = &self.endpoint {
            return endpoint(url, from);
        }
        let name = self.name()?;
        made(&format!("https://{name}.blob.core.windows.net"))
    }

    fn name(&self) -> Result<&str, RemoteError> {
        let good =
            |name: &&str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let name = self.name.as_deref();
        name.filter(good).ok_or_else(|| {
            let text = "az: which storage account? Say -o account=NAME or AZURE_STORAGE_ACCOUNT"
                .to_owned();
            RemoteError::Misconfigured(text)
        })
    }
}

/// A connection string: `Name=value;…`.
struct Strings<'a>(&'a str);

impl<'a> Strings<'a> {
    fn get(&self, name: &str) -> Option<&'a str> {
        let pairs = self.0.split(';').filter_map(|pair| pair.split_once('='));
        let found = pairs.filter(|(found, _)| found.trim().eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.trim()).next()
    }

    fn host(&self) -> Option<String> {
        let (name, suffix) = (self.get("AccountName")?, self.get("EndpointSuffix")?);
        let scheme = self.get("DefaultEndpointsProtocol").unwrap_or("https");
        Some(format!("{scheme}://{name}.blob.{suffix}"))
    }
}

/// What was said outright.
struct Said(Credential);

impl std::fmt::Debug for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Said(..)")
    }
}

impl ProvideCredential for Said {
    type Credential = Credential;

    async fn provide_credential(&self, _: &Context) -> reqsign_core::Result<Option<Credential>> {
        Ok(Some(self.0.clone()))
    }
}

/// All that may have credentials.
pub(super) struct Chest {
    context: Context,
    sources: Vec<Source<Credential>>,
}

impl Chest {
    pub(super) fn new(options: &RemoteOptions, account: &Account) -> Result<Self, RemoteError> {
        let context = context::context(options, Vec::new())?;
        let mut sources = Vec::new();
        if let Some((key, from)) = &account.key {
            let key = Credential::with_shared_key(account.name()?, key.reveal());
            sources.push(source(from, Said(key)));
        }
        if let Some((sas, from)) = &account.sas {
            let sas = Credential::with_sas_token(sas.reveal().trim_start_matches('?'));
            sources.push(source(from, Said(sas)));
        }
        sources.push(source(
            "client secret",
            ClientSecretCredentialProvider::new(),
        ));
        sources.push(source(
            "workload identity",
            WorkloadIdentityCredentialProvider::new(),
        ));
        if options.imds.unwrap_or(true) {
            sources.push(source(
                "metadata service",
                Machine(ImdsCredentialProvider::new()),
            ));
        }
        Ok(Self { context, sources })
    }

    pub(super) async fn open(&self) -> Result<Pass, RemoteError> {
        let found = context::first(&self.sources, &self.context, ADVICE).await?;
        // Whether they last is known here, by the clock that this project is handed.
        Ok(match found {
            Credential::BearerToken { token, expires_in } => Pass {
                credential: Credential::with_bearer_token(&token, None),
                until: expires_in.map(|stamp| stamp.as_system_time()),
            },
            credential => Pass {
                credential,
                until: None,
            },
        })
    }
}
