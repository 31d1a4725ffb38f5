#compdef cachedirfs
# zsh completion for cachedirfs(1), which is asked how a word can go on.
_cachedirfs() {
    local -a found open open_shown whole whole_shown
    local line value help
    found=("${(@f)$(cachedirfs completions zsh -- "${(@Q)words[1,CURRENT-1]}" "${(Q)PREFIX}" 2>/dev/null)}")
    for line in $found; do
        value=${line%%$'\t'*}
        help=$value
        [[ $line != *$'\t'* ]] || help="$value  -- ${line#*$'\t'}"
        # What ends like this is not at its end.
        if [[ $value == *[=/:] ]]; then
            open+=("$value") open_shown+=("$help")
        else
            whole+=("$value") whole_shown+=("$help")
        fi
    done
    (( $#open + $#whole )) || { _files; return }
    (( ! $#open )) || compadd -S '' -l -d open_shown -a open
    (( ! $#whole )) || compadd -l -d whole_shown -a whole
}
# As a file of $fpath it is called, sourced it is registered.
if [[ $funcstack[1] == _cachedirfs ]]; then _cachedirfs "$@"; else compdef _cachedirfs cachedirfs; fi
