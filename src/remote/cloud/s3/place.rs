//! Where a bucket is: from options, environment and profile to URLs.

use std::sync::{PoisonError, RwLock};

use url::Url;

use crate::remote::cloud::s3::profile::Profile;
use crate::remote::cloud::{Bucket, bare, endpoint, in_path, made, query};
use crate::remote::{RemoteError, RemoteOptions};

/// Where AWS takes requests for buckets of every region, and answers with the right one.
const ANYWHERE: &str = "us-east-1";

/// A bucket, its endpoint and its region.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) bucket: Bucket,
    /// None for AWS itself, whose endpoint follows from the region.
    endpoint: Option<Url>,
    /// The bucket stands in the path rather than in the host.
    in_path: bool,
    /// What requests are signed for; a store may know better.
    region: RwLock<String>,
}

impl Place {
    pub(super) fn new(
        url: &Url,
        options: &RemoteOptions,
        profile: &Profile,
    ) -> Result<Self, RemoteError> {
        let bucket = Bucket::of(url)?;
        let environment = |name: &str| options.environment.get(name).map(str::to_owned);
        let (from, given) = [
            ("option endpoint", options.endpoint.clone()),
            ("AWS_ENDPOINT_URL_S3", environment("AWS_ENDPOINT_URL_S3")),
            ("AWS_ENDPOINT_URL", environment("AWS_ENDPOINT_URL")),
            ("endpoint_url of the profile", profile.get("endpoint_url")),
        ]
        .into_iter()
        .find_map(|(from, given)| given.map(|given| (from, Some(given))))
        .unwrap_or(("", None));
        let endpoint = given.map(|given| endpoint(&given, from)).transpose()?;
        let region = options
            .region
            .clone()
            .or_else(|| environment("AWS_REGION"))
            .or_else(|| environment("AWS_DEFAULT_REGION"))
            .or_else(|| profile.get("region"))
            .unwrap_or_else(|| ANYWHERE.to_owned());
        if !is_region(&region) {
            let text = "the region is not one; want a name such as eu-central-1".to_owned();
            return Err(RemoteError::Misconfigured(text));
        }
        // A certificate for `*.s3.amazonaws.com` is none for a name with more dots.
        let dotted = bucket.name.contains('.');
        let in_path = options.path_style.unwrap_or(endpoint.is_some() || dotted);
        Ok(Self {
            bucket,
            endpoint,
            in_path,
            region: RwLock::new(region),
        })
    }

    pub(super) fn region(&self) -> String {
        let region = self.region.read().unwrap_or_else(PoisonError::into_inner);
        region.clone()
    }

    /// The store says that the bucket is in another region; whether that is news.
    pub(super) fn moved_to(&self, region: &str) -> bool {
        if !is_region(region) || self.region() == region {
            return false;
        }
        let bucket = &self.bucket.name;
        log::warn!(
            "the bucket {bucket} is in the region {region}; -o region={region} saves asking"
        );
        *self.region.write().unwrap_or_else(PoisonError::into_inner) = region.to_owned();
        true
    }

    /// Where credentials may be sent to.
    pub(super) fn origin(&self) -> Result<Url, RemoteError> {
        self.object("", &[])
    }

    /// The URL of an object.
    pub(super) fn object(&self, key: &str, pairs: &[(&str, &str)]) -> Result<Url, RemoteError> {
        self.url(&self.bucket.name_of(key), pairs)
    }

    /// The URL of the bucket.
    pub(super) fn whole(&self, pairs: &[(&str, &str)]) -> Result<Url, RemoteError> {
        self.url("", pairs)
    }

    /// The object as the source of a copy.
    pub(super) fn source(&self, key: &str) -> String {
        format!(
            "/{}/{}",
            self.bucket.name,
            in_path(&self.bucket.name_of(key))
        )
    }

    fn url(&self, name: &str, pairs: &[(&str, &str)]) -> Result<Url, RemoteError> {
        let base = match &self.endpoint {
            Some(endpoint) => bare(endpoint).to_owned(),
            None => aws(&self.region()),
        };
        let bucket = &self.bucket.name;
        let base = match base.split_once("://") {
            Some((scheme, host)) if !self.in_path => format!("{scheme}://{bucket}.{host}"),
            _ => format!("{base}/{bucket}"),
        };
        let query = if pairs.is_empty() {
            String::new()
        } else {
            query(pairs)
        };
        made(&format!("{base}/{}{query}", in_path(name)))
    }
}

fn aws(region: &str) -> String {
    let suffix = if region.starts_with("cn-") {
        "amazonaws.com.cn"
    } else {
        "amazonaws.com"
    };
    format!("https://s3.{region}.{suffix}")
}

/// It becomes part of a host name.
fn is_region(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (1..=64).contains(&text.len()) && text.bytes().all(good)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::Environment;

    fn place(url: &str, options: RemoteOptions) -> Result<Place, RemoteError> {
        Place::new(&Url::parse(url).unwrap(), &options, &Profile::default())
    }

    fn with(endpoint: &str) -> RemoteOptions {
        RemoteOptions {
            endpoint: Some(endpoint.to_owned()),
            ..RemoteOptions::default()
        }
    }

    #[test]
    fn the_bucket_is_in_the_host_at_aws_and_in_the_path_elsewhere() {
        let url = |url, options| {
            place(url, options)
                .unwrap()
                .object("ab/x", &[])
                .unwrap()
                .to_string()
        };
        let aws = RemoteOptions::default;
        let china = RemoteOptions {
            region: Some("cn-north-1".to_owned()),
            ..aws()
        };
        let host = RemoteOptions {
            path_style: Some(false),
            ..with("https://h:9/")
        };
        assert_eq!(
            url("s3://b/p", aws()),
            "https://b.s3.us-east-1.amazonaws.com/p/ab/x"
        );
        assert_eq!(
            url("s3://b.c", aws()),
            "https://s3.us-east-1.amazonaws.com/b.c/ab/x"
        );
        assert_eq!(
            url("s3://b", china),
            "https://b.s3.cn-north-1.amazonaws.com.cn/ab/x"
        );
        assert_eq!(
            url("s3://b/p%20(+)/", with("http://h:9/")),
            "http://h:9/b/p%20%28%2B%29/ab/x"
        );
        assert_eq!(url("s3://b", host), "https://b.h:9/ab/x");
    }

    #[test]
    fn options_outweigh_the_environment_and_that_the_profile() {
        let variables = [
            ("AWS_ENDPOINT_URL", "http://e"),
            ("AWS_DEFAULT_REGION", "r2"),
        ];
        let pairs = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let environment = Environment::new(pairs);
        let options = RemoteOptions {
            environment,
            ..RemoteOptions::default()
        };
        let both = place("s3://b", options.clone()).unwrap();
        assert_eq!(
            (both.region().as_str(), both.origin().unwrap().as_str()),
            ("r2", "http://e/b/")
        );
        let options = RemoteOptions {
            region: Some("r1".to_owned()),
            endpoint: Some("http://o".to_owned()),
            ..options
        };
        let both = place("s3://b", options).unwrap();
        assert_eq!(
            (both.region().as_str(), both.origin().unwrap().as_str()),
            ("r1", "http://o/b/")
        );
    }

    #[test]
    fn what_cannot_be_is_refused_without_repeating_a_password() {
        for (url, options) in [
            ("s3://key:s3cret@b/p", RemoteOptions::default()),
            ("s3://s3cret@b/p", RemoteOptions::default()),
            ("s3:///p", RemoteOptions::default()),
            ("s3://b:9000/p", RemoteOptions::default()),
            ("s3://b/a/%2e%2e/c%00", RemoteOptions::default()),
            ("s3://b", with("ftp://h")),
            ("s3://b", with("https://u:s3cret@h")),
            ("s3://b", with("h:9")),
            (
                "s3://b",
                RemoteOptions {
                    region: Some("a.b/".to_owned()),
                    ..RemoteOptions::default()
                },
            ),
        ] {
            let error = place(url, options).unwrap_err();
            assert!(
                matches!(&error, RemoteError::Misconfigured(text) if !text.contains("s3cret")),
                "{error:?}"
            );
        }
    }

    #[test]
    fn a_region_that_the_store_names_is_taken_once() {
        let place = place("s3://b", RemoteOptions::default()).unwrap();
        assert!(place.moved_to("eu-west-1") && !place.moved_to("eu-west-1"));
        assert!(!place.moved_to("evil.example/") && place.region() == "eu-west-1");
        assert_eq!(
            place.origin().unwrap().host_str(),
            Some("b.s3.eu-west-1.amazonaws.com")
        );
    }
}
