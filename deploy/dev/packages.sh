#!/usr/bin/env bash
# packages.sh — installs what the sandbox, the build and the tests need (Debian 12, Ubuntu 22.04 and later).
#
#   packages.sh [--list]      --list only prints what is missing
#
# Installs only what is missing and starts or enables no service: the sandbox runs its own daemons, and a host
# that had no libvirtd or Open vSwitch running must not get one by trying out this project.
set -euo pipefail

die() { echo "packages.sh: $*" >&2; exit 1; }

BUILD=(gcc libc6-dev pkg-config make git curl ca-certificates libvirt-dev librbd-dev librados-dev)
DAEMONS=(libvirt-daemon-system libvirt-daemon libvirt-clients openvswitch-switch openvswitch-common ovn-central ovn-host ovn-common)
SANDBOX=(qemu-system-x86 qemu-utils iproute2 iputils-ping ethtool procps psmisc util-linux jq socat openssl genisoimage openipmi)
CEPH=(ceph-mon ceph-mgr ceph-osd ceph-common qemu-block-extra)
FILES=(glusterfs-server glusterfs-client nfs-ganesha nfs-ganesha-vfs nfs-common rpcbind)
GUEST=(busybox-static dropbear-bin cpio gzip xz-utils zstd kmod fdisk dosfstools mtools syslinux syslinux-common binutils)
# only for starting the guest by UEFI; part of another package on some releases
OPTIONAL=(systemd-boot-efi)

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then die "no apt here: Debian 12 or Ubuntu 22.04 (or later) is needed"; fi
[ "$(dpkg --print-architecture)" = amd64 ] || die "only amd64 is supported so far, not $(dpkg --print-architecture)"

missing() {
  local have p
  have=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' 2>/dev/null | awk '$2 == "installed" { print $1 }')
  for p in "$@"; do grep -qxF "$p" <<< "$have" || echo "$p"; done
}

mapfile -t NEED < <(missing "${BUILD[@]}" "${DAEMONS[@]}" "${CEPH[@]}" "${FILES[@]}" "${SANDBOX[@]}" "${GUEST[@]}")
if [ "${1:-}" = --list ]; then printf '%s\n' "${NEED[@]}" | grep . || true; exit 0; fi
# the optional ones are no reason to run apt on a complete machine
if [ ${#NEED[@]} = 0 ]; then echo "packages: all there"; exit 0; fi
[ "$(id -u)" = 0 ] || die "missing: ${NEED[*]}. Run this as root, or: sudo apt-get install ${NEED[*]}"

# --- the guard: Debian's own switch for "install, do not start" --------------------------------------------
POLICY=/usr/sbin/policy-rc.d; SAVED=$POLICY.before-nextstack; MARK='# nextstack: no service starts while packages are installed'
restore() {
  if grep -qsF "$MARK" "$POLICY"; then rm -f "$POLICY"; fi
  if [ -e "$SAVED" ] || [ -L "$SAVED" ]; then mv "$SAVED" "$POLICY"; fi
}
restore # what a run that was killed left behind
trap restore EXIT
trap 'exit 130' INT TERM
if [ -e "$POLICY" ] || [ -L "$POLICY" ]; then mv "$POLICY" "$SAVED"; fi
printf '#!/bin/sh\n%s\nexit 101\n' "$MARK" > "$POLICY"
chmod 755 "$POLICY"

LOG=$(mktemp)
apt() {
  DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@" >"$LOG" 2>&1 ||
    { tail -n 20 "$LOG" >&2; rm -f "$LOG"; die "apt-get $* failed"; }
}
known() { apt-cache show --no-all-versions "$1" >/dev/null 2>&1; }
SECONDS=0
for p in "${NEED[@]}"; do known "$p" || { apt update; break; }; done
for p in "${NEED[@]}"; do known "$p" || die "apt knows no package $p (on Ubuntu: is the 'universe' component enabled?)"; done
for p in $(missing "${OPTIONAL[@]}"); do known "$p" && NEED+=("$p"); done
echo "packages: installing ${NEED[*]}"
mapfile -t NEW_DAEMONS < <(missing "${DAEMONS[@]}" "${CEPH[@]}" "${FILES[@]}")
apt install --yes --no-install-recommends "${NEED[@]}"
rm -f "$LOG"

# Packages enable their units for the next boot whatever the policy says; those that were there before stay as they are.
if [ -d /run/systemd/system ] && [ ${#NEW_DAEMONS[@]} -gt 0 ]; then
  for p in "${NEW_DAEMONS[@]}"; do
    dpkg -L "$p" | grep -E '/systemd/system/[^/@]+\.(service|socket|timer)$' | sed 's|.*/||'
  done | sort -u | xargs -r systemctl --quiet disable 2>/dev/null || true
fi
echo "packages: ${#NEED[@]} installed in ${SECONDS} s"
