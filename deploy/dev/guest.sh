#!/usr/bin/env bash
# guest.sh — builds the tiny guest image that the sandbox boots, from distribution packages only.
#
#   guest.sh OUTDIR [--force]
#
# Writes OUTDIR/tiny.qcow2 (bootable by BIOS, and by UEFI where the distribution has systemd's EFI stub)
# and OUTDIR/vmlinuz + OUTDIR/initrd.img (for direct kernel boot). A second run with the same script
# only compares a stamp. Needs what packages.sh installs, and the package index (apt-get update) for the kernel.
#
# The guest: one NIC or more by DHCP (or static from a NoCloud network-config), NoCloud seed (label cidata),
# config drive (config-2) or http://169.254.169.254; HTTP on :80 (/, /dhcp), TCP echo on :7, sshd on :22,
# a root shell on ttyS0, clean power-off on the ACPI button. The last boot line on ttyS0 starts with "tiny: READY".
set -euo pipefail

die() { echo "guest.sh: $*" >&2; exit 1; }

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
SELF=$HERE/$(basename "${BASH_SOURCE[0]}")
# shellcheck source=kernel.sh
. "$HERE/kernel.sh"
[ $# -ge 1 ] || die "usage: guest.sh OUTDIR [--force]"
mkdir -p "$1"; OUT=$(cd "$1" && pwd); FORCE=${2:-}
START=$EPOCHREALTIME
took() { awk -v a="$START" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f s", b - a }'; }

[ "$(uname -m)" = x86_64 ] || die "only x86-64 is supported: $(uname -m) has no BIOS boot, which this image relies on"

STAMP=$( { uname -m; cat "$SELF" "$HERE/kernel.sh" "$HERE"/guest/*; } | sha256sum | cut -d' ' -f1)
if [ "$FORCE" != --force ] && [ -s "$OUT/tiny.qcow2" ] && [ "$(cat "$OUT/stamp" 2>/dev/null)" = "$STAMP" ]; then
  echo "guest: $OUT/tiny.qcow2 is up to date"; exit 0
fi

for t in apt-get dpkg-deb busybox dropbear cpio mcopy mkfs.vfat sfdisk depmod modprobe qemu-img syslinux; do
  PATH=$PATH:/usr/sbin:/sbin command -v "$t" >/dev/null || die "$t is missing: run packages.sh first"
done
export PATH=$PATH:/usr/sbin:/sbin

W=$(mktemp -d "$OUT/build.XXXXXX"); trap 'rm -rf "$W"' EXIT

# --- kernel: unpacked, never installed ----------------------------------------------------------

X=$W/x
# the smallest kernel of each distribution that has the virtio drivers
kernel_unpack "$X" linux-image-cloud-amd64 linux-image-kvm linux-image-virtual linux-image-generic linux-image-amd64
cp "$X/boot/vmlinuz-$KV" "$W/vmlinuz"

# --- initramfs ----------------------------------------------------------------------------------
R=$W/root
mkdir -p "$R"/{bin,sbin,dev,proc,sys,etc/dropbear,etc/acpi/PWRF,mnt,www,root/.ssh,run,tmp,lib/modules,lib64,usr/share/udhcpc,var/log}
BUSYBOX=$(command -v busybox)
{ ldd "$BUSYBOX" 2>&1 || true; } | grep -Eq "not a dynamic|statically linked" || die "busybox is not static: install busybox-static"
cp "$BUSYBOX" "$R/bin/busybox"; ln -s busybox "$R/bin/sh"

modules() { kernel_modules "$X" "$R/lib/modules" "$@"; }
# Loaded in this order by class, and only if the machine has such a device: under emulation every module costs.
modules virtio_pci virtio_blk virtio_net failover button evdev > "$R/lib/modules/always"
modules ata_piix sr_mod sd_mod isofs > "$R/lib/modules/ide"
modules ahci sr_mod sd_mod isofs > "$R/lib/modules/sata"
modules virtio_scsi sr_mod sd_mod isofs > "$R/lib/modules/scsi"
modules isofs vfat nls_cp437 nls_ascii nls_iso8859-1 nls_utf8 > "$R/lib/modules/seed"
modules e1000 e1000e virtio-rng virtio_balloon virtio_console > "$R/lib/modules/late"

cp "$(command -v dropbear)" "$R/sbin/dropbear"
ldd "$R/sbin/dropbear" | grep -o '/[^ ]*' | while read -r l; do mkdir -p "$R/$(dirname "$l")"; cp -L "$l" "$R/$l"; done

echo 'root:x:0:0:root:/root:/bin/sh' > "$R/etc/passwd"
echo 'root:*:19000:0:99999:7:::' > "$R/etc/shadow"
echo 'root:x:0:' > "$R/etc/group"
echo /bin/sh > "$R/etc/shells"
echo 'passwd: files' > "$R/etc/nsswitch.conf"
install -m 755 "$HERE/guest/init" "$R/init"
install -m 755 "$HERE/guest/udhcpc.script" "$R/usr/share/udhcpc/default.script"
printf '#!/bin/sh\necho "tiny: power button" >/dev/console\nsync\npoweroff -f\n' > "$R/etc/acpi/PWRF/00000080"
chmod +x "$R/etc/acpi/PWRF/00000080"
(cd "$R" && find . | sort | cpio -o -H newc --quiet --owner 0:0 | gzip -9n) > "$W/initrd.img"

# --- disk: MBR, one FAT16 partition, syslinux for BIOS, a unified kernel image for UEFI -------------
D=$W/disk.raw; P=$W/part.fat
CMDLINE="console=ttyS0 quiet loglevel=3 tsc=reliable no_timer_check nokaslr mitigations=off rcupdate.rcu_expedited=1 audit=0"
truncate -s 64M "$D"; truncate -s 63M "$P"
printf 'label: dos\nstart=2048, type=ef, bootable\n' | sfdisk -q "$D"
mkfs.vfat -n TINYBOOT "$P" >/dev/null
export MTOOLS_SKIP_CHECK=1
printf 'DEFAULT l\nPROMPT 0\nTIMEOUT 0\nLABEL l\n KERNEL vmlinuz\n INITRD initrd.img\n APPEND %s\n' "$CMDLINE" > "$W/syslinux.cfg"
mcopy -i "$P" "$W/vmlinuz" "$W/initrd.img" "$W/syslinux.cfg" ::/
STUB=/usr/lib/systemd/boot/efi/linuxx64.efi.stub
if [ -r "$STUB" ]; then
  printf '%s' "$CMDLINE" > "$W/cmdline"
  objcopy --add-section .osrel=/etc/os-release --change-section-vma .osrel=0x20000 \
    --add-section .cmdline="$W/cmdline" --change-section-vma .cmdline=0x30000 \
    --add-section .linux="$W/vmlinuz" --change-section-vma .linux=0x2000000 \
    --add-section .initrd="$W/initrd.img" --change-section-vma .initrd=0x3000000 "$STUB" "$W/uki.efi"
  mmd -i "$P" ::/EFI ::/EFI/BOOT
  mcopy -i "$P" "$W/uki.efi" ::/EFI/BOOT/BOOTX64.EFI
else
  echo "guest: no systemd EFI stub here, the image boots by BIOS only"
fi
syslinux --install "$P"
dd if="$P" of="$D" bs=1M seek=1 conv=notrunc,sparse status=none
dd if=/usr/lib/syslinux/mbr/mbr.bin of="$D" bs=440 count=1 conv=notrunc status=none
qemu-img convert -f raw -O qcow2 "$D" "$W/tiny.qcow2"

# moved into place last and the stamp after that: a build that was cut off is built again
rm -f "$OUT/stamp"
mv "$W/vmlinuz" "$W/initrd.img" "$W/tiny.qcow2" "$OUT/"
echo "$STAMP" > "$OUT/stamp"
echo "guest: built $OUT/tiny.qcow2 ($(du -h "$OUT/tiny.qcow2" | cut -f1), kernel $KV) in $(took)"
