# bash completion for cachedirfs(1), which is asked how a word can go on.
_cachedirfs() {
    local line=${COMP_LINE:0:COMP_POINT} words=() i
    COMPREPLY=()
    # Readline takes words apart at = and : also where no blank is between them.
    for ((i = 0; i <= COMP_CWORD; i++)); do
        local rest=${line#"${line%%[![:space:]]*}"} word=${COMP_WORDS[i]}
        word=${rest:0:${#word}}
        if [[ $i == 0 || $rest != "$line" || -z $rest ]]; then
            words+=("$word")
        else
            words[${#words[@]} - 1]+=$word
        fi
        line=${rest:${#word}}
    done
    local whole=${words[${#words[@]} - 1]}
    # In quotes, files are all that can be completed, which is what readline does by itself.
    [[ $whole != *[\\\'\"]* ]] || return 0
    # It replaces only the last piece, and of = and : nothing.
    local kept=$whole
    [[ -z ${word//[=:]/} ]] || kept=${whole%"$word"}
    local found
    mapfile -t found < <(cachedirfs completions bash -- "${words[@]}" 2>/dev/null)
    COMPREPLY=("${found[@]#"$kept"}")
    # What ends like this is not at its end.
    [[ ${#found[@]} != 1 || $found != *[=/:] ]] || compopt -o nospace 2>/dev/null
}
complete -o bashdefault -o default -F _cachedirfs cachedirfs
