#!/usr/bin/env bash
# holder.sh — first process inside a node's new namespaces: makes the node's view of the file system, then sleeps.
# Run by node.sh only:  holder.sh NODE SANDBOX-DIR CGROUP-MODE PROCESS-NAME KVM BIND...
set -euo pipefail
node=$1 dir=$2 cg=$3 name=$4 kvm=$5; shift 5
d=$dir/$node

# Namespaces of the host and of other sandboxes must neither be seen from here nor kept alive by this mount table.
umount -l /run/netns 2>/dev/null || true
hostname "$node"
# libvirt resolves its own host name; without this it would wait for a DNS server that cannot be reached
mount --bind "$dir/hosts" /etc/hosts
for b in "$@"; do
  mkdir -p "${b%%=*}"
  mount --bind "$d/${b#*=}" "${b%%=*}"
done
mount --make-private /run/netns
# Over the host's system bus libvirt would hand its machines to the host's systemd, outside this node's cgroup.
for m in /run/dbus /run/systemd; do [ ! -d "$m" ] || mount -t tmpfs -o size=64k,mode=755 none "$m"; done
# Read-only, because root may write to anything else: libvirt must find KVM inaccessible, or it probes qemu at each start.
if [ "$kvm" != yes ] && [ -e /dev/kvm ]; then mount --bind "$d/no-kvm" /dev/kvm; mount -o remount,bind,ro /dev/kvm; fi

# a fresh sysfs shows this network namespace's devices, and hides the cgroup mounts of the host
mount -t sysfs sysfs /sys
case $cg in
v1)
  mount -t tmpfs -o mode=755 none /sys/fs/cgroup
  while read -r c; do
    c=${c#/sys/fs/cgroup/}; c=${c%%/*}
    mkdir "/sys/fs/cgroup/$c"
    mount -t cgroup -o "$c" cgroup "/sys/fs/cgroup/$c"
  done < "$d/cgroup.join" ;;
v2)
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
  mkdir -p /sys/fs/cgroup/daemons
  echo $$ > /sys/fs/cgroup/daemons/cgroup.procs
  read -r -a controllers < /sys/fs/cgroup/cgroup.controllers
  for c in "${controllers[@]}"; do
    case $c in
    cpu | memory | cpuset | io | pids)
      # not ours to hand on (some containers): libvirt is told to do without
      { echo "+$c" > /sys/fs/cgroup/cgroup.subtree_control; } 2>/dev/null || { echo off > "$d/cgroup.mode"; break; } ;;
    esac
  done
  [ "$(cat "$d/cgroup.mode")" = v2 ] || umount /sys/fs/cgroup ;;
esac
ip link set lo up
echo $$ > "$d/holder.pid"
exec -a "$name" sleep infinity
