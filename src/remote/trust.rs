//! Why a certificate is not believed, and what to do: found in an error of any library, and said in the same words for every kind
//! of connection.
//!
//! This module opens no connection and knows no protocol.

use std::error::Error;
use std::io;

use rustls::CertificateError;

/// What is wrong with the server's certificate and what to do, if that is why a connection failed.
pub(super) fn distrusted(error: &(dyn Error + 'static)) -> Option<String> {
    certificate(error).map(distrust)
}

/// What to do, if a connection failed because the server wants to see another certificate of ours, or one at all.
#[cfg(feature = "grpc")]
pub(super) fn wants_ours(error: &(dyn Error + 'static)) -> Option<String> {
    use rustls::AlertDescription as Alert;
    let rustls::Error::AlertReceived(alert) = tls(error)? else {
        return None;
    };
    let about_ours = matches!(
        alert,
        Alert::CertificateRequired
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
    );
    about_ours.then(|| {
        format!(
            "the server does not take our certificate ({alert:?}); name the right one with \
             -o client_cert_file=FILE and client_key_file=FILE"
        )
    })
}

/// What is wrong with the server's certificate, if that is why it failed.
fn certificate<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a CertificateError> {
    match tls(error)? {
        rustls::Error::InvalidCertificate(wrong) => Some(wrong),
        _ => None,
    }
}

/// The error of TLS that is at the bottom of a failure.
fn tls<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        // An io::Error hides the error that it carries, and shows only what caused that.
        let carried = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
            .map(|carried| carried as &(dyn Error + 'static));
        if let Some(tls) = error.downcast_ref() {
            return Some(tls);
        }
        cause = carried.or_else(|| error.source());
    }
    None
}

/// What is wrong with a certificate, and what to do.
fn distrust(wrong: &CertificateError) -> String {
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

#[cfg(test)]
mod tests {
    #[test]
    #[cfg(feature = "grpc")]
    fn an_alert_about_our_certificate_says_which_options_name_it() {
        use rustls::AlertDescription as Alert;
        use std::io::Error;

        let why = |alert| super::wants_ours(&Error::other(rustls::Error::AlertReceived(alert)));
        let said = why(Alert::CertificateRequired).unwrap();
        assert!(said.contains("client_cert_file=FILE"), "{said}");
        assert_eq!(why(Alert::DecodeError), None);
        assert_eq!(super::wants_ours(&Error::other("else")), None);
    }
}
