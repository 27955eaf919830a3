# shellcheck shell=bash
# kernel.sh — a kernel of the distribution for machines of tests: downloaded and unpacked, never installed. Sourced by
# guest.sh and machine.sh, which have die.

# kernel_packages META...: the real kernel package of the first metapackage that is known, and Ubuntu's modules packages beside it
kernel_packages() {
  local meta img=''
  for meta in "$@"; do
    img=$(apt-cache depends "$meta" 2>/dev/null | awk '/Depends: linux-image-[0-9]/ { print $2; exit }')
    [ -z "$img" ] || break
  done
  [ -n "$img" ] || return 1
  echo "$img"
  { apt-cache depends "$meta"; apt-cache depends "$img"; } | awk '/Depends: linux-modules-(extra-)?[0-9]/ && !seen[$2]++ { print $2 }'
}

# kernel_unpack DIR META...: unpacks it, so that DIR/boot/vmlinuz-$KV and DIR/lib/modules/$KV are there; sets KV
kernel_unpack() {
  local x=$1 pkgs d; shift
  mkdir -p "$x/debs"
  pkgs=$(kernel_packages "$@") || { apt-get update -qq || die "apt-get update failed: no package index, no kernel"
    pkgs=$(kernel_packages "$@") || die "no linux-image package is known to apt"; }
  # shellcheck disable=SC2086  # the list is meant to be split
  (cd "$x/debs" && apt-get -qq -o APT::Sandbox::User=root download $pkgs >/dev/null) || die "cannot download: $pkgs (apt-get update?)"
  for d in "$x"/debs/*.deb; do dpkg-deb -x "$d" "$x"; done
  rm -r "$x/debs"
  # usr-merged packages ship lib/modules under usr; depmod and modprobe look in lib
  [ -d "$x/lib/modules" ] || { mkdir -p "$x/lib"; ln -s ../usr/lib/modules "$x/lib/modules"; }
  KV=$(cd "$x/lib/modules" && echo [0-9]*)
  depmod -b "$x" "$KV"
}

# kernel_modules DIR TO NAME...: copies modules and what they need, flat and uncompressed, and prints them in load order
kernel_modules() {
  local x=$1 to=$2 m f b; shift 2
  for m in "$@"; do modprobe -d "$x" -S "$KV" --show-depends "$m" 2>/dev/null || true; done |
    awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r f; do
    b=$(basename "$f"); b=${b%.gz}; b=${b%.xz}; b=${b%.zst}
    case $f in
      *.zst) zstd -dqc "$f" ;; *.xz) xz -dc "$f" ;; *.gz) gzip -dc "$f" ;; *) cat "$f" ;;
    esac > "$to/$b"
    echo "$b"
  done
}
