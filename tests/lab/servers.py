"""Real servers of Debian for checks to ask, in the User-mode Linux lab.

Their packages are unpacked in the cache and laid over the lab's /usr: installing them would start
them on this machine. Each is set up as little as it takes, with a log of its own, and with TLS
where it can: a good certificate, and an expired one for the name expired.example.org or at a port
of its own.

What each logs of a check, seen with the versions of Debian 12 at their default log level: nginx its
line in the access log (and below the default level, which is error, one of info for a connection
without a request: tls and tcp); Postfix that a client came and went, with its commands; Dovecot one
line of info for a log-out without a log-in; MariaDB a warning for a log-in that it refuses;
Courier and PgBouncer a line for each that comes and goes; the others nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from tests.lab.host import LabError, Process, last_lines
from tests.lab.uml import UmlLab
from tests.lab.unpacked import tree
from tests.unit.health.certificates import EXPIRED, certificates

# Servers, then the libraries of theirs that a machine need not have.
PACKAGES = (
    *("exim4-daemon-light", "postfix"),
    *("nginx", "dovecot-core", "dovecot-imapd", "dovecot-pop3d", "slapd"),
    *("mariadb-server-core", "postgresql-15", "redis-server", "redis-tools"),
    *("apache2-bin", "bind9", "nsd", "dnsmasq-base", "unbound", "pgbouncer"),
    *("courier-imap", "courier-pop", "courier-base", "courier-authlib"),
    *("sphinxsearch", "nutcracker"),
    *("bind9-libs", "libapr1", "libaprutil1", "libc-ares2", "libfstrm0", "liblmdb0"),
    *("libcourier-unicode4", "libmariadb3", "libmaxminddb0", "libre2-9"),
    *("libaio1", "libatomic1", "libdb5.3", "libevent-2.1-7", "libexttextcat-2.0-0", "libicu72"),
    *("libgnutls-dane0", "libidn12", "libjemalloc2", "libldap-2.5-0", "libltdl7", "liblua5.4-0"),
    *("liblzf1", "libnsl2", "libnuma1", "libodbc2", "libpcre2-8-0", "libpq5", "libsasl2-2"),
    *("libsodium23", "libunbound8", "libunwind8", "liburing2", "libwrap0", "libxml2"),
)
USERS = ("Debian-exim", "postfix", "postdrop", "dovecot", "dovenull", "mysql", "pgsql", "apache")
ADDRESS = "10.0.0.1"
HOME = "/run/lab/servers"
TLS = f"{HOME}/tls"

EXIM = f"""\
primary_hostname = mail.example.org
spool_directory = {HOME}/exim
log_file_path = {HOME}/exim/%slog
pid_file_path = {HOME}/exim/pid
local_interfaces = {ADDRESS}
daemon_smtp_ports = 25 : 465
tls_on_connect_ports = 465
tls_advertise_hosts = *
tls_certificate = {TLS}/${{if eq{{$tls_in_sni}}{{{EXPIRED}}}{{expired}}{{good}}}}.pem
tls_privatekey = {TLS}/${{if eq{{$tls_in_sni}}{{{EXPIRED}}}{{expired}}{{good}}}}.key
keep_environment =
"""
POSTFIX = f"""\
compatibility_level = 3.6
myhostname = mail.example.org
inet_interfaces = {ADDRESS}
mynetworks = 127.0.0.0/8
alias_maps =
alias_database =
queue_directory = {HOME}/postfix/spool
data_directory = {HOME}/postfix/data
maillog_file = {HOME}/postfix/log
maillog_file_prefixes = {HOME}
smtpd_tls_security_level = may
smtpd_tls_chain_files = {TLS}/good.key {TLS}/good.pem
"""
POSTFIX_MASTER = """\
2525   inet n - n - - smtpd
2465   inet n - n - - smtpd -o smtpd_tls_wrappermode=yes
tlsmgr unix - - n 1000? 1 tlsmgr
anvil  unix - - n - 1 anvil
rewrite unix - - n - - trivial-rewrite
proxymap unix - - n - - proxymap
postlog unix-dgram n - n - 1 postlogd
"""
NGINX = f"""\
daemon off;
pid {HOME}/nginx.pid;
error_log {HOME}/nginx-error.log info;
events {{}}
http {{
    access_log {HOME}/nginx-access.log;
    client_body_temp_path {HOME}/nginx; proxy_temp_path {HOME}/nginx;
    fastcgi_temp_path {HOME}/nginx; uwsgi_temp_path {HOME}/nginx; scgi_temp_path {HOME}/nginx;
    server {{
        listen {ADDRESS}:80;
        location = /health {{ default_type text/plain; return 200 "all is well\\n"; }}
        location / {{ return 404; }}
    }}
    server {{
        listen {ADDRESS}:443 ssl default_server;
        ssl_certificate {TLS}/good.pem; ssl_certificate_key {TLS}/good.key;
        return 200 "all is well\\n";
    }}
    server {{
        listen {ADDRESS}:443 ssl;
        server_name {EXPIRED};
        ssl_certificate {TLS}/expired.pem; ssl_certificate_key {TLS}/expired.key;
    }}
}}
"""
APACHE = f"""\
ServerRoot {HOME}/apache
ServerName mail.example.org
DefaultRuntimeDir {HOME}/apache
PidFile {HOME}/apache/pid
ErrorLog {HOME}/apache/error.log
User apache
Group apache
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule ssl_module /usr/lib/apache2/modules/mod_ssl.so
StartServers 1
MinSpareThreads 1
ThreadsPerChild 4
MaxRequestWorkers 16
DocumentRoot {HOME}/apache/www
Listen {ADDRESS}:8080
Listen {ADDRESS}:8443
<VirtualHost *:8443>
    SSLEngine on
    SSLCertificateFile {TLS}/good.pem
    SSLCertificateKeyFile {TLS}/good.key
</VirtualHost>
"""
ZONE = """\
$TTL 3600
@ SOA ns hostmaster 7 3600 600 86400 300
@ NS ns
ns A 192.0.2.53
www A 192.0.2.80
"""
LOCALHOST = """\
$TTL 3600
@ SOA localhost. root.localhost. 2 3600 600 86400 300
@ NS localhost.
@ A 127.0.0.1
"""
BIND = f"""\
options {{
    directory "{HOME}/bind";
    listen-on port 5301 {{ {ADDRESS}; }};
    listen-on-v6 {{ none; }};
    recursion no;
    dnssec-validation no;
    pid-file none;
    session-keyfile "{HOME}/bind/session.key";
}};
controls {{}};
zone "example.org" {{ type primary; file "{HOME}/bind/zone"; }};
// As Debian's named.conf.default-zones has it, of which the check without a query makes use.
zone "localhost" {{ type primary; file "{HOME}/bind/localhost"; }};
"""
NSD = f"""\
server:
    ip-address: {ADDRESS}@5302
    server-count: 1
    # By default 200 answers a second: the loops of the test are faster.
    rrl-ratelimit: 0
    username: ""
    chroot: ""
    zonesdir: "{HOME}/nsd"
    database: ""
    pidfile: "{HOME}/nsd/pid"
    xfrdfile: "{HOME}/nsd/xfrd.state"
    xfrdir: "{HOME}/nsd"
    zonelistfile: "{HOME}/nsd/zone.list"
    logfile: "{HOME}/nsd/log"
remote-control:
    control-enable: no
zone:
    name: example.org
    zonefile: zone
"""
UNBOUND = f"""\
server:
    interface: {ADDRESS}@5304
    access-control: 10.0.0.0/24 allow
    username: ""
    chroot: ""
    directory: "{HOME}"
    pidfile: ""
    do-daemonize: no
    use-syslog: no
    verbosity: 1
    module-config: "iterator"
    local-zone: "example.org." static
    local-data: "www.example.org. A 192.0.2.80"
remote-control:
    control-enable: no
"""
PGBOUNCER = f"""\
[databases]
postgres = host={ADDRESS} port=5432
[pgbouncer]
listen_addr = {ADDRESS}
listen_port = 6432
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {HOME}/pgbouncer/users
logfile = {HOME}/pgbouncer/log
"""
DOVECOT = f"""\
protocols = imap pop3
listen = {ADDRESS}
base_dir = {HOME}/dovecot
state_dir = {HOME}/dovecot
log_path = {HOME}/dovecot.log
ssl = yes
ssl_cert = <{TLS}/good.pem
ssl_key = <{TLS}/good.key
local_name {EXPIRED} {{
  ssl_cert = <{TLS}/expired.pem
  ssl_key = <{TLS}/expired.key
}}
passdb {{
  driver = static
  args = nopassword=y
}}
userdb {{
  driver = static
  args = uid=dovecot gid=dovecot home={HOME}
}}
"""
SPHINX = f"""\
index empty
{{
    type = rt
    path = {HOME}/sphinx/empty
    rt_field = text
    rt_attr_uint = number
}}
searchd
{{
    listen = {ADDRESS}:9306:mysql41
    log = {HOME}/sphinx/log
    pid_file = {HOME}/sphinx/pid
    binlog_path =
}}
"""
NUTCRACKER = f"""\
pool:
  listen: {ADDRESS}:22121
  redis: true
  servers:
    - {ADDRESS}:6379:1
"""
SLAPD = """\
pidfile {home}/slapd-{certificate}.pid
TLSCertificateFile {tls}/{certificate}.pem
TLSCertificateKeyFile {tls}/{certificate}.key
"""
POSTGRESQL = f"""\
listen_addresses = '{ADDRESS}'
unix_socket_directories = ''
shared_buffers = 1MB
fsync = off
"""
HBA = """\
host postgres pgsql all trust
host postgres limited all trust
host all all all scram-sha-256
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """`ready`: the port that it listens on last. `logs`: its files that errors come into; `usual`:
    the lines that a check may leave in them; others are trouble."""

    start: Callable[[UmlLab], Process]
    ready: int
    logs: str
    usual: re.Pattern[str] | None = None


def _exim(lab: UmlLab) -> Process:
    lab.run(f"install -d -o Debian-exim {HOME}/exim")
    lab.write("/etc/exim4/exim4.conf", EXIM)
    return lab.spawn(["/usr/sbin/exim4", "-C", "/etc/exim4/exim4.conf", "-bdf"])


def _postfix(lab: UmlLab) -> Process:
    """As `postfix start` does it, but in one process group."""
    lab.write("/etc/postfix/main.cf", POSTFIX)
    lab.write("/etc/postfix/master.cf", POSTFIX_MASTER)
    lab.run(f"mkdir -p {HOME}/postfix/spool; install -d -o postfix {HOME}/postfix/data")
    lab.run("/usr/sbin/postfix check", check=False)  # makes the queue's directories
    return lab.spawn(["/usr/lib/postfix/sbin/master", "-d", "-c", "/etc/postfix"])


def _nginx(lab: UmlLab) -> Process:
    lab.run(f"mkdir -p {HOME}/nginx")
    lab.write(f"{HOME}/nginx.conf", NGINX)
    return lab.spawn(["/usr/sbin/nginx", "-e", "stderr", "-c", f"{HOME}/nginx.conf"])


def _apache(lab: UmlLab) -> Process:
    lab.run(f"mkdir -p {HOME}/apache/www")
    lab.write(f"{HOME}/apache/www/health", "all is well\n")
    lab.write(f"{HOME}/apache/conf", APACHE)
    return lab.spawn(["/usr/sbin/apache2", "-D", "FOREGROUND", "-f", f"{HOME}/apache/conf"])


def _bind(lab: UmlLab) -> Process:
    lab.run(f"mkdir -p {HOME}/bind")
    lab.write(f"{HOME}/bind/zone", ZONE)
    lab.write(f"{HOME}/bind/localhost", LOCALHOST)
    lab.write(f"{HOME}/bind/conf", BIND)
    command = ["/usr/sbin/named", "-g", "-n", "1", "-c", f"{HOME}/bind/conf"]
    return lab.spawn(command, log=f"{HOME}/bind/log")


def _nsd(lab: UmlLab) -> Process:
    lab.run(f"mkdir -p {HOME}/nsd")
    lab.write(f"{HOME}/nsd/zone", ZONE)
    lab.write(f"{HOME}/nsd/conf", NSD)
    return lab.spawn(["/usr/sbin/nsd", "-d", "-c", f"{HOME}/nsd/conf"])


def _dnsmasq(lab: UmlLab) -> Process:
    command = ["/usr/sbin/dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=5303"]
    command += [f"--listen-address={ADDRESS}", "--bind-interfaces", "--no-resolv"]
    command += ["--host-record=www.example.org,192.0.2.80", "--pid-file", "--user=root"]
    return lab.spawn([*command, "--log-facility=-"], log=f"{HOME}/dnsmasq.log")


def _unbound(lab: UmlLab) -> Process:
    lab.write(f"{HOME}/unbound.conf", UNBOUND)
    command = ["/usr/sbin/unbound", "-d", "-c", f"{HOME}/unbound.conf"]
    return lab.spawn(command, log=f"{HOME}/unbound.log")


def _pgbouncer(lab: UmlLab) -> Process:
    lab.run(f"install -d -o pgsql {HOME}/pgbouncer")
    lab.write(f"{HOME}/pgbouncer/users", '"pgsql" "secret"\n')
    lab.write(f"{HOME}/pgbouncer/conf", PGBOUNCER)
    who = ["setpriv", "--reuid=pgsql", "--regid=pgsql", "--clear-groups"]
    return lab.spawn([*who, "/usr/sbin/pgbouncer", f"{HOME}/pgbouncer/conf"], cwd="/")


def _dovecot(lab: UmlLab) -> Process:
    lab.write(f"{HOME}/dovecot.conf", DOVECOT)
    return lab.spawn(["/usr/sbin/dovecot", "-F", "-c", f"{HOME}/dovecot.conf"])


def _courier(protocol: str, port: int, login: str, daemon: str) -> Callable[[UmlLab], Process]:
    """Without a log-in it needs none of Courier's other daemons."""

    def start(lab: UmlLab) -> Process:
        command = ["/usr/sbin/couriertcpd", f"-address={ADDRESS}", "-nodnslookup"]
        command += ["-noidentlookup", "-maxprocs=40", "-maxperip=40", str(port), login, daemon]
        capability = {"IMAP_CAPABILITY": "IMAP4rev1", "IMAP_STARTTLS": "NO"}
        return lab.spawn(
            [*command, "Maildir"], log=f"{HOME}/courier-{protocol}.log", env=capability
        )

    return start


def _sphinx(lab: UmlLab) -> Process:
    """A search engine that speaks MySQL's protocol."""
    lab.run(f"mkdir -p {HOME}/sphinx")
    lab.write(f"{HOME}/sphinx/conf", SPHINX)
    return lab.spawn(["/usr/bin/searchd", "--nodetach", "--config", f"{HOME}/sphinx/conf"])


def _nutcracker(lab: UmlLab) -> Process:
    """A proxy for redis, which answers PING itself."""
    lab.write(f"{HOME}/nutcracker.yaml", NUTCRACKER)
    command = ["/usr/sbin/nutcracker", "-c", f"{HOME}/nutcracker.yaml", "-a", ADDRESS]
    return lab.spawn([*command, "-o", f"{HOME}/nutcracker.log"])


def _slapd(certificate: str, addresses: str) -> Callable[[UmlLab], Process]:
    def start(lab: UmlLab) -> Process:
        path = f"{HOME}/slapd-{certificate}.conf"
        lab.write(path, SLAPD.format(home=HOME, tls=TLS, certificate=certificate))
        # -d none: in the foreground, and errors only.
        command = ["/usr/sbin/slapd", "-d", "none", "-f", path, "-h", addresses]
        return lab.spawn(command, log=f"{HOME}/slapd-{certificate}.log")

    return start


def _mariadb(lab: UmlLab) -> Process:
    data = f"{HOME}/mariadb"
    lab.run(f"install -d -o mysql {data}")
    server = ["/usr/sbin/mariadbd", "--no-defaults", "--user=mysql", f"--datadir={data}"]
    server += ["--innodb-buffer-pool-size=8M", "--innodb-log-file-size=4M"]
    # By default it asks for 8 TiB of addresses, which User-mode Linux has not.
    server += ["--loose-innodb-buffer-pool-size-max=16M"]
    # As mariadb-install-db does it, without the texts of its help. A statement
    # ends with its line.
    lab.run(
        "(printf '%s;\\n' 'CREATE DATABASE mysql' 'USE mysql' 'SET @auth_root_socket=NULL';"
        " cd /usr/share/mysql; cat mysql_system_tables.sql mysql_system_tables_data.sql;"
        " printf '%s;\\n' 'FLUSH PRIVILEGES' 'CREATE USER monitor') |"
        f" {' '.join(server)} --bootstrap --silent-startup >{HOME}/mariadb-bootstrap.log 2>&1",
        timeout=120,
    )
    server += [f"--socket={data}/socket", f"--pid-file={data}/pid", "--skip-name-resolve"]
    # Aborted connections are logged, too, and not many of them are allowed.
    server += ["--log-warnings=3", "--max-connect-errors=10"]
    return lab.spawn(
        [*server, f"--bind-address={ADDRESS}"],
        log=f"{HOME}/mariadb.log",
    )


def _postgresql(lab: UmlLab) -> Process:
    data = f"{HOME}/postgresql"
    there = "/usr/lib/postgresql/15/bin"
    lab.run(f"install -d -o pgsql {data}")
    who = ["setpriv", "--reuid=pgsql", "--regid=pgsql", "--clear-groups"]
    lab.run(
        [*who, f"{there}/initdb", "--no-sync", "--no-instructions", "--locale=C", "-D", data],
        timeout=120,
        cwd="/",
    )
    lab.run(
        [*who, f"{there}/postgres", "--single", "-D", data, "postgres"],
        input="CREATE ROLE limited LOGIN CONNECTION LIMIT 0;\n",
        cwd="/",
    )
    lab.write(f"{data}/postgresql.conf", POSTGRESQL)
    lab.write(f"{data}/pg_hba.conf", HBA)
    return lab.spawn([*who, f"{there}/postgres", "-D", data], log=f"{HOME}/postgresql.log", cwd="/")


def _redis(certificate: str, port: int, tls_port: int) -> Callable[[UmlLab], Process]:
    def start(lab: UmlLab) -> Process:
        own = ["--tls-cert-file", f"{TLS}/{certificate}.pem"]
        own += ["--tls-key-file", f"{TLS}/{certificate}.key"]
        own += ["--port", str(port), "--tls-port", str(tls_port)]
        common = ["--protected-mode", "no", "--save", "", "--tls-auth-clients", "no"]
        return lab.spawn(
            ["/usr/bin/redis-server", "--bind", ADDRESS, *common, *own],
            log=f"{HOME}/redis-{certificate}.log",
        )

    return start


COURIER = "/usr/lib/courier/courier"
COMES_AND_GOES = re.compile(r"^(DEBUG: (Connection|Disconnected)|INFO: LOGOUT), ip=")

SERVERS = {
    "exim": Server(start=_exim, ready=465, logs=f"{HOME}/exim/*log"),
    "postfix": Server(
        start=_postfix,
        ready=2465,
        logs=f"{HOME}/postfix/log",
        usual=re.compile(
            r"postfix/anvil\[\d+\]: statistics: |"
            r"postfix/smtpd\[\d+\]: connect from |"
            r"postfix/smtpd\[\d+\]: disconnect from \S+ ehlo=[12] (starttls=1 )?quit=1 commands="
        ),
    ),
    "nginx": Server(
        start=_nginx,
        ready=443,
        logs=f"{HOME}/nginx-error.log",
        usual=re.compile(r" \[info\] .* client closed connection while waiting for request, "),
    ),
    "dovecot": Server(
        start=_dovecot,
        ready=995,
        logs=f"{HOME}/dovecot.log",
        usual=re.compile(
            r"-login: Info: Disconnected: Aborted login by logging out \(no auth attempts "
        ),
    ),
    "courier-imap": Server(
        start=_courier("imap", 1143, f"{COURIER}/imaplogin", "/usr/bin/imapd"),
        ready=1143,
        logs=f"{HOME}/courier-imap.log",
        usual=COMES_AND_GOES,
    ),
    "courier-pop": Server(
        start=_courier("pop", 1110, f"{COURIER}/courierpop3login", f"{COURIER}/courierpop3d"),
        ready=1110,
        logs=f"{HOME}/courier-pop.log",
        usual=COMES_AND_GOES,
    ),
    "sphinx": Server(start=_sphinx, ready=9306, logs=f"{HOME}/sphinx/log"),
    "nutcracker": Server(start=_nutcracker, ready=22121, logs=f"{HOME}/nutcracker.log"),
    "slapd": Server(
        start=_slapd("good", f"ldap://{ADDRESS} ldaps://{ADDRESS}"),
        ready=636,
        logs=f"{HOME}/slapd-good.log",
    ),
    "slapd-expired": Server(
        start=_slapd("expired", f"ldaps://{ADDRESS}:637"), ready=637, logs="/dev/null"
    ),
    "mariadb": Server(
        start=_mariadb,
        ready=3306,
        logs=f"{HOME}/mariadb.log",
        usual=re.compile(r" \[Warning\] Access denied for user 'xenlb'@"),
    ),
    "apache": Server(start=_apache, ready=8443, logs=f"{HOME}/apache/error.log"),
    "bind": Server(start=_bind, ready=5301, logs=f"{HOME}/bind/log"),
    "nsd": Server(start=_nsd, ready=5302, logs=f"{HOME}/nsd/log"),
    "dnsmasq": Server(start=_dnsmasq, ready=5303, logs=f"{HOME}/dnsmasq.log"),
    "unbound": Server(start=_unbound, ready=5304, logs=f"{HOME}/unbound.log"),
    "pgbouncer": Server(
        start=_pgbouncer,
        ready=6432,
        logs=f"{HOME}/pgbouncer/log",
        usual=re.compile(r" LOG (C-|stats: )"),
    ),
    "postgresql": Server(start=_postgresql, ready=5432, logs=f"{HOME}/postgresql.log"),
    "redis": Server(start=_redis("good", 6379, 6380), ready=6379, logs=f"{HOME}/redis-good.log"),
    "redis-expired": Server(start=_redis("expired", 0, 6381), ready=6381, logs="/dev/null"),
}


def install(lab: UmlLab) -> None:
    """Lays the packages over /usr, and makes users and certificates."""
    root = tree("servers", PACKAGES)
    lab.run(["mount", "-t", "overlay", "-o", f"ro,lowerdir={root}/usr:/usr", "servers", "/usr"])
    lab.run(
        f"cp -a {root}/etc/. /etc/; mkdir -p {TLS}; cd {certificates().directory};"
        f" cp good.* expired.* ca.pem {TLS}; chmod 644 {TLS}/*"
    )
    for number, name in enumerate(USERS, 64_100):
        lab.run(
            f"grep -q ^{name}: /etc/group || echo {name}:x:{number}: >>/etc/group;"
            f" grep -q ^{name}: /etc/passwd ||"
            f" echo {name}:x:{number}:{number}::/nonexistent:/usr/sbin/nologin >>/etc/passwd"
        )


def start(lab: UmlLab, name: str) -> Process:
    """Returns once it listens."""
    server = SERVERS[name]
    process = server.start(lab)

    def listens() -> bool:
        if not process.alive():
            raise LabError(f"{name} ended; its log ends:\n{last_lines(process.log())}")
        return lab.run(f"ss -Hltn src {ADDRESS}:{server.ready} | grep -q .", check=False).rc == 0

    lab.wait_until(listens, 60, f"{name} to listen")
    return process
