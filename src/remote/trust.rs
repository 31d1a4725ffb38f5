//! Certificates that are not to be believed: found in an error of any library, and said in words that help.
//!
//! This module opens no connection and knows no protocol.

use std::error::Error;
use std::io;

use rustls::CertificateError;

/// What is wrong with the server's certificate, if that is why it failed.
pub(super) fn flaw<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a CertificateError> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        // An io::Error hides the error that it carries, and shows only what caused that.
        let carried = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
            .map(|carried| carried as &(dyn Error + 'static));
        if let Some(rustls::Error::InvalidCertificate(wrong)) = error.downcast_ref() {
            return Some(wrong);
        }
        cause = carried.or_else(|| error.source());
    }
    None
}

/// What is wrong with a certificate, and what to do.
pub(super) fn distrust(wrong: &CertificateError) -> String {
    use CertificateError as Wrong;
    let hint = match wrong {
        Wrong::UnknownIssuer => {
            "; if the server is the right one, name the certificate of its authority with -o ca_file=FILE"
        }
        Wrong::Expired | Wrong::ExpiredContext { .. } => {
            "; renew the certificate of the server (is the clock right here?)"
        }
        Wrong::NotValidYet | Wrong::NotValidYetContext { .. } => {
            "; is the clock right, here and where the certificate was made?"
        }
        Wrong::NotValidForName | Wrong::NotValidForNameContext { .. } => {
            "; use a name in the URL that the certificate of the server has, or give the certificate this name"
        }
        wrong if format!("{wrong:?}").contains("CaUsedAsEndEntity") => {
            "; the server shows the certificate of an authority (self-signed) as its own: \
             make it one with CA:FALSE (openssl req -x509 -addext basicConstraints=CA:FALSE) \
             and name that with -o ca_file=FILE, or let an authority sign it and name that"
        }
        _ => "; is it the right server? An authority of your own is named with -o ca_file=FILE",
    };
    format!("the certificate is not trusted: {wrong}{hint}")
}
