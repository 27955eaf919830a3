# shellcheck shell=bash
# ceph.sh — a Ceph cluster of one monitor, one manager and one OSD, without an init system. It lives in the fabric, at $NET.1, where
# nodes and host reach it, as daemons that belong to no node: it goes on when nodes lose their power. Sourced by sandbox.sh.

CEPH_OSD_SIZE=${SANDBOX_CEPH_SIZE:-8G} # a sparse file

# ceph_pid DAEMON: of mon.a, mgr.x or osd.0, if it runs
ceph_pid() {
  local p
  p=$(cat "$DIR/ceph/run/$1.pid" 2>/dev/null) && [ -n "$p" ] && ! gone "$p" &&
    tr '\0' '\n' < "/proc/$p/cmdline" 2>/dev/null | grep -qxF "$DIR/ceph/ceph.conf" && echo "$p"
}

# in_fabric CMD...: there, and without the lock of the sandbox
in_fabric() { nsenter --net="/run/netns/$FAB" -- "$@" 9>&-; }
# The command line's own patience is five minutes.
ceph_cli() { in_fabric timeout 30 ceph -c "$DIR/ceph/ceph.conf" --connect-timeout 10 "$@"; }

ceph_config() {
  local d=$DIR/ceph
  cat > "$d/ceph.conf" <<E
[global]
fsid = $1
mon initial members = a
mon host = [v2:$NET.1:3300,v1:$NET.1:6789]
public network = $NET.1/32
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
keyring = $d/\$cluster.\$name.keyring
run dir = $d/run
admin socket = $d/run/\$cluster-\$name.asok
pid file = $d/run/\$name.pid
log file = $d/log/\$name.log
# one copy of everything, which is what one disk can have
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon allow pool delete = true
mon warn on pool no redundancy = false
mon warn on insecure global id reclaim = false
mon warn on insecure global id reclaim allowed = false
auth allow insecure global id reclaim = false
# the disk of a developer is fuller than that of a cluster; each has to stay below the next
mon data avail warn = 2
mon data avail crit = 1
mon osd nearfull ratio = 0.97
mon osd backfillfull ratio = 0.975
mon osd full ratio = 0.98
osd failsafe full ratio = 0.99
# a snapshot waits for the monitors to have written its number, and what is written meanwhile waits, too
paxos propose interval = 0.05
paxos min wait = 0.01
# quotas are looked at this often
mon tick interval = 1
mgr stats period = 1
[mon.a]
mon data = $d/mon
keyring = $d/mon/keyring
[mgr]
mgr data = $d/mgr
keyring = $d/mgr/keyring
mgr initial modules =
[osd]
osd data = $d/osd
keyring = $d/osd/keyring
osd objectstore = bluestore
bluestore block create = true
osd memory target = 939524096
bluestore cache size = 134217728
osd class load list = *
osd class default list = *
E
}

# ceph_make: keys, monitor map and the monitor's store. The monitor makes no store in a directory that is not empty, and does not
# say so: a half-made one goes first.
ceph_make() {
  local d=$DIR/ceph fsid k
  rm -rf "$d"; mkdir -p "$d"/{mon,mgr,osd,run,log}; chmod 700 "$d"
  fsid=$(cat /proc/sys/kernel/random/uuid)
  ceph_config "$fsid"
  ceph-authtool -C "$d/mon.keyring" --gen-key -n mon. --cap mon 'allow *'
  ceph-authtool -C "$d/ceph.client.admin.keyring" --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
  ceph-authtool -C "$d/mgr/keyring" --gen-key -n mgr.x --cap mon 'allow profile mgr' --cap osd 'allow *'
  ceph-authtool -C "$d/osd/keyring" --gen-key -n osd.0 --cap mon 'allow profile osd' --cap mgr 'allow profile osd' --cap osd 'allow *'
  for k in ceph.client.admin.keyring mgr/keyring osd/keyring; do ceph-authtool "$d/mon.keyring" --import-keyring "$d/$k"; done
  monmaptool --create --fsid "$fsid" --addv a "[v2:$NET.1:3300,v1:$NET.1:6789]" "$d/monmap"
  in_fabric ceph-mon -c "$d/ceph.conf" --mkfs -i a --monmap "$d/monmap" --keyring "$d/mon.keyring"
  echo "$fsid" > "$d/fsid"
}

# ceph_daemon NAME CMD...: unless it runs
ceph_daemon() {
  local name=$1; shift
  ceph_pid "$name" >/dev/null || in_fabric timeout 60 "$@" -c "$DIR/ceph/ceph.conf" </dev/null
}
ceph_up() { ceph_cli osd stat 2>/dev/null | grep -q '1 up'; }

ceph_start() {
  local d=$DIR/ceph
  [ -s "$d/fsid" ] || ceph_make
  ceph_daemon mon.a ceph-mon -i a
  if [ ! -f "$d/osd/ready" ]; then
    rm -rf "$d/osd/block" "$d/osd/whoami"
    [ -s "$d/osd/uuid" ] || cat /proc/sys/kernel/random/uuid > "$d/osd/uuid"
    truncate -s "$CEPH_OSD_SIZE" "$d/osd/block"
    ceph_cli osd new "$(cat "$d/osd/uuid")" 0
    in_fabric timeout 60 ceph-osd -c "$d/ceph.conf" -i 0 --mkfs --osd-uuid "$(cat "$d/osd/uuid")"
    touch "$d/osd/ready"
  fi
  ceph_daemon mgr.x ceph-mgr -i x
  ceph_daemon osd.0 ceph-osd -i 0
  wait_for 60 ceph_up
  ceph_pool vms libvirt
}

cmd_ceph() {
  local d=$DIR/ceph ran=already n
  [ -e "/run/netns/$FAB" ] || die "the network is not up: run net-up"
  command -v ceph-osd >/dev/null || die "ceph-osd is missing: run packages.sh"
  for n in mon.a mgr.x osd.0; do ceph_pid $n >/dev/null || ran=''; done
  if [ -n "$ran" ] && [ -s "$d/client.libvirt.key" ]; then say "Ceph ran already at $NET.1"; return; fi
  set +e # not "||": bash would ignore set -e inside
  (set -e; umask 077; ceph_start) >>"$d.log" 2>&1
  n=$?
  set -e
  [ $n = 0 ] || die "Ceph did not start: $(tail -n 5 "$d.log")"
  say "Ceph started at $NET.1 (pool vms, user libvirt with its key in $d/client.libvirt.key)"
}

# ceph_pool POOL USER: a pool for block devices, and a user who may do no more than use it for that
ceph_pool() {
  ceph_cli osd pool ls | grep -qx "$1" || ceph_cli osd pool create "$1" 8
  ceph_cli osd pool application enable "$1" rbd
  ceph_cli auth get-or-create "client.$2" mon 'profile rbd' osd "profile rbd pool=$1" mgr 'profile rbd' >/dev/null
  ceph_cli auth print-key "client.$2" > "$DIR/ceph/client.$2.key.new"
  mv "$DIR/ceph/client.$2.key.new" "$DIR/ceph/client.$2.key"
}

cmd_ceph_kill() {
  local p
  case $1 in mon.a | mgr.x | osd.0) ;; *) die "the daemons of Ceph are mon.a, mgr.x and osd.0" ;; esac
  p=$(ceph_pid "$1") || { say "$1 did not run"; return; }
  kill -9 "$p"
  wait_gone 10 "$p" || die "$1 ($p) does not go away"
  say "$1 of Ceph killed (pid $p)"
}
