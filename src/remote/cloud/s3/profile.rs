//! Credentials as boto3 and the AWS CLI find them: environment, profile, container, virtual machine.
//!
//! The files are read here, because region and endpoint stand in them too, and because a profile says which of several
//! ways its credentials come; each way itself is the library's.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use reqsign_aws_v4::{
    AssumeRoleCredentialProvider, AssumeRoleWithWebIdentityCredentialProvider, Credential,
    ECSCredentialProvider, EnvCredentialProvider, IMDSv2CredentialProvider,
    ProcessCredentialProvider, RequestSigner, SSOCredentialProvider, StaticCredentialProvider,
};
use reqsign_core::{Context, ProvideCredential, Signer};
use url::Url;

use crate::remote::cloud::context::{self, Machine, Source, source};
use crate::remote::cloud::{endpoint, s3::Keys};
use crate::remote::{Environment, RemoteError, RemoteOptions};

/// Largest file that is taken for one of profiles.
const FILE_MAX: u64 = 1 << 20;

/// Profiles that take their credentials from another one, in a row.
const CHAIN_MAX: usize = 5;

/// What the sections of logins begin with.
const SSO_SESSION: &str = "sso-session ";

/// What to do when nothing is found.
const ADVICE: &str = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, run `aws configure` or `aws sso login`, name a profile \
                      with -o profile=NAME, or use -o anonymous for a public bucket";

/// Where a role's session is seen in the logs of AWS.
const SESSION_NAME: &str = "cachedirfs";

/// A profile: what both files say under its name.
#[derive(Clone, Default)]
pub(super) struct Profile {
    name: String,
    values: BTreeMap<String, String>,
    /// Every profile, for the one that it takes its credentials from.
    all: Arc<BTreeMap<String, BTreeMap<String, String>>>,
}

impl Profile {
    /// The one that `options` choose. Naming one that is not there is an error.
    pub(super) fn read(options: &RemoteOptions) -> Result<Self, RemoteError> {
        let environment = &options.environment;
        let chosen = options
            .profile
            .as_deref()
            .or_else(|| environment.get("AWS_PROFILE"));
        let mut all = BTreeMap::new();
        for (variable, name) in [
            ("AWS_CONFIG_FILE", "config"),
            ("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
        ] {
            if let Some(text) = read(environment, variable, name)? {
                parse(&text, &mut all);
            }
        }
        let name = chosen.unwrap_or("default").to_owned();
        let values = all.get(&name).cloned();
        if let (None, Some(name)) = (&values, chosen) {
            let is_profile = |name: &&str| !name.starts_with(SSO_SESSION);
            let known: Vec<_> = all.keys().map(String::as_str).filter(is_profile).collect();
            let known = context::printable(&known.join(", "));
            return Err(RemoteError::Misconfigured(format!(
                "profile {name:?}: not in ~/.aws/config nor in ~/.aws/credentials (or where AWS_CONFIG_FILE and \
                 AWS_SHARED_CREDENTIALS_FILE say); known are: {known}"
            )));
        }
        Ok(Self {
            name,
            values: values.unwrap_or_default(),
            all: Arc::new(all),
        })
    }

    /// What it says.
    pub(super) fn get(&self, name: &str) -> Option<String> {
        self.values.get(name).cloned()
    }

    fn other(&self, name: &str) -> Option<Self> {
        Some(Self {
            name: name.to_owned(),
            values: self.all.get(name)?.clone(),
            all: Arc::clone(&self.all),
        })
    }

    fn source(
        &self,
        provider: impl ProvideCredential<Credential = Credential>,
    ) -> Source<Credential> {
        source(&format!("profile {}", self.name), provider)
    }

    /// The ways that it names, in the order of the AWS tools.
    fn sources(
        &self,
        context: &Context,
        region: &str,
        depth: usize,
    ) -> Result<Vec<Source<Credential>>, RemoteError> {
        let mut sources = Vec::new();
        if let Some(role) = self.get("role_arn") {
            sources.push(self.role(role, context, region, depth)?);
        }
        sources.extend(self.login());
        if let (Some(id), Some(key)) = (
            self.get("aws_access_key_id"),
            self.get("aws_secret_access_key"),
        ) {
            let keys = StaticCredentialProvider::new(&id, &key);
            let token = self.get("aws_session_token");
            sources.push(match token {
                Some(token) => self.source(keys.with_session_token(&token)),
                None => self.source(keys),
            });
        }
        if let Some(command) = self.get("credential_process") {
            let process = ProcessCredentialProvider::new().with_command(command);
            sources.push(source(
                &format!("credential_process of profile {}", self.name),
                process,
            ));
        }
        Ok(sources)
    }

    /// What `aws sso login` left, if the profile is of that kind.
    fn login(&self) -> Option<Source<Credential>> {
        let session = self.get("sso_session");
        let of_session = |name: &str| {
            let section = format!("{SSO_SESSION}{}", session.as_deref()?);
            self.all.get(&section)?.get(name).cloned()
        };
        // The file of a login is named by its session, or else by its start URL: that is all the library takes it for.
        let named_by = session.clone().or_else(|| self.get("sso_start_url"))?;
        let region = self
            .get("sso_region")
            .or_else(|| of_session("sso_region"))?;
        let login = SSOCredentialProvider::new()
            .with_account_id(self.get("sso_account_id")?)
            .with_role_name(self.get("sso_role_name")?)
            .with_region(region)
            .with_start_url(named_by);
        Some(source(&format!("login of profile {}", self.name), login))
    }

    fn role(
        &self,
        role: String,
        context: &Context,
        region: &str,
        depth: usize,
    ) -> Result<Source<Credential>, RemoteError> {
        let session = self
            .get("role_session_name")
            .unwrap_or_else(|| SESSION_NAME.to_owned());
        if let Some(file) = self.get("web_identity_token_file") {
            let provider =
                AssumeRoleWithWebIdentityCredentialProvider::with_config(role, file.into());
            return Ok(self.source(
                provider
                    .with_role_session_name(session)
                    .with_region(region.to_owned()),
            ));
        }
        let wrong = |why: &str| {
            RemoteError::Misconfigured(format!("profile {}: role_arn: {why}", self.name))
        };
        if depth >= CHAIN_MAX {
            return Err(wrong("its profiles lead in a circle"));
        }
        let from = match (
            self.get("source_profile"),
            self.get("credential_source").as_deref(),
        ) {
            // A profile may name itself: its own keys then.
            (Some(name), _) if name == self.name => {
                let mut own = self.clone();
                own.values.remove("role_arn");
                own.sources(context, region, depth + 1)?
            }
            (Some(name), _) => {
                let other = self
                    .other(&name)
                    .ok_or_else(|| wrong("its source_profile is not there"))?;
                other.sources(context, region, depth + 1)?
            }
            (None, Some("Environment")) => {
                vec![source("environment", EnvCredentialProvider::new())]
            }
            (None, Some("EcsContainer")) => vec![source("container", ECSCredentialProvider::new())],
            (None, Some("Ec2InstanceMetadata")) => {
                vec![source("instance metadata", IMDSv2CredentialProvider::new())]
            }
            _ => return Err(wrong("it needs source_profile or credential_source")),
        };
        let signer = Signer::new(
            context.clone(),
            Chain(from),
            RequestSigner::new("sts", region),
        );
        let mut provider = AssumeRoleCredentialProvider::new(role, signer)
            .with_role_session_name(session)
            .with_region(region.to_owned())
            .with_regional_sts_endpoint();
        if let Some(id) = self.get("external_id") {
            provider = provider.with_external_id(id);
        }
        if let Some(seconds) = self
            .get("duration_seconds")
            .and_then(|text| text.parse().ok())
        {
            provider = provider.with_duration_seconds(seconds);
        }
        Ok(self.source(provider))
    }
}

/// Sources as one provider.
#[derive(Debug)]
struct Chain(Vec<Source<Credential>>);

impl ProvideCredential for Chain {
    type Credential = Credential;

    async fn provide_credential(
        &self,
        context: &Context,
    ) -> reqsign_core::Result<Option<Credential>> {
        for source in &self.0 {
            if let Some(found) = source.provider.provide_credential_dyn(context).await? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

/// All that may have credentials, in the order of the AWS tools.
pub(super) struct Chest {
    context: Context,
    sources: Vec<Source<Credential>>,
}

impl Chest {
    pub(super) fn new(
        options: &RemoteOptions,
        profile: &Profile,
        region: &str,
    ) -> Result<Self, RemoteError> {
        let environment = &options.environment;
        let context = context::context(options, elsewhere(environment)?)?;
        let mut sources = Vec::new();
        // A profile that is named outweighs keys that happen to be in the environment.
        if options.profile.is_none() {
            sources.push(source("environment", EnvCredentialProvider::new()));
        }
        if environment.get("AWS_WEB_IDENTITY_TOKEN_FILE").is_some() && options.profile.is_none() {
            let provider = AssumeRoleWithWebIdentityCredentialProvider::new();
            let session = environment
                .get("AWS_ROLE_SESSION_NAME")
                .unwrap_or(SESSION_NAME);
            let provider = provider.with_role_session_name(session.to_owned());
            let provider = provider
                .with_region(region.to_owned())
                .with_regional_sts_endpoint();
            sources.push(source("web identity token", provider));
        }
        let of_profile = profile.sources(&context, region, 0)?;
        if of_profile.is_empty() {
            sources.push(profile.source(Chain(Vec::new())));
        }
        sources.extend(of_profile);
        sources.push(source("container", ECSCredentialProvider::new()));
        let disabled = environment
            .get("AWS_EC2_METADATA_DISABLED")
            .is_some_and(|said| said.eq_ignore_ascii_case("true"));
        if options.imds.unwrap_or(!disabled) {
            sources.push(source(
                "instance metadata",
                Machine(IMDSv2CredentialProvider::new()),
            ));
        }
        Ok(Self { context, sources })
    }

    pub(super) async fn open(&self) -> Result<Keys, RemoteError> {
        let found = context::first(&self.sources, &self.context, ADVICE).await;
        found.map(Keys::new)
    }
}

/// Where the token service is, if not where AWS has it.
fn elsewhere(environment: &Environment) -> Result<Vec<(&'static str, Url)>, RemoteError> {
    let named = ["AWS_ENDPOINT_URL_STS", "AWS_ENDPOINT_URL"];
    let named = named
        .iter()
        .find_map(|name| Some((*name, environment.get(name)?)));
    let Some((name, url)) = named else {
        return Ok(Vec::new());
    };
    Ok(vec![("sts.", endpoint(url, name)?)])
}

/// One of the two files; one that is not there says nothing, unless it was named.
fn read(
    environment: &Environment,
    variable: &str,
    name: &str,
) -> Result<Option<String>, RemoteError> {
    let named = environment.get(variable).map(|path| {
        match (path.strip_prefix("~/"), environment.get("HOME")) {
            (Some(rest), Some(home)) => PathBuf::from(home).join(rest),
            _ => PathBuf::from(path),
        }
    });
    let usual = environment
        .get("HOME")
        .map(|home| PathBuf::from(home).join(".aws").join(name));
    let Some(path) = named.clone().or(usual) else {
        return Ok(None);
    };
    match std::fs::metadata(&path).and_then(|found| Ok((found.len(), std::fs::read(&path)?))) {
        Ok((len, text)) if len <= FILE_MAX => Ok(Some(String::from_utf8_lossy(&text).into_owned())),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && named.is_none() => Ok(None),
        Err(error) => Err(RemoteError::Misconfigured(format!(
            "read {}: {error}",
            path.display()
        ))),
    }
}

/// Adds the profiles in a file: `[default]`, `[name]` or `[profile name]`, and `name = value` below. What is indented
/// belongs to the line above, and to somebody else.
fn parse(text: &str, all: &mut BTreeMap<String, BTreeMap<String, String>>) {
    let mut current = None;
    for line in text.lines() {
        let is_nested = line.starts_with([' ', '\t']);
        let line = line.trim();
        if is_nested || line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(section) = line.strip_prefix('[') {
            let section = section.split(']').next().unwrap_or_default().trim();
            let name = section.strip_prefix("profile ").unwrap_or(section);
            let name = name.trim().trim_matches('"').to_owned();
            let is_other = section.starts_with("services ");
            current = (!is_other).then_some(name);
        } else if let (Some(name), Some((key, value))) = (&current, line.split_once('=')) {
            let value = value.split(" #").next().unwrap_or_default().trim();
            let profile: &mut BTreeMap<_, _> = all.entry(name.clone()).or_default();
            profile.insert(key.trim().to_owned(), value.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_files_are_understood_with_their_oddities() {
        let mut all = BTreeMap::new();
        parse(
            "[default]\nregion = r1 # mine\ns3 =\n  region = nested\n; no\n[profile \"a b\"]\nrole_arn=x=y\n[sso-session s]\nregion=r9\n",
            &mut all,
        );
        parse(
            "[default]\naws_access_key_id=A\n[lone]\nbad line\n",
            &mut all,
        );
        let get = |profile: &str, key: &str| all.get(profile)?.get(key).map(String::as_str);
        assert_eq!(get("default", "region"), Some("r1"));
        assert_eq!(get("default", "aws_access_key_id"), Some("A"));
        assert_eq!(get("a b", "role_arn"), Some("x=y"));
        assert_eq!(get("sso-session s", "region"), Some("r9"));
        assert_eq!(all.len(), 3, "{:?}", all.keys());
    }

    proptest! {
        #[test]
        fn any_text_is_a_file_of_profiles(text in "(\\[|\\]|profile |=|#|\n| |[a-z]{1,3}){0,30}") {
            parse(&text, &mut BTreeMap::new());
        }
    }
}
