#!/usr/bin/env bash
# up.sh — the whole platform on this machine, from nothing to a virtual machine that answers HTTP ("make up").
#
#   up.sh [NODES]      how many nodes (default: as many as are up, else 1)
#
# Control plane and nodes run in a sandbox of network namespaces (sandbox.sh); nothing of the host's own libvirt or
# Open vSwitch is used. One node has one pool, "default". Of several nodes each has a directory of its own for the pool "vms",
# and all see that of the pool "shared"; each has a fence device, too. Repeat it as you like: what is there is left alone, and a
# process whose binary was rebuilt is restarted. State in .dev/ (logs in .dev/log, PIDs in .dev/*.pid); `. .dev/env` makes gnext talk to it. Needs root.
# STORAGE=ceph: there is a Ceph cluster, too, of one of each daemon, with the pool "ceph", which the virtual machine is in.
# Environment: UP_AGENT_FLAGS (more flags for the agents), SANDBOX_* as in sandbox.sh, NEXTSTACK_BIN_DIR (bin), UP_TIMEOUT (seconds for each wait; 120).
set -euo pipefail
umask 077 # tokens and passwords are in here

# shellcheck source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
TIMEOUT=${UP_TIMEOUT:-120}
read -ra AGENT_FLAGS <<< "${UP_AGENT_FLAGS:-}"
LOG=$DEV/log
START=$EPOCHREALTIME

fail() {
  echo >&2; echo "up: FAILED: $*" >&2
  local f
  for f in nextstack $(for n in $(node_names); do agent "$n"; done); do
    if [ -s "$LOG/$f.log" ]; then
      echo "--- last lines of $LOG/$f.log" >&2
      grep -v '^admin password:' "$LOG/$f.log" | tail -n 15 >&2
    fi
  done
  exit 1
}

# step NAME FUNCTION: runs it and says how long it took; its output goes to the log unless it fails
step() {
  local t=$EPOCHREALTIME rc=0
  printf '  %-34s' "$1"
  # Not "if" or "||": bash would ignore set -e inside. Without descriptor 8, or what is started would hold the lock.
  set +e
  (set -e; "$2") > "$LOG/step.log" 2>&1 8>&-
  rc=$?
  set -e
  { echo "== $1"; cat "$LOG/step.log"; } >> "$LOG/up.log"
  if [ $rc != 0 ]; then echo "failed after $(secs "$t") s"; tail -n 20 "$LOG/step.log" >&2; fail "$1"; fi
  printf '%6s s   %s\n' "$(secs "$t")" "$(tail -n 1 "$LOG/step.log" | cut -c1-100)"
}

# poll SECONDS WHAT CMD...: until CMD succeeds; the message is what the last try said
poll() {
  local end=$((SECONDS + $1)) what=$2 out; shift 2
  until out=$("$@" 2>&1); do
    if [ "${out#fatal:}" != "$out" ] || [ $SECONDS -ge $end ]; then echo "$what: no success. Last answer: $out"; return 1; fi
    sleep 0.2
  done
}

export GNEXT_HOST=$API_HOST GNEXT_PORT=$API_PORT
gnext() { "$BIN/gnext" "$@"; }

do_packages() { "$HERE/packages.sh"; }
do_guest() { "$HERE/guest.sh" "$SANDBOX_CACHE/guest"; }
do_sandbox() {
  local n i=10
  sandbox net-up
  [ "$STORAGE" != ceph ] || sandbox ceph
  # first, so that who joins finds it
  case $(central) in ovn) sandbox node-up ovn 10 ;; *) sandbox node-up "$NODE" 11; sandbox ovs "$NODE" ;; esac
  sandbox ovn-central "$(central)"
  for n in $(node_names); do
    i=$((i + 1))
    sandbox node-up "$n" $i; sandbox ovs "$n"; sandbox libvirtd "$n"; sandbox ovn-chassis "$n"
    [ "$NODES" = 1 ] || sandbox ipmi "$n"
  done
  echo "$(node_names | xargs): libvirtd, OVS, OVN${STORAGE:+; Ceph}"
}

# start NAME WHERE BINARY ARGS...: in the background, detached from this terminal
start() {
  local name=$1 bin=$3 p; local where=("$2"); shift 3
  [ "${where[0]}" = control ] || where=(exec "${where[0]}")
  if p=$(running "$name" "$bin"); then
    if [ ! "$bin" -nt "$DEV/$name.pid" ]; then echo "ran already (pid $p)"; return; fi
    stop "$name" "$bin"
  fi
  setsid "$HERE/sandbox.sh" "${where[@]}" "$bin" "$@" </dev/null >>"$LOG/$name.log" 2>&1 &
  p=$!
  echo $p > "$DEV/$name.pid"
  echo "started (pid $p)"
}
alive() { if gone "$(cat "$DEV/$1.pid")"; then echo "fatal: $1 has ended"; return 1; fi; }
healthy() { alive nextstack && curl -sf -m 2 -o /dev/null "http://$API_HOST:$API_PORT/v1/health"; }

do_control() {
  local msg
  # both sides read it; whoever holds it may join as a node
  [ -s "$DEV/join-token" ] || openssl rand -hex 24 > "$DEV/join-token"
  msg=$(start nextstack control "$BIN/nextstack" serve --data-dir "$DEV/control" --listen "$API_HOST:$API_PORT" \
    --temporal-listen "$API_HOST:7233" --ui-listen "$API_HOST:8233" \
    --ovn-nb "unix:$SANDBOX_DIR/$(central)/run/ovn/ovnnb_db.sock" \
    --join-token-file "$DEV/join-token" --image-dir "$SANDBOX_CACHE/guest" --cpu-ratio 16) # tiny guests, mostly idle
  poll "$TIMEOUT" "http://$API_HOST:$API_PORT/v1/health" healthy
  echo "$msg"
}
do_agents() {
  local n i=10 data
  for n in $(node_names); do
    i=$((i + 1)) data=$SANDBOX_DATA_NET.$i
    printf '%s: ' "$n"
    start "$(agent "$n")" "$n" "$BIN/gnext" agent run --server "http://$API_HOST:$API_PORT" --join-token-file "$DEV/join-token" \
      --data-dir "$DEV/agent-$n" --name "$n" --libvirt qemu:///system --ovs unix:/run/openvswitch/db.sock \
      --peer-libvirt "qemu+tcp://$data/system" --peer-address "$data" --peer-listen "$data:8897" "${AGENT_FLAGS[@]}"
  done
  [ "$NODES" = 1 ] || echo "$NODES agents"
}

do_login() {
  local token
  if [ -s "$DEV/env" ]; then
    # shellcheck disable=SC1091
    . "$DEV/env"
    if gnext agent list -o json >/dev/null 2>&1; then echo "the token in .dev/env is valid"; return; fi
  fi
  # the server says it once, at its first start
  if grep -q '^admin password: ' "$LOG/nextstack.log"; then
    sed -n 's/^admin password: //p' "$LOG/nextstack.log" | tail -n 1 > "$DEV/admin-password"
  fi
  [ -s "$DEV/admin-password" ] || { echo "no admin password in $LOG/nextstack.log; start afresh: make down up"; return 1; }
  token=$(gnext login --user admin --password-stdin --print-token < "$DEV/admin-password")
  [ -n "$token" ] || { echo "login gave no token"; return 1; }
  printf 'export GNEXT_HOST=%q GNEXT_PORT=%q GNEXT_TOKEN=%q\n' "$API_HOST" "$API_PORT" "$token" > "$DEV/env"
  # shellcheck disable=SC2016
  printf 'export NO_PROXY=%q${NO_PROXY:+,$NO_PROXY}\n' "$API_HOST" >> "$DEV/env"
  echo "admin, token in .dev/env"
}

nodes_ready() {
  local out n
  for n in $(node_names); do alive "$(agent "$n")" || return 1; done
  out=$(gnext agent list -o json) || return 1
  node_names | jq -eR --argjson all "$out" -n '[inputs] - [$all | (if type == "array" then . else .items end)[]
    | select(.status.phase == "ready") | .name] == []' >/dev/null ||
    { echo "agents: $(jq -c '[(if type == "array" then . else .items end)[] | {name, status}]' <<< "$out" | cut -c1-300)"; return 1; }
}
do_nodes() { poll "$TIMEOUT" "$(node_names | xargs) in the list of agents" nodes_ready; echo "ready: $(node_names | xargs)"; }

# ready KIND NAME: its phase is a good one; a failed one ends the wait at once
ready() {
  local phase
  phase=$(gnext "$1" get "$2" -o json | jq -r '.status.phase // "ready"')
  case ${phase,,} in
  ready | active | available | running | up | created | bound) ;;
  error | failed) echo "fatal: $1 $2 is in phase $phase: $(gnext "$1" get "$2" -o json | jq -c .status)"; return 1 ;;
  *) echo "$1 $2 is in phase $phase"; return 1 ;;
  esac
}
# ensure KIND NAME ARGS...: adds it unless it exists (exit code 4: there is none)
ensure() {
  local kind=$1 name=$2 rc=0 out; shift 2
  out=$(gnext "$kind" get "$name" -o json 2>&1) || rc=$?
  case $rc in
  0) echo "$kind $name was there" ;;
  4) gnext "$kind" add "$name" "$@" ;;
  *) echo "gnext $kind get $name: exit code $rc: $out"; return 1 ;;
  esac
}

do_fence() {
  local n i=10 address
  for n in $(node_names); do
    i=$((i + 1)) address=$API_HOST:$((6200 + i))
    [ "$(gnext host get "$n" -o json | jq -r .spec.fence.address)" != "$address" ] || continue
    gnext host set "$n" --fence "ipmi://fence@$address" --fence-password-file - <<< sandbox || return
  done
  echo "each node has an IPMI device, at $API_HOST:6211 and following ports"
}

do_storage() {
  local pools=default p
  if [ "$NODES" = 1 ]; then
    mkdir -p "$DEV/pool"
    ensure pool default --type dir --path "$DEV/pool" || return
  else
    pools="vms shared"
    mkdir -p "$DEV/shared"
    ensure pool vms --type dir --path "$SANDBOX_DIR/disks" || return
    ensure pool shared --type dir --shared --path "$DEV/shared" || return
  fi
  if [ "$STORAGE" = ceph ]; then
    pools="$pools ceph"
    ensure pool ceph --type rbd --monitors "$API_HOST" --ceph-pool vms --ceph-user libvirt --ceph-key-file "$SANDBOX_DIR/ceph/client.libvirt.key" || return
  fi
  for p in $pools; do poll "$TIMEOUT" "pool $p" ready pool "$p" || return; done
  ensure img tiny --file "$SANDBOX_CACHE/guest/tiny.qcow2" --format qcow2 || return
  poll "$TIMEOUT" "image tiny" ready img tiny || return
  echo "pool ${pools// /, pool }, image tiny"
}
do_network() {
  ensure vpc demo --cidr 10.1.0.0/16 || return
  poll "$TIMEOUT" "VPC demo" ready vpc demo || return
  ensure subnet demo-a --vpc demo --cidr 10.1.0.0/24 || return
  poll "$TIMEOUT" "subnet demo-a" ready subnet demo-a || return
  ensure sg web --rule "ingress tcp 80 0.0.0.0/0" --rule "ingress icmp 0.0.0.0/0" --rule "egress any 0.0.0.0/0" || return
  poll "$TIMEOUT" "security group web" ready sg web || return
  ensure port probe --subnet demo-a || return
  echo "VPC demo, subnet demo-a, security group web, port probe"
}
do_vm() {
  local pool=default
  [ "$NODES" = 1 ] || pool=shared # so that it can be moved
  [ "$STORAGE" != ceph ] || pool=ceph
  ensure vm hello --image tiny --vcpu 1 --memory 128M --disk 1G --pool $pool --subnet demo-a --sg web || return
  poll "$TIMEOUT" "virtual machine hello" ready vm hello || return
  echo "hello has $(vm_address)"
}
vm_address() {
  gnext vm get hello -o json |
    jq -r '[.status.addresses[]? | if type == "object" then (.ip // .address) else . end | sub("/.*"; "")][0] // ""'
}
probe_port() { gnext port get probe -o json | jq -er '[.id, .spec.mac, (.spec.address | sub("/.*"; ""))] | join(" ")'; }

answers() {
  local id mac ip vm
  vm=$(vm_address); [ -n "$vm" ] || { echo "hello has no address yet"; return 1; }
  read -r id mac ip < <(probe_port) || true
  [ -n "${ip:-}" ] || { echo "port probe has no address yet"; return 1; }
  "$HERE/probe.sh" "$NODE" "$id" "$mac" "$ip/24" curl -sS -f -m 2 "http://$vm/" || { ready vm hello; return 1; }
}
do_http() {
  poll "$TIMEOUT" "HTTP :80 of hello" answers || return
  answers
}

[ "$(id -u)" = 0 ] || { echo "up: needs root (namespaces, libvirt, Open vSwitch)" >&2; exit 1; }
mkdir -p "$DEV" "$LOG"
exec 8> "$DEV/.up.lock"
flock -n 8 || { echo "up: another up.sh or down.sh is at work" >&2; exit 1; }
WANTED=${1:-$NODES}
case $WANTED in [1-9] | [1-9][0-9]) ;; *) echo "up: the number of nodes is 1 to 99, not '$WANTED'" >&2; exit 2 ;; esac
if [ -s "$DEV/nodes" ] && [ "$WANTED" != "$NODES" ]; then echo "up: a cloud with NODES=$NODES is up: run make down first" >&2; exit 1; fi
for b in nextstack gnext; do [ -x "$BIN/$b" ] || { echo "up: $BIN/$b is missing: run make build" >&2; exit 1; }; done
NODES=$WANTED
case $STORAGE in '' | ceph) ;; *) echo "up: STORAGE is ceph or nothing, not '$STORAGE'" >&2; exit 2 ;; esac
if [ "$STORAGE" = ceph ] && [[ $(ldd "$BIN/gnext") != *librbd* ]]; then echo "up: $BIN/gnext was built without Ceph: run make build, without CEPH=0" >&2; exit 1; fi
echo "$NODES" > "$DEV/nodes"
echo "$STORAGE" > "$DEV/storage"

echo "NextStack on this machine:"
step "packages" do_packages
step "guest image" do_guest
step "sandbox" do_sandbox
step "control plane" do_control
step "login" do_login
# shellcheck disable=SC1091
. "$DEV/env"
step "agent" do_agents
step "node joined" do_nodes
[ "$NODES" = 1 ] || step "fence devices" do_fence
step "storage and image" do_storage
step "network" do_network
step "virtual machine" do_vm
step "it answers HTTP" do_http
rm -f "$LOG/step.log"

read -r id mac ip < <(probe_port)
cat <<E

Up in $(secs "$START") s.
  . .dev/env && bin/gnext vm list           the command line (API http://$API_HOST:$API_PORT)
  http://$API_HOST:$API_PORT/docs               the API; the OpenAPI document is at /openapi.json
  http://$API_HOST:8233                    the workflows behind every operation (Temporal UI)
  deploy/dev/probe.sh $NODE $id $mac $ip/24 curl -s http://$(vm_address)/
  deploy/dev/sandbox.sh status              what runs;  deploy/dev/sandbox.sh exec $NODE virsh list
  tail -f .dev/log/nextstack.log .dev/log/agent*.log
  make down                                 ends it all
E
[ "$STORAGE" != ceph ] || echo "  ceph -c $SANDBOX_DIR/ceph/ceph.conf -s       the cluster;  rbd -c $SANDBOX_DIR/ceph/ceph.conf ls vms"
[ "$NODES" = 1 ] || cat <<E
  bin/gnext vm migrate hello                moves it to another node while it runs; bin/gnext host list
  deploy/dev/sandbox.sh node-kill node2     cuts the power of a node
E
