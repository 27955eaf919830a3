# shellcheck shell=bash
# files.sh — file servers without an init system: GlusterFS and NFS. They live in the fabric, at $NET.1, as daemons that belong to no
# node: they go on when nodes lose their power. Sourced by sandbox.sh.

# Volumes of GlusterFS, of one brick each: for tests, "frail" is the one whose brick dies, and "full" has room for little.
GLUSTER_VOLUMES='gv0 frail full'

# file_pid NAME: of a daemon, or of the brick of a volume, if it runs: a process of that PID in the fabric's network
file_pid() {
  local p f
  case $1 in
  glusterd) f=$DIR/gluster/run/glusterd.pid ;;
  gv0 | frail | full) f=$(ls "$DIR/gluster/run/gluster/vols/$1"/*.pid 2>/dev/null) ;;
  ganesha) f=$DIR/nfs/run/ganesha.pid ;;
  rpcbind) f=$DIR/nfs/run/rpcbind.pid ;;
  statd) f=$DIR/nfs/run/rpc.statd.pid ;;
  *) die "the daemons of the file servers are glusterd, ganesha, rpcbind and statd, and the bricks gv0, frail and full" ;;
  esac
  p=$(cat "$f" 2>/dev/null) && [ -n "$p" ] && ! gone "$p" &&
    [ "$(stat -Lc %i "/proc/$p/ns/net" 2>/dev/null)" = "$(stat -Lc %i "/run/netns/$FAB")" ] && echo "$p"
}

cmd_file_pid() { file_pid "$1" || die "$1 does not run"; }
cmd_file_kill() {
  local p
  p=$(file_pid "$1") || { say "$1 did not run"; return; }
  kill -9 "$p"
  wait_gone 10 "$p" || die "$1 ($p) does not go away"
  say "$1 killed (pid $p)"
}

# gluster_cli ARGS...: with the rights to change things, which only the socket of glusterd gives. It must see what glusterd sees.
gluster_cli() {
  nsenter -t "$(file_pid glusterd)" -m -n -- timeout 120 gluster --mode=script --glusterd-sock="$DIR/gluster/run/glusterd.socket" "$@" 9>&-
}
gluster_brick() { gluster_cli volume start "$1" force >/dev/null; wait_for 2 file_pid "$1"; }
gluster_bricks() { local v; for v in $GLUSTER_VOLUMES; do file_pid "$v" || return 1; done; }
gluster_ready() { file_pid glusterd && gluster_cli volume list; }

# gluster_private CMD...: becomes CMD in the fabric, with directories of its own where GlusterFS keeps things in fixed places.
# The brick of the volume "full" is as big as its file system is.
gluster_private() {
  # shellcheck disable=SC2016
  nsenter --net="/run/netns/$FAB" -- unshare -m --propagation private bash -euo pipefail -c '
    d=$0
    for b in lib=/var/lib/glusterd log=/var/log/glusterfs run/gluster=/run/gluster; do
      mkdir -p "$d/${b%%=*}" "${b#*=}"
      [ "${b%%=*}" != lib ] || [ -d "$d/lib/groups" ] || cp -a /var/lib/glusterd/. "$d/lib/"
      mount --bind "$d/${b%%=*}" "${b#*=}"
    done
    mount -o loop "$d/full.img" "$d/full"
    cd /; exec "$@"' "$DIR/gluster" "$@" 9>&-
}

cmd_gluster() {
  local d=$DIR/gluster v
  [ -e "/run/netns/$FAB" ] || die "the network is not up: run net-up"
  command -v glusterd >/dev/null || die "glusterd is missing: run packages.sh"
  mkdir -p "$d"/{gv0,frail,full,run,log}
  if gluster_bricks >/dev/null && gluster_ready >/dev/null 2>&1; then say "GlusterFS ran already at $NET.1"; return; fi
  (
    if [ ! -s "$d/full.img" ]; then truncate -s 128M "$d/full.new"; mkfs.ext4 -q -I 512 "$d/full.new"; mv "$d/full.new" "$d/full.img"; fi
    # Bricks must not be at the loopback address, and CLI and daemon must not meet at the machine-wide socket.
    cat > "$d/glusterd.vol" <<E
volume management
    type mgmt/glusterd
    option working-directory /var/lib/glusterd
    option transport-type socket
    option transport.socket.bind-address $NET.1
    option transport.socket.listen-port 24007
    option transport.socket.read-fail-log off
    option glusterd-sockfile $d/run/glusterd.socket
    option ping-timeout 0
    option event-threads 1
    option max-port 60999
end-volume
E
    file_pid glusterd >/dev/null || gluster_private glusterd --volfile="$d/glusterd.vol" --pid-file="$d/run/glusterd.pid" --log-file="$d/log/glusterd.log" </dev/null
    wait_for 30 gluster_ready || { echo "glusterd does not answer"; exit 1; }
    for v in $GLUSTER_VOLUMES; do
      if ! gluster_cli volume info $v >/dev/null 2>&1; then
        gluster_cli volume create $v "$NET.1:$d/$v/brick" force
        # what the group "virt" has for volumes of one copy; and that a brick is silent is noticed in seconds, for tests
        gluster_cli volume set $v performance.quick-read off performance.read-ahead off performance.io-cache off \
          performance.low-prio-threads 32 network.remote-dio disable performance.strict-o-direct on cluster.eager-lock enable \
          performance.client-io-threads on network.ping-timeout 5 storage.reserve 0
      fi
      # one whose brick was killed a moment ago takes it for alive still
      wait_for 30 gluster_brick $v || { echo "the brick of $v does not run"; exit 1; }
    done
  ) </dev/null >>"$d/log/start.log" 2>&1 || die "GlusterFS did not start: $(tail -n 5 "$d/log/start.log")"
  say "GlusterFS started at $NET.1: volumes ${GLUSTER_VOLUMES// /, } (bricks: pid $(gluster_bricks | xargs))"
}

# cmd_ganesha: NFS in user space. Clients of version 3 need rpcbind, mount protocol and lock manager, too, as an old server has them.
cmd_ganesha() {
  local d=$DIR/nfs lease=$((5 * ${SANDBOX_PATIENCE:-1}))
  [ -e "/run/netns/$FAB" ] || die "the network is not up: run net-up"
  command -v ganesha.nfsd >/dev/null || die "ganesha.nfsd is missing: run packages.sh"
  mkdir -p "$d"/{vms,run/rpcbind,run/ganesha,lib,log}
  if file_pid rpcbind >/dev/null && file_pid ganesha >/dev/null; then say "the NFS server ran already at $NET.1"; return; fi
  cat > "$d/ganesha.conf" <<E
NFS_CORE_PARAM { Protocols = 3, 4; NFS_Port = 2049; MNT_Port = 20048; NLM_Port = 32803; Bind_addr = $NET.1; Enable_NLM = true; Enable_RQUOTA = false; Enable_UDP = false; }
NFSV4 { RecoveryRoot = $d/lib; Grace_Period = $lease; Lease_Lifetime = $lease; Graceless = true; }
EXPORT { Export_Id = 1; Path = $d/vms; Pseudo = /vms; Access_Type = RW; Squash = no_root_squash; SecType = sys; Protocols = 3, 4; Transports = TCP; FSAL { Name = VFS; } }
LOG { Default_Log_Level = EVENT; }
E
  if ! file_pid rpcbind >/dev/null; then
    nfs_private rpcbind -f -w -h "$NET.1" </dev/null >>"$d/log/start.log" 2>&1 &
    echo $! > "$d/run/rpcbind.pid"; disown
    wait_for 10 nfs_listens 111 || die "rpcbind does not listen: $(tail -n 3 "$d/log/start.log")"
  fi
  file_pid ganesha >/dev/null ||
    (nfs_private ganesha.nfsd -f "$d/ganesha.conf" -L "$d/log/ganesha.log" -p "$d/run/ganesha.pid" -N NIV_EVENT) </dev/null >>"$d/log/start.log" 2>&1
  wait_for 30 nfs_listens 2049 || die "the NFS server does not listen: $(tail -n 5 "$d/log/ganesha.log")"
  say "NFS server started at $NET.1, export $d/vms, also as /vms (pid $(file_pid ganesha))"
}

# cmd_server_statd: what the NFS server needs for locks of version 3, in which it would tell clients when it has died
cmd_server_statd() {
  local d=$DIR/nfs
  file_pid rpcbind >/dev/null || die "the NFS server does not run: run ganesha"
  if file_pid statd >/dev/null; then say "rpc.statd ran already beside the NFS server"; return; fi
  mkdir -p "$d"/statd/sm "$d"/statd/sm.bak; chown -R --reference=/var/lib/nfs/sm "$d/statd"
  (nfs_private rpc.statd --no-notify -P "$d/statd") </dev/null >>"$d/log/start.log" 2>&1 || die "rpc.statd did not start: $(tail -n 3 "$d/log/start.log")"
  wait_for 10 server_statd_works || die "rpc.statd does not answer: $(tail -n 3 "$d/log/start.log")"
  say "rpc.statd started beside the NFS server (pid $(file_pid statd))"
}
server_statd_works() { nsenter --net="/run/netns/$FAB" rpcinfo -T tcp 127.0.0.1 status 1; }

# cmd_statd: what a client of NFS version 3 needs for locks, on a node: rpcbind and rpc.statd, with a /run and state of their own
cmd_statd() {
  local d=$DIR/$1/statd h
  h=$(holder "$1") || die "node $1 is not up: run node-up"
  mkdir -p "$d"/run/rpcbind "$d/nfs"
  if statd_works "$h" >/dev/null 2>&1; then say "rpc.statd ran already on $1"; return; fi
  # shellcheck disable=SC2016
  in_node "$1" unshare -m --propagation private bash -euo pipefail -c '
    mkdir -p "$0"/nfs/sm "$0"/nfs/sm.bak; chown -R --reference=/var/lib/nfs/sm "$0/nfs"
    mount --bind "$0/run" /run; mount --bind "$0/nfs" /var/lib/nfs
    cd /; rpcbind -w; exec rpc.statd --no-notify' "$d" </dev/null >>"$DIR/$1/log/statd.out" 2>&1 ||
    die "rpc.statd did not start on $1: $(tail -n 3 "$DIR/$1/log/statd.out")"
  wait_for 10 statd_works "$h" || die "rpc.statd does not answer on $1: $(tail -n 3 "$DIR/$1/log/statd.out")"
  say "rpc.statd started on $1"
}
statd_works() { nsenter -t "$1" -n rpcinfo -T tcp 127.0.0.1 status 1; }

# nfs_private CMD...: becomes CMD in the fabric, with a /run of its own, where rpcbind has its socket
nfs_private() {
  # shellcheck disable=SC2016
  exec nsenter --net="/run/netns/$FAB" -- unshare -m --propagation private bash -c 'mount --bind "$0" /run && cd / && exec "$@"' "$DIR/nfs/run" "$@" 9>&-
}
nfs_listens() { nsenter --net="/run/netns/$FAB" ss -Hltn "sport = :$1" | grep -q .; }
