# shellcheck shell=bash
# down.sh — status, and taking things away. What to kill is found by our own namespaces and cgroups, never by name.
# Sourced by sandbox.sh.

ns_id() { readlink "/proc/$1/ns/$2" | tr -dc 0-9; }

# The cgroup directories of NODE (of any node without an argument): one, or one per version 1 hierarchy.
cgroup_dirs() {
  local g
  # shellcheck disable=SC2231
  for g in /sys/fs/cgroup/"$FAB".${1:-*} /sys/fs/cgroup/*/"$FAB".${1:-*}; do [ -d "$g" ] && echo "$g"; done
  return 0
}

# Our own callers: someone may run "sandbox.sh control sandbox.sh down".
ancestors() {
  local p=$BASHPID
  while [ "${p:-0}" -gt 1 ]; do echo "$p"; p=$(awk '$1 == "PPid:" { print $2 }' "/proc/$p/status" 2>/dev/null); done
}

# members [NODE]: the PIDs in the node's namespaces and cgroups; without a node those of the fabric's namespace.
# Probes have network namespaces of their own, but the node's mount and uts namespaces.
members() {
  local h='' g ids=() k
  if [ $# = 1 ]; then
    if h=$(holder "$1"); then
      for k in mnt net uts ipc; do ids+=(-o -lname "$k:\\[$(ns_id "$h" $k)\\]"); done
    fi
    cgroup_dirs "$1" | while read -r g; do find "$g" -name cgroup.procs -exec cat {} + 2>/dev/null || true; done
  elif [ -e "/run/netns/$FAB" ]; then
    ids=(-o -lname "net:\\[$(stat -Lc %i "/run/netns/$FAB")\\]")
  fi
  [ ${#ids[@]} = 0 ] || find /proc/[0-9]*/ns -maxdepth 1 -type l \( -false "${ids[@]}" \) -printf '%h\n' 2>/dev/null | cut -d/ -f3 || true
}

# stop_members SECONDS [NODE...]: ends all processes of these nodes (none named: the fabric's), politely first
stop_members() {
  local secs=$1 n h keep='' pids; shift
  for n in "$@"; do h=$(holder "$n" || true); keep="$keep $h"; done
  find_pids() {
    { if [ $# = 0 ]; then members; else for n in "$@"; do members "$n"; done; fi; } | sort -un |
      grep -vxF -e 0 -f <(ancestors; tr ' ' '\n' <<< "$keep" | grep . || true) || true
  }
  mapfile -t pids < <(find_pids "$@")
  if [ ${#pids[@]} -gt 0 ]; then
    kill "${pids[@]}" 2>/dev/null || true
    wait_gone "$secs" "${pids[@]}" || true
    # again: what was forked meanwhile is caught too
    for _ in 1 2 3; do
      mapfile -t pids < <(find_pids "$@"); live=()
      for h in "${pids[@]}"; do gone "$h" || live+=("$h"); done
      [ ${#live[@]} -gt 0 ] || break
      kill -9 "${live[@]}" 2>/dev/null || true
      wait_gone 5 "${live[@]}" || true
    done
  fi
  # the holders last: without them the rest could not be found
  for n in "$@"; do
    h=$(holder "$n") || continue
    kill -9 "$h"; wait_gone 5 "$h" || true
    rm -f "$DIR/$n/holder.pid"
  done
}

drop_cgroups() {
  local g end=$((${EPOCHREALTIME/./} + 3000000))
  for g in $(cgroup_dirs "${1:-}"); do
    # a process that is on its way out still counts for a moment
    until find "$g" -depth -type d -exec rmdir {} \; 2>/dev/null && [ ! -d "$g" ]; do
      [ ! -d "$g" ] && break
      [ ${EPOCHREALTIME/./} -lt $end ] || return 1
      sleep 0.05
    done
  done
}

cmd_node_down() {
  local node=$1
  if ! holder "$node" >/dev/null && [ -z "$(cgroup_dirs "$node")" ]; then say "$node was down already"; return; fi
  stop_members 5 "$node"
  drop_cgroups "$node" || die "cgroups of $node are still in use: $(cgroup_dirs "$node" | tr '\n' ' ')"
  ip -n "$FAB" link del "m-$node" 2>/dev/null || true
  ip -n "$FAB" link del "d-$node" 2>/dev/null || true
  say "$node down"
}

# all nodes: those with state, and those that left only a cgroup behind
all_nodes() { { nodes; cgroup_dirs | sed "s|.*/$FAB\.||"; } | sort -u; }

cmd_down() {
  local purge=$1 all left=''
  [ -z "$purge" ] || [ "$purge" = --purge ] || usage
  mapfile -t all < <(all_nodes)
  # What has files or devices open on these servers would wait for them.
  if [ -d "$DIR/ceph" ] || [ -d "$DIR/gluster" ] || [ -d "$DIR/nfs" ]; then [ ${#all[@]} = 0 ] || stop_members 5 "${all[@]}"; fi
  stop_members 5
  [ ${#all[@]} = 0 ] || stop_members 5 "${all[@]}"
  ip link del "$FAB" 2>/dev/null || true
  ip netns del "$FAB" 2>/dev/null || true
  drop_cgroups || true
  left=$(leftovers)
  [ -z "$left" ] || die "still there: $left"
  rm -f "$OWNER"
  if [ "$purge" = --purge ]; then
    case $DIR in / | /root | /home | /tmp) die "refusing to remove $DIR" ;; esac
    rm -rf "$DIR"
    say "down, state removed (${#all[@]} nodes)"
  else
    say "down (${#all[@]} nodes)"
  fi
}

leftovers() {
  local n p
  for n in $(all_nodes); do
    for p in $(members "$n"); do gone "$p" || echo "process $p of $n ($(tr '\0' ' ' < "/proc/$p/cmdline" 2>/dev/null | cut -c1-60))"; done
  done
  cgroup_dirs
  ip netns list 2>/dev/null | grep -w "^$FAB" || true
  ip -o link show "$FAB" 2>/dev/null || true
}

cmd_status() {
  local n up d
  up=down; [ ! -e "/run/netns/$FAB" ] || up=up
  echo "sandbox $NAME: network $up, control plane $NET.1 (namespace $FAB), data $DATA_NET.1, state $DIR"
  printf '%-12s %-5s %-16s %-9s %-6s %-12s %-12s %-6s %s\n' NODE STATE ADDRESS LIBVIRTD OVS OVN-CENTRAL OVN-CHASSIS IPMI QEMU
  for n in $(nodes); do
    d=down; holder "$n" >/dev/null && d=up
    ! is_cut "$n" || d="cut"
    printf '%-12s %-5s %-16s %-9s %-6s %-12s %-12s %-6s %s\n' "$n" $d "$NET.$(cat "$DIR/$n/num")" \
      "$(daemon_pid "$n" run/libvirt/libvirtd.pid || echo -)" "$(daemon_pid "$n" run/openvswitch/ovs-vswitchd.pid || echo -)" \
      "$(daemon_pid "$n" run/ovn/ovn-northd.pid || echo -)" "$(daemon_pid "$n" run/ovn/ovn-controller.pid || echo -)" \
      "$(ipmi_pid "$n" || echo -)" \
      "$(for p in "$DIR/$n"/run/libvirt/qemu/*.pid; do [ -f "$p" ] && [ "${p##*/}" != driver.pid ] && daemon_pid "$n" "run/libvirt/qemu/$(basename "$p")"; done | wc -l)"
  done
  for n in gluster:glusterd gluster:gv0 gluster:frail gluster:full nfs:rpcbind nfs:ganesha nfs:statd; do
    [ ! -d "$DIR/${n%:*}" ] || printf '%s at %s: %s\n' "${n#*:}" "$NET.1" "$(file_pid "${n#*:}" || echo -)"
  done
  [ ! -d "$DIR/ceph" ] || echo "ceph at $NET.1: $(for n in mon.a mgr.x osd.0; do echo "$n $(ceph_pid $n || echo -)"; done | xargs)"
}
