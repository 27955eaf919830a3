# shellcheck shell=bash
# power.sh — what befalls nodes: power cuts, a management network that is cut, and the device that cuts power when it is asked
# to (IPMI). Sourced by sandbox.sh, after down.sh.

IPMI_USER=fence IPMI_PASSWORD=sandbox

# cmd_node_kill NODE: what a power cut does. Takes no lock: a power cut waits for nobody.
cmd_node_kill() {
  local node=$1 h pids p live
  if ! h=$(holder "$node") && [ -z "$(cgroup_dirs "$node")" ]; then say "$node had no power"; return; fi
  # The links first. The kernel of a killed process still says goodbye to its peers (FIN, RST); a machine without power says
  # nothing, and what its peers make of that is what is to be tested.
  ip -n "$FAB" link del "m-$node" 2>/dev/null || true
  ip -n "$FAB" link del "d-$node" 2>/dev/null || true
  for _ in $(seq 20); do # again: what was forked meanwhile is caught too
    mapfile -t pids < <(members "$node" | sort -un | grep -vxF -e 0 -e "${h:-0}" -f <(ancestors) || true)
    live=()
    for p in "${pids[@]}"; do gone "$p" || live+=("$p"); done
    [ ${#live[@]} -gt 0 ] || break
    kill -9 "${live[@]}" 2>/dev/null || true
    wait_gone 5 "${live[@]}" || true
  done
  [ ${#live[@]} = 0 ] || die "still there on $node: ${live[*]}"
  # the holder last: without it the rest could not be found
  if [ -n "$h" ]; then kill -9 "$h" 2>/dev/null || true; wait_gone 5 "$h" || die "$node is still there"; fi
  rm -f "$DIR/$node/holder.pid"
  drop_cgroups "$node" || die "cgroups of $node are still in use: $(cgroup_dirs "$node" | tr '\n' ' ')"
  say "$node has lost its power"
}

# bridge_port NODE STATE: of the node's management link. A disabled port drops frames both ways and keeps its carrier: the
# node sees a network that is silent, not a cable that was pulled.
bridge_port() {
  holder "$1" >/dev/null || die "node $1 is not up: run node-up"
  bridge -n "$FAB" link set dev "m-$1" state "$2"
}
cmd_node_cut() { bridge_port "$1" 0; say "$1 is cut off from $NET.0/24; its data network and its disks go on"; }
cmd_node_heal() { bridge_port "$1" 3; say "$1 is back on $NET.0/24"; }
is_cut() { bridge -n "$FAB" link show dev "m-$1" 2>/dev/null | grep -q 'state disabled'; }

ipmi_port() { echo $((6200 + $(cat "$DIR/$1/num"))); }

# ipmi_pid NODE: of its device, if it runs (it lives in the fabric: it has power when the node has none)
ipmi_pid() {
  local p
  p=$(cat "$DIR/$1/ipmi/pid" 2>/dev/null) && [ -n "$p" ] && ! gone "$p" &&
    tr '\0' '\n' < "/proc/$p/cmdline" 2>/dev/null | grep -qxF "$DIR/$1/ipmi/lan.conf" && echo "$p"
}

# cmd_ipmi NODE: an IPMI 2.0 device of its own. Its power-off is cmd_node_kill.
# Traps: it knows cipher suite 3 and no newer one, and does not answer the question which it knows (ipmitool: -C 3). Power on is
# refused: node-up and the daemons' verbs do that. So a power cycle ends with the power off.
cmd_ipmi() {
  local node=$1 d=$DIR/$1/ipmi port p
  [ -f "$DIR/$node/num" ] || die "there is no node $node: run node-up"
  command -v ipmi_sim >/dev/null || die "ipmi_sim is missing: run packages.sh"
  port=$(ipmi_port "$node")
  if p=$(ipmi_pid "$node"); then say "IPMI of $node ran already at $NET.1:$port (pid $p)"; return; fi
  mkdir -p "$d/state"
  cat > "$d/lan.conf" <<E
name "$node"
set_working_mc 0x20
startlan 1
  addr $NET.1 $port
  priv_limit admin
  allowed_auths_user md5
  allowed_auths_operator md5
  allowed_auths_admin md5
  guid $(tr -d - < "$DIR/$node/host_uuid")
endlan
chassis_control "$d/power"
user 2 true "$IPMI_USER" "$IPMI_PASSWORD" admin 10 md5
E
  printf 'mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02\nmc_enable 0x20\n' > "$d/commands"
  printf '#!/bin/sh\nSANDBOX_DIR=%q exec %q ipmi-asks %q "$@" 2>>%q\n' "$DIR" "$HERE/sandbox.sh" "$node" "$d/log" > "$d/power"
  chmod 755 "$d/power"
  nsenter --net="/run/netns/$FAB" setsid ipmi_sim -n -c "$d/lan.conf" -f "$d/commands" -s "$d/state" \
    </dev/null >>"$d/log" 2>&1 9>&- &
  echo $! > "$d/pid"; disown
  wait_for 10 ipmi_listens "$port" || die "ipmi_sim does not listen at $NET.1:$port: $(tail -n 3 "$d/log")"
  say "IPMI of $node at $NET.1:$port, user $IPMI_USER, password $IPMI_PASSWORD (pid $(cat "$d/pid"))"
}
ipmi_listens() { nsenter --net="/run/netns/$FAB" ss -Hlun "sport = :$1" | grep -q .; }

cmd_ipmi_kill() {
  local p
  p=$(ipmi_pid "$1") || { say "IPMI of $1 did not run"; return; }
  kill -9 "$p"
  wait_gone 10 "$p" || die "ipmi_sim $p of $1 does not go away"
  say "IPMI of $1 killed (pid $p)"
}

# cmd_ipmi_asks NODE get power | NODE set WHAT VALUE...: what ipmi_sim calls
cmd_ipmi_asks() {
  local node=$1 op=${2:-}; shift 2
  case $op in
  get) if holder "$node" >/dev/null; then echo power:1; else echo power:0; fi ;;
  set)
    while [ $# -ge 2 ]; do
      case $1=$2 in
      power=0 | reset=1 | shutdown=1) cmd_node_kill "$node" >&2 ;;
      power=1) holder "$node" >/dev/null || die "power on of $node is refused" ;;
      esac
      shift 2
    done ;;
  esac
}
