# shellcheck shell=bash
# common.sh — paths and helpers of up.sh and down.sh. Sourced, not run.
# shellcheck disable=SC2034

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(cd "$HERE/../.." && pwd)
DEV=$ROOT/.dev
BIN=${NEXTSTACK_BIN_DIR:-$ROOT/bin}
export PATH=$PATH:/usr/sbin:/sbin
export SANDBOX_DIR=${SANDBOX_DIR:-$DEV/sandbox} SANDBOX_CACHE=${SANDBOX_CACHE:-$DEV/cache}
export SANDBOX_NAME=${SANDBOX_NAME:-dev} SANDBOX_NET=${SANDBOX_NET:-10.77.0} SANDBOX_DATA_NET=${SANDBOX_DATA_NET:-10.78.0}
NODE=node1
# How many nodes there are, as up.sh was told. One node has the databases of OVN, too; of several each may be lost, so these
# have a node of their own, without libvirt.
NODES=$(cat "$DEV/nodes" 2>/dev/null || echo 1)
# What storage there is besides directories: ceph or nothing.
STORAGE=${STORAGE:-$(cat "$DEV/storage" 2>/dev/null || true)}
node_names() { seq -f 'node%g' "$NODES"; }
central() { if [ "$NODES" = 1 ]; then echo "$NODE"; else echo ovn; fi; }
# agent NODE: what its agent is called in .dev/*.pid and .dev/log
agent() { if [ "$1" = "$NODE" ]; then echo agent; else echo "agent-$1"; fi; }
API_HOST=$SANDBOX_NET.1 API_PORT=8899
# A proxy for the internet must not be asked for the sandbox, neither by this script nor by what it starts.
unset http_proxy https_proxy all_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY

sandbox() { "$HERE/sandbox.sh" "$@"; }

secs() { awk -v a="$1" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }'; }

# gone PID: no such process, or only its zombie
gone() { case $(awk '$1 == "State:" { print $2 }' "/proc/$1/status" 2>/dev/null) in '' | Z | X) return 0 ;; *) return 1 ;; esac; }

# running NAME BINARY: the PID in .dev/NAME.pid, if that process runs this very binary
running() {
  local p a=''
  p=$(cat "$DEV/$1.pid" 2>/dev/null) && [ -n "$p" ] && ! gone "$p" || return 1
  IFS= read -r -d '' a 2>/dev/null < "/proc/$p/cmdline" || return 1
  [ "$a" = "$2" ] && echo "$p"
}

# stop NAME BINARY: asks it to end, insists after 15 s; returns when it is gone
stop() {
  local p i
  if p=$(running "$1" "$2"); then
    kill "$p" 2>/dev/null || true
    for i in $(seq 300); do gone "$p" && break; [ "$i" -lt 300 ] || kill -9 "$p" 2>/dev/null || true; sleep 0.05; done
  fi
  rm -f "$DEV/$1.pid"
}
