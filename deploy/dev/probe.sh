#!/usr/bin/env bash
# probe.sh — a probe on a subnet: a command runs with a logical port's address, as if a machine were there.
#
#   probe.sh NODE PORT_ID MAC IP/PREFIX CMD...   e.g.  probe.sh node1 $ID 0a:00:00:00:00:09 10.1.0.9/24 curl -s http://10.1.0.5/
#   probe.sh --rm NODE PORT_ID
#
# The probe is an internal port on the node's br-int, bound to PORT_ID (the name of the logical switch port), in a
# network namespace of its own inside the node. It stays for the next call with the same PORT_ID; --rm removes it, and
# so does sandbox.sh down. The exit code is CMD's; 125 if the probe could not be set up.
# Environment: as sandbox.sh, and PROBE_GATEWAY (default route; none), PROBE_MTU (1442, what a guest gets by DHCP).
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit 2; }

remove=
[ "${1:-}" != --rm ] || { remove=1; shift; }
[ $# -ge 2 ] || usage
node=$1 port=$2; shift 2
# a port's id is longer than an interface name may be
if_name=pr-$(printf %s "$port" | sha256sum | cut -c1-10)

if [ -n "$remove" ]; then
  # shellcheck disable=SC2016
  exec "$HERE/sandbox.sh" exec "$node" bash -euo pipefail -c '
    ovs-vsctl --timeout=10 --if-exists del-port br-int "$1"
    [ ! -e "/run/netns/$1" ] || ip netns del "$1"' probe "$if_name"
fi

[ $# -ge 3 ] || usage
mac=$1 addr=$2; shift 2
# shellcheck disable=SC2016
exec "$HERE/sandbox.sh" exec "$node" bash -euo pipefail -c '
  if=$1 port=$2 mac=$3 addr=$4 gw=$5 mtu=$6; shift 6
  fail() { echo "probe: $*" >&2; exit 125; }
  setup() {
    ovs-vsctl --timeout=20 --if-exists del-port br-int "$if" -- add-port br-int "$if" \
      -- set interface "$if" type=internal external_ids:iface-id="$port" external_ids:attached-mac="$mac" || return
    [ -e "/run/netns/$if" ] || ip netns add "$if" || return
    # the userspace datapath makes it a tap, which would hand over frames without checksums
    ethtool -K "$if" tx off >/dev/null || return
    ip link set "$if" netns "$if" || return
    ip -n "$if" link set lo up
    ip -n "$if" link set "$if" address "$mac" mtu "$mtu" up && ip -n "$if" addr add "$addr" dev "$if" || return
    [ -z "$gw" ] || ip -n "$if" route replace default via "$gw" || return
    for _ in $(seq 200); do
      [ "$(ovs-vsctl --timeout=10 --if-exists get interface "$if" external_ids:ovn-installed 2>/dev/null)" = "\"true\"" ] && return
      sleep 0.05
    done
    echo "probe: OVN did not bind port $port within 10 s (is there a logical switch port of that name?)" >&2; return 1
  }
  now=$(ip -n "$if" -o addr show dev "$if" 2>/dev/null; ip -n "$if" -o link show dev "$if" 2>/dev/null) || true
  case $now in
  *"inet $addr "*"link/ether $mac "*) ;;
  *) setup || fail "cannot set up $if for port $port" ;;
  esac
  exec nsenter --net="/run/netns/$if" -- "$@"' probe \
  "$if_name" "$port" "${mac,,}" "$addr" "${PROBE_GATEWAY:-}" "${PROBE_MTU:-1442}" "$@"
