# Completion of xenlb for bash: verbs, options, and the guest names of the running agent.
_xenlb() {
    local kind value
    COMPREPLY=()
    while IFS=, read -r kind value; do
        case $kind in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done < <(COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD _XENLB_COMPLETE=bash_complete \
        "$1" 2>/dev/null)
}
complete -o nosort -F _xenlb xenlb
