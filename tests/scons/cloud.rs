//! A bucket that is shared with the class of SCons issue 4394, which keeps a CacheDir in S3.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::support::cloud::{BUCKET, Store, tool};
use crate::support::mounted::Mounted;
use crate::support::venv::{LATEST, Venv};
use crate::support::workspace;

/// The class as the issue describes it: keys `[prefix/]xx/SIG`, plain files, nothing about modes. A local directory in
/// front of it, which it fills before SCons looks, since SCons asks nobody about what is not there.
const CLASS: &str = r#"
import os
import re
import boto3
from botocore.exceptions import ClientError
from SCons.CacheDir import CacheDir

class S3CacheDir(CacheDir):
    bucket = boto3.resource('s3', endpoint_url=os.environ['S3']).Bucket(os.environ['BUCKET'])

    @staticmethod
    def key(path):
        signature = re.sub(r'\.tmp.*$', '', os.path.basename(path))
        return '%s/%s/%s' % (os.environ['PREFIX'], signature[:2], signature)

    def cachepath(self, node):
        directory, path = super().cachepath(node)
        if path and not os.path.exists(path):
            os.makedirs(directory, exist_ok=True)
            try:
                self.bucket.download_file(self.key(path), path)
            except ClientError as error:
                if error.response['Error']['Code'] != '404':
                    raise
        return directory, path

    @classmethod
    def copy_to_cache(cls, env, src, dst):
        result = super().copy_to_cache(env, src, dst)
        cls.bucket.upload_file(dst, cls.key(dst))
        return result
"#;

const SCONSTRUCT: &str = r#"
import os
import sys
env = Environment(tools=[], ENV=dict(os.environ))
if 'S3' in os.environ:
    sys.path.insert(0, os.environ['CLASS'])
    from s3cachedir import S3CacheDir
    env.CacheDir(os.environ['CACHE'], S3CacheDir)
else:
    env.CacheDir(os.environ['CACHE'])

def product(target, command):
    env.Command(target, [], 'echo $TARGET >>"$$COMMANDS"; ' + command)

salt = ARGUMENTS['salt']
product('script', "printf '#!/bin/sh\\necho %s\\n' >$TARGET && chmod 755 $TARGET" % salt)
product('text', 'yes %s | head -c 100000 >$TARGET' % salt)
product('program', 'head -c 70000 /bin/sh >$TARGET; echo %s >>$TARGET && chmod 755 $TARGET' % salt)
product('empty', ': %s >$TARGET' % salt)
"#;

/// Builds in a checkout called `name`; gives what ran, and the files with whether they are executable.
fn build(
    top: &Path,
    name: &str,
    salt: &str,
    variables: &[(&str, String)],
) -> (String, BTreeMap<String, (Vec<u8>, bool)>) {
    let project = top.join(name);
    fs::create_dir(&project).unwrap();
    fs::write(project.join("SConstruct"), SCONSTRUCT).unwrap();
    let commands = top.join(format!("{name}.commands"));
    fs::write(&commands, "").unwrap();
    let mut command = Venv::of(LATEST).command();
    command.arg(format!("salt={salt}")).current_dir(&project);
    command
        .env("COMMANDS", &commands)
        .envs(variables.iter().cloned());
    let done = command.output().unwrap();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    let file = |name: &&str| {
        let path = project.join(name);
        let executable = fs::metadata(&path).unwrap().permissions().mode() & 0o111 != 0;
        ((*name).to_owned(), (fs::read(path).unwrap(), executable))
    };
    let files = ["script", "text", "program", "empty"]
        .iter()
        .map(file)
        .collect();
    (fs::read_to_string(commands).unwrap(), files)
}

#[test]
fn a_bucket_of_the_class_of_issue_4394_is_shared_both_ways() {
    let store = Store::moto();
    let top = workspace();
    fs::create_dir(top.path().join("class")).unwrap();
    fs::write(top.path().join("class/s3cachedir.py"), CLASS).unwrap();
    let packages = fs::read_dir(tool("moto/lib"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let with_class = |local: &str| {
        let mut variables = vec![
            ("S3", store.endpoint()),
            ("BUCKET", BUCKET.to_owned()),
            ("PREFIX", "team/scons".to_owned()),
            ("CLASS", top.path().join("class").display().to_string()),
            ("CACHE", top.path().join(local).display().to_string()),
            (
                "PYTHONPATH",
                packages.join("site-packages").display().to_string(),
            ),
            ("AWS_DEFAULT_REGION", "us-east-1".to_owned()),
        ];
        let keys = store
            .keys
            .iter()
            .map(|(name, value)| (name.as_str(), value.clone()));
        variables.extend(keys);
        variables
    };
    let keys = store
        .keys
        .iter()
        .map(|(name, value)| format!("{name}={value}"));
    let wrapper: Vec<_> = ["env".to_owned()].into_iter().chain(keys).collect();
    let options = format!(
        "layout=lower,format=raw,log_level=trace,endpoint={}",
        store.endpoint()
    );
    let mounted = Mounted::wrapped(
        wrapper,
        workspace(),
        &format!("s3://{BUCKET}/team/scons"),
        &options,
    );
    let with_mount = [("CACHE", mounted.path().display().to_string())];

    // What the class uploaded, all of it, is retrieved through the mount.
    let (ran, built) = build(top.path(), "class-builds", "one", &with_class("local-1"));
    assert_eq!(ran.lines().count(), 4);
    let (ran, retrieved) = build(top.path(), "mount-retrieves", "one", &with_mount);
    assert_eq!(ran, "");
    // It keeps no modes; scripts and programs are seen to be such.
    for name in ["script", "text", "program", "empty"] {
        assert!(retrieved[name] == built[name], "{name}");
    }

    // And the other way round; here the class loses the mode, as it does with its own.
    let (ran, built) = build(top.path(), "mount-builds", "two", &with_mount);
    assert_eq!(ran.lines().count(), 4);
    mounted.flush();
    let (ran, retrieved) = build(top.path(), "class-retrieves", "two", &with_class("local-2"));
    assert_eq!(ran, "");
    let (_, again) = build(
        top.path(),
        "class-retrieves-its-own",
        "one",
        &with_class("local-3"),
    );
    for name in ["script", "text", "program", "empty"] {
        assert!(retrieved[name].0 == built[name].0, "{name}");
        assert_eq!(retrieved[name].1, again[name].1, "{name}");
    }
    // Whatever it says, at its loudest.
    let log = mounted.log();
    assert!(log.len() > 1000 && !log.contains(&store.keys["AWS_SECRET_ACCESS_KEY"]));
}
