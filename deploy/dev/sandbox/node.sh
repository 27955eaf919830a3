# shellcheck shell=bash
# node.sh — a node: net, mount, uts, ipc and cgroup namespaces held open by one sleeping process. Sourced by sandbox.sh.

# Private directories of the node, as HOST-PATH=DIRECTORY-BELOW-THE-NODE'S; all else of the file system is shared,
# so a path with VM data means the same inside and outside. One more is $DIR/disks, for pools that nodes do not share.
BINDS="/etc/libvirt=etc/libvirt /etc/openvswitch=etc/openvswitch /run/libvirt=run/libvirt /run/openvswitch=run/openvswitch
/run/ovn=run/ovn /run/netns=run/netns /run/gnext=run/gnext /var/lib/libvirt=var/lib/libvirt /var/cache/libvirt=var/cache/libvirt
/var/lib/openvswitch=var/lib/openvswitch /var/lib/ovn=var/lib/ovn /var/log/libvirt=log/libvirt
/var/log/openvswitch=log/openvswitch /var/log/ovn=log/ovn"

cmd_node_up() {
  local node=$1 num=$2 d=$DIR/$1 h b
  [[ $num =~ ^[1-9][0-9]{0,2}$ && $num -ge 2 && $num -le 253 ]] || die "the node's number is 2 to 253, not '$num'"
  [ -e "/run/netns/$FAB" ] || die "the network is not up: run net-up"
  if holder "$node" >/dev/null; then
    [ "$(cat "$d/num")" = "$num" ] || die "$node runs with number $(cat "$d/num")"
    say "$node was up already"; return
  fi
  local other
  for other in $(nodes); do
    [ "$other" = "$node" ] || [ "$(cat "$DIR/$other/num")" != "$num" ] || die "number $num belongs to node $other"
  done
  # what lives in /run ends with the power; so do the switch's ports, which name devices that are gone
  rm -rf "$d/run" "$d/etc/openvswitch" "$d/holder.pid" "$d/holder.log"
  for b in $BINDS x=disks; do mkdir -p "$d/${b#*=}"; done
  mkdir -p "$d/log/libvirt/qemu"
  grep -qs " $node\$" "$DIR/hosts" || echo "$NET.$num $node" >> "$DIR/hosts"
  [ -f "$d/host_uuid" ] || cat /proc/sys/kernel/random/uuid > "$d/host_uuid"
  cgroup_make "$node"
  local kvm=yes; kvm_works || kvm=no
  : > "$d/no-kvm"
  # shellcheck disable=SC2086
  (
    while read -r b; do echo $BASHPID > "$b/cgroup.procs"; done < "$d/cgroup.join"
    exec unshare -m -n -u -i -C --propagation slave bash -euo pipefail "$HERE/sandbox/holder.sh" \
      "$node" "$DIR" "$(cat "$d/cgroup.mode")" "$(holder_name "$node")" "$kvm" "$DIR/disks=disks" $BINDS # split on purpose
  ) </dev/null >"$d/holder.log" 2>&1 9>&- &
  wait_for 10 holder "$node" || die "$node did not start: $(cat "$d/holder.log")"
  h=$(holder "$node")
  # cgroup v2: the root of a tree whose controllers are in use can hold no process; the holder made this leaf
  [ ! -d "/sys/fs/cgroup/$FAB.$node/daemons" ] || echo "/sys/fs/cgroup/$FAB.$node/daemons" > "$d/cgroup.join"
  plug "$node" "$h" "$num"
  libvirt_config "$node" "$num"
  echo "$num" > "$d/num"
  say "$node up at $NET.$num (cgroup $(cat "$d/cgroup.mode"), kvm $kvm)"
}

# cgroup_make NODE: a cgroup of the node's own (per hierarchy with v1), so that nodes cannot collide. Writes
# cgroup.mode (v1, v2, off) and cgroup.join (the directories a process of the node must be put into).
cgroup_make() {
  local node=$1 d=$DIR/$1 c f g
  : > "$d/cgroup.join"; echo off > "$d/cgroup.mode"
  [ "${SANDBOX_CGROUP:-auto}" != off ] || return 0
  case $(stat -fc %T /sys/fs/cgroup 2>/dev/null) in
  cgroup2fs)
    g=/sys/fs/cgroup/$FAB.$node
    mkdir -p "$g" 2>/dev/null || return 0
    for c in cpuset cpu io memory pids; do
      # shellcheck disable=SC2188
      { echo "+$c" > /sys/fs/cgroup/cgroup.subtree_control; } 2>/dev/null || true
    done
    # in a container that was given no controllers, libvirt does without
    if ! grep -qw cpu "$g/cgroup.controllers" || ! grep -qw memory "$g/cgroup.controllers"; then rmdir "$g"; return 0; fi
    echo "$g" > "$d/cgroup.join"; echo v2 > "$d/cgroup.mode" ;;
  tmpfs)
    # real directories only: cpu and cpuacct may be links to a common "cpu,cpuacct"
    for c in /sys/fs/cgroup/*; do
      if [ -L "$c" ] || [ ! -e "$c/tasks" ]; then continue; fi
      case $(basename "$c") in systemd) continue ;; esac
      g=$c/$FAB.$node
      mkdir -p "$g" 2>/dev/null || { : > "$d/cgroup.join"; return 0; }
      # a cpuset without processors and memory nodes takes no process
      if [ -e "$g/cpuset.cpus" ]; then for f in cpus mems; do cat "$c/cpuset.$f" > "$g/cpuset.$f"; done; fi
      echo "$g" >> "$d/cgroup.join"
    done
    if [ -s "$d/cgroup.join" ]; then echo v1 > "$d/cgroup.mode"; fi ;;
  esac
}

# kvm_works: whether the nodes may see /dev/kvm. A device that opens is no proof: inside some virtual machines it
# opens, libvirt reports KVM as available, and then no kernel gets through its start. So the guest image is booted
# once (remembered per kernel and qemu). Without an image (guest.sh) there is no proof, and nodes emulate.
kvm_works() {
  case ${SANDBOX_KVM:-auto} in on) return 0 ;; off) return 1 ;; esac
  local q f p img=$CACHE/guest/tiny.qcow2
  [ -c /dev/kvm ] && [ -s "$img" ] && q=$(command -v qemu-system-x86_64) || return 1
  f=$CACHE/kvm-$( { uname -rv; stat -c '%s %Y' "$q"; } | sha256sum | cut -c1-12)
  if [ ! -s "$f" ]; then
    "$q" -accel kvm -cpu host -m 128 -display none -nodefaults -no-user-config -no-reboot -snapshot \
      -drive "file=$img,if=virtio,format=qcow2" -serial "file:$f.log" </dev/null >"$f.err" 2>&1 9>&- & p=$!; disown
    wait_for 15 kvm_verdict "$f" $p || true
    if grep -aqs 'tiny: up' "$f.log"; then echo yes > "$f"; else echo no > "$f"; fi
    kill -9 $p 2>/dev/null || true; wait_gone 5 $p
    rm -f "$f.log" "$f.err"
  fi
  [ "$(cat "$f")" = yes ]
}
kvm_verdict() { grep -aqs 'tiny: up' "$1.log" || grep -aqs 'KVM internal error' "$1.err" || gone "$2"; }

# libvirt_config NODE N: nothing is taken from the host's /etc/libvirt, where real machines may be defined
# Migrations go over the data network, peer to peer:  migrate --live --p2p --persistent --undefinesource g
# qemu+tcp://DATA-ADDRESS/system tcp://DATA-ADDRESS, with --unsafe for a file in a directory that nodes share: libvirt sees a
# local file system. With --copy-storage-inc the target's file must be there before, of the same size and on the same image;
# with --copy-storage-all it must be, too, unless its directory is a storage pool of the target's libvirt. No --unsafe then.
libvirt_config() {
  local d=$DIR/$1 none=
  [ "$(cat "$d/cgroup.mode")" != off ] || none='cgroup_controllers = []'
  cat > "$d/etc/libvirt/libvirtd.conf" <<E
listen_tls = 0
listen_tcp = 1
listen_addr = "$DATA_NET.$2"
auth_tcp = "none"
auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_group = "root"
unix_sock_rw_perms = "0700"
# two libvirtds with the same identity refuse to migrate to "the same host", and all nodes share /etc/machine-id
host_uuid = "$(cat "$d/host_uuid")"
log_outputs = "3:file:/var/log/libvirt/libvirtd.log"
E
  # no virtlogd runs here (stdio_handler), no security labels on files that nodes share
  cat > "$d/etc/libvirt/qemu.conf" <<E
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
stdio_handler = "file"
vnc_listen = "0.0.0.0"
migration_address = "0.0.0.0"
migration_host = "$DATA_NET.$2"
swtpm_user = "root"
swtpm_group = "root"
$none
E
}
