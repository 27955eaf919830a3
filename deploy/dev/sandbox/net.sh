# shellcheck shell=bash
# net.sh — the underlay: one network namespace with two bridges that all nodes are plugged into. Sourced by sandbox.sh.

cmd_net_up() {
  if [ -e "/run/netns/$FAB" ] && [ -f "$DIR/sandbox.env" ] && ip link show "$FAB" >/dev/null 2>&1; then
    say "network was up already"; return
  fi
  # a half-made one (an earlier call was cut off) is made anew, unless nodes hang on it
  [ -z "$(running_nodes)" ] || die "the network is damaged while nodes run: run down first"
  ip link del "$FAB" 2>/dev/null || true
  ip netns del "$FAB" 2>/dev/null || true
  local other
  for other in "$NET" "$DATA_NET"; do
    ! ip -4 -o addr show | grep -q " inet $other\." || die "$other.0/24 is in use on this machine: set SANDBOX_NET and SANDBOX_DATA_NET"
  done
  mkdir -p "$(dirname "$OWNER")"; echo "$DIR" > "$OWNER"
  ip netns add "$FAB"
  ip -n "$FAB" -b - <<E
link set lo up
link add br0 type bridge
addr add $NET.1/24 dev br0
link set br0 mtu 1600 up
link add br1 type bridge
addr add $DATA_NET.1/24 dev br1
link set br1 mtu 1600 up
E
  # A new namespace takes this from the host. The fabric must not route: libvirt and OVN listen in the nodes
  # without a password, so only the control plane's address may be reachable from the host (any user of it).
  nsenter --net="/run/netns/$FAB" sysctl -qw net.ipv4.ip_forward=0
  fab_ethtool br1
  ip link add "$FAB" type veth peer name host netns "$FAB"
  ip addr add "$NET.254/32" dev "$FAB"; ip link set "$FAB" up
  ip -n "$FAB" link set host up
  ip -n "$FAB" route add "$NET.254/32" dev host src "$NET.1"
  ip route replace "$NET.1/32" dev "$FAB" src "$NET.254"
  [ -f "$DIR/hosts" ] || printf '127.0.0.1 localhost\n%s.1 control\n' "$NET" > "$DIR/hosts"
  echo "$NAME $NET $DATA_NET" > "$DIR/sandbox.env"
  say "network up: control plane $NET.1 and $DATA_NET.1 in namespace $FAB, host $NET.254"
}

running_nodes() { local n; for n in $(nodes); do holder "$n" >/dev/null && echo "$n"; done; return 0; }

# The userspace datapath forwards frames as they are: a veth's "checksum to be filled in later" never gets filled in.
fab_ethtool() { nsenter --net="/run/netns/$FAB" ethtool -K "$1" tx off >/dev/null; }

# plug NODE HOLDER-PID N: the node's two NICs. Their addresses are those of the node, as a machine keeps its own when it boots:
# the tunnels of the others, in user space, remember for many minutes where they sent to.
plug() {
  local node=$1 h=$2 num=$3 i
  for i in "m-$node" "d-$node"; do ip -n "$FAB" link del "$i" 2>/dev/null || true; done
  ip -n "$FAB" link add "m-$node" mtu 1600 type veth peer name eth0 mtu 1600 netns "$h"
  ip -n "$FAB" link add "d-$node" mtu 1600 type veth peer name eth1 mtu 1600 netns "$h"
  ip -n "$FAB" -b - <<E
link set m-$node master br0 up
link set d-$node master br1 up
E
  fab_ethtool "d-$node"
  nsenter -t "$h" -n ip -b - <<E
link set eth0 address $(printf '02:5b:00:00:00:%02x' "$num")
link set eth1 address $(printf '02:5b:00:00:01:%02x' "$num")
addr add $NET.$num/24 dev eth0
link set eth0 up
link set eth1 up
E
  nsenter -t "$h" -n ethtool -K eth1 tx off >/dev/null
}
