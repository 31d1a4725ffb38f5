use super::*;
use crate::remote::{Environment, Format, Layout};
use proptest::prelude::*;

fn host() -> Host {
    Host {
        uid: 0,
        cpus: 2,
        cwd: "/home/me".into(),
        home: Some("/home/me".into()),
        cache_home: None,
        runtime_dir: None,
        credentials: None,
        bearer: None,
        environment: Environment::default(),
        options: None,
        log_filter: None,
        shared_log_filter: None,
        user_id: |name| (name == "build").then_some(501),
        group_id: |name| (name == "ci").then_some(502),
        disk_size: |_| Some(1000 * GIB),
    }
}

fn user() -> Host {
    Host {
        uid: 1000,
        ..host()
    }
}

fn config(options: &str) -> Result<Config, ConfigError> {
    Config::new(
        "https://host/c",
        Path::new("mnt"),
        &[options.to_owned()],
        &host(),
    )
}

fn error(options: &str) -> String {
    config(options).unwrap_err().to_string()
}

#[test]
fn without_options_every_default_is_there() {
    let config = config("").unwrap();
    assert_eq!((config.size, config.min_free), (20 * GIB, GIB));
    assert_eq!(config.mountpoint, Path::new("/home/me/mnt"));
    assert!(
        config.backing.starts_with("/var/cache/cachedirfs"),
        "{:?}",
        config.backing
    );
    assert_eq!(config.run_dir, Path::new("/run/cachedirfs"));
    assert_eq!(
        (
            config.fetch_threads,
            config.upload_threads,
            config.event_threads
        ),
        (16, 8, 4)
    );
    assert!(config.allow_other && config.default_permissions && config.passthrough && !config.ro);
    assert_eq!(config.fsname, "https://host/c");
    assert_eq!(config.push, Push::On);
}

#[test]
fn a_user_keeps_the_cache_at_home_and_the_mount_private() {
    let mut user = user();
    let config = |user: &Host| Config::new("file:///r", Path::new("/m"), &[], user);
    let at_home = config(&user).unwrap();
    assert!(at_home.backing.starts_with("/home/me/.cache/cachedirfs"));
    assert!(!at_home.allow_other && at_home.default_permissions);
    assert_eq!(at_home.run_dir, Path::new("/tmp/cachedirfs-1000"));

    user.cache_home = Some("/scratch".into());
    user.runtime_dir = Some("/run/user/1000".into());
    let elsewhere = config(&user).unwrap();
    assert!(elsewhere.backing.starts_with("/scratch/cachedirfs"));
    assert_eq!(elsewhere.run_dir, Path::new("/run/user/1000/cachedirfs"));

    user.cache_home = Some("not/absolute".into());
    user.home = None;
    assert_eq!(config(&user).unwrap_err(), ConfigError::NoBacking);
}

#[test]
fn the_default_limits_leave_most_of_a_small_disk_alone() {
    let small = Host {
        disk_size: |_| Some(100 << 20),
        ..host()
    };
    let config = Config::new("file:///r", Path::new("/m"), &[], &small).unwrap();
    assert_eq!(config.size >> 20, 50);
    assert_eq!(config.min_free >> 20, 5);
    let unknown = Host {
        disk_size: |_| None,
        ..host()
    };
    let config = Config::new("file:///r", Path::new("/m"), &[], &unknown).unwrap();
    assert_eq!((config.size, config.min_free), (20 * GIB, GIB));
}

#[test]
fn every_option_is_taken_to_heart() {
    let config = config(
        "backing=/b,size=10%,min_free=0,push=sync,negative_ttl=0,lookup_timeout=500ms,connect_timeout=1,\
         stall_timeout=2s,request_timeout=3s,drain_timeout=2m,fetch_threads=3,upload_threads=4,event_threads=5,\
         layout=lower,format=raw,level=9,key_file=k,bearer_file=b,basic_file=u,netrc_file=n,ca_file=c,\
         client_cert_file=cc,client_key_file=ck,headers_file=h,pr3971,\
         noallow_other,default_permissions=off,uid=build,gid=ci,umask=027,nopassthrough,log_level=debug,\
         log_file=l,fsname=cache,suid,dev,noexec,noatime",
    )
    .unwrap();
    assert_eq!(config.backing, Path::new("/b"));
    assert_eq!((config.size, config.min_free), (100 * GIB, 0));
    assert_eq!(config.push, Push::Sync);
    assert_eq!(config.lookup_timeout, Duration::from_millis(500));
    assert_eq!(config.remote_options.layout, Layout::Lower);
    let file =
        |file: &Option<std::path::PathBuf>| file.clone().unwrap().file_name().unwrap().to_owned();
    assert_eq!(file(&config.remote_options.client_cert_file), "cc");
    assert_eq!(file(&config.remote_options.client_key_file), "ck");
    assert_eq!(file(&config.remote_options.headers_file), "h");
    assert!(config.remote_options.pr3971);
    assert_eq!(config.remote_options.format, Format::Raw);
    assert_eq!(config.key_file.as_deref(), Some(Path::new("/home/me/k")));
    assert_eq!(
        (config.uid, config.gid, config.umask),
        (Some(501), Some(502), Some(0o27))
    );
    assert!(!config.allow_other && !config.default_permissions && !config.passthrough);
    assert_eq!(config.log.file.as_deref(), Some(Path::new("/home/me/l")));
    assert_eq!(config.fsname, "cache");
    assert_eq!(
        config.kernel,
        KernelFlags {
            nosuid: false,
            nodev: false,
            noexec: true,
            noatime: true
        }
    );
}

#[test]
fn what_fstab_holds_for_any_file_system_is_accepted() {
    let usual = "defaults,rw,nosuid,nodev,relatime,_netdev,nofail,noauto,user,x-systemd.automount,\
                 x-systemd.idle-timeout=60,comment=made by hand,,async";
    assert!(config(usual).is_ok());
}

#[test]
fn an_unknown_option_is_named_and_the_closest_known_one_suggested() {
    assert_eq!(
        error("negative-ttl=3"),
        "unknown option `negative-ttl`; did you mean `negative_ttl`?"
    );
    assert_eq!(
        error("sise=3G"),
        "unknown option `sise`; did you mean `size`?"
    );
    assert_eq!(
        error("allow_others"),
        "unknown option `allow_others`; did you mean `allow_other`?"
    );
    assert_eq!(error("frobnicate"), "unknown option `frobnicate`");
    assert_eq!(
        error("nobacking"),
        "unknown option `nobacking`; did you mean `backing`?"
    );
}

#[test]
fn a_wrong_value_says_which_would_be_right() {
    assert_eq!(
        error("size=big"),
        "option `size`: expected an amount such as 20G, 500MiB or 10%"
    );
    assert_eq!(error("size"), "option `size`: needs a value: size=SIZE");
    assert_eq!(
        error("push=maybe"),
        "option `push`: expected on, off or sync"
    );
    assert_eq!(
        error("uid=nobody-here"),
        "option `uid`: nobody here is called `nobody-here`; expected a number or a name"
    );
    assert!(error("layout=round").contains("lower"));
}

#[test]
fn the_last_of_two_counts_and_ro_never_pushes() {
    assert!(!config("ro,rw").unwrap().ro);
    assert_eq!(config("push=sync,ro").unwrap().push, Push::Off);
    let twice = Config::new(
        "file:///r",
        Path::new("/m"),
        &["size=1G".into(), "size=2G".into()],
        &host(),
    );
    assert_eq!(twice.unwrap().size, 2 * GIB);
}

#[test]
fn a_credential_of_systemd_is_a_file_in_the_directory_that_it_gave_the_service() {
    let service = Host {
        credentials: Some("/run/credentials/x.service".into()),
        ..host()
    };
    let options = ["bearer_file=credential:token,key_file=credential:key".to_owned()];
    let remote = "https://h/c|client_key_file=credential:tls";
    let config = Config::new(remote, Path::new("/m"), &options, &service).unwrap();
    let in_service = |name: &str| Some(Path::new("/run/credentials/x.service").join(name));
    assert_eq!(config.key_file, in_service("key"));
    assert_eq!(config.remote_options.bearer_file, in_service("token"));
    let tier = &config.tiers[0];
    assert_eq!(tier.key_file, in_service("key"));
    assert_eq!(tier.remote_options.client_key_file, in_service("tls"));
    let escape = ["basic_file=credential:../shadow".to_owned()];
    let escaped = Config::new("https://h/c", Path::new("/m"), &escape, &service);
    assert!(escaped.unwrap_err().to_string().contains("LoadCredential"));
    let elsewhere = error("netrc_file=credential:logins");
    assert!(
        elsewhere.contains("`netrc_file`") && elsewhere.contains("LoadCredential"),
        "{elsewhere}"
    );
}

#[test]
fn neither_debug_nor_the_mount_table_shows_a_secret() {
    let host = Host {
        bearer: Some(Secret::new("tok3n")),
        ..host()
    };
    let config = Config::new("https://s3cret@h/p?sig=s3cret", Path::new("/m"), &[], &host).unwrap();
    let shown = format!(
        "{config:?} {host:?} {} {}",
        config.fsname,
        config.remote_shown()
    );
    assert!(
        !shown.contains("tok3n") && !shown.contains("s3cret"),
        "{shown}"
    );
    assert_eq!(
        config.tiers[0].shards[0].url.as_given(),
        "https://s3cret@h/p?sig=s3cret"
    );
    assert!(config.remote_options.bearer.is_some());
    for option in ["basic_file", "bearer_file", "netrc_file"] {
        let options = [format!("{option}=f")];
        let named = Config::new("https://h/p", Path::new("/m"), &options, &host);
        assert!(
            named.unwrap().remote_options.bearer.is_none(),
            "{option} outweighs the environment"
        );
    }
}

#[test]
fn help_lists_every_option_once() {
    let help = options::help();
    for spec in options::OPTIONS {
        let head = spec.value.map_or(format!("  [no]{}\n", spec.name), |v| {
            format!("  {}={v}\n", spec.name)
        });
        assert_eq!(help.matches(&head).count(), 1, "{head}");
    }
}

proptest! {
    #[test]
    fn any_option_list_parses_without_a_panic(remote in ".*", options in ".*", tail in "(backing|size|uid|push|level|umask|negative_ttl)=[ -~]{0,12}") {
        let _ = Config::new(&remote, Path::new("/m"), &[options, tail], &host());
    }

    #[test]
    fn any_url_is_shown_without_what_stands_before_the_at(user in "[a-z]{3,9}", password in "[!-~]{4,12}") {
        let url = format!("https://{user}:zz{password}@host/p");
        if let Err(err) = Config::new(&url, Path::new("/m"), &[], &host()) {
            prop_assert!(!err.to_string().contains(&format!("zz{password}")), "{}", err);
        }
    }

    #[test]
    fn commas_and_backslashes_in_values_come_through(names in prop::collection::vec("[ -~]{1,12}", 1..5)) {
        let escaped: Vec<_> = names.iter().map(|n| n.replace('\\', "\\\\").replace(',', "\\,")).collect();
        prop_assert_eq!(list::split(&escaped.join(",")), names);
    }
}

fn tiers(remote: &str, options: &str) -> Result<Vec<Tier>, ConfigError> {
    let config = Config::new(remote, Path::new("/m"), &[options.to_owned()], &host());
    config.map(|config| config.tiers)
}

#[test]
fn tiers_are_separated_by_white_space_and_by_options_and_have_options_of_their_own() {
    let found = tiers(
        "https://a/c|ro|layout=flat  file:///b%20c|level=9\thttps://off/x|off",
        r"level=5,layout=lower,remote=http://d|lookup_timeout=7s|key_file=a%7Cb,bearer_file=t",
    )
    .unwrap();
    let shown: Vec<_> = found.iter().map(|tier| tier.shown.as_str()).collect();
    assert_eq!(shown, ["https://a/c", "file:///b%20c", "http://d"]);
    assert_eq!(
        found.iter().map(|tier| tier.mode).collect::<Vec<_>>(),
        [Mode::ReadOnly, Mode::ReadWrite, Mode::ReadWrite]
    );
    let layouts: Vec<_> = found.iter().map(|t| t.remote_options.layout).collect();
    assert_eq!(layouts, [Layout::Flat, Layout::Lower, Layout::Lower]);
    let levels: Vec<_> = found.iter().map(|t| t.remote_options.level).collect();
    assert_eq!(levels, [5, 9, 5]);
    assert_eq!(found[2].lookup_timeout, Duration::from_secs(7));
    assert_eq!(
        found[2].key_file.as_deref(),
        Some(Path::new("/home/me/a|b"))
    );
    assert_eq!(found[0].key_file, None);
}

#[test]
fn a_tier_with_credentials_of_its_own_does_not_get_those_of_all() {
    let found = tiers("https://a/c|basic_file=u https://b/c", "bearer_file=t").unwrap();
    let credentials = |tier: &Tier| {
        let options = &tier.remote_options;
        (options.basic_file.is_some(), options.bearer_file.is_some())
    };
    assert_eq!(credentials(&found[0]), (true, false));
    assert_eq!(credentials(&found[1]), (false, true));
}

#[test]
fn braces_hold_shards_with_names_and_weights() {
    let shards = |remote: &str| -> Vec<_> {
        let found = tiers(remote, "").unwrap().remove(0);
        let shown = |s: &Shard| (s.name.clone(), s.weight.to_string(), s.url.to_string());
        found
            .shards
            .iter()
            .map(shown)
            .map(|(n, w, u)| format!("{n} {w} {u}"))
            .collect()
    };
    assert_eq!(
        shards("http://cache{08..10}:80/c|ro"),
        [
            "08 1 http://cache08:80/c",
            "09 1 http://cache09:80/c",
            "10 1 http://cache10:80/c"
        ]
    );
    assert_eq!(
        shards("http://u@cache-{alpha,beta(3)}.example/c"),
        [
            "alpha 1 http://cache-alpha.example/c",
            "beta 3 http://cache-beta.example/c"
        ]
    );
    assert_eq!(
        shards("{http://u@a/c,https://b/d(0.5)}"),
        ["http://a/c 1 http://a/c", "https://b/d 0.5 https://b/d"]
    );
}

#[test]
fn several_remotes_are_shown_without_credentials_and_a_single_one_as_ever() {
    let shown = |remote: &str| {
        let config = Config::new(remote, Path::new("/m"), &[], &host()).unwrap();
        assert_eq!(config.fsname, config.remote_shown());
        config.fsname
    };
    assert_eq!(
        shown("https://u@a/c?x|ro https://b/c"),
        "https://a/c https://b/c"
    );
    assert_eq!(
        shown("{http://u@a/c,https://b/d(2)} http://u@cache{1..3}/c"),
        "{http://a/c,https://b/d(2)} http://cache{1,2,3}/c"
    );
    let backing = |remote: &str| {
        Config::new(remote, Path::new("/m"), &[], &host())
            .unwrap()
            .backing
    };
    // Mounts of earlier versions have their cache there.
    assert_eq!(
        backing("https://host/c"),
        Path::new("/var/cache/cachedirfs/host-c-7bf051d84e54")
    );
    assert_eq!(backing("https://host/c|ro"), backing("https://host/c"));
}

#[test]
fn every_malformed_remote_says_what_would_be_right() {
    for (remote, part) in [
        ("  ", "is empty"),
        ("https://a/c b/c", "%20"),
        ("https://a/c|layout", "needs a value"),
        ("https://a/c|layout=round", "lower"),
        ("https://a/c|size=3G", "-o"),
        ("https://a/c|reed_only", "unknown option"),
        ("https://a/c|a@b", "%7C"),
        ("https://a/c|key_file=%zz", "%25"),
        ("https://a/c|off", "all are off"),
        ("https://a{1..2}/{3..4}", "one pair"),
        ("https://a{1..2/c", "one pair"),
        ("https://a}1{/c", "one pair"),
        ("https://a{}/c", "no name"),
        ("https://a{b,}/c", "no name"),
        ("https://a{b(0)}/c", "above 0"),
        ("https://a{b(x)}/c", "above 0"),
        ("https://a{b(nan)}/c", "above 0"),
        ("https://a{8..1}/c", "goes up"),
        ("https://a{1..100}/c", "64"),
        ("https://a{b,b}/c", "one name"),
        ("https://user:pw@{a,b}/c", "basic_file"),
        ("https://user:pw{a,b}@h/c", "basic_file"),
        ("{https://user:pw@a/c,https://b/c}", "basic_file"),
        ("https://user:pw word@h/c", "%20"),
        ("https://user:pw|word@h/c", "%7C"),
    ] {
        let said = tiers(remote, "").unwrap_err().to_string();
        assert!(said.contains(part), "{remote}: {said}");
        assert!(
            !said.contains("pw") && !said.contains("word@"),
            "{remote}: {said}"
        );
    }
    let many = "file:///a ".repeat(17);
    assert!(tiers(&many, "").unwrap_err().to_string().contains("16"));
}

#[test]
fn with_no_tier_to_be_written_nothing_is_pushed() {
    let push = |remote: &str| {
        Config::new(remote, Path::new("/m"), &[], &host())
            .unwrap()
            .push
    };
    assert_eq!(push("https://a/c|ro https://b/c|ro"), Push::Off);
    assert_eq!(push("https://a/c|ro https://b/c"), Push::On);
}

proptest! {
    #[test]
    fn no_error_about_several_remotes_shows_a_password(password in "[!-~ ]{4,12}", before in "(https://a/c )?", shard in "(\\{1..3\\})?") {
        let remote = format!("{before}https://user:zz{password}@host{shard}/p");
        match Config::new(&remote, Path::new("/m"), &[], &host()) {
            Err(err) => prop_assert!(!err.to_string().contains("zz"), "{}", err),
            Ok(config) => prop_assert!(!config.fsname.contains("zz"), "{}", config.fsname),
        }
    }
}
