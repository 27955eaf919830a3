#!/usr/bin/env bash
# machine.sh — runs a command in a small machine of its own (emulated by QEMU), with a kernel of the distribution: for what the
# kernel of this machine has not.
#
#   machine.sh CMD...   e.g.  machine.sh modprobe -v nfs
#   machine.sh --make   only makes the kernel, in $SANDBOX_CACHE/machine; again, if it is not the one that this script makes
#
# The machine sees the file system of this one at the same paths. What is written there stays in its memory and ends with it, but
# for /run, which it has for itself. It has no network but its own loopback. CMD is root in it, in the same directory, with the
# environment of a boot; its output comes out here, and the exit code is CMD's (127 at most), or 255 with a reason if
# the machine did not get so far. Environment: MACHINE_MEMORY (2G), MACHINE_LIMIT (600; seconds), MACHINE_LOG (what the kernel
# says; /dev/null), SANDBOX_CACHE. Needs root.
set -euo pipefail

die() { echo "machine.sh: $*" >&2; exit 255; }
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=kernel.sh
. "$HERE/kernel.sh"
export PATH=$PATH:/usr/sbin:/sbin
[ $# -ge 1 ] || { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit 2; }
[ "$(id -u)" = 0 ] || die "needs root"
OUT=${SANDBOX_CACHE:-$HERE/../../.dev/cache}/machine
mkdir -p "$OUT"; OUT=$(cd "$OUT" && pwd)
W=; QEMU=
# shellcheck disable=SC2317 # called by the trap
finish() {
  local rc=$?
  if [ -n "$QEMU" ]; then kill "$QEMU" 2>/dev/null || true; wait "$QEMU" || true; fi # timeout hands it on
  [ -z "$W" ] || rm -rf "$W"
  exit $rc
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# What the machine can do beyond its kernel: its file system and its networks, NFS of all versions.
BOOT=(virtio_pci 9pnet_virtio 9p overlay)
MODULES=(nfs nfsv3 nfsv4 veth bridge)

# decompress VMLINUZ TO: the kernel in it, which boots at once, where emulated decompression takes seconds
decompress() (
  set +o pipefail # who has read enough ends the pipe
  setup=$(od -An -tu1 -j497 -N1 "$1"); offset=$(od -An -tu4 -j584 -N4 "$1"); length=$(od -An -tu4 -j588 -N4 "$1")
  payload() { tail -c +$(((setup + 1) * 512 + offset + 1)) "$1" | head -c $((length - 4)); } # its last four bytes are a length
  case $(payload "$1" | head -c 4 | od -An -tx1 | tr -d ' ') in
  fd377a58) payload "$1" | xz -dc --single-stream ;;
  28b52ffd) payload "$1" | zstd -dc ;;
  1f8b*) payload "$1" | gzip -dc ;;
  esac > "$2"
  [ "$(head -c 4 "$2")" = $'\x7fELF' ]
)

make_kernel() {
  local x m
  W=$(mktemp -d "$OUT/build.XXXXXX"); x=$W/x
  # the smallest that has all of it; those made for clouds have no 9P
  kernel_unpack "$x" linux-image-amd64 linux-image-generic
  decompress "$x/boot/vmlinuz-$KV" "$W/vmlinux" || cp "$x/boot/vmlinuz-$KV" "$W/vmlinux"
  mkdir -p "$W/root"/{bin,dev,proc,lower,memory,modules} "$W/modules/lib/modules/$KV/kernel"
  cp "$(command -v busybox)" "$W/root/bin/busybox"
  install -m 755 "$HERE/machine/init" "$W/root/init"
  kernel_modules "$x" "$W/root/modules" "${BOOT[@]}" > "$W/root/modules/order"
  kernel_modules "$x" "$W/modules/lib/modules/$KV/kernel" "${MODULES[@]}" > "$W/order"
  for m in nfsv3.ko nfsv4.ko veth.ko; do grep -qx "$m" "$W/order" || die "kernel $KV has no ${m%.ko}"; done
  grep -qx 9p.ko "$W/root/modules/order" || die "kernel $KV has no 9p"
  cp "$x/lib/modules/$KV"/modules.{builtin,order} "$x/lib/modules/$KV"/modules.builtin.modinfo "$W/modules/lib/modules/$KV/" 2>/dev/null || true
  depmod -b "$W/modules" "$KV"
  (cd "$W/root" && find . | sort | cpio -o -H newc --quiet --owner 0:0 | gzip -1n) > "$W/initrd.img"
  # moved into place last and the stamp after that: what was cut off is made again
  rm -rf "$OUT/stamp" "$OUT/modules"
  mv "$W/vmlinux" "$W/initrd.img" "$W/modules" "$OUT/"
  echo "$1" > "$OUT/stamp"
  rm -rf "$W"; W=
  echo "machine: kernel $KV made in $OUT" >&2
}

exec 8> "$OUT/.lock"; flock 8
STAMP=$(cat "$HERE/machine.sh" "$HERE/kernel.sh" "$HERE/machine/init" | sha256sum | cut -d' ' -f1)
if [ "$(cat "$OUT/stamp" 2>/dev/null)" != "$STAMP" ]; then
  for t in apt-get dpkg-deb busybox cpio depmod modprobe qemu-system-x86_64; do command -v "$t" >/dev/null || die "$t is missing: run packages.sh first"; done
  make_kernel "$STAMP"
fi
exec 8>&-
[ "$1" != --make ] || exit 0

W=$(mktemp -d)
{ printf 'cd %q\nexec' "$PWD"; printf ' %q' "$@"; echo; } > "$W/job"
# resident PROGRAM...: an archive of programs and their libraries. In the machine they lie in memory: each time that one is started from
# the file system of this machine, all that it is made of is asked for.
resident() {
  local p l
  for p in "$@"; do
    p=$(command -v "$p") || continue
    printf '%s\n' "$p"; { ldd "$p" 2>/dev/null || true; } | grep -o '/[^ ]*'
  done | sort -u | while read -r l; do
    l=$(realpath "$(dirname "$l")")/$(basename "$l")
    while [ -L "$l" ]; do # the links on the way to it, too
      echo "$l"; p=$(readlink "$l")
      case $p in /*) l=$p ;; *) l=$(realpath "$(dirname "$l")/$(dirname "$p")")/$(basename "$p") ;; esac
    done
    echo "$l"
  done | sort -u | awk '{ n = split(substr($0, 2), f, "/"); d = ""; for (i = 1; i < n; i++) { d = d f[i]; if (!seen[d]++) print d; d = d "/" } print d f[n] }' |
    (cd / && cpio -o -H newc --quiet)
}
{
  resident bash env awk grep sed basename dirname cat mount umount mount.nfs umount.nfs ip nsenter qemu-img qemu-io
  cat "$OUT/initrd.img"
} > "$W/initrd.img"
# The command's output is the second serial line; the exit code of QEMU is twice that which the machine writes to a port, and one.
timeout --foreground -k 5 "${MACHINE_LIMIT:-600}" qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot -machine q35 \
  -accel tcg,thread=multi,tb-size=256 -cpu max -smp 2 -m "${MACHINE_MEMORY:-2G}" -kernel "$OUT/vmlinux" -initrd "$W/initrd.img" \
  -append "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off nowatchdog tsc=reliable no_timer_check nokaslr rcupdate.rcu_expedited=1 random.trust_cpu=on audit=0 machine.dir=$HERE/machine machine.modules=$OUT/modules machine.job=$W/job" \
  -fsdev local,id=root,path=/,security_model=none,readonly=on,multidevs=remap -device virtio-9p-pci,fsdev=root,mount_tag=root \
  -serial "file:${MACHINE_LOG:-/dev/null}" -chardev stdio,id=out,signal=off -serial chardev:out -monitor none \
  -device isa-debug-exit,iobase=0xf4,iosize=0x04 </dev/null 2> "$W/qemu" &
QEMU=$!
rc=0; wait "$QEMU" || rc=$?
QEMU=
case $rc in
0) die "the machine ended before the command did; see MACHINE_LOG" ;;
124 | 137) die "the command was not done within ${MACHINE_LIMIT:-600} s" ;;
esac
[ $((rc % 2)) = 1 ] && [ ! -s "$W/qemu" ] || die "QEMU failed ($rc): $(tail -n 3 "$W/qemu")"
exit $((rc / 2))
