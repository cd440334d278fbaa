#!/bin/sh
# Delays the shutdown of this guest until the connections of its clients have ended. Installed by
# xenlb, the load balancer on the host; runs as the service xenlb-hold.
#
#   hold.sh start    notifies the host: "staying"
#   hold.sh stop     notifies the host: "leaving", so that it sends no new connections, and waits
#                    until the connections of this guest have ended, at most for the timeout
#   hold.sh status   prints the services and the number of connections; 0 if it was started
#
# It needs a POSIX shell (dash, busybox, bash), sed, sleep, and /proc of a little-endian processor.
# It reports every failure and exits with 0, so it never makes a shutdown fail.

root=${XENLB_HOLD_ROOT:-} # for tests
conf=$root/etc/xenlb-hold.conf
run=$root/run
[ -d "$run" ] || run=$root/var/run
pipes=$run/xenlb-hold.pipes # from and to a TCP client
umask 077

say() {
    echo "xenlb-hold: $*"
}

# ---- settings: NAME=VALUE lines, never executed ----

tell=none timeout=60 until=established agent='' number='' uuid='' secret=''
watched=''   # for messages
ports=' '    # at any address of this guest, in hexadecimal as in /proc/net/tcp
pairs=' '    # service address and port
addresses=' ' # service addresses of which every port counts
open=no      # yes: every port that this guest listens on counts

settings() {
    [ -r "$conf" ] || {
        say "cannot read $conf"
        return 1
    }
    while IFS='=' read -r name value; do
        case $value in
        *[!0-9A-Za-z.:\ -]*)
            say "$conf: invalid value of $name"
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
        *) say "$conf: unknown setting $name" ;;
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

hex6() { # 2001:0DB8:0000:…, full form in capitals → B80D0120…
    IFS=:
    # shellcheck disable=SC2086
    set -- $1
    while [ $# -ge 2 ]; do
        printf %s "${2#??}${2%??}${1#??}${1%??}"
        shift 2
    done
}

# ---- connections ----

# count MOST: the number of client connections to the services, at most MOST, into `found`.
#
# A connection counts while data is or may be under way: ESTABLISHED (01); SYN_RECV (03), a client
# that connects; FIN_WAIT1 (04), CLOSING (0B) and LAST_ACK (09), closed here but not all data is
# acknowledged; CLOSE_WAIT (08), where the client has sent everything and waits for the reply.
# FIN_WAIT2 (05), where only the peer's FIN is missing, counts with `until: all`. TIME_WAIT and
# listening sockets never count.
#
# One process for all lines: there may be ten thousand in TIME_WAIT, and a shell reads /proc byte
# by byte (measured: half a minute for 3,000 lines in an emulated guest).
count() {
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
                ??????7F | 00000000000000000000000001000000) continue ;; # loopback
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

# For services of unknown ports (by firewall mark, or port 0): all listening ports but 22, which
# the administrator who shuts the guest down may be using.
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

pause=0.5 rate=2 # naps per second; not every sleep accepts a fraction
nap() {
    sleep $pause 2>/dev/null && return
    pause=1 rate=1
    sleep 1
}

# within SECONDS COMMAND…: runs it in a child that is killed after that time. Slow work must run in
# that child itself: a grandchild would survive, and might send an outdated notification.
within() {
    limit=$1
    shift
    ("$@") </dev/null >/dev/null 2>&1 &
    child=$!
    naps=0
    while kill -0 $child 2>/dev/null; do
        [ $naps -lt $((limit * rate)) ] || kill -9 $child 2>/dev/null
        nap
        naps=$((naps + 1))
    done
    wait $child 2>/dev/null
}

# ---- notifications to the host ----

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

# Xen: data/xenlb of this domain. Few guests have a xenstore client, so the script writes the
# message itself: 11 (WRITE), request 0, transaction 0, length 18, then PATH, a zero byte, and the
# word; both words have seven letters. Octal is all that dash's printf supports. The reply begins
# with 11 again, or with 16 (ERROR).
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

# QEMU: a virtio port. The host gets an event when it is opened or closed, so a sleeping process
# keeps it open from "leaving" until "staying" or the end of the shutdown. Nothing is written: the
# host does not read, and the write would block.
tell_virtio() {
    holder=$run/xenlb-hold.pid
    port=$(find_port)
    [ "$port" ] || return 1
    pid=''
    [ -r "$holder" ] && read -r pid <"$holder"
    # shellcheck disable=SC3013 # dash and busybox have -ef; the pid may be of an earlier boot
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
    # Without udev there is no link by name.
    for port in "$root"/sys/class/virtio-ports/*; do
        name=''
        [ -r "$port/name" ] && read -r name <"$port/name"
        if [ "$name" = org.xenlb.0 ] && [ -c "$root/dev/${port##*/}" ]; then
            echo "$root/dev/${port##*/}"
            return
        fi
    done
}

# Other hypervisors: the agent's TCP port. The agent sends a nonce, and the guest replies with a
# checksum over the nonce, the word and its secret. Repeated until `within` ends: the agent may be
# restarting.
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
    # `command`: without it a failed redirection would end this shell.
    # shellcheck disable=SC3025 # bash has it
    command exec 3<>"/dev/tcp/$agent/$number" || return 1
    session "$1" 4>&3
}

by_pump() {
    rm -rf "$pipes"
    mkdir "$pipes" && mkfifo "$pipes/in" "$pipes/out" || return 1
    pump <"$pipes/in" >"$pipes/out" &
    exec 4>"$pipes/in" 3<"$pipes/out"
    session "$1"
    taken=$?
    exec 4>&- 3<&-
    kill $! 2>/dev/null
    return $taken
}

pump() { # copies standard input to the agent, and the agent's output to standard output
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

session() { # reads from the agent by descriptor 3, writes by 4
    read -r name version nonce <&3 || return 1
    [ "$name $version" = 'xenlb 1' ] || return 1
    case $nonce in '' | *[!0-9a-f]*) return 1 ;; esac
    sha256 "$secret:$nonce:$1" && sha256 "$secret:$sum" || return 1
    echo "$uuid $1 $sum" >&4
    read -r answer <&3 && [ "$answer" = ok ]
}

sha256() { # of a text, into `sum`; by standard input, to hide it from ps(1)
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
    # With this folder, old init systems stop only services that have a file in it.
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
        say "this guest serves; the host is not notified"
    elif tell_host staying; then
        say "this guest serves; the host is notified ($tell)"
    else
        say "the host could not be notified that this guest serves ($tell)"
    fi
    remember staying
}

stop() {
    settings || return 0
    now
    began=$now notified=''
    # Before all else: new clients come until the host is notified.
    tell_host leaving && notified=yes
    find_open_ports
    count 1000000
    say "$found connections to${watched#,}; waiting until none is left, at most $timeout s"
    [ "$notified" ] || say "the host could not be notified that this guest leaves ($tell)"
    remember leaving
    now
    since=$now empty=0 rounds=0
    while :; do
        count 1
        if [ "$found" = 0 ]; then empty=$((empty + 1)); else empty=0; fi
        now
        # Twice in a row, and two seconds after the notification for packets under way.
        if [ $empty -ge 2 ] && [ $((now - since)) -gt 2 ]; then
            say "no connections left after $((now - began)) s"
            return
        fi
        # The rounds end it too if the clock stands.
        if [ $((now - began)) -ge "$timeout" ] || [ $rounds -gt $((timeout * rate)) ]; then
            count 1000000
            say "timed out after $timeout s with $found connections left"
            return
        fi
        nap
        rounds=$((rounds + 1))
        # The agent may have been down; new clients come until it is notified.
        if [ ! "$notified" ] && [ $((rounds % (5 * rate))) = 0 ] && tell_host leaving 1; then
            notified=yes
            now
            since=$now
            say "the host is notified now that this guest leaves"
        fi
    done
}

status() {
    settings || return 4
    find_open_ports
    count 1000000
    word=''
    [ -r "$run/xenlb-hold" ] && read -r word <"$run/xenlb-hold"
    say "${word:-not started}; $found connections to${watched#,}; the host is notified by $tell"
    [ "$word" = staying ] || return 3
}

case ${1:-} in
start) start ;;
stop) stop ;;
status)
    status
    exit
    ;;
tell) # called by tell_tcp, in bash
    settings && tell_tcp "$2"
    exit
    ;;
*)
    echo "usage: $0 start|stop|status" >&2
    exit 2
    ;;
esac
exit 0
