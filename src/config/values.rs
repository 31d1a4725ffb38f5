//! Values of options: amounts, durations, switches, counts. Each parser says what would have been right.

use std::net::SocketAddr;
use std::time::Duration;

/// An amount of disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// That many bytes.
    Bytes(u64),
    /// That many percent of the file system.
    Percent(u8),
}

impl Amount {
    /// In bytes, on a file system of `total` bytes.
    pub fn of(self, total: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => total / 100 * u64::from(percent),
        }
    }
}

/// Longest duration that can be said: ten years. Adding one to a clock never overflows.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Most threads of one kind: more than any remote or disk rewards, few enough to start anywhere.
const MOST_THREADS: usize = 256;

/// `20G`, `500MiB`, `10%`. K, M, G and T count in 1024s, as do KiB …; KB … count in 1000s.
pub fn amount(text: &str) -> Result<Amount, String> {
    const EXPECTED: &str = "expected an amount such as 20G, 500MiB or 10%";
    let (number, unit) = split_unit(text);
    let number: u64 = number.parse().map_err(|_| EXPECTED.to_owned())?;
    if unit == "%" {
        let percent = u8::try_from(number).ok().filter(|p| *p <= 100);
        return percent
            .map(Amount::Percent)
            .ok_or_else(|| "there are 100% and no more".into());
    }
    let scale = scale(unit).ok_or_else(|| EXPECTED.to_owned())?;
    let bytes = number
        .checked_mul(scale)
        .ok_or("more bytes than can be counted")?;
    Ok(Amount::Bytes(bytes))
}

/// Bytes a second.
pub(super) fn speed(text: &str) -> Result<u64, String> {
    match amount(text) {
        Ok(Amount::Bytes(bytes)) => Ok(bytes),
        _ => Err("expected bytes a second such as 16K, or 0 for no limit".into()),
    }
}

/// An amount that is not nothing.
pub(super) fn some_amount(text: &str) -> Result<Amount, String> {
    match amount(text)? {
        Amount::Bytes(0) | Amount::Percent(0) => {
            Err("there must be room for something; expected an amount such as 20G".into())
        }
        some => Ok(some),
    }
}

fn scale(unit: &str) -> Option<u64> {
    let unit = unit.to_ascii_uppercase();
    let (letter, base) = match unit.strip_suffix("IB").filter(|letter| !letter.is_empty()) {
        Some(letter) => (letter, 1024_u64),
        None => match unit.strip_suffix('B') {
            Some(letter) => (letter, 1000),
            None => (unit.as_str(), 1024),
        },
    };
    let power = ["", "K", "M", "G", "T"].iter().position(|l| *l == letter)?;
    Some(base.pow(u32::try_from(power).expect("at most four")))
}

fn split_unit(text: &str) -> (&str, &str) {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    text.split_at(digits)
}

/// `10`, `10s`, `500ms`, `2m`, `1h`, `30d`; seconds when no unit is given.
pub fn duration(text: &str) -> Result<Duration, String> {
    const EXPECTED: &str = "expected a time such as 10s, 500ms or 2m";
    let (number, unit) = split_unit(text);
    let number: u64 = number.parse().map_err(|_| EXPECTED.to_owned())?;
    let millis = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(EXPECTED.into()),
    };
    let duration = number.checked_mul(millis).map(Duration::from_millis);
    duration
        .filter(|d| *d <= LONGEST)
        .ok_or_else(|| "longer than ten years".into())
}

/// A duration that is not zero.
pub(super) fn some_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => {
            Err("with no time nothing can succeed; expected a time such as 3s".into())
        }
        some => Ok(some),
    }
}

/// `on` and `off`, and what else people write for them.
pub(super) fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" | "yes" | "true" | "1" => Ok(true),
        "off" | "no" | "false" | "0" => Ok(false),
        _ => Err("expected on or off".into()),
    }
}

/// A number of things, at least one.
pub(super) fn count(text: &str) -> Result<u64, String> {
    let count = text.parse().ok().filter(|n| *n > 0);
    count.ok_or_else(|| "expected a number such as 100000".into())
}

/// A number of threads.
pub(super) fn threads(text: &str) -> Result<usize, String> {
    let expected = || format!("expected a number from 1 to {MOST_THREADS}");
    let number = text.parse().map_err(|_| expected())?;
    if (1..=MOST_THREADS).contains(&number) {
        Ok(number)
    } else {
        Err(expected())
    }
}

/// An address to listen at. No names are looked up: what they mean can change, and who may ask with it.
pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    let address = text
        .strip_prefix("localhost:")
        .map_or_else(|| text.parse(), |port| format!("127.0.0.1:{port}").parse());
    address.map_err(|_| {
        "expected an address and a port such as 127.0.0.1:9469 or [::1]:9469; port 0 takes a free one".into()
    })
}

/// Permission bits in octal.
pub(super) fn mask(text: &str) -> Result<u32, String> {
    let bits = u32::from_str_radix(text, 8)
        .ok()
        .filter(|bits| *bits <= 0o777);
    bits.ok_or_else(|| "expected octal permission bits such as 022".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_count_in_1024s_unless_they_say_kb() {
        for (text, bytes) in [
            ("0", 0),
            ("7", 7),
            ("1K", 1024),
            ("1k", 1024),
            ("2KiB", 2048),
            ("2KB", 2000),
            ("20G", 20 << 30),
            ("3TB", 3_000_000_000_000),
            ("5B", 5),
        ] {
            assert_eq!(amount(text), Ok(Amount::Bytes(bytes)), "{text}");
        }
        assert_eq!(amount("10%"), Ok(Amount::Percent(10)));
        for bad in [
            "",
            "G",
            "1X",
            "-1",
            "1.5G",
            "101%",
            "99999999999T",
            "1 G",
            "1iB",
        ] {
            assert!(amount(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_are_seconds_unless_they_say_otherwise() {
        for (text, millis) in [
            ("0", 0),
            ("10", 10_000),
            ("500ms", 500),
            ("2m", 120_000),
            ("1h", 3_600_000),
            ("7d", 604_800_000),
            ("30d", 2_592_000_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for bad in [
            "",
            "s",
            "1w",
            "1.5",
            "-1",
            "18446744073709551615h",
            "4000000000",
        ] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_address_has_a_port_and_no_name() {
        for (text, means) in [
            ("127.0.0.1:9469", "127.0.0.1:9469"),
            ("localhost:80", "127.0.0.1:80"),
            ("[::1]:0", "[::1]:0"),
            ("0.0.0.0:1", "0.0.0.0:1"),
        ] {
            assert_eq!(address(text).map(|a| a.to_string()), Ok(means.to_owned()));
        }
        for bad in [
            "",
            "9469",
            ":9469",
            "127.0.0.1",
            "::1:80:",
            "host:80",
            "127.0.0.1:65536",
        ] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_limit_of_nothing_is_refused() {
        assert!(
            some_amount("0K").is_err()
                && some_amount("0%").is_err()
                && some_duration("0ms").is_err()
        );
        assert!(speed("0") == Ok(0) && speed("16K") == Ok(16 << 10));
        assert!(speed("5%").is_err() && speed("fast").is_err());
        assert!(threads("0").is_err() && threads("257").is_err() && threads("16") == Ok(16));
        assert!(mask("1000").is_err() && mask("8").is_err() && mask("027") == Ok(0o27));
    }
}
