# fish completion for cachedirfs(1), which is asked how a word can go on.
function __cachedirfs_complete
    cachedirfs completions fish -- (commandline -opc) (commandline -ct | string unescape) 2>/dev/null
end
complete -c cachedirfs -f -k -a '(__cachedirfs_complete)'
