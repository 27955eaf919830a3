# shellcheck shell=bash
# daemons.sh — libvirtd, Open vSwitch and OVN inside a node, without an init system. Sourced by sandbox.sh.

up() { holder "$1" >/dev/null || die "node $1 is not up: run node-up"; }
uri() { echo "qemu+unix:///system?socket=$DIR/$1/run/libvirt/libvirt-sock"; }

cmd_libvirtd() {
  local node=$1 d=$DIR/$1 p
  if p=$(daemon_pid "$node" run/libvirt/libvirtd.pid); then say "libvirtd ran already on $node (pid $p)"; return; fi
  up "$node"
  # The first libvirtd on a machine asks qemu for its abilities, which takes seconds; the answers are shared.
  # libvirt itself drops what does not fit (another qemu, another libvirt, another kernel).
  mkdir -p "$CACHE/libvirt" "$d/var/cache/libvirt/qemu/capabilities"
  cp -pn "$CACHE"/libvirt/*.xml "$d/var/cache/libvirt/qemu/capabilities/" 2>/dev/null || true
  rm -f "$d/run/libvirt/libvirt-sock"
  # It ends if it cannot have the address that the libvirt of other nodes comes to, which Open vSwitch holds.
  local listen=() h; h=$(holder "$node")
  ! nsenter -t "$h" -n ip -4 -o addr show to "$DATA_NET.$(cat "$d/num")" 2>/dev/null | grep -q . || listen=(--listen)
  (enter "$node" setsid -f libvirtd "${listen[@]}" --pid-file /run/libvirt/libvirtd.pid) \
    </dev/null >>"$d/log/libvirtd.out" 2>&1 9>&-
  # The socket accepts once all drivers are ready, and this call makes it ask qemu now, not at the first machine.
  wait_for 30 test -S "$d/run/libvirt/libvirt-sock" || true
  timeout 120 virsh -q -c "$(uri "$node")" domcapabilities --virttype qemu >/dev/null 2>>"$d/log/libvirtd.out" 9>&- ||
    die "libvirtd did not start on $node: $(tail -n 5 "$d/log/libvirtd.out" "$d/log/libvirt/libvirtd.log" 2>/dev/null)"
  local f t
  for f in "$d"/var/cache/libvirt/qemu/capabilities/*.xml; do
    t=$CACHE/libvirt/$(basename "$f")
    if [ -s "$f" ] && ! cmp -s "$f" "$t"; then cp -p "$f" "$t.$$" && mv "$t.$$" "$t"; fi
  done
  say "libvirtd started on $node (pid $(daemon_pid "$node" run/libvirt/libvirtd.pid))"
}

cmd_kill_libvirtd() {
  local p
  p=$(daemon_pid "$1" run/libvirt/libvirtd.pid) || { say "libvirtd did not run on $1"; return; }
  kill -9 "$p"
  wait_gone 10 "$p" || die "libvirtd $p on $1 does not go away"
  say "libvirtd $p killed on $1"
}

cmd_ovs() {
  local node=$1 d=$DIR/$1
  if daemon_pid "$node" run/openvswitch/ovs-vswitchd.pid >/dev/null && daemon_pid "$node" run/openvswitch/ovsdb-server.pid >/dev/null; then
    say "Open vSwitch ran already on $node"; return
  fi
  up "$node"
  # shellcheck disable=SC2016
  in_node "$node" bash -euo pipefail -c '
    cd /; node=$1 ip=$2
    DB=/etc/openvswitch/conf.db; S=/run/openvswitch; L=/var/log/openvswitch
    [ -f $DB ] || ovsdb-tool create $DB /usr/share/openvswitch/vswitch.ovsschema
    [ -S $S/db.sock ] && ovs-vsctl --timeout=2 --no-wait show >/dev/null 2>&1 || {
      rm -f $S/db.sock
      ovsdb-server $DB --remote=punix:$S/db.sock --remote=db:Open_vSwitch,Open_vSwitch,manager_options \
        --pidfile=$S/ovsdb-server.pid --log-file=$L/ovsdb-server.log --detach --no-chdir -vconsole:off; }
    ovs-vsctl --timeout=20 --no-wait init -- set Open_vSwitch . external_ids:system-id="$node" external_ids:hostname="$node"
    ovs-vswitchd unix:$S/db.sock --pidfile=$S/ovs-vswitchd.pid --log-file=$L/ovs-vswitchd.log --detach --no-chdir -vconsole:off
    # Tunnels of the userspace datapath need their source address on a bridge of that datapath which holds the NIC.
    # The other nodes must always hear the same hardware address for it: not a new one after a power cut, and not that of eth1,
    # for which the kernel would answer, too. What comes for that address ends in no tunnel, and they remember it for minutes.
    echo 1 > /proc/sys/net/ipv4/conf/eth1/arp_ignore
    ovs-vsctl --timeout=30 --may-exist add-br br-int -- set bridge br-int datapath_type=netdev fail_mode=secure \
      -- --may-exist add-br br-ex -- set bridge br-ex datapath_type=netdev fail_mode=standalone "other_config:hwaddr=$3" \
      -- --may-exist add-port br-ex eth1
    # While a guest moves, its next node sees what it is sent and not what it answers. The userspace datapath then takes the
    # sequence numbers of an old connection for wrong ones, and drops its segments for half a minute; the kernel does not.
    ovs-appctl --timeout=20 dpctl/ct-disable-tcp-seq-chk >/dev/null
    ip addr replace "$ip/24" dev br-ex; ip link set br-ex mtu 1600 up
    ethtool -K br-ex tx off >/dev/null' ovs "$node" "$DATA_NET.$(cat "$d/num")" "$(printf '02:5b:00:00:02:%02x' "$(cat "$d/num")")" \
    </dev/null >>"$d/log/ovs.out" 2>&1 ||
    die "Open vSwitch did not start on $node: $(tail -n 5 "$d/log/ovs.out")"
  say "Open vSwitch started on $node (br-int, br-ex at $DATA_NET.$(cat "$d/num"))"
}

cmd_ovn_central() {
  local node=$1 d=$DIR/$1
  if daemon_pid "$node" run/ovn/ovn-northd.pid >/dev/null && daemon_pid "$node" run/ovn/ovnnb_db.pid >/dev/null &&
    daemon_pid "$node" run/ovn/ovnsb_db.pid >/dev/null; then
    say "OVN central ran already on $node"; return
  fi
  up "$node"
  # shellcheck disable=SC2016
  in_node "$node" bash -euo pipefail -c '
    cd /; R=/run/ovn; D=/var/lib/ovn; L=/var/log/ovn
    db() { # db nb|sb SCHEMA TABLE PORT
      ovs-appctl --timeout=2 -t $R/ovn$1_db.ctl version >/dev/null 2>&1 && return
      [ -f $D/ovn$1.db ] || ovsdb-tool create $D/ovn$1.db /usr/share/ovn/ovn-$1.ovsschema
      rm -f $R/ovn$1_db.sock
      ovsdb-server $D/ovn$1.db --remote=punix:$R/ovn$1_db.sock --remote=db:$2,$3,connections \
        --unixctl=$R/ovn$1_db.ctl --pidfile=$R/ovn$1_db.pid --log-file=$L/ovsdb-$1.log --detach --no-chdir -vconsole:off
      # a machine that boots several guests by emulation stalls for longer than the usual 5 s probe
      ovn-${1}ctl --timeout=20 init -- set-connection ptcp:$4:0.0.0.0 -- set connection . inactivity_probe=60000
    }
    db nb OVN_Northbound NB_Global 6641
    db sb OVN_Southbound SB_Global 6642
    ovs-appctl --timeout=2 -t $R/ovn-northd.ctl version >/dev/null 2>&1 ||
      ovn-northd --ovnnb-db=unix:$R/ovnnb_db.sock --ovnsb-db=unix:$R/ovnsb_db.sock --unixctl=$R/ovn-northd.ctl \
        --pidfile=$R/ovn-northd.pid --log-file=$L/ovn-northd.log --detach --no-chdir -vconsole:off' ovn </dev/null >>"$d/log/ovn.out" 2>&1 ||
    die "OVN central did not start on $node: $(tail -n 5 "$d/log/ovn.out")"
  echo "$node" > "$DIR/central"
  say "OVN central started on $node (NB unix:$d/run/ovn/ovnnb_db.sock, tcp:$NET.$(cat "$d/num"):6641)"
}

cmd_ovn_chassis() {
  local node=$1 d=$DIR/$1 central=$2
  central=${central:-$(cat "$DIR/central" 2>/dev/null || true)}
  [[ -n $central && -f $DIR/$central/num ]] || die "no OVN central: run ovn-central first, or name its node"
  if daemon_pid "$node" run/ovn/ovn-controller.pid >/dev/null; then say "OVN chassis ran already on $node"; return; fi
  up "$node"
  # shellcheck disable=SC2016
  in_node "$node" bash -euo pipefail -c '
    cd /
    ovs-vsctl --timeout=20 set Open_vSwitch . external_ids:ovn-remote="tcp:$1:6642" external_ids:ovn-encap-type=geneve \
      external_ids:ovn-encap-ip="$2" external_ids:ovn-bridge-mappings=provider:br-ex \
      external_ids:ovn-bridge-datapath-type=netdev external_ids:ovn-remote-probe-interval=60000
    ovn-controller unix:/run/openvswitch/db.sock --pidfile=/run/ovn/ovn-controller.pid \
      --log-file=/var/log/ovn/ovn-controller.log --detach --no-chdir -vconsole:off
    for _ in $(seq 200); do
      [ "$(ovn-appctl --timeout=5 -t ovn-controller connection-status 2>/dev/null)" = connected ] && exit 0
      sleep 0.05
    done
    echo "ovn-controller does not reach tcp:$1:6642"; exit 1' ovn \
    "$NET.$(cat "$DIR/$central/num")" "$DATA_NET.$(cat "$d/num")" </dev/null >>"$d/log/ovn.out" 2>&1 ||
    die "OVN chassis did not start on $node: $(tail -n 5 "$d/log/ovn.out")"
  say "OVN chassis $node joined $central"
}
