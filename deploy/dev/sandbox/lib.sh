# shellcheck shell=bash
# lib.sh — what every verb of sandbox.sh uses. Sourced, not run.

T0=$EPOCHREALTIME
export PATH=$PATH:/usr/sbin:/sbin
export LC_ALL=C

die() { echo "sandbox ${NAME:-}: $*" >&2; exit 1; }
# say TEXT: the one line of a verb, with the time since the script began
say() {
  local us=$((${EPOCHREALTIME/./} - ${T0/./}))
  printf 'sandbox %s: %s (%d.%02d s)\n' "$NAME" "$*" $((us / 1000000)) $((us % 1000000 / 10000))
}

# load_env: settings from the environment, else what net-up recorded, else the defaults
load_env() {
  local repo; repo=$(cd "$HERE/../.." && pwd)
  DIR=${SANDBOX_DIR:-$repo/.dev/sandbox}; CACHE=${SANDBOX_CACHE:-$repo/.dev/cache}
  mkdir -p "$DIR" "$CACHE"; DIR=$(cd "$DIR" && pwd); CACHE=$(cd "$CACHE" && pwd)
  # unix socket paths end at 107 bytes, and the longest here is NODE/run/openvswitch/ovs-vswitchd.PID.ctl
  [ ${#DIR} -le 60 ] || die "SANDBOX_DIR is too long for unix sockets (60 characters at most): $DIR"
  local n='' net='' data=''
  [ -f "$DIR/sandbox.env" ] && read -r n net data < "$DIR/sandbox.env"
  NAME=${SANDBOX_NAME:-${n:-dev}}; NET=${SANDBOX_NET:-${net:-10.77.0}}; DATA_NET=${SANDBOX_DATA_NET:-${data:-10.78.0}}
  # 12 characters: "ns-NAME" is an interface name, and those end at 15
  [[ $NAME =~ ^[a-z0-9][a-z0-9-]{0,11}$ ]] || die "bad SANDBOX_NAME '$NAME' (a-z, 0-9 and -, 12 at most)"
  [[ $NET =~ ^[0-9]+\.[0-9]+\.[0-9]+$ && $DATA_NET =~ ^[0-9]+\.[0-9]+\.[0-9]+$ && $NET != "$DATA_NET" ]] ||
    die "SANDBOX_NET and SANDBOX_DATA_NET are two different networks, three bytes each"
  [ -z "$n" ] || [ "$n $net $data" = "$NAME $NET $DATA_NET" ] ||
    die "$DIR belongs to sandbox '$n' ($net, $data): set SANDBOX_DIR to another directory"
  # Names are machine-wide: a second sandbox of the same name would take this one's namespaces for its own.
  OWNER=/run/nextstack-sandbox/$NAME
  local owner=''
  [ ! -f "$OWNER" ] || owner=$(cat "$OWNER")
  [ -z "$owner" ] || [ "$owner" = "$DIR" ] || [ ! -f "$owner/sandbox.env" ] ||
    die "a sandbox of this name lives in $owner: set SANDBOX_NAME to another name"
  # shellcheck disable=SC2034
  FAB=ns-$NAME
}

# Daemons must not inherit descriptor 9, or the lock would be held for as long as they live.
lock() { exec 9> "$DIR/.lock"; flock -w 300 9 || die "another sandbox.sh holds $DIR/.lock"; }

check_node() {
  [[ $1 =~ ^[a-z0-9][a-z0-9-]{0,11}$ ]] || die "bad node name '$1' (a-z, 0-9 and -, 12 at most)"
  # what else is in $DIR
  case $1 in central | ceph | disks | gluster | hosts | nfs) die "bad node name '$1': it is taken" ;; esac
}

# nodes: the names of all nodes with state
nodes() { local f; for f in "$DIR"/*/num; do [ -f "$f" ] && basename "$(dirname "$f")"; done; return 0; }

# The name that the process holding a node's namespaces goes by: a stale PID file can never point at a stranger.
holder_name() { echo "nextstack-sandbox:$NAME:$1"; }

# holder NODE: the PID of the process that holds the node's namespaces
holder() {
  local p a=''
  p=$(cat "$DIR/$1/holder.pid" 2>/dev/null) || return 1
  if [ -n "$p" ]; then IFS= read -r -d '' a 2>/dev/null < "/proc/$p/cmdline" || true; fi
  [ "$a" = "$(holder_name "$1")" ] && echo "$p"
}

# daemon_pid NODE PIDFILE: the PID in that file, if the process lives and belongs to the node.
# (The first process of a host may reap orphans late: a zombie has no namespaces any more, so it counts as gone.)
daemon_pid() {
  local h p
  h=$(holder "$1") || return 1
  p=$(cat "$DIR/$1/$2" 2>/dev/null) && [ -n "$p" ] || return 1
  [ "$(readlink "/proc/$p/ns/mnt")" = "$(readlink "/proc/$h/ns/mnt")" ] 2>/dev/null && echo "$p"
}

# gone PID: no such process, or only its zombie. A zombie with threads that are still ending has its files, and their locks.
gone() {
  local k v state=X threads=0
  while read -r k v _; do
    case $k in State:) state=$v ;; Threads:) threads=$v ;; esac
  done 2>/dev/null < "/proc/$1/status"
  [ "$state" = X ] || { [ "$state" = Z ] && [ "$threads" -le 1 ]; }
}

# wait_gone SECONDS PID...: true when all are gone in time
wait_gone() {
  local end=$((${EPOCHREALTIME/./} + $1 * 1000000)) p; shift
  for p in "$@"; do
    until gone "$p"; do [ ${EPOCHREALTIME/./} -lt $end ] || return 1; sleep 0.02; done
  done
}

# wait_for SECONDS CMD...: true when CMD succeeds in time, or in SANDBOX_PATIENCE times as long, on a machine that is slow
wait_for() {
  local end=$((${EPOCHREALTIME/./} + $1 * 1000000 * ${SANDBOX_PATIENCE:-1})); shift
  until "$@" >/dev/null 2>&1; do [ ${EPOCHREALTIME/./} -lt $end ] || return 1; sleep 0.05; done
}

# enter NODE CMD...: becomes CMD inside the node, in the same directory
enter() {
  local node=$1 h c; shift
  h=$(holder "$node") || die "node $node is not up: run node-up"
  while read -r c; do echo $BASHPID > "$c/cgroup.procs"; done < "$DIR/$node/cgroup.join"
  # shellcheck disable=SC2016
  exec nsenter -t "$h" -m -u -i -n -C -- bash -c 'cd "$0" 2>/dev/null || cd /; exec "$@"' "$PWD" "$@"
}

# in_node NODE CMD...: the same, and comes back
in_node() { (enter "$@") 9>&-; }
