"""Broken configurations. `#!` stands at the end of each line that a problem must name.

A case of ONE_KEY, RULES and TRAPS is put into a whole file (see whole()); a case of one line needs
no mark. The schema alone must refuse those of ONE_KEY, too.
"""

ONE_KEY = r"""
address: 25
address: [192.0.2.10]
address: {ip: 192.0.2.10}
address:
address: ~
fwmark: 0
fwmark: -1
fwmark: 4294967296
fwmark: '7'
fwmark: seven
fwmark: [7]
fwmark: true
ports: 25
ports: []
ports: {25: tcp}
ports:
ports: [-1]
ports: [65536]
ports: [smtp]
ports: [25/http]
ports: [25/TCP]
ports: [/tcp]
ports: [25/]
ports: [2.5]
ports: [[25]]
ports: [null]
ports: [true]
ports: ['025']
ports: [25, 25]
scheduler: lbcl
scheduler: WLC
scheduler: round-robin
scheduler: 1
scheduler: [wlc]
scheduler: {}
scheduler: null
scheduler: ""
scheduler-flags: sh-fallback
scheduler-flags: [fallback]
scheduler-flags: [1]
scheduler-flags: {sh-port: true}
scheduler-flags: null
one-packet: 1
one-packet: 'true'
one-packet: maybe
one-packet: []
one-packet: null
persistence: 300
persistence: 5 minutes
persistence: 1.5h
persistence: -5s
persistence: true
persistence: [300s]
persistence: {seconds: 300}
persistence: null
persistence: 05s
persistence-netmask: 0
persistence-netmask: 129
persistence-netmask: -24
persistence-netmask: 255.255.255
persistence-netmask: host
persistence-netmask: [24]
persistence-netmask: null
forwarding: nat
forwarding: gatewayng
forwarding: MASQUERADE
forwarding: localnode
forwarding: bypass
forwarding: 1
forwarding: true
forwarding: [tunnel]
forwarding: null
tunnel: ipip; forwarding: tunnel
tunnel: []; forwarding: tunnel
tunnel: null; forwarding: tunnel
tunnel: {type: vxlan}; forwarding: tunnel
tunnel: {type: 4}; forwarding: tunnel
tunnel: {type: null}; forwarding: tunnel
tunnel: {kind: ipip}; forwarding: tunnel
tunnel: {type: gue, port: 0}; forwarding: tunnel
tunnel: {type: gue, port: 65536}; forwarding: tunnel
tunnel: {type: gue, port: '6080'}; forwarding: tunnel
tunnel: {type: gue, port: 6080, checksum: yes}; forwarding: tunnel
tunnel: {type: gue, port: 6080, checksum: crc}; forwarding: tunnel
server-port: 0
server-port: 65536
server-port: '26'
server-port: smtp
server-port: [26]
server-port: 2.6
server-port: null
server-port: 26/tcp
weight: -1
weight: 65536
weight: 1.5
weight: '1'
weight: heavy
weight: [1]
weight: {}
weight: null
weight: true
weight: 99999999999999999999999999999999999999
upper-threshold: -1
upper-threshold: 2147483648
upper-threshold: '5'
upper-threshold: many
upper-threshold: null
lower-threshold: -1
lower-threshold: 2147483648
lower-threshold: 0.5
lower-threshold: null
check: tcp
check: smtp
check: None
check: true
check: 5
check: ~
check:
check: []
check: {all: []}
check: {any: {type: tcp}}
check: {any: tcp}
check: {all: null}
check: {all: [{type: tcp}], any: [{type: tcp}]}
check: {all: [{type: tcp}], interval: 2s}
check: [none]
check: [tcp]
check: [{type: smpt}]
check: [[{type: tcp}]]
check: [{any: [{type: tcp}]}]
check: {any: [{all: [{type: tcp}]}]}
check: {via: guest}
check: {via: true}
check: {flap-damping: 60}
check: {flap-damping: never}
check: {type: tcp, path: /health}
check: {type: http, tls: true}
check: {type: https, tls: false}
check: {type: tls, tls: {cafile: /etc/ca.pem}}
check: {type: tls, tls: {ca-file: ca.pem}}
check: {type: tls, tls: {name: 'www example'}}
check: {type: tls, tls: {name: ''}}
check: {type: tls, tls: strict}
check: {type: http, path: health}
check: {type: http, path: '/a b'}
check: {type: http, path: "/\r\nX-Injected: 1"}
check: {type: http, path: '/größe'}
check: {type: http, path: '/a#b'}
check: {type: http, host: 'www.example.org/'}
check: {type: http, host: "www\r\nX: 1"}
check: {type: http, method: get}
check: {type: http, method: DELETE}
check: {type: http, status: ok}
check: {type: http, status: 2xx}
check: {type: http, status: 600}
check: {type: http, status: 99}
check: {type: http, status: []}
check: {type: http, status: [200, ok]}
check: {type: http, status: {from: 200}}
check: {type: http, header: X-Up}
check: {type: http, header: ': x'}
check: {type: http, header: 'X Up: x'}
check: {type: http, header: [X-Up, x]}
check: {type: http, body: 5}
check: {type: http, body: ''}
check: {type: smtp, hello: "x\r\nMAIL FROM:<>"}
check: {type: smtp, hello: 'a b'}
check: {type: smtp, expect: ready}
check: {type: smtp, tls: true, starttls: true}
check: {type: smtp, starttls: maybe}
check: {type: imap, starttls: {verify: false, port: 993}}
check: {type: dns, port: 53, query: 'a b'}
check: {type: dns, port: 53, query: "a\0b"}
check: {type: dns, port: 53, record: SPF}
check: {type: dns, port: 53, record: a}
check: {type: dns, port: 53, recursive: 'true'}
check: {type: dns, port: 53, via: vip}
check: {type: udp, send: 5, port: 53}
check: {type: icmp, port: 7}
check: {type: icmp, send: x}
check: {type: exec, command: /usr/lib/nagios/plugins/check_ssh -p 22 10.0.0.11}
check: {type: exec, command: [check_ssh]}
check: {type: exec, command: [/bin/check, 5]}
check: {type: exec, command: []}
check: {type: exec, command: {program: /bin/true}}
check: {type: exec, command: [/bin/true], shell: true}
check: {type: exec, command: [/bin/true], user: ''}
check: {type: exec, command: [/bin/true], weight: 50%}
check: {type: agent, weight: {least: 10}}
check: {type: agent, weight: {most: 101%}}
check: {type: agent, weight: {min: 1%}}
check: {type: agent, expect: up}
check: {type: mysql, user: 5}
check: {type: mysql, password: x}
check: {type: pgsql, database: [x]}
check: {type: redis, starttls: true}
check: {type: ping}
check: {type: postgres}
flush: 1
flush: 'true'
flush: null
check: {type: smpt}
check: {type: none}
check: {type: 1}
check: {type: [tcp]}
check: {kind: tcp}
check: {interval: 5}
check: {interval: fast}
check: {interval: [5s]}
check: {interval: null}
check: {timeout: 3}
check: {timeout: 0.5s}
check: {timeout: null}
check: {rise: 0}
check: {rise: -1}
check: {rise: 1001}
check: {rise: two}
check: {rise: '2'}
check: {fall: 0}
check: {fall: 2.5}
check: {fall: 1001}
check: {fall: null}
check: {port: 0}
check: {port: 65536}
check: {port: '25'}
check: {port: smtp}
on-failure: drop
on-failure: true
on-failure: null
on-failure: [remove]
keep-in-service: 50
keep-in-service: 0.5
keep-in-service: 101%
keep-in-service: -1%
keep-in-service: half
keep-in-service: 33.3%
keep-in-service: [50%]
keep-in-service: null
keep-in-service: 050%
slow-start: 30
slow-start: slow
slow-start: null
slow-start: [30s]
sorry-server: [10.0.0.99, 25]
sorry-server: {host: 10.0.0.99, port: 25}
sorry-server: null
sorry-server: 25
drain: 60s
drain: none
drain: []
drain: null
drain: {after: 60s}
drain: {timeout: 60}
drain: {timeout: one minute}
drain: {timeout: null}
drain: {until: empty}
drain: {until: 60s}
drain: {until: null}
drain: {udp: 5}
drain: {udp: never}
drain: {shutdown-grace: 5}
drain: {shutdown_grace: 5m}
drain: {shutdown-grace: []}
servers: mail1
servers: {guest: mail1}
servers: null
servers: [mail1]
servers: [null]
servers: [[{guest: mail1}]]
servers: [{}]
servers: [{weight: 1}]
servers: [{guest: 1}]
servers: [{guest: true}]
servers: [{guest: null}]
servers: [{guest: ''}]
servers: [{guest: [mail1]}]
servers: [{host: 5}]
servers: [{host: [10.0.0.5]}]
servers: [{host: 10.0.0.5, guest: mail1}]
servers: [{host: 10.0.0.5, address: 10.0.0.6}]
servers: [{host: 10.0.0.5, network: 10.0.0.0/24}]
servers: [{guest: mail1, network: 10}]
servers: [{guest: mail1, name: x}]
servers: [{guest: mail1, address: 10}]
servers: [{guest: mail1, address: null}]
servers: [{guest: mail1, weight: -1}]
servers: [{guest: mail1, weight: 65536}]
servers: [{guest: mail1, weight: '2'}]
servers: [{guest: mail1, weight: null}]
guest-side: ssh
guest-side: []
guest-side: null
guest-side: {deliver: ssh}
guest-side: {delivery: telnet}
guest-side: {delivery: null}
guest-side: {delivery: ssh, on-boot: never}
guest-side: {system: systemd}
guest-side: {init: upstart}
guest-side: {interface: 'eth0; reboot'}
guest-side: {interface: $(reboot)}
guest-side: {interface: '-x'}
guest-side: {interface: an-interface-too-long}
guest-side: {return-path: nat}
guest-side: {gateway: []}
guest-side: {gateway: {ip: 10.0.0.1}}
guest-side: {gateway: [10.0.0.1, 'fd00::1', 10.0.0.2]}
guest-side: {addresses: 192.0.2.10} #!; fwmark: 7
guest-side: {table: 255}
guest-side: {table: 65001}
guest-side: {tx-checksums: 1}
guest-side: {delivery: ssh, ssh: -oProxyCommand=reboot}
guest-side: {delivery: ssh, ssh: 'root@mail1 reboot'}
guest-side: {delivery: ssh, ssh: 'root@$(reboot)'}
servers: [{guest: mail1, guest-side: ssh}]
servers: [{guest: mail1, guest-side: {delivery: telnet}}]
servers: [{host: 10.0.0.5, guest-side: {delivery: ssh}}]
from-metadata: 1
from-metadata: 'false'
from-metadata: sometimes
from-metadata: null
server_port: 26
fowarding: gatewaying
addres: 192.0.2.10
Weight: 1
vip: 192.0.2.10
"""

RULES = r"""
address: 127.0.0.1
address: "::1"
address: 0.0.0.0
address: "::"
address: 224.0.0.1
address: ff02::1
address: 255.255.255.255
address: 192.0.2.10/32
address: 192.0.2.256
address: 192.0.2
address: 192.0.2.010
address: vip.example.org
address: 192.0.2.10:25
address: "[2001:db8::10]"
address: fe80::1%eth0
address: ::ffff:192.0.2.10
address: "192.0.2.10 "
address: ""
ports: [0]; check: none
ports: [25, 25/tcp]
ports: [0, 0/tcp]; persistence: 300s; check: none
family: inet
family: inet6
fwmark: 7; family: ipv4 #!
fwmark: 7; ports: [80] #!
fwmark: 7; address: 192.0.2.10; ports: [25]
fwmark: 7; server-port: 26 #!
fwmark: 7; sorry-server: 10.0.0.99:80 #!
fwmark: 7; family: inet6; sorry-server: 10.0.0.99 #!
fwmark: 7; check: {type: tcp} #!
server-port: 26 #!; ports: [25, 465]
server-port: 26 #!; ports: [0]; persistence: 300s; check: none
server-port: 26 #!; forwarding: gatewaying
server-port: 26 #!; forwarding: tunnel
scheduler-flags: [sh-port]
scheduler-flags: [mh-fallback] #!; scheduler: sh
scheduler-flags: [sh-fallback] #!; scheduler: mh
scheduler-flags: [mh-port, mh-port] #!; scheduler: mh
one-packet: true
one-packet: true #!; ports: [53/udp, 53/tcp]
one-packet: true #!; ports: [5060/sctp]
persistence: 0s
persistence: 500ms
persistence: 1500ms
persistence: 745h
persistence: 999999999999h
persistence: 99999999999999999999s
persistence-netmask: 255.255.255.0
persistence-netmask: 255.0.255.0 #!; persistence: 300s
persistence-netmask: 0.0.0.0 #!; persistence: 300s
persistence-netmask: 255.255.255.256 #!; persistence: 300s
persistence-netmask: 33 #!; persistence: 300s
persistence-netmask: 255.255.255.0 #!; persistence: 300s; address: 2001:db8::10; ports: [25]
tunnel: {type: ipip}
tunnel: {type: gue, port: 6080} #!; forwarding: gatewaying
tunnel: {type: gue} #!; forwarding: tunnel
tunnel: {type: gre, port: 6080} #!; forwarding: tunnel
tunnel: {port: 6080} #!; forwarding: tunnel
tunnel: {type: gre, checksum: remcsum} #!; forwarding: tunnel
tunnel: {type: ipip, checksum: csum} #!; forwarding: tunnel
tunnel: {checksum: remcsum} #!; forwarding: tunnel
lower-threshold: 5
lower-threshold: 5 #!; upper-threshold: 4
lower-threshold: 5 #!; upper-threshold: 0
check: [{type: tcp}, {type: tcp}]
check: {any: [{type: icmp}, {type: icmp, fall: 2}]}
check: {all: [{type: tcp, timeout: 5s}, {type: icmp}]}
check: [{type: tcp, interval: 1s, timeout: 1s}, {type: http, timeout: 6s}] #!!
check: [{type: http, status: 9, path: x}, {type: smpt}] #!!!
check: {via: vip}
check: {path: /}
check: {type: tls, tls: {verify: no}}
check: {via: vip} #!; forwarding: tunnel; tunnel: {type: gre}
check: {via: vip, send: x} #!; forwarding: gatewaying
check: {type: http, via: vip} #!; forwarding: gatewaying
check: {via: vip, port: 80} #!; fwmark: 7; forwarding: gatewaying
check: {type: dns}
check: {type: udp} #!; ports: [0]; persistence: 300s
check: {type: dns} #!; fwmark: 7
check: [{type: tcp}, {type: dns}]
check: {type: exec}
check: {type: exec, user: 'nobody; reboot', command: [/bin/true]}
check: {type: exec, command: [/bin/true, '']}
check: {type: http, body: '('}
check: {type: http, body: 'a{99999999999}'}
check: {type: http, body: '[[a]'}
check: {type: http, body: '(?P<x'}
check: {type: http, header: 'X-Up: [', method: HEAD}
check: {type: http, method: HEAD, body: x}
check: {type: http, status: 399-200}
check: {type: http, status: [200, 600]}
check: {type: smtp, expect: 100}
check: {type: dns, query: a..b} #!; ports: [53/udp]
check: {type: dns, record: A} #!; ports: [53/udp]
check: {type: dns, expect: 10.0.0.1} #!; ports: [53/udp]
check: {type: tls, tls: {verify: false, ca-file: /etc/ca.pem}}
check: {type: agent, weight: {least: 50%, most: 10%}}
check: {expect: '*'}
check: {send: ''}
check: {send: 'a\qb'}
check: {send: 'a\x4'}
check: {send: 'a\'}
check: {send: größe}
check: {type: mysql, user: "a\tb"}
flush: true #!; on-failure: quiesce
check: {interval: 1s, timeout: 3s}
check: {timeout: 5s}
check: {interval: 1ms}
check: {interval: 25h}
check: {timeout: 0s}
check: {} #!; ports: [53/udp]
check: {type: tcp} #!; ports: [53/udp, 5060/sctp]
check: {type: tcp} #!; ports: [0]; persistence: 300s
slow-start: 25h
guest-side: {on-boot: apply}
guest-side: {on-boot: verify, delivery: rootfs}
guest-side: {return-path: mark} #!; forwarding: gatewaying
guest-side: {gateway: mail1}
guest-side: {gateway: [10.0.0.1, 10.0.0.2]}
guest-side: {addresses: [192.0.2.10]}
guest-side: {ssh: root@mail1}
servers: [{guest: mail1, guest-side: {on-boot: apply}}]
drain: {timeout: 169h}
drain: {shutdown-grace: 169h}
sorry-server: mail.example.org
sorry-server: mail.example.org:25
sorry-server: 10.0.0.99:0
sorry-server: 10.0.0.99:65536
sorry-server: 10.0.0.99:smtp
sorry-server: "10.0.0.99:"
sorry-server: "[10.0.0.99]:25"
sorry-server: "[2001:db8::99]25"
sorry-server: "[2001:db8::99:25"
sorry-server: 2001:db8::99
sorry-server: "[2001:db8::99]:25"
sorry-server: 0.0.0.0:25
sorry-server: 239.1.1.1:25
sorry-server: fe80::1
sorry-server: 192.0.2.10:25
sorry-server: 10.0.0.99:26 #!; forwarding: gatewaying
sorry-server: 10.0.0.99:26 #!; forwarding: tunnel
sorry-server: 10.0.0.99:25 #!; ports: [25, 465]
sorry-server: 10.0.0.99:25 #!; ports: [0]; persistence: 300s; check: none
servers: [{host: mail1.example.org}]
servers: [{host: 10.0.0.0/24}]
servers: [{host: 10.0.0.5:25}]
servers: [{host: 10.0.0.300}]
servers: [{host: 0.0.0.0}]
servers: [{host: 224.0.0.5}]
servers: [{host: 255.255.255.255}]
servers: [{host: fe80::5}]
servers: [{host: 2001:db8::5}]
servers: [{host: 2001:db8::5}] #!; forwarding: gatewaying
servers: [{host: 10.0.0.5}, {host: 10.0.0.5}]
servers: [{host: 10.0.0.5}, {guest: mail1, address: 10.0.0.5}]
servers: [{guest: mail1}, {guest: mail1}]
servers: [{guest: mail1, address: 10.0.0.5}, {guest: mail2, address: 10.0.0.5}]
servers: [{guest: mail1, address: 10.0.0.5, network: 10.0.0.0/24}]
servers: [{guest: mail1, network: 10.0.0.1/24}]
servers: [{guest: mail1, address: 192.0.2.10}]
servers: [{guest: mail1, address: 2001:db8::5}]
servers: [{guest: "mail\n1"}]
servers: [{guest: " mail1"}]
servers: [{host: 192.0.2.10}]
"""

TRAPS = """
ports: [99999/udp]
ports: [22:30]
fwmark: 7.0
weight: 010
weight: 08
weight: 0x10
weight: 0o10
weight: 0b10
weight: 1_000
weight: 1,000
weight: +5
weight: 1:30
weight: 1e3
weight: .5
weight: .inf
weight: .nan
weight: 2024-01-01
weight: !!int 5
weight: &w 5
weight: *w
weight: !x 5
ports: [010]
ports: [1:30]
ports: [1e3]
ports: [0x19]
ports: &p [25]
fwmark: 0x7
one-packet: yes
one-packet: on
one-packet: off
one-packet: Yes
one-packet: True
one-packet: FALSE
from-metadata: no
from-metadata: y
scheduler: on
scheduler: !!str wlc
scheduler: *default
check: no
check: off
check: null
check: {&a any: [{type: tcp}]}
check: {<<: {type: tcp}}
check: &c {type: tcp}
check: [*c]
check: [&c {type: tcp}]
check: {type: !x tcp}
check: {type: http, status: 0x64}
check: {type: http, status: 3:20}
check: {type: http, status: 2_00}
check: {type: http, body: yes}
check: {type: http, body: 1.0}
check: {type: tls, tls: &t {verify: true}}
check: {type: tls, tls: {verify: True}}
check: {type: exec, command: [/bin/check, on]}
check: {type: exec, command: [/bin/check, 010]}
check: {via: off}
check: {port: 010}
check: {send: 5}
flush: yes
forwarding: no
persistence: 5:00
persistence: 1e2s
persistence: ３００s
keep-in-service: "50 %"
servers: [{guest: 10}]
servers: [{guest: 1e5}]
servers: [{guest: 0x1f}]
servers: [{guest: 2024-01-01}]
servers: [{guest: on}]
servers: [{guest: 12:30:45}]
servers: [{guest: *mail}]
servers: [{guest: !mail x}]
servers: [*mail]
weight: 1; weight: 2 #!
<<: {weight: 1}
<<: *base
&k weight: 1
!!str weight: 1
1: x
on: x
null: x
[a]: x
{a: b}: x
? weight
"""

# Whole files. `#!` as above.
FILES = """
services: [] #!
-----
services: mail #!
-----
services: #!
-----
services: 5 #!
-----
- services #!
-----
services #!
-----
5 #!
-----
~ #!
-----
{} #!
-----
libvirt: {} #!
-----
service: {} #!!
-----
services: {}
servcies: {} #!
-----
services: {}
services: {} #!
-----
services: {}
libvirt: xen:///system #!
-----
services: {}
libvirt: {uri: xen:///system} #!
-----
services: {}
libvirt: {uris: xen:///system} #!
-----
services: {}
libvirt: {uris: [xen]} #!
-----
services: {}
libvirt: {uris: [xen:system]} #!
-----
services: {}
libvirt: {uris: [xne:///system]} #!
-----
services: {}
libvirt: {uris: [xen+shh://dom0b/system]} #!
-----
services: {}
libvirt: {uris: ["xen+ssh://root:secret@dom0b/system"]} #!
-----
services: {}
libvirt: {uris: ["xen+ssh://dom0b"]} #!
-----
services: {}
libvirt: {uris: ["xen+ssh://[dom0b/system"]} #!
-----
services: {}
libvirt: {uris: ["xen+ssh://dom0b:port/system"]} #!
-----
services: {}
libvirt: {uris: ["xen:///sys tem"]} #!
-----
services: {}
libvirt: {uris: ["http://dom0b/system"]} #!
-----
services: {}
libvirt: {uris: [1]} #!
-----
services: {}
libvirt: {keepalive: 3s} #!
-----
services: {}
libvirt: {keepalive: 11m} #!
-----
services: {}
libvirt: {keepalive: 8} #!
-----
services: {}
libvirt:
  uris:
    - xen:///system
    - qemu:///system
    - xen:///system #!
-----
services: {}
guests: {networks: 10.0.0.0/24} #!
-----
services: {}
guests: {networks: [10.0.0.0]} #!
-----
services: {}
guests: {networks: [10.0.0.1/24]} #!
-----
services: {}
guests: {networks: [10.0.0.0/33]} #!
-----
services: {}
guests: {networks: [lan/24]} #!
-----
services: {}
guests: {networks: [10.0.0.0/24, 10.0.0.0/24]} #!
-----
services: {}
guests: {listen: 10.0.0.1} #!
-----
services: {}
guests: {listen: "2001:db8::1"} #!
-----
services: {}
guests: {listen: "dom0:7371"} #!
-----
services: {}
guests: {listen: "10.0.0.1:0"} #!
-----
services: {}
guests: {listen: 7371} #!
-----
services: {}
guests: {listen: "0.0.0.0:7371"} #!
-----
services: {}
guests: {listen: ["10.0.0.1:7371"]} #!
-----
services: {}
guests: {network: []} #!
-----
services: {}
guests: [] #!
-----
services: {}
director: eth0 #!
-----
services: {}
director: {interfaces: eth0} #!
-----
services: {}
director: {interface: eth0/1} #!
-----
services: {}
director: {interface: "eth0:1"} #!
-----
services: {}
director: {interface: "eth 0"} #!
-----
services: {}
director: {interface: ..} #!
-----
services: {}
director: {interface: abcdefghijklmnop} #!
-----
services: {}
director: {interface: 1} #!
-----
services: {}
director: {interface: null} #!
-----
services: {}
director: {interface: [eth0]} #!
-----
services: {}
director: {addresses: managed} #!
-----
services: {}
director: {addresses: true} #!
-----
services: {}
director: {addresses: no} #!
-----
services: {}
director: {sysctls: all} #!
-----
services: {}
director: {sysctls: [ipvs]} #!
-----
services: {}
director: {sysctls: null} #!
-----
# the interface is missing
services: {mail: {address: 192.0.2.10, ports: [25]}} #!
-----
services: {mail: {address: 192.0.2.10, ports: [25]}}
director:
  sysctls: ipvs #!
-----
services: {}
defaults: [] #!
-----
services: {}
defaults: {address: 192.0.2.10} #!
-----
services: {}
defaults: {fwmark: 7} #!
-----
services: {}
defaults: {ports: [25]} #!
-----
services: {}
defaults: {servers: []} #!
-----
services: {}
defaults: {drain: {timeout: 60}} #!
-----
services: {}
defaults: {check: {rise: 0}} #!
-----
services: {}
defaults: {check: {path: /}} #!
-----
services: {}
defaults: {check: [{type: tcp, path: /}, {type: smpt}]} #!!
-----
services: {}
defaults: {check: {type: http, path: x, status: 9}} #!!
-----
# what the default is of another type is not heard here, but the service's own keys are
director: {addresses: leave}
defaults: {check: {type: http, path: /up}}
services:
  a: {address: 192.0.2.1, ports: [25], check: {type: smtp, path: /up}} #!
-----
director: {addresses: leave}
defaults: {check: {type: http, timeout: 3s}}
services:
  a: {address: 192.0.2.1, ports: [80], check: [{interval: 3s, timeout: 3s, path: /}]} #!!
-----
# every problem of several checks at once, each at its own place
director: {addresses: leave}
services:
  a:
    address: 192.0.2.1
    ports: [80]
    check:
      any:
        - type: http
          path: x #!
          status: 9 #!
        - type: exec
          command: reboot now #!
        - {type: icmp, tls: true} #!
-----
services: {}
defaults: {tunnel: {type: vxlan}} #!
-----
services: {}
defaults: {tunnel: gre} #!
-----
services: {}
defaults: {drain: now} #!
-----
services: {}
defaults: {check: tcp} #!
-----
services: {}
defaults: {weigth: 1} #!
-----
services: {}
defaults: {weight: 1, weight: 2} #!
-----
# a default that is wrong with every service is told once
director: {addresses: leave}
defaults:
  lower-threshold: 5 #!
services:
  a: {fwmark: 1, check: none}
  b: {fwmark: 2, check: none}
  c: {fwmark: 3, check: none}
-----
# with one service only, it is told there
director: {addresses: leave}
defaults:
  upper-threshold: 10
  lower-threshold: 5
services:
  a: {fwmark: 1, check: none}
  b: {fwmark: 2, check: none, upper-threshold: 4} #!
-----
director: {addresses: leave}
defaults: {check: {timeout: 3s}}
services:
  a: {address: 192.0.2.1, ports: [25], check: {interval: 2s}} #!
-----
director: {addresses: leave}
defaults: {forwarding: tunnel, tunnel: {type: gue}} #!
services:
  a: {address: 192.0.2.1, ports: [25]}
-----
services:
  a: #!
-----
services:
  a: 5 #!
-----
services:
  a: [] #!
-----
services:
  a: {} #!
-----
director: {addresses: leave}
services:
  a: {address: 192.0.2.1} #!
-----
services:
  a: {ports: [25]} #!
-----
director: {addresses: leave}
services:
  a b: {fwmark: 1, check: none} #!
-----
director: {addresses: leave}
services:
  a/b: {fwmark: 1, check: none} #!
-----
director: {addresses: leave}
services:
  "": {fwmark: 1, check: none} #!
-----
director: {addresses: leave}
services:
  größe: {fwmark: 1, check: none} #!
-----
director: {addresses: leave}
services:
  aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa: {fwmark: 1, check: none} #!
-----
director: {addresses: leave}
services:
  25: {fwmark: 1, check: none} #!
-----
director: {addresses: leave}
services:
  yes: {fwmark: 1, check: none} #!
-----
director: {addresses: leave}
services:
  a: {fwmark: 1, check: none}
  a: {fwmark: 2, check: none} #!
-----
director: {addresses: leave}
services:
  a: {fwmark: 1, check: none}
  b: {fwmark: 1, check: none} #!
-----
director: {addresses: leave}
services:
  a: {fwmark: 1, check: none}
  b: {fwmark: 1, family: inet, check: none} #!
-----
director: {addresses: leave}
services:
  a: {address: 192.0.2.1, ports: [25, 465]}
  b:
    address: 192.0.2.1
    ports:
      - 25/udp
      - 465 #!
-----
director: {addresses: leave}
services:
  a: {address: 2001:db8::1, ports: [25]}
  b:
    address: 2001:DB8:0::1
    ports: [25] #!
-----
director: {addresses: leave}
services:
  a: {address: 192.0.2.1, ports: [25]}
  b:
    address: 192.0.2.2
    ports: [25]
    servers:
      - host: 192.0.2.1 #!
      - {guest: x, address: 192.0.2.2} #!
-----
director: {addresses: leave}
services:
  a: {address: 192.0.2.1, ports: [25]}
  b: {fwmark: 1, check: none, sorry-server: 192.0.2.1} #!
-----
services: {}
--- #!
services: {}
-----
services: {}
\tlibvirt: {} #!
-----
services:
\ta: {} #!
\tb: {} #!
-----
services: {a: *b} #!
-----
services: &a {} #!
-----
services: {a: !!python/object:os.system {}} #!!
-----
services: {a: {b: {c: {d: {e: {f: 1}}}}}} #!!
-----
services: [
  a
libvirt: {} #!
-----
services: {
  a: 1
libvirt: {} #!
-----
services: 'a
#!
-----
services: a: b #!
-----
services:
  a:
    address: 192.0.2.1
   ports: [25] #!
-----
services:
  mail #!
  other: x
-----
services: {}
director #!
guests: {}
-----
services: {}
guests: {listen: "7371"} #!
-----
services: %x #!
-----
services: @x #!
-----
services: `x` #!
-----
services: {a: {address: 1.2.3.4, ports: [25], sorry-server: [::1]:25}} #!
-----
services: "\\q" #!
-----
services: "\\ud800" #!
-----
services: * #!
-----
services: {}} #!
-----
key without a colon
services: {} #!
-----
%YAML 3.0 #!
--- {}
"""
