#!/usr/bin/env bash
# test.sh — every test there is, on real parts ("make test"): libvirt with QEMU, Open vSwitch, OVN, etcd and Temporal.
#
#   test.sh [PACKAGE...]      all packages without an argument
#
# The parts live in sandboxes of their own (sandbox.sh), so nothing of the host is used and `make up` may be running. All of
# them are gone when this ends, however it ends. What is skipped is listed with its reason; the exit code says whether all
# that ran was good. Environment: TEST_FLAGS (more flags for go test, like -short), NFS_MACHINE (0: no machine for NFS), SANDBOX_CACHE.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$HERE/../.."
export PATH=$PATH:/usr/sbin:/sbin
# A proxy for the internet is for the modules, not for what runs on this machine.
export NO_PROXY="${NO_PROXY:+$NO_PROXY,}127.0.0.1,localhost" no_proxy="${no_proxy:+$no_proxy,}127.0.0.1,localhost"
GOTESTSUM=(go run gotest.tools/gotestsum@v1.13.0 --format pkgname --hide-summary skipped)
read -ra FLAGS <<< "${TEST_FLAGS:-}"
TAGS=
if [ -e /usr/include/rbd/librbd.h ] && [ "${CEPH:-1}" = 1 ]; then TAGS="ceph pacific"; fi # as make build
FLAGS+=(-tags "$TAGS" -vet=off) # make lint has vetted it
CACHE=${SANDBOX_CACHE:-$PWD/.dev/cache}
START=$EPOCHREALTIME
secs() { awk -v a="$1" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.0f", b - a }'; }

# short, because the paths of unix sockets must be
W=$(mktemp -d /tmp/nst-XXXXXX)
PARTS=$W/parts
# shellcheck disable=SC2317,SC2086 # called by the trap
down() {
  local rc=0 f
  # also those of tests that could not clean up any more
  for f in "$PARTS/sandbox.env" "$W"/*/s/sandbox.env; do
    [ -f "$f" ] || continue
    SANDBOX_DIR=$(dirname "$f") SANDBOX_CACHE=$CACHE "$HERE/sandbox.sh" down --purge >>"$W/down.log" 2>&1 || { rc=1; tail -n 3 "$W/down.log" >&2; }
  done
  [ $rc != 0 ] || rm -rf "$W"
  return $rc
}
# shellcheck disable=SC2317,SC2086
finish() {
  local rc=$?
  trap '' INT TERM
  trap - EXIT
  down || { echo "test: something is left in $W" >&2; rc=1; }
  exit $rc
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# --- the packages, in groups --------------------------------------------------------------------------------
mapfile -t ALL < <(go list "${@:-./...}")
# Race detection would have the whole Temporal server built again, which takes longer than all tests.
mapfile -t SERVER < <(go list -test -f '{{.ImportPath}} {{join .Deps " "}}' "${ALL[@]}" | grep ' go\.temporal\.io/server/' |
  sed 's/ .*//; s/\.test$//' | sort -u | grep -xF -f <(printf '%s\n' "${ALL[@]}") || true)
NETWORK=$(go list ./activities/network) CRASH=$(go list ./test/crash) NODES=$(go list ./test/nodes) FAULT=$(go list ./test/fault) OUTAGE=$(go list ./activities/compute/libvirt)
POOLS=$(go list ./activities/storage)
NFS=() KILLS=() RACE=() OUTAGES=() CRASHES=() MANY=() FAULTS=()
for p in "${ALL[@]}"; do
  case " ${SERVER[*]} " in *" $p "*) [ "$p" = "$CRASH" ] || [ "$p" = "$NODES" ] || continue ;; esac
  case $p in "$CRASH") CRASHES=("$p") ;; "$NODES") MANY=("$p") ;; "$FAULT") FAULTS=("$p") ;; "$OUTAGE") OUTAGES=("$p") ;; *) RACE+=("$p") ;; esac
  [ "$p" != "$NETWORK" ] || KILLS=("$p")
  [ "$p" != "$POOLS" ] || NFS=("$p")
done

# --- real parts for the drivers' own tests ----------------------------------------------------------------------
parts() {
  local i n
  "$HERE/guest.sh" "$CACHE/guest"
  export SANDBOX_CACHE=$CACHE SANDBOX_DIR=$PARTS
  for i in 1 2 3 4 5 6 7 8; do
    n=$((1 + RANDOM % 250))
    ! SANDBOX_NAME=tp-$$ SANDBOX_NET=10.81.$n SANDBOX_DATA_NET=10.82.$n "$HERE/sandbox.sh" net-up || break
    [ "$i" -lt 8 ] || return 1
  done
  for n in a b; do
    "$HERE/sandbox.sh" node-up $n $((10 + $(printf %d "'$n") - 96)); "$HERE/sandbox.sh" ovs $n; "$HERE/sandbox.sh" libvirtd $n
    [ $n = b ] || "$HERE/sandbox.sh" ovn-central $n
    "$HERE/sandbox.sh" ovn-chassis $n
  done
  "$HERE/sandbox.sh" gluster; "$HERE/sandbox.sh" ganesha
  [ -z "$TAGS" ] || "$HERE/sandbox.sh" ceph
}
libvirt() { echo "qemu+unix:///system?socket=$PARTS/$1/run/libvirt/libvirt-sock"; }
if [ "$(id -u)" = 0 ]; then
  (parts) > "$W/parts.log" 2>&1 || { tail -n 20 "$W/parts.log" >&2; echo "test: the sandbox with the real parts does not come up" >&2; exit 1; }
  export NEXTSTACK_TEST_SANDBOX=$PARTS NEXTSTACK_TEST_IMAGE=$CACHE/guest/tiny.qcow2
  NEXTSTACK_TEST_LIBVIRT=$(libvirt a); export NEXTSTACK_TEST_LIBVIRT
  export NEXTSTACK_TEST_OVS=unix:$PARTS/a/run/openvswitch/db.sock NEXTSTACK_TEST_OVN=unix:$PARTS/a/run/ovn/ovnnb_db.sock
  if [ -n "$TAGS" ]; then export NEXTSTACK_TEST_CEPH=$PARTS/ceph; else echo "test: librbd's headers are not here, so nothing is tested on Ceph" >&2; fi
  echo "real parts: libvirt, Open vSwitch and OVN on two nodes, file servers ($(secs "$START") s)"
else
  echo "test: NOT ROOT, so nothing is tested on libvirt, Open vSwitch and OVN" >&2
fi
# what test/stack makes: sandboxes here, programs where the next run finds them
export NEXTSTACK_TEST_DIR=$W NEXTSTACK_TEST_BIN=$PWD/.dev/test-bin
mkdir -p "$NEXTSTACK_TEST_BIN"

# Few machines for tests have a kernel with an NFS client: it gets a machine with another kernel, if one can be made.
NFS_TESTS='^TestNFSPool' NFS_LEFT=() LEFT=()
[ $# -gt 0 ] || NFS_LEFT=(-test.skip '^TestNFSPool(VolumesConform|Capabilities|Killed|Version3)$') # emulated, they take minutes: `make nfs`
if [ ${#NFS[@]} = 1 ] && [ "$(id -u)" = 0 ] && [ "${NFS_MACHINE:-1}" = 1 ]; then
  if SANDBOX_CACHE=$CACHE "$HERE/machine.sh" --make; then LEFT=("$NFS_TESTS"); else NFS=(); fi
else
  NFS=()
fi

# Guests with volumes in Ceph and on GlusterFS, and checkpoints of a guest with volumes in both, which take minutes: `make nodes`. Killed drivers on GlusterFS: `make nfs`, because the client of
# GlusterFS 10 may lose a request then, and stands still.
[ $# -gt 0 ] || LEFT+=('^TestRealVolumesGoToAndFromGluster$' '^TestRealVolumesInCeph$' '^TestRealMixedCheckpoints$' '^TestGlusterKilled$')
SKIP=(); [ ${#LEFT[@]} = 0 ] || SKIP=(-skip "$(IFS='|'; echo "${LEFT[*]}")")

# --- the tests ----------------------------------------------------------------------------------------------------
RC=0
# A program with race detection waits for a second before it exits, in case that it has reported something. A thousand of them run here.
export GORACE="atexit_sleep_ms=0 ${GORACE:-}"
# group NAME GO-TEST-ARGUMENTS...
group() {
  local name=$1 t=$EPOCHREALTIME; shift
  printf '\n== %s\n' "$name"
  "${GOTESTSUM[@]}" --jsonfile "$W/${name// /-}.json" -- -count=1 "${FLAGS[@]}" "$@" || RC=1
  echo "($(secs "$t") s)"
}
# machine NAME PACKAGE RUN: tests of a package in a machine of their own, with an NFS server and two nodes
machine() {
  local name=$1 t=$EPOCHREALTIME dir
  printf '\n== %s\n' "$name"
  dir=$(go list -f '{{.Dir}}' "$2")
  go test -c "${FLAGS[@]}" -o "$W/machine.test" "$2"
  MACHINE_LOG=$W/machine.log MACHINE_LIMIT=1800 SANDBOX_CACHE=$CACHE "${GOTESTSUM[@]}" --jsonfile "$W/${name// /-}.json" --raw-command -- \
    go tool test2json -t -p "$2" "$HERE/machine.sh" "$HERE/machine/nfs" env -C "$dir" "$W/machine.test" -test.v=test2json -test.run "$3" "${NFS_LEFT[@]}" -test.timeout 28m || RC=1
  echo "($(secs "$t") s)"
}
[ ${#RACE[@]} = 0 ] || group "with race detection" -race -timeout 25m "${SKIP[@]}" "${RACE[@]}"
[ ${#NFS[@]} = 0 ] || machine "pools on NFS" "$POOLS" "$NFS_TESTS"
# What its tests cannot do with race detection, and say why.
[ ${#KILLS[@]} = 0 ] || group "network databases that are killed" -timeout 5m -run '^TestKilled' "${KILLS[@]}"
# Thousands of runs in memory, which race detection would make take ten times as long.
[ ${#FAULTS[@]} = 0 ] || group "faults" -timeout 20m "${FAULTS[@]}"
# It kills and freezes its libvirtd, so it gets one of its own.
[ ${#OUTAGES[@]} = 0 ] || NEXTSTACK_TEST_LIBVIRT=${NEXTSTACK_TEST_LIBVIRT:+$(libvirt b)} NEXTSTACK_TEST_SANDBOX_NODE=b SANDBOX_DIR=$PARTS \
  group "outages of libvirt" -race -timeout 20m "${OUTAGES[@]}"
# the flags of `make build`: the Temporal server is built once for both
[ ${#SERVER[@]} = 0 ] || CGO_ENABLED=0 group "with the engine" -trimpath -timeout 15m "${SERVER[@]}"
CRASHFLAGS=()
# With the other things that take long: `make nodes`.
[ $# -gt 0 ] || CRASHFLAGS=(-skip '^TestCeph$|^TestPools$|^TestCloud$/^Disks$/^(nextstack|libvirtd)$')
[ ${#CRASHES[@]} = 0 ] || group "crashes of the real stack" -timeout 25m "${CRASHFLAGS[@]}" "${CRASHES[@]}"
# What kills whole nodes, and every process at every step of a move, is `make nodes`: it takes long, and wants a quiet machine.
MANYFLAGS=()
[ $# -gt 0 ] || MANYFLAGS=(-run '^TestNodes$')
[ ${#MANY[@]} = 0 ] || group "nodes" -timeout 25m "${MANYFLAGS[@]}" "${MANY[@]}"
[ $# -gt 0 ] || echo "NOT RUN HERE, but by \`make nodes\`, on the real stack: moves with kills, nodes that die, volumes in Ceph with kills, pools that go away and come back, and kills of nextstack and libvirtd while volumes are worked on; guests with volumes in Ceph, checkpoints of guests with volumes in Ceph and in files, and volumes that go to GlusterFS and from there"
[ $# -gt 0 ] || echo "NOT RUN HERE: what is tested of volumes on NFS, version 3 of it, and drivers on GlusterFS that are killed: make nfs"

# --- what it came to -------------------------------------------------------------------------------------------------
shopt -s nullglob
RESULTS=("$W"/*.json)
count() { jq -rs --arg a "$1" '[.[] | select(.Test != null and .Action == $a)] | length' "${RESULTS[@]}"; }
# points WORD: the number after it in what the tests printed
points() { jq -r 'select(.Action == "output") | .Output' "${RESULTS[@]}" | grep -E "^$1: [0-9]+" | grep -vE "^$1: 0\b" | tail -n 1 || true; }
passed=$(count pass) failed=$(count fail) skipped=$(count skip)
echo
if [ "$skipped" -gt 0 ]; then
  echo "NOT TESTED ($skipped skipped; \`make deps\` as root installs what is missing):"
  jq -rs '(map(select(.Action == "skip" and .Test != null) | {key: (.Package + " " + .Test), value: true}) | from_entries) as $skip
    | map(select(.Action == "output" and .Test != null and $skip[.Package + " " + .Test] and (.Output | test("^ *[a-z_A-Z0-9]+\\.go:[0-9]+: "))))
    | .[] | "  " + (.Package | sub("^github.com/nextstack/nextstack/"; "")) + " " + .Test + ": " + (.Output | sub("^ *[^ ]+ "; "") | rtrimstr("\n"))' "${RESULTS[@]}"
fi
echo "tests: $((passed + failed + skipped)) run in $(secs "$START") s: $passed passed, $failed failed, $skipped skipped"
for what in "fault points" "kill points" "node faults"; do
  line=$(points "$what")
  if [ -n "$line" ]; then echo "$line"; elif [ $# = 0 ]; then echo "$what: NONE RAN"; RC=1; fi
done
[ $RC = 0 ] || echo "test: FAILED" >&2
exit $RC
