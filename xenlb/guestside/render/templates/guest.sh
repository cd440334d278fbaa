#!/bin/sh
# Configures this guest as a server behind the load balancer on its host: service addresses,
# tunnels, routes of replies. Installed by xenlb, which writes the settings.
#
#   guest.sh up [FILE|-]  applies the settings, and removes what it made before and is no longer
#                         wanted; 0 if nothing failed
#   guest.sh watch        applies them again when settings or network change, until SIGTERM, which
#                         leaves everything in place
#   guest.sh down         removes all that it made
#   guest.sh status       prints a line for each missing setting; 0 if there is none
#   guest.sh rules        prints the packet filter's rules
#   guest.sh adopt FILE   records existing state of these settings as its own: the guest's own
#                         network configuration made it, from files of xenlb
#
# A record of what it made keeps it from removing state of others.
# It needs a POSIX shell (dash, busybox, bash), sed, grep, cat, mv, rm, mkdir, sleep, and ip or
# ifconfig; for marks and clamps nft or iptables; for settings from xenstore dd, od and tr. Settings
# are plain words, which are checked and never executed.

LC_ALL=C # [a-z] means these letters only
export LC_ALL
root=${XENLB_GUEST_ROOT:-}   # for tests
every=${XENLB_GUEST_EVERY:-3} # seconds between two checks
run=$root/run
[ -d "$run" ] || run=$root/var/run
record=$run/xenlb-guest.state      # what was made: a word on how, and its settings line
good=$run/xenlb-guest.settings     # the last valid settings
loaded=$run/xenlb-guest.rules      # the rules that were loaded
listed=$run/xenlb-guest.listing    # the same as the kernel lists them
hold=$root/etc/xenlb-hold.conf
# The values of sysctls before the first apply. After a reboot the guest's own configuration sets
# them, if a host has installed files.
before=$root/var/lib/xenlb/sysctls
umask 077
newline='
'

say() {
    echo "xenlb-guest: $*"
}

# Failures are printed at the end of a pass, and by `watch` only once.
complain() {
    complaints="$complaints$*$newline"
}

has() { # has LINES LINE
    case "$newline$1$newline" in *"$newline$2$newline"*) return 0 ;; esac
    return 1
}

# try COMMAND…: 0, or the first line of its output in `why`.
try() {
    why=$("$@" 2>&1 </dev/null) && return
    why=${why%%"$newline"*}
    : "${why:=$1 failed}"
    return 1
}

have_program() { command -v "$1" >/dev/null 2>&1; }

# ---- settings: lines of words, checked before use ----

is_number() { # without a leading zero, which would make it octal
    case $1 in '' | *[!0-9]* | 0?* | ??????????*) return 1 ;; esac
}

is_port() { is_number "$1" && [ "$1" -ge 1 ] && [ "$1" -le 65535 ]; }

is_name() { # of an interface
    case $1 in '' | [!0-9A-Za-z]* | *[!0-9A-Za-z_.-]* | ????????????????*) return 1 ;; esac
}

is_address() { # is_address ADDRESS [4|6]: the characters of one; the kernel checks the rest
    case $1 in
    '' | *[!0-9a-f:.]*) return 1 ;;
    *:*) [ "${2:-6}" = 6 ] ;;
    *.*.*.*)
        case $1 in *[!0-9.]*) return 1 ;; esac
        [ "${2:-4}" = 4 ]
        ;;
    *) return 1 ;;
    esac
}

is_family() { [ "$1" = 4 ] || [ "$1" = 6 ]; }

# is_setting WORDS…
is_setting() {
    for word; do
        case $word in -*) return 1 ;; esac # no word becomes an option
    done
    case $1/$# in
    sysctl/3)
        case $2 in
        *..* | *//* | */) return 1 ;;
        net/?*/?*) is_number "$3" ;;
        *) return 1 ;;
        esac
        ;;
    tunnel/5 | tunnel/6)
        case $3 in ipip | sit | ip6tnl | gre | ip6gre) ;; *) return 1 ;; esac
        case $4 in *[!0-9a-z_]*) return 1 ;; esac
        [ "${6:-checksums}" = checksums ] && is_name "$2" && { [ "$5" = any ] || is_address "$5"; }
        ;;
    gue/3) is_family "$2" && is_port "$3" ;;
    route/5) is_family "$2" && is_address "$3" "$2" && is_name "$4" && is_number "$5" ;;
    rule/5)
        is_family "$2" && is_number "$5" || return 1
        case $3 in
        from) is_address "$4" "$2" ;;
        mark) is_number "$4" ;;
        *) return 1 ;;
        esac
        ;;
    mark/5)
        case $3 in tcp | udp | sctp) ;; *) return 1 ;; esac
        is_name "$2" && { [ "$4" = any ] || is_port "$4"; } && is_number "$5"
        ;;
    clamp/3) is_address "$2" && is_port "$3" ;;
    no-tx-checksums/2) is_name "$2" ;;
    address/3) is_address "$2" && is_name "$3" ;;
    *) return 1 ;;
    esac
}

# parse SOURCE TEXT: adds the lines of a text to `wanted`, and the hold's settings to `holding`.
# 1: the text must not be used.
parse() {
    source=$1 number=0
    case $2 in
    'xenlb 1' | "xenlb 1$newline"*) ;;
    *)
        complain "$source: not settings of version 1; the former settings stay"
        return 1
        ;;
    esac
    while IFS= read -r line; do
        number=$((number + 1))
        # A line with other characters is not printed: it may be made to attack logs or terminals.
        case $line in
        '' | '#'* | 'xenlb 1') ;;
        'hold '*[!0-9A-Za-z.:=_/\ -]*)
            complain "$source, line $number has invalid characters"
            ;;
        'hold '*) [ ${#line} -gt 200 ] || holding="$holding${line#hold }$newline" ;;
        *[!0-9A-Za-z.:/_\ -]*)
            complain "$source, line $number has invalid characters"
            ;;
        *)
            [ ${#line} -le 200 ] || line='too long'
            # shellcheck disable=SC2086
            want $line
            ;;
        esac
    done <<END
$2
END
}

want() {
    if ! is_setting "$@"; then
        complain "$source, line $number is invalid: $*"
        return
    fi
    has "$wanted" "$*" && return
    case "$newline$wanted" in
    *"${newline}sysctl $2 "*)
        # Two values would replace each other in every pass.
        [ "$1" != sysctl ] || {
            complain "$source, line $number conflicts with an earlier value: $*"
            return
        }
        ;;
    esac
    wanted="$wanted$*$newline"
}

# ---- sources of settings ----

# collect [FILE|-]: the settings into `text`: for each source a line with its name, and its own
# lines with a leading blank. Sets `serial` for those from xenstore. 1: they are unavailable now.
collect() {
    text='' serial=''
    case ${1:-} in
    '') ;;
    -)
        add "standard input"
        return
        ;;
    *)
        add "the file" <"$1"
        return
        ;;
    esac
    for file in "$root/etc/xenlb-guest.conf" \
        "$root/sys/firmware/qemu_fw_cfg/by_name/opt/org.xenlb/settings/raw"; do
        [ ! -r "$file" ] || add "$file" <"$file"
    done
    if [ -e "$root/dev/xen/xenbus" ] || [ -e "$root/proc/xen/xenbus" ]; then
        collect_xenstore
    fi
}

add() { # NAME <SETTINGS
    { content=$(sed 's/^/ /'); } 2>/dev/null # bash warns of zero bytes
    text="$text$1$newline$content$newline"
}

# The host changes the serial first and again last, so values read between two equal serials belong
# together. If the serial has not changed, nothing else is read.
collect_xenstore() {
    xs_open && xs_read vm-data/xenlb/serial
    case $? in
    0) ;;
    2) # there are none
        xs_close
        return 0
        ;;
    *)
        xs_close
        complain "xenstore does not answer; the former settings stay"
        return 1
        ;;
    esac
    serial=$value
    case $serial in
    '' | *[!0-9A-Za-z]* | ?????????????????????????????????*)
        xs_close
        complain "xenstore: the serial of the settings is invalid"
        return 1
        ;;
    esac
    if [ "$serial" != "$kept_serial" ]; then
        for again in 1 2 3 4; do
            xs_parts && break
        done
        if [ "$serial" != "$kept_serial" ]; then
            xs_close
            complain "xenstore: the settings are incomplete; the former settings stay"
            return 1
        fi
    fi
    xs_close
    text="${text}xenstore$newline$kept_text$newline"
}

xs_parts() { # into `kept_text` and `kept_serial`
    : "$again"
    parts='' part=0
    xs_read vm-data/xenlb/parts && parts=$value
    is_number "$parts" && [ "$parts" -le 64 ] || return 1
    body=''
    while [ $part -lt "$parts" ]; do
        xs_read vm-data/xenlb/$part || return 1
        body="$body$value$newline"
        part=$((part + 1))
    done
    before=$serial
    xs_read vm-data/xenlb/serial || return 1
    serial=$value
    [ "$serial" = "$before" ] || return 1
    kept_text=$(printf %s "$body" | sed 's/^/ /') kept_serial=$serial
}

kept_serial='' kept_text=''

# Few guests have a xenstore client, so the script writes the messages itself: a header of four
# numbers, type (2 READ, 11 WRITE), request 0, transaction 0, length, then the body. A reply begins
# with the same type, or with 16 (ERROR). Octal is all that dash's printf supports.
answer=$run/xenlb-guest.answer

xs_open() {
    client=''
    for device in "$root/dev/xen/xenbus" "$root/proc/xen/xenbus"; do
        # `command`: without it a failed redirection would end this shell.
        [ -e "$device" ] && { command exec 3<>"$device"; } 2>/dev/null && return
    done
    client=yes
    have_program xenstore-read
}

xs_close() {
    { exec 3>&-; } 2>/dev/null
    rm -f "$answer"
}

# xs_read PATH: into `value`. 2: there is no such path; 1: no answer.
xs_read() {
    value=''
    if [ "$client" ]; then
        value=$(xenstore-read "$1" 2>/dev/null) || return 2
        return
    fi
    header "$((${#1} + 1))" '\002' && printf '%s\0' "$1" >&3 || return 1
    xs_answer || return 1
    value=$(tr -d '\0' <"$answer")
    case $type in
    2) ;;
    16)
        [ "$value" = ENOENT ] && return 2
        return 1
        ;;
    *) return 1 ;;
    esac
}

xs_write() { # PATH VALUE
    if [ "$client" ]; then
        xenstore-write "$1" "$2" 2>/dev/null
        return
    fi
    header "$((${#1} + 1 + ${#2}))" '\013' && printf '%s\0%s' "$1" "$2" >&3 || return 1
    xs_answer && [ "$type" = 11 ]
}

header() { # LENGTH TYPE; the bodies are shorter than 256 bytes
    # shellcheck disable=SC2059
    printf "$2"'\0\0\0\0\0\0\0\0\0\0\0'"\\$(printf %03o "$1")"'\0\0\0' >&3
} 2>/dev/null

xs_answer() {
    take 16 || return 1
    # shellcheck disable=SC2046
    set -- $(od -An -v -tu1 "$answer")
    [ $# = 16 ] || return 1
    type=$1 length=$((${13} + ${14} * 256))
    [ "${15}${16}" = 00 ] && [ $length -le 4096 ] || return 1
    if [ $length = 0 ]; then
        : >"$answer"
        return
    fi
    take $length
}

# take BYTES: reads a part of a reply within three seconds, in a child that can be killed.
take() {
    dd bs=1 count="$1" <&3 >"$answer" 2>/dev/null &
    reader=$!
    naps=0
    while kill -0 $reader 2>/dev/null; do
        [ $naps -lt $((3 * rate)) ] || kill -9 $reader 2>/dev/null
        nap
        naps=$((naps + 1))
    done
    wait $reader 2>/dev/null
}

pause=0.05 rate=20 # naps per second; not every sleep accepts a fraction
nap() {
    sleep $pause 2>/dev/null && return
    pause=1 rate=1
    sleep 1
}

# Reports the result of the settings to the host.
tell_host() {
    [ "$serial" ] && xs_open || return 0
    xs_write data/xenlb-guest "$serial $1" || say "the host could not be notified: $serial $1"
    xs_close
}

# parse_all: `text` into `wanted` and `holding`; 1: a source is unusable.
parse_all() {
    wanted='' holding=''
    part='' name='' usable=yes
    [ "$text" ] || return 1
    while IFS= read -r entry; do
        case $entry in
        ' '*) part="$part${entry# }$newline" ;;
        *)
            [ ! "$name" ] || parse "$name" "$part" || usable=no
            name=$entry part=''
            ;;
        esac
    done <<END
$text
END
    [ $usable = yes ]
}

# ---- the record ----

recall() { # into `made`; a record of an earlier boot is void
    made=''
    [ "${boot:-}" ] || boot=$(sysctl_value kernel/random/boot_id)
    [ -r "$record" ] || return 0
    {
        read -r first
        [ "$first" = "boot $boot" ] || return 0
        while IFS= read -r line; do
            made="$made$line$newline"
        done
    } <"$record"
}

remember() { # HOW LINE
    has "$made" "$1 $2" && return
    made="$made$1 $2$newline"
    keep
}

forget() { # HOW LINE
    case "$newline$made" in
    *"$newline$1 $2$newline"*)
        rest="$newline$made"
        made="${rest%%"$newline$1 $2$newline"*}$newline${rest#*"$newline$1 $2$newline"}"
        made=${made#"$newline"}
        keep
        ;;
    esac
}

keep() {
    printf 'boot %s\n%s' "$boot" "$made" >"$record.new" && mv -f "$record.new" "$record"
}

# One process at a time: `up` by hand and the watch would lose each other's records.
lock=$run/xenlb-guest.lock

left_behind() {
    { read -r pid <"$lock/pid"; } 2>/dev/null && ! kill -0 "$pid" 2>/dev/null
}

unlock() { # in one step: no other process can make a file in it meanwhile
    mv "$lock" "$lock.$$" 2>/dev/null && rm -rf "$lock.$$" || :
}

enter() {
    busy=yes naps=0 pid=''
    until mkdir "$lock" 2>/dev/null; do
        [ $naps -lt $((10 * rate)) ] || break
        # The pid of a killed holder is free or belongs to another process: waiting ends after ten
        # seconds at most. If several processes see a dead holder, one of them removes the lock. It
        # checks again before that: the next process may have it by now.
        if left_behind && mkdir "$lock/taken" 2>/dev/null; then
            if left_behind; then unlock; else rmdir "$lock/taken" 2>/dev/null || :; fi
        fi
        nap
        naps=$((naps + 1))
    done
    { echo $$ >"$lock/pid"; } 2>/dev/null
    recall
}

leave() {
    unlock
    busy=''
}

# ---- the present state: one process per kind of setting ----

observe() {
    links='' rules4='' rules6='' gue=''
    observe_sysctls
    if [ $tool = ip ]; then
        # For each interface "NAME ,FLAGS," and for each address "NAME ADDRESS/LENGTH".
        links=$(ip addr show 2>/dev/null | sed -n \
            -e '/^[0-9]/{s/^[0-9]*: \([^:@ ]*\)[^<]*<\([^>]*\)>.*/\1 ,\2,/;h;p;}' \
            -e '/^ *inet/{G;s/^ *inet6* \([^ ]*\).*\n\([^ ]*\) .*/\2 \1/;p;}')
    else
        links=$(ifconfig_links)
    fi
    case $newline$wanted in
    *"${newline}rule 4 "*) rules4=$(ip -4 rule show 2>/dev/null) ;;
    esac
    case $newline$wanted in
    *"${newline}rule 6 "*) rules6=$(ip -6 rule show 2>/dev/null) ;;
    esac
    case $newline$wanted in
    *"${newline}gue "*) gue=$(ip fou show 2>/dev/null) ;;
    esac
}

observe_sysctls() { # into `sysctls`, as PATH:VALUE
    files=''
    each_wanted add_sysctl sysctl
    # shellcheck disable=SC2086
    sysctls=$(grep -s . $files /dev/null)
}

add_sysctl() { files="$files /proc/sys/$2"; }

# In the form of ip; an alias like lo:1 counts as its interface, and is printed again in brackets.
ifconfig_links() {
    ifconfig -a 2>/dev/null | while IFS= read -r line; do
        case $line in
        [!\ ]*)
            name=${line%%[ ]*} flags=''
            name=${name%:}
            interface=${name%%:*}
            [ "$name" = "$interface" ] || echo "[$name]"
            ;;
        esac
        case $line in
        *flags=*'<'*'>'*)
            flags=${line#*<}
            echo "$interface ,${flags%%>*},"
            ;;
        '  '*' MTU:'*)
            case $line in *' UP '*) echo "$interface ,UP," ;; *) echo "$interface ,," ;; esac
            ;;
        esac
        # "inet addr:A  Mask:M" or "inet A  netmask M".
        case $line in
        *'inet addr:'*255.255.255.255* | *'inet '*' netmask 255.255.255.255'*)
            address=${line#*inet } address=${address#addr:}
            echo "$interface ${address%% *}/32"
            ;;
        *'inet6 addr: '*/128*)
            address=${line#*addr: }
            echo "$interface ${address%% *}"
            ;;
        *'inet6 '*' prefixlen 128 '*)
            address=${line#*inet6 }
            echo "$interface ${address%% *}/128"
            ;;
        esac
    done
}

is_up() {
    is_there "$1" || return 1
    flags=$newline$links
    flags=${flags#*"$newline$1 "}
    case ${flags%%"$newline"*} in *,UP,*) return 0 ;; esac
    return 1
}

is_there() { # an interface
    case "$newline$links" in *"$newline$1 ,"*) return 0 ;; esac
    return 1
}

length() { case $1 in *:*) echo 128 ;; *) echo 32 ;; esac }

# Not with the shell's own read, which reads by byte: these files end after the first read.
sysctl_value() { cat "/proc/sys/$1" 2>/dev/null; }

# in_place LINE…: 0 if the state has this setting.
in_place() {
    case $1 in
    sysctl)
        has "$sysctls" "/proc/sys/$2:$3"
        ;;
    tunnel) is_up "$2" ;;
    gue)
        six=''
        [ "$2" = 4 ] || six=' -6'
        case "$newline$gue$newline" in
        *"${newline}port $3 gue$six$newline"* | *"${newline}port $3 gue$six "[!-]*) return 0 ;;
        esac
        return 1
        ;;
    route)
        case "$(ip -"$2" route show table "$5" 2>/dev/null) " in
        *"default via $3 dev $4 "* | *"default via $3 dev $4$newline"*) return 0 ;;
        esac
        # busybox shows IPv6 routes of other tables only with "all".
        case "$(ip -"$2" route show table all 2>/dev/null) " in
        *"default via $3 dev $4 table $5 "*) return 0 ;;
        esac
        return 1
        ;;
    rule)
        case $3 in
        from) selector="from $4 lookup " ;;
        mark) selector="from all fwmark $(printf '0x%x' "$4") lookup " ;;
        esac
        if [ "$2" = 4 ]; then rules=$rules4; else rules=$rules6; fi
        case "$newline$rules" in *"$newline$5:	$selector"*) return 0 ;; esac
        return 1
        ;;
    no-tx-checksums)
        case $(ethtool -k "$2" 2>/dev/null) in *'tx-checksumming: off'*) return 0 ;; esac
        return 1
        ;;
    address) has "$links" "$3 $2/$(length "$2")" ;;
    esac
}

# ---- making ----

# make LINE…: 0 and the word for the record in `how`, or 1 and the reason in `why`.
make() {
    how=made
    case $1/$tool in
    tunnel/ip | address/* | sysctl/* | no-tx-checksums/* | */ip) ;;
    tunnel/*) ;;
    *)
        why="this guest has no ip (iproute2)"
        return 1
        ;;
    esac
    case $1 in
    sysctl)
        how=$(sysctl_value "$2")
        [ "$how" ] || {
            why="there is no /proc/sys/$2"
            return 1
        }
        is_number "${how#-}" || {
            why="its value is not a number"
            return 1
        }
        { echo "$3" >"/proc/sys/$2"; } 2>/dev/null || {
            why="the kernel refuses this value"
            return 1
        }
        ;;
    tunnel) make_tunnel "$@" ;;
    gue)
        six='' module=fou
        [ "$2" = 4 ] || six=-6 module=fou6
        modprobe $module 2>/dev/null # it may be built in
        # shellcheck disable=SC2086
        try ip fou add port "$3" gue $six
        ;;
    route) try ip -"$2" route add default via "$3" dev "$4" table "$5" ;;
    rule)
        case $3 in
        from) try ip -"$2" rule add from "$4" table "$5" priority "$5" ;;
        mark) try ip -"$2" rule add fwmark "$4" table "$5" priority "$5" ;;
        esac
        ;;
    no-tx-checksums)
        have_program ethtool || {
            why="this guest has no ethtool"
            return 1
        }
        try ethtool -K "$2" tx off
        ;;
    address) make_address "$2" "$3" ;;
    esac
}

make_tunnel() {
    if ! is_there "$2"; then
        modprobe "$4" 2>/dev/null # it may be built in; in a container the host loads it
        if [ "$5" = any ]; then
            : # the module makes it
        elif [ $tool = ip ]; then
            # shellcheck disable=SC2046
            try ip link add name "$2" type "$3" local "$5" \
                $([ "$3" != ip6tnl ] || echo mode any) $([ ! "${6:-}" ] || echo icsum) || return 1
            try ip link set dev "$2" up && return
            ip link delete dev "$2" 2>/dev/null
            return 1
        else
            why="this guest has no ip (iproute2)"
            return 1
        fi
    fi
    how=up
    if [ $tool = ip ]; then try ip link set dev "$2" up; else try ifconfig "$2" up; fi
}

make_address() {
    case $tool/$1 in
    ip/*:*)
        # Duplicate address detection would find the director. busybox's ip does not support nodad,
        # and does not need it: the kernel detects no duplicates on lo and on tunnels.
        try ip addr add "$1/128" dev "$2" nodad || {
            case $why in *garbage*) try ip addr add "$1/128" dev "$2" ;; *) return 1 ;; esac
        }
        ;;
    ip/*) try ip addr add "$1/32" dev "$2" ;;
    */*:*) try ifconfig "$2" add "$1/128" ;;
    *)
        number=0
        while has "$links" "[$2:$number]"; do number=$((number + 1)); done
        how=$2:$number
        links=$links$newline"[$how]"
        try ifconfig "$how" "$1" netmask 255.255.255.255 up
        ;;
    esac
}

# was_sysctl PATH: its value before the first apply, in an earlier boot, into `was`.
was_sysctl() {
    was=''
    [ -r "$before" ] || return 1
    while read -r known_path known_value; do
        [ "$known_path" != "$1" ] || was=$known_value
    done <"$before"
    is_number "${was#-}"
}

keep_sysctl() { # PATH VALUE
    [ ! -d "${before%/*}" ] || echo "$1 $2" >>"$before"
} 2>/dev/null

lose_sysctl() { # PATH
    [ -e "$before" ] || return 0
    grep -v -F -e "$1 " "$before" >"$before.new"
    if [ -s "$before.new" ]; then
        mv -f "$before.new" "$before"
    else
        rm -f "$before.new" "$before"
    fi
} 2>/dev/null

# undo HOW LINE…: missing state is no failure.
undo() {
    how=$1
    shift
    case $1/$how in
    sysctl/*)
        # A value that others have set stays.
        [ "$(sysctl_value "$2")" = "$3" ] && { echo "$how" >"/proc/sys/$2"; } 2>/dev/null
        lose_sysctl "$2"
        ;;
    tunnel/made) ip link delete dev "$2" ;;
    tunnel/up) if [ $tool = ip ]; then ip link set dev "$2" down; else ifconfig "$2" down; fi ;;
    gue/*)
        six=''
        [ "$2" = 4 ] || six=-6
        # shellcheck disable=SC2086
        ip fou del port "$3" $six
        ;;
    route/*) ip -"$2" route del default via "$3" dev "$4" table "$5" ;;
    rule/*)
        case $3 in
        from) ip -"$2" rule del from "$4" table "$5" priority "$5" ;;
        mark) ip -"$2" rule del fwmark "$4" table "$5" priority "$5" ;;
        esac
        ;;
    no-tx-checksums/*) ethtool -K "$2" tx on ;;
    rules/*) unload "$how" ;;
    address/made)
        if [ $tool = ip ]; then
            ip addr del "$2/$(length "$2")" dev "$3"
        else
            ifconfig "$3" del "$2/128"
        fi
        ;;
    address/*) ifconfig "$how" down ;;
    esac >/dev/null 2>&1 </dev/null
    :
}

# ---- marks and clamps ----

# A connection that came in by an interface gets a mark, and so do its replies: they are routed by
# it to the director that sent the request, whatever the default route is.
nft_text() {
    echo 'table inet xenlb {}'
    echo 'delete table inet xenlb'
    echo 'table inet xenlb {'
    incoming='' marks=' ' clamped=''
    each_rule nft_rule
    if [ "$incoming" ]; then
        # Old versions of nft have no names for priorities. -150 is mangle.
        echo " chain incoming {$newline  type filter hook prerouting priority -150;"
        printf %s "$incoming"
        nft_marks 'ct direction reply'
        echo " }"
        # The check of sources (rp_filter) needs the mark on incoming packets, too. Packets to a
        # container must not be routed by it; they can be told apart only after the translation of
        # destinations (-100).
        echo " chain local {$newline  type filter hook prerouting priority -90;"
        nft_marks 'ct direction original fib daddr type local'
        echo " }"
        echo " chain outgoing {$newline  type route hook output priority -150;"
        nft_marks 'ct direction reply'
        echo " }"
    fi
    if [ "$clamped" ]; then
        # After the translation of sources (100): then a container's reply has the service address.
        echo " chain clamp {$newline  type filter hook postrouting priority 150;"
        printf %s "$clamped"
        echo " }"
    fi
    echo '}'
}

nft_marks() { # CONDITION
    for mark in $marks; do echo "  $1 ct mark $mark meta mark set $mark"; done
}

nft_rule() {
    case $1 in
    mark)
        case $3/$4 in
        tcp/any) match='tcp dport != 22' ;;
        */any) match="meta l4proto $3" ;;
        *) match="$3 dport $4" ;;
        esac
        incoming="$incoming  iifname \"$2\" ct state new ct direction original fib daddr type local"
        incoming="$incoming $match ct mark set $5$newline"
        add_mark "$5"
        ;;
    clamp)
        ip=ip
        case $2 in *:*) ip=ip6 ;; esac
        clamped="$clamped  $ip saddr $2 tcp flags & (syn | rst) == syn"
        clamped="$clamped tcp option maxseg size > $3 tcp option maxseg size set $3$newline"
        ;;
    esac
}

add_mark() { case $marks in *" $1 "*) ;; *) marks="$marks$1 " ;; esac }

# each_rule FUNCTION: with the words of each mark and each clamp.
each_rule() {
    while IFS= read -r line; do
        case $line in
        mark\ * | clamp\ *)
            # shellcheck disable=SC2086
            "$1" $line
            ;;
        esac
    done <<END
$wanted
END
}

# iptables_text 4|6 LISTING: input of iptables-restore --noflush; nothing if this family needs none.
# Naming a chain makes or empties it; a jump to it is added if LISTING has none.
iptables_text() {
    family=$1 incoming='' marks=' ' clamped=''
    each_rule iptables_rule
    case $newline$wanted in *"${newline}rule $family mark "*) ;; *) incoming='' marks='' ;; esac
    [ "$incoming$clamped" ] || return 0
    echo '*mangle'
    for chain in PREROUTING/XENLB-IN OUTPUT/XENLB-OUT POSTROUTING/XENLB-CLAMP; do
        echo ":${chain#*/} - [0:0]"
        has "$2" "-A ${chain%/*} -j ${chain#*/}" || echo "-A ${chain%/*} -j ${chain#*/}"
    done
    printf %s "$incoming"
    for mark in $marks; do
        marked="-m connmark --mark $mark -m conntrack --ctdir"
        echo "-A XENLB-IN $marked REPLY -j MARK --set-mark $mark"
        echo "-A XENLB-OUT $marked REPLY -j MARK --set-mark $mark"
        # Unlike nft, iptables has no place after the translation of destinations. So incoming
        # packets are marked only where a strict check of sources would drop them; a container
        # cannot be a server there.
        ! strict || echo "-A XENLB-IN $marked ORIGINAL -m addrtype --dst-type LOCAL -m conntrack \
! --ctstate DNAT -j MARK --set-mark $mark"
    done
    printf %s "$clamped"
    echo COMMIT
}

iptables_rule() {
    case $1 in
    mark)
        case $3/$4 in
        tcp/any) match='-p tcp ! --dport 22' ;;
        */any) match="-p $3" ;;
        *) match="-p $3 --dport $4" ;;
        esac
        incoming="$incoming-A XENLB-IN -i $2 $match -m addrtype --dst-type LOCAL -m conntrack"
        incoming="$incoming --ctstate NEW --ctdir ORIGINAL -j CONNMARK --set-mark $5$newline"
        add_mark "$5"
        ;;
    clamp)
        is_address "$2" "$family" || return 0
        clamped="$clamped-A XENLB-CLAMP -s $2 -p tcp --tcp-flags SYN,RST SYN -m tcpmss"
        clamped="$clamped --mss $(($3 + 1)):65535 -j TCPMSS --set-mss $3$newline"
        ;;
    esac
}

strict() { # the kernel uses the larger of "all" and an interface's own value
    [ "$family" = 4 ] || return 1
    for conf in /proc/sys/net/ipv4/conf/*; do
        case "$newline$wanted" in
        *"${newline}mark ${conf##*/} "*)
            case $(sysctl_value net/ipv4/conf/all/rp_filter)/$(cat "$conf/rp_filter") in
            *2*) ;;
            *1*) return 0 ;;
            esac
            ;;
        esac
    done
    return 1
}

iptables_program() { # KIND 4|6 [-restore]: iptables, ip6tables-legacy-restore, …
    prefix=iptables
    [ "$2" = 4 ] || prefix=ip6tables
    echo "$prefix${1#iptables}${3:-}"
}

# listing nft|iptables|iptables-legacy: xenlb's rules as the kernel has them.
listing() {
    case $1 in
    nft) nft list table inet xenlb 2>/dev/null ;;
    *)
        for family in 4 6; do
            program=$(iptables_program "$1" $family)
            "$program" -t mangle -S 2>/dev/null | sed -n '/XENLB-/p'
        done
        ;;
    esac
}

rules_wanted() {
    case $newline$wanted in *"${newline}mark "* | *"${newline}clamp "*) return 0 ;; esac
    return 1
}

rules_kind() { # as the record says
    kind=''
    case "$newline$made" in
    *"${newline}nft rules$newline"*) kind=nft ;;
    *"${newline}iptables rules$newline"*) kind=iptables ;;
    *"${newline}iptables-legacy rules$newline"*) kind=iptables-legacy ;;
    esac
}

rules_text() { # KIND
    case $1 in
    nft) nft_text ;;
    *)
        iptables_text 4 ''
        iptables_text 6 ''
        ;;
    esac
}

# Compares the present listing with the one right after loading, which has no counters.
rules_in_place() {
    rules_kind
    if ! rules_wanted; then [ ! "$kind" ] && return; fi
    [ "$kind" ] && [ -r "$loaded" ] && [ -r "$listed" ] || return 1
    if [ "$kind $wanted" != "${rules_of:-}" ]; then
        [ "$(cat "$loaded")" = "$(rules_text "$kind")" ] || return 1
        rules_of="$kind $wanted" rules_listed=$(cat "$listed")
    fi
    [ "$rules_listed" = "$(listing "$kind")" ]
}

load_rules() {
    rules_kind
    former=$kind why=''
    for kind in nft iptables iptables-legacy; do
        load $kind || continue
        [ ! "$former" ] || [ "$former" = $kind ] || {
            unload "$former"
            forget "$former" rules
        }
        rules_text $kind >"$loaded"
        listing $kind >"$listed"
        rules_of=''
        remember $kind rules
        return 0
    done
    : "${why:=there is neither nft nor iptables}"
    return 1
}

load() {
    case $1 in
    nft)
        have_program nft || return 1
        said=$(nft_text | nft -f - 2>&1) || {
            why=${said%%"$newline"*}
            return 1
        }
        ;;
    *)
        have_program "$1-restore" || return 1
        for family in 4 6; do
            program=$(iptables_program "$1" $family)
            rules=$(iptables_text $family "$("$program" -t mangle -S 2>/dev/null)")
            if [ "$rules" ]; then
                said=$(echo "$rules" | "$program-restore" --noflush 2>&1) || {
                    : "${why:=${said%%"$newline"*}}"
                    return 1
                }
            else
                unload_family "$program"
            fi
        done
        ;;
    esac
}

unload() {
    case $1 in
    nft) nft delete table inet xenlb ;;
    *)
        for family in 4 6; do
            unload_family "$(iptables_program "$1" $family)"
        done
        ;;
    esac >/dev/null 2>&1
    rm -f "$loaded" "$listed"
}

unload_family() { # PROGRAM
    "$1" -t mangle -S 2>/dev/null | {
        jumps='' chains=''
        while IFS= read -r line; do
            case $line in
            '-N XENLB-'*) chains="$chains-F ${line#-N }$newline-X ${line#-N }$newline" ;;
            '-A '*' -j XENLB-'*) jumps="$jumps-D ${line#-A }$newline" ;;
            esac
        done
        [ ! "$chains" ] ||
            printf '*mangle\n%s%sCOMMIT\n' "$jumps" "$chains" | "$1-restore" --noflush
    } >/dev/null 2>&1
}

# ---- the hold's settings, if the settings contain any ----

hold_in_place() {
    [ ! "$holding" ] || [ "$(cat "$hold" 2>/dev/null)$newline" = "$holding" ]
}

write_hold() {
    { printf %s "$holding" >"$hold.new" && mv -f "$hold.new" "$hold"; } 2>/dev/null
}

# ---- passes ----

if have_program ip; then tool=ip; else tool=ifconfig; fi

# each_wanted FUNCTION KIND…: calls it with the words of each wanted line of these kinds, in order.
each_wanted() {
    do=$1
    shift
    for kind; do
        while IFS= read -r item; do
            # shellcheck disable=SC2086
            case $item in "$kind "*) $do $item ;; esac
        done <<END
$wanted
END
    done
}

# The reverse of the order in which it is made.
take_away() { # [all]
    for kind in address no-tx-checksums rules rule route gue tunnel sysctl; do
        while read -r how item; do
            [ "${item%% *}" = $kind ] || continue
            if [ ! "${1:-}" ]; then
                has "$wanted" "$item" && continue
                case $item in
                rules) rules_wanted && continue ;;
                sysctl\ *)
                    # Another value is wanted: the original one stays in the record.
                    name=${item% *}
                    case "$newline$wanted" in *"$newline$name "*) continue ;; esac
                    ;;
                esac
            fi
            # shellcheck disable=SC2086
            undo "$how" $item
            forget "$how" "$item"
            say "removed: $item"
        done <<END
$made
END
    done
}

ensure() {
    ! in_place "$@" || return 0
    # A device's own sysctls appear with it; those of a tunnel are set in a second round.
    if [ "$1/${late:-}" = sysctl/ ] && [ ! -e "/proc/sys/$2" ]; then return; fi
    if ! make "$@"; then
        complain "failed: $*: $why"
        return
    fi
    if [ "$1" = sysctl ]; then
        replace_sysctl "$@"
        if was_sysctl "$2"; then how=$was; else keep_sysctl "$2" "$how"; fi
    fi
    remember "$how" "$*"
    say "done: $*"
}

# The record keeps the original value.
replace_sysctl() {
    while read -r former item; do
        case $item in
        "sysctl $2 "*)
            how=$former
            forget "$former" "$item"
            ;;
        esac
    done <<END
$made
END
}

pass() {
    observe
    late=''
    each_wanted ensure sysctl tunnel
    late=yes
    observe_sysctls
    each_wanted ensure sysctl gue route rule
    if ! rules_in_place; then
        if ! rules_wanted; then
            :
        elif load_rules; then
            say "done: the rules for marks and clamps ($kind)"
        else
            complain "the rules for marks and clamps cannot be loaded: $why"
        fi
    fi
    each_wanted ensure no-tx-checksums address
    if ! hold_in_place; then
        if write_hold; then
            say "done: the settings of the hold"
        else
            complain "$hold cannot be written"
        fi
    fi
}

missing=''
note() { in_place "$@" || missing="$missing$*$newline"; }

find_missing() {
    missing=''
    observe
    each_wanted note sysctl tunnel gue route rule no-tx-checksums address
    rules_in_place || missing="${missing}the rules for marks and clamps$newline"
    hold_in_place || missing="${missing}the settings of the hold$newline"
}

# read_settings [FILE|-]: into `wanted`; 1: there are no valid settings, present or former.
read_settings() {
    if collect "$@" && parse_all; then
        if [ "$text" != "${kept:-}" ]; then
            printf %s "$text" >"$good.new" && mv -f "$good.new" "$good"
            kept=$text
        fi
        return 0
    fi
    if [ ! -r "$good" ] || [ ! "$made" ]; then
        [ "$complaints" ] || complain "there are no settings"
        return 1
    fi
    present_complaints=$complaints
    text=$(cat "$good")$newline
    parse_all
    usable=$?
    complaints=$present_complaints
    return $usable
}

tell_complaints() {
    [ "$complaints" != "${told:-}" ] || return 0
    told=$complaints
    [ ! "$complaints" ] || printf %s "$complaints" | while IFS= read -r line; do say "$line"; done
}

up() {
    complaints=''
    enter
    if read_settings "$@"; then
        take_away
        pass
    fi
    leave
    tell_complaints
    if [ "$complaints" ]; then
        tell_host failed
        return 1
    fi
    tell_host ok
}

# The kernel sends no event to a shell for flushed rules and lost addresses, so the watch checks the
# state: one process or two, every three seconds.
watch() {
    # Not in the middle of a pass: state that is not yet in the record would be lost.
    trap 'ending=yes; [ "$busy" ] || finish' TERM INT
    echo $$ >"$run/xenlb-guest.pid"
    former='' answered='' told='' ending='' busy=''
    while :; do
        complaints=''
        recall
        if read_settings; then
            find_missing
            if [ "$text" != "$former" ] || [ "$missing" ]; then
                former=$text
                enter
                take_away
                pass
                leave
                [ ! "$ending" ] || finish
            fi
        fi
        tell_complaints
        if [ "$complaints" ]; then outcome=failed; else outcome=ok; fi
        if [ "$serial" ] && [ "$serial $outcome" != "$answered" ]; then
            answered="$serial $outcome"
            tell_host $outcome
        fi
        sleep "$every" &
        sleeper=$!
        wait $sleeper
    done
}

finish() {
    kill $sleeper 2>/dev/null
    rm -f "$run/xenlb-guest.pid"
    exit 0
}

down() {
    enter
    take_away all
    rm -f "$record" "$good" "$loaded" "$listed"
    leave
}

# Not sysctls without a known original value. An alias of ifconfig is known by its name only.
adopt() {
    complaints=''
    enter
    if collect "$@" && parse_all; then
        observe
        each_wanted take_over sysctl tunnel gue route rule no-tx-checksums address
    fi
    leave
    tell_complaints
    [ ! "$complaints" ]
}

take_over() {
    case "$newline$made" in *" $*$newline"*) return ;; esac
    [ "$1/$tool" != address/ifconfig ] && in_place "$@" || return 0
    case $1/${5:-} in
    sysctl/*)
        was_sysctl "$2" || return 0
        how=$was
        ;;
    tunnel/any) how=up ;;
    *) how=made ;;
    esac
    remember "$how" "$*"
}

status() {
    complaints=''
    recall
    read_settings
    usable=$?
    tell_complaints
    [ $usable = 0 ] || return 1
    find_missing
    [ "$missing" ] || {
        say "all is in place"
        [ ! "$complaints" ]
        return
    }
    printf %s "$missing" | while IFS= read -r line; do say "missing: $line"; done
    return 1
}

rules() {
    complaints=''
    recall
    read_settings
    usable=$?
    tell_complaints >&2
    [ $usable = 0 ] || return 1
    rules_wanted || return 0
    rules_kind
    [ "$kind" ] || {
        kind=iptables
        ! have_program nft || kind=nft
    }
    rules_text "$kind"
}

sleeper=''
case ${1:-}/$# in
up/1 | up/2 | adopt/2 | watch/1 | down/1 | status/1 | rules/1)
    "$@"
    exit
    ;;
*)
    echo "usage: $0 up [FILE|-] | watch | down | status | rules | adopt FILE" >&2
    exit 2
    ;;
esac
