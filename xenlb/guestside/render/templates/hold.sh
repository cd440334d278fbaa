#!/bin/sh
# Holds the shutdown of this guest until its clients are served. Put here by xenlb, which balances
# them on the host; started and stopped as the service xenlb-hold.
#
#   hold.sh start    the guest serves: tells the host "staying"
#   hold.sh stop     the guest is about to stop: tells the host "leaving", which gives it no new
#                    connections from then on, and waits until those that it has are over, or the
#                    time is
#   hold.sh status   what it waits for and how many connections there are; 0 if it was started
#
# It needs a POSIX shell (dash, busybox, bash), sed, sleep, and /proc as a little-endian processor
# writes it. Whatever is missing or fails, it says so and ends with 0: no shutdown fails by it.

root=${XENLB_HOLD_ROOT:-} # of tests
conf=$root/etc/xenlb-hold.conf
run=$root/run
[ -d "$run" ] || run=$root/var/run
pipes=$run/xenlb-hold.pipes # from and to a program that speaks TCP
umask 077

say() {
    echo "xenlb-hold: $*"
}

# ---- settings: plain NAME=VALUE lines, read and never run ----

tell=none timeout=60 until=established agent='' number='' uuid='' secret=''
watched=''   # as people read it
ports=' '    # of connections to any address of this guest, in hexadecimal as /proc/net/tcp has it
pairs=' '    # service address and port
addresses=' ' # service addresses whose every port counts
open=no      # do all ports count that this guest listens on?

settings() {
    [ -r "$conf" ] || {
        say "cannot read $conf"
        return 1
    }
    while IFS='=' read -r name value; do
        case $value in
        *[!0-9A-Za-z.:\ -]*)
            say "$conf: the value of $name is not understood"
            continue
            ;;
        esac
        case $name in
        '' | '#'*) ;;
        tell) tell=$value ;;
        timeout) timeout=$value ;;
        until) until=$value ;;
        agent) agent=${value% *} number=${value#* } ;;
        uuid) uuid=$value ;;
        secret) secret=$value ;;
        watch) watch "${value% *}" "${value#* }" ;;
        *) say "$conf: $name is not known" ;;
        esac
    done <"$conf"
    case $timeout in '' | *[!0-9]*) timeout=60 ;; esac
    return 0
}

watch() {
    case $1/$2 in
    any/any)
        open=yes
        watched="$watched, every port it listens on but 22"
        return
        ;;
    any/*) watched="$watched, port $2" ;;
    */any) watched="$watched, $1" ;;
    *) watched="$watched, $1 port $2" ;;
    esac
    port=''
    [ "$2" = any ] || port=$(printf %04X "$2")
    case $1 in
    any) ports="$ports$port " ;;
    *:*) service "$(hex6 "$1")" ;;
    *) service "$(hex4 "$1")" ;;
    esac
}

service() {
    if [ "$port" ]; then pairs="$pairs$1:$port "; else addresses="$addresses$1 "; fi
}

# /proc/net/tcp shows addresses as 32-bit numbers in the processor's byte order.
hex4() { # 192.0.2.10 → 0A0200C0
    IFS=.
    # shellcheck disable=SC2086
    set -- $1
    printf '%02X%02X%02X%02X' "$4" "$3" "$2" "$1"
}

hex6() { # 2001:0DB8:0000:…, in full and in capitals → B80D0120…
    IFS=:
    # shellcheck disable=SC2086
    set -- $1
    while [ $# -ge 2 ]; do
        printf %s "${2#??}${2%??}${1#??}${1%??}"
        shift 2
    done
}

# ---- connections ----

# look MOST: counts the connections that clients have to the services, up to MOST, into `found`.
#
# What counts carries data or owes some: ESTABLISHED (01); SYN_RECV (03), a client that is being
# let in; FIN_WAIT1 (04), CLOSING (0B) and LAST_ACK (09), where we have ended and the peer has not
# confirmed all of what we sent; CLOSE_WAIT (08), where the client has said everything and waits
# for its answer. FIN_WAIT2 (05), where the peer has got everything and only its own end is
# missing, counts with `until: all`. TIME_WAIT is a memory, and listening sockets are no client's.
#
# One process a look, none for a line: there may be ten thousand in TIME_WAIT, and a shell reads
# a file of /proc letter by letter (seen: half a minute for 3,000 lines in an emulated guest).
look() {
    states='0[13489B]' found=0
    [ "$until" != all ] || states='0[134589B]'
    for table in tcp tcp6; do
        while read -r here; do
            [ "$here" ] || continue
            here=${here#0000000000000000FFFF0000} # an IPv4 client of an IPv6 socket
            address=${here%:*}
            case "$pairs$addresses" in
            *" $here "* | *" $address "*) ;;
            *)
                case $address in
                ??????7F | 00000000000000000000000001000000) continue ;; # not by the balancer
                esac
                case $ports in
                *" ${here#*:} "*) ;;
                *) continue ;;
                esac
                ;;
            esac
            found=$((found + 1))
            [ "$found" -lt "$1" ] || return 0
        done <<END
$(ends "$table" "$states")
END
    done
}

# ends tcp|tcp6 STATES: the local end of each socket in one of these states, as ADDRESS:PORT.
ends() {
    [ -r "$root/proc/net/$1" ] || return 0
    sed -n "s/^ *[0-9]*: \([0-9A-F]*:[0-9A-F]*\) [0-9A-F]*:[0-9A-F]* $2 .*/\1/p" "$root/proc/net/$1"
}

# Where the ports of a service are not known (by firewall mark, or port 0): all that are listened
# on, save 22, where whoever types the shutdown may be sitting.
find_open_ports() {
    [ $open = yes ] || return 0
    for table in tcp tcp6; do
        while read -r here; do
            case $here in
            '' | ??????7F:* | 00000000000000000000000001000000:* | *:0016) continue ;;
            esac
            ports="$ports${here#*:} "
        done <<END
$(ends "$table" 0A)
END
    done
}

now() { # seconds; whole ones, rounded down
    read -r up _ <"$root/proc/uptime" || up=0
    now=${up%.*}
}

pause=0.5 each=2 # not every sleep takes a fraction
nap() {
    sleep $pause 2>/dev/null && return
    pause=1 each=1
    sleep 1
}

# within SECONDS COMMAND…: runs it in a child that is killed when its time is over. What may take
# long must be done by that child itself, not by children of it: they would go on, and say the word
# when it is no longer true.
within() {
    limit=$1
    shift
    ("$@") </dev/null >/dev/null 2>&1 &
    child=$!
    naps=0
    while kill -0 $child 2>/dev/null; do
        [ $naps -lt $((limit * each)) ] || kill -9 $child 2>/dev/null
        nap
        naps=$((naps + 1))
    done
    wait $child 2>/dev/null
}

# ---- telling the host ----

tell_host() {
    case $tell in
    none) return 0 ;;
    virtio) tell_virtio "$1" ;;
    xenstore) tell_xenstore "$1" ;;
    tcp)
        within "${2:-3}" tell_tcp "$1"
        taken=$?
        rm -rf "$pipes"
        return $taken
        ;;
    *) return 1 ;;
    esac
}

# Xen: data/xenlb of this domain. Few guests have a xenstore client, so the message is written by
# hand: 11 (WRITE), request 0, transaction 0, length 18, then PATH, a zero byte, and the word; both
# words have seven letters. Octal, because dash's printf knows no other. The answer begins with 11
# again, or with 16 (ERROR).
tell_xenstore() {
    answer=$run/xenlb-hold.answer
    for device in "$root/dev/xen/xenbus" "$root/proc/xen/xenbus"; do
        [ -e "$device" ] || continue
        within 3 ask_xenstore "$device" "$1"
        # shellcheck disable=SC2094
        first=$(dd bs=1 count=1 <"$answer" 2>/dev/null)
        rm -f "$answer"
        [ "$first" != "$(printf '\013')" ] || return 0
    done
    within 3 exec xenstore-write data/xenlb "$1"
}

ask_xenstore() {
    exec 3<>"$1" || return 1
    printf '\013\0\0\0\0\0\0\0\0\0\0\0\022\0\0\0data/xenlb\0%s' "$2" >&3 || return 1
    exec dd bs=1 count=19 <&3 >"$answer"
}

# QEMU: a virtio port. The host hears that it is opened and closed, so a process that does nothing
# else has it open from "leaving" until it is killed: by "staying", or as the last of all. Nothing
# is written there: nobody reads, and the write would wait for ever.
tell_virtio() {
    holder=$run/xenlb-hold.pid
    port=$(find_port)
    [ "$port" ] || return 1
    pid=''
    [ -r "$holder" ] && read -r pid <"$holder"
    # shellcheck disable=SC3013 # dash and busybox have -ef; a number of an old boot is no one's
    if [ "$pid" ] && [ "/proc/$pid/fd/7" -ef "$port" ]; then
        [ "$1" = leaving ] && return 0
        kill "$pid"
        rm -f "$holder"
    fi
    [ "$1" = leaving ] || return 0
    command exec 7<>"$port" || return 1
    sleep 2147483647 >/dev/null 2>&1 &
    echo $! >"$holder"
    exec 7>&-
}

find_port() {
    if [ -c "$root/dev/virtio-ports/org.xenlb.0" ]; then
        echo "$root/dev/virtio-ports/org.xenlb.0"
        return
    fi
    # Without udev there is no such link.
    for port in "$root"/sys/class/virtio-ports/*; do
        name=''
        [ -r "$port/name" ] && read -r name <"$port/name"
        if [ "$name" = org.xenlb.0 ] && [ -c "$root/dev/${port##*/}" ]; then
            echo "$root/dev/${port##*/}"
            return
        fi
    done
}

# Elsewhere: the agent's TCP port. It asks with a number that it never uses twice, and is answered
# with a checksum over this, the word, and the secret of this guest. Tried again until `within` is
# over: the agent may just be restarting.
tell_tcp() {
    trap '' PIPE
    # shellcheck disable=SC3028 # this may be bash
    if [ "${BASH_VERSION:-}" ]; then
        by=by_bash
    elif command -v bash; then
        exec bash "$0" tell "$1"
    else
        by=by_pump
    fi
    until $by "$1"; do nap; done
}

by_bash() {
    # `command`: a redirection that fails would otherwise end this shell.
    # shellcheck disable=SC3025 # bash has it
    command exec 3<>"/dev/tcp/$agent/$number" || return 1
    converse "$1" 4>&3
}

by_pump() {
    rm -rf "$pipes"
    mkdir "$pipes" && mkfifo "$pipes/in" "$pipes/out" || return 1
    pump <"$pipes/in" >"$pipes/out" &
    exec 4>"$pipes/in" 3<"$pipes/out"
    converse "$1"
    taken=$?
    exec 4>&- 3<&-
    kill $! 2>/dev/null
    return $taken
}

pump() { # what is read goes to the agent, what comes from it is written
    if command -v nc >&2; then
        exec nc -w 3 "$agent" "$number"
    elif command -v python3 >&2; then
        exec python3 -c '
import socket, sys, threading
agent = socket.create_connection(sys.argv[1:], 3)
def send():
    for line in sys.stdin.buffer:
        agent.sendall(line)
threading.Thread(target=send, daemon=True).start()
while data := agent.recv(256):
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
' "$agent" "$number"
    else
        # shellcheck disable=SC2016
        exec perl -e '
use IO::Socket::IP;
$| = 1;
my $agent = IO::Socket::IP->new(PeerHost => $ARGV[0], PeerPort => $ARGV[1], Timeout => 3) or exit 1;
$agent->autoflush(1);
my $reader = fork();
if ($reader) { while (<STDIN>) { print $agent $_ } waitpid($reader, 0) }
else { while (<$agent>) { print } }
' "$agent" "$number"
    fi
}

converse() { # from the agent by 3, to it by 4
    read -r name version nonce <&3 || return 1
    [ "$name $version" = 'xenlb 1' ] || return 1
    case $nonce in '' | *[!0-9a-f]*) return 1 ;; esac
    sha256 "$secret:$nonce:$1" && sha256 "$secret:$sum" || return 1
    echo "$uuid $1 $sum" >&4
    read -r answer <&3 && [ "$answer" = ok ]
}

sha256() { # of a text, into `sum`; by standard input, where ps(1) does not show it
    if command -v sha256sum >/dev/null; then
        sum=$(printf %s "$1" | sha256sum)
        sum=${sum%% *}
    else
        sum=$(printf %s "$1" | openssl dgst -sha256)
        sum=${sum##* }
    fi
    [ "$sum" ]
}

# ---- start, stop, status ----

remember() {
    echo "$1" >"$run/xenlb-hold" 2>/dev/null
    # Where there is such a folder, the old init scripts stop only who has a file in it.
    if [ -d "$root/var/lock/subsys" ]; then
        if [ "$1" = staying ]; then
            : >"$root/var/lock/subsys/xenlb-hold"
        else
            rm -f "$root/var/lock/subsys/xenlb-hold"
        fi
    fi
}

start() {
    settings || return 0
    if [ "$tell" = none ]; then
        say "this guest serves; the host is not told"
    elif tell_host staying; then
        say "this guest serves, the host knows ($tell)"
    else
        say "the host could not be told that this guest serves ($tell)"
    fi
    remember staying
}

stop() {
    settings || return 0
    now
    began=$now told=''
    # First of all: until the host knows, new clients come.
    tell_host leaving && told=yes
    find_open_ports
    look 1000000
    say "$found connections to${watched#,}; waiting until none is left, at most $timeout s"
    [ "$told" ] || say "the host could not be told that this guest leaves ($tell)"
    remember leaving
    now
    heard=$now quiet=0 looks=0
    while :; do
        look 1
        if [ "$found" = 0 ]; then quiet=$((quiet + 1)); else quiet=0; fi
        now
        # Two looks in a row, and two seconds for what was under way when the host heard of it.
        if [ $quiet -ge 2 ] && [ $((now - heard)) -gt 2 ]; then
            say "empty after $((now - began)) s"
            return
        fi
        # The looks count too, should the clock not run.
        if [ $((now - began)) -ge "$timeout" ] || [ $looks -gt $((timeout * each)) ]; then
            look 1000000
            say "the time of $timeout s is over with $found connections left"
            return
        fi
        nap
        looks=$((looks + 1))
        # An agent that was down: while it is not told, new clients come.
        if [ ! "$told" ] && [ $((looks % (5 * each))) = 0 ] && tell_host leaving 1; then
            told=yes
            now
            heard=$now
            say "the host knows now that this guest leaves"
        fi
    done
}

status() {
    settings || return 4
    find_open_ports
    look 1000000
    word=''
    [ -r "$run/xenlb-hold" ] && read -r word <"$run/xenlb-hold"
    say "${word:-not started}; $found connections to${watched#,}; the host is told by $tell"
    [ "$word" = staying ] || return 3
}

case ${1:-} in
start) start ;;
stop) stop ;;
status)
    status
    exit
    ;;
tell) # by itself, in bash
    settings && tell_tcp "$2"
    exit
    ;;
*)
    echo "usage: $0 start|stop|status" >&2
    exit 2
    ;;
esac
exit 0
