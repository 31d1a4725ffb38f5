//! What S3's errors mean, and what to do about each.

use std::time::SystemTime;

use crate::remote::RemoteError;
use crate::remote::cloud::s3::place::Place;
use crate::remote::cloud::session::{Refusal, Verdict};

/// Clocks that are further apart than this are worth mentioning; AWS takes a quarter of an hour.
const SKEW_MIN: u64 = 300;

/// The error that a refusal stands for.
pub(super) fn explain(refusal: &Refusal, place: &Place, now: SystemTime) -> RemoteError {
    let bucket = &place.bucket.name;
    let skewed = refusal
        .skew(now)
        .filter(|(seconds, _)| *seconds >= SKEW_MIN);
    let clock = skewed.map(|(seconds, ahead)| {
        let way = if ahead { "ahead of" } else { "behind" };
        format!("the clock here is {seconds} s {way} the store's; set it (NTP)")
    });
    let (verdict, advice) = match refusal.code.as_str() {
        "NoSuchBucket" => (
            Verdict::Misconfigured,
            format!("make the bucket {bucket}, or name another one (and its -o region or -o endpoint)"),
        ),
        "InvalidBucketName" => (Verdict::Misconfigured, "the URL is s3://BUCKET/PREFIX".to_owned()),
        "RequestTimeTooSkewed" => (
            Verdict::Refused,
            clock.unwrap_or_else(|| "the clock here or the store's is wrong; set it (NTP)".to_owned()),
        ),
        "InvalidAccessKeyId" => (
            Verdict::Refused,
            "the store knows no such key: is it of this account or endpoint, and not deleted?".to_owned(),
        ),
        "SignatureDoesNotMatch" => (
            Verdict::Refused,
            clock.unwrap_or_else(|| {
                "the secret key is not the one of this key id (or a proxy changed the request)".to_owned()
            }),
        ),
        "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" | "InvalidToken" => (
            Verdict::Refused,
            "the session is over: log in anew (aws sso login), or replace AWS_SESSION_TOKEN and the keys with it \
             and mount again"
                .to_owned(),
        ),
        "AccessDenied" | "AllAccessDisabled" | "AccountProblem" => (
            Verdict::Refused,
            format!(
                "allow s3:GetObject, s3:PutObject, s3:DeleteObject on {bucket}/* and s3:ListBucket on {bucket} \
                 (without the latter S3 says 403 for what is not there, too)"
            ),
        ),
        "PermanentRedirect" | "TemporaryRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException" => (
            Verdict::Misconfigured,
            match region(refusal) {
                Some(region) => format!("the bucket is in another region: -o region={region}"),
                None => "the bucket is in another region or at another endpoint: -o region=NAME, -o endpoint=URL".to_owned(),
            },
        ),
        "SlowDown" | "RequestLimitExceeded" | "TooManyRequests" | "TooManyRequestsException" => {
            (Verdict::Busy, String::new())
        }
        "NotImplemented" => (Verdict::Unsupported, String::new()),
        "EntityTooLarge" | "QuotaExceeded" | "XMinioStorageFull" | "InsufficientStorage" => (Verdict::Full, String::new()),
        "InternalError" | "ServiceUnavailable" | "RequestTimeout" | "OperationAborted" | "IncompleteBody" | "BadDigest" | "XAmzContentSHA256Mismatch" | "NoSuchUpload" => {
            let said = refusal.verdict();
            let busy = said == Verdict::Busy;
            (if busy { said } else { Verdict::Transient }, String::new())
        }
        _ => (refusal.verdict(), general(refusal)),
    };
    refusal.error(verdict, &advice)
}

fn general(refusal: &Refusal) -> String {
    match refusal.status.as_u16() {
        401 | 403 => "are the credentials right, and may they do this?".to_owned(),
        301 | 307 | 308 => "name the right -o region or -o endpoint".to_owned(),
        _ => String::new(),
    }
}

/// Where the bucket is, if the store says so.
pub(super) fn region(refusal: &Refusal) -> Option<&str> {
    let names_one = matches!(
        refusal.code.as_str(),
        "AuthorizationHeaderMalformed" | "PermanentRedirect" | "TemporaryRedirect" | ""
    );
    let named = refusal.header("x-amz-bucket-region");
    named.or(refusal.region.as_deref()).filter(|_| names_one)
}

/// Whether the credentials are what is over.
pub(super) fn is_stale(refusal: &Refusal) -> bool {
    matches!(
        refusal.code.as_str(),
        "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" | "InvalidToken"
    )
}
