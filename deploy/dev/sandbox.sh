#!/usr/bin/env bash
# sandbox.sh — hosts ("nodes") on one machine: each node is a set of namespaces with its own libvirtd, OVS and OVN.
#
#   net-up                   the underlay: network namespace ns-NAME with a management and a data bridge
#   node-up NODE N           a node at $SANDBOX_NET.N (eth0) and, once OVS runs, $SANDBOX_DATA_NET.N (br-ex)
#   ovs NODE                 starts Open vSwitch, userspace datapath, bridges br-int and br-ex
#   libvirtd NODE            starts libvirtd          (socket: $SANDBOX_DIR/NODE/run/libvirt/libvirt-sock; after ovs also
#                            qemu+tcp://$SANDBOX_DATA_NET.N/system, for migrations)
#   ovn-central NODE         starts the OVN databases (NB: $SANDBOX_DIR/NODE/run/ovn/ovnnb_db.sock, tcp 6641) and northd
#   ovn-chassis NODE [CENTRAL]   joins the node to OVN
#   exec NODE CMD...         runs CMD in the node        (replaces this process: signals and PID are CMD's)
#   control CMD...           runs CMD in the fabric namespace, where the control plane lives ($SANDBOX_NET.1)
#   kill-libvirtd NODE       SIGKILL; returns when it is really gone (virtual machines go on)
#   libvirtd-pid NODE        prints the PID
#   node-down NODE           ends the node in order: its processes are asked first, and killed after 5 s
#   node-kill NODE           a power cut: its links are gone, then SIGKILL to every process in its namespaces and cgroups
#   node-cut NODE            drops what it sends to and gets from the management network; data network and disks go on
#   node-heal NODE           ends that
#   ipmi NODE                starts an IPMI 2.0 device at $SANDBOX_NET.1:(6200 + N), user fence, password sandbox, whose
#                            power-off is node-kill   (ipmitool -I lanplus -C 3 -H ... -p ... -U fence -P sandbox power status)
#   ipmi-kill NODE           SIGKILL to that device
#   ceph                     starts Ceph at $SANDBOX_NET.1: mon.a, mgr.x, osd.0 (configuration: $SANDBOX_DIR/ceph/ceph.conf), pool vms,
#                            user libvirt (key: $SANDBOX_DIR/ceph/client.libvirt.key); again, what of it does not run
#   ceph-kill DAEMON         SIGKILL to one of the three
#   gluster                  starts GlusterFS at $SANDBOX_NET.1: glusterd, and the volumes gv0, frail, and full with 100 MB of room;
#                            again, what of it does not run
#   ganesha                  starts an NFS server (versions 3 and 4) at $SANDBOX_NET.1, export $SANDBOX_DIR/nfs/vms; again, if it does not run
#   statd NODE               starts what clients of NFS version 3 need for locks (version 4 needs nothing)
#   server-statd             starts what the NFS server needs for them
#   file-pid DAEMON          prints the PID of glusterd, ganesha, rpcbind or statd (the server's), or of the brick of gv0, frail or full
#   file-kill DAEMON         SIGKILL to it
#   status                   what runs where
#   down [--purge]           everything gone; --purge removes $SANDBOX_DIR too
#
# Environment: SANDBOX_NAME (dev), SANDBOX_DIR (<repository>/.dev/sandbox), SANDBOX_CACHE (<repository>/.dev/cache),
#   SANDBOX_NET (10.77.0) and SANDBOX_DATA_NET (10.78.0), both the first three bytes of a /24,
#   SANDBOX_KVM auto|on|off (auto: on where a real test of KVM passes), SANDBOX_CGROUP auto|off, SANDBOX_CEPH_SIZE (8G; of the OSD),
#   SANDBOX_PATIENCE (1; how many times as long as usual a daemon may take to start).
# Several sandboxes live side by side if name, directory and both networks differ. What net-up was told is kept in
# $SANDBOX_DIR/sandbox.env, so later calls need SANDBOX_DIR only. Nodes share the file system of the host, but for what daemons
# keep in fixed places, and for $SANDBOX_DIR/disks: there each node has a directory of its own ($SANDBOX_DIR/NODE/disks).
# Every verb may be repeated. Needs root.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=sandbox/lib.sh
. "$HERE/sandbox/lib.sh"

usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit 2; }

verb=${1:-}; [ -n "$verb" ] || usage; shift
[ "$(id -u)" = 0 ] || die "needs root"
# a directory that holds no sandbox names none, least of all the default one
if [ "$verb" = down ] && [ -n "${SANDBOX_DIR:-}" ] && [ -z "${SANDBOX_NAME:-}" ] && [ ! -f "$SANDBOX_DIR/sandbox.env" ]; then
  echo "sandbox: nothing in $SANDBOX_DIR"; exit 0
fi
load_env

need() { [ "$1" -ge "$2" ] || usage; }
case $verb in
exec) need $# 2; check_node "$1"; enter "$@" ;;
control) need $# 1; [ -e "/run/netns/$FAB" ] || die "the network is not up: run net-up"
  exec nsenter --net="/run/netns/$FAB" -- "$@" ;;
libvirtd-pid) need $# 1; check_node "$1"; daemon_pid "$1" run/libvirt/libvirtd.pid || die "libvirtd does not run on $1" ;;
status) . "$HERE/sandbox/down.sh"; . "$HERE/sandbox/power.sh"; . "$HERE/sandbox/files.sh"; . "$HERE/sandbox/ceph.sh"; cmd_status ;;
net-up) lock; . "$HERE/sandbox/net.sh"; cmd_net_up ;;
node-up) need $# 2; check_node "$1"; lock; . "$HERE/sandbox/net.sh"; . "$HERE/sandbox/node.sh"; cmd_node_up "$1" "$2" ;;
libvirtd) need $# 1; check_node "$1"; lock; . "$HERE/sandbox/daemons.sh"; cmd_libvirtd "$1" ;;
kill-libvirtd) need $# 1; check_node "$1"; lock; . "$HERE/sandbox/daemons.sh"; cmd_kill_libvirtd "$1" ;;
ovs) need $# 1; check_node "$1"; lock; . "$HERE/sandbox/daemons.sh"; cmd_ovs "$1" ;;
ovn-central) need $# 1; check_node "$1"; lock; . "$HERE/sandbox/daemons.sh"; cmd_ovn_central "$1" ;;
ovn-chassis) need $# 1; check_node "$1"; lock; . "$HERE/sandbox/daemons.sh"; cmd_ovn_chassis "$1" "${2:-}" ;;
node-down) need $# 1; check_node "$1"; lock; . "$HERE/sandbox/down.sh"; cmd_node_down "$1" ;;
node-kill | node-cut | node-heal | ipmi-kill | ipmi-asks)
  need $# 1; check_node "$1"; . "$HERE/sandbox/down.sh"; . "$HERE/sandbox/power.sh"; "cmd_${verb//-/_}" "$@" ;;
ceph) lock; . "$HERE/sandbox/ceph.sh"; cmd_ceph ;;
ceph-kill) need $# 1; . "$HERE/sandbox/ceph.sh"; cmd_ceph_kill "$1" ;;
gluster | ganesha | server-statd) lock; . "$HERE/sandbox/files.sh"; "cmd_${verb//-/_}" ;;
statd) need $# 1; check_node "$1"; lock; . "$HERE/sandbox/files.sh"; cmd_statd "$1" ;;
file-pid | file-kill) need $# 1; . "$HERE/sandbox/files.sh"; "cmd_${verb//-/_}" "$1" ;;
ipmi) need $# 1; check_node "$1"; lock; . "$HERE/sandbox/down.sh"; . "$HERE/sandbox/power.sh"; cmd_ipmi "$1" ;;
down) lock; . "$HERE/sandbox/down.sh"; cmd_down "${1:-}" ;;
*) usage ;;
esac
