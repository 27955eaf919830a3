#!/usr/bin/env bash
# bare-storage.sh — what one would write by hand to volumes of a guest: the same steps with qemu-img, rbd and virsh alone.
#   bare-storage.sh prepare TYPE GUEST DIR|CEPH-POOL SHA256 [CONF SECRET USER MONITOR]
#                              TYPE is dir or rbd; GUEST is the UUID of a guest that bare.sh made; what follows CONF is for rbd
#   bare-storage.sh clone|attach|snapshot|grow|drop I
# A volume has 1 GiB, made from the image of that checksum, and grows to 2. Runs inside the node. Prints the nanoseconds of the work itself.
set -euo pipefail
D=/run/nextstack-bench-storage
timed() { local t=$EPOCHREALTIME e; "$@" >&2; e=$EPOCHREALTIME; echo $((((${e/./} - ${t/./})) * 1000)); }
ceph_rbd() { rbd -c "$CONF" "$@"; }

prepare() {
  mkdir -p "$D"
  printf 'TYPE=%q GUEST=%q PLACE=%q SHA=%q CONF=%q SECRET=%q RBDUSER=%q MONITOR=%q\n' "$1" "$2" "$3" "$4" "${5:-}" "${6:-}" "${7:-}" "${8:-}" > "$D/what"
  # shellcheck disable=SC1091
  . "$D/what"
  virsh -q detach-disk "$GUEST" vdc --live --config 2>/dev/null || true # of a run that was stopped
  if [ "$TYPE" = dir ]; then rm -rf "$PLACE/bench-volumes"; mkdir -p "$PLACE/bench-volumes"; return; fi
  local i
  for i in $(ceph_rbd ls "$PLACE" | grep '^bare-' || true); do ceph_rbd snap purge --no-progress "$PLACE/$i"; ceph_rbd rm --no-progress "$PLACE/$i"; done
}

file() { echo "$PLACE/bench-volumes/$1.qcow2"; }

clone() {
  if [ "$TYPE" = dir ]; then qemu-img create -q -f qcow2 -F qcow2 -b "$PLACE/backing/$SHA" "$(file "$1")" 1G; return; fi
  ceph_rbd --rbd-default-clone-format 1 clone "$PLACE/image-$SHA@base" "$PLACE/bare-$1"
  ceph_rbd resize --no-progress -s 1G "$PLACE/bare-$1"
}

attach() {
  if [ "$TYPE" = dir ]; then
    virsh -q attach-disk "$GUEST" "$(file "$1")" vdc --targetbus virtio --driver qemu --subdriver qcow2 --cache none --live --config
    return
  fi
  local host="name='${MONITOR%:*}'"
  [ "$MONITOR" = "${MONITOR%:*}" ] || host="$host port='${MONITOR##*:}'"
  cat > "$D/disk.xml" <<X
<disk type='network' device='disk'>
  <driver name='qemu' type='raw' cache='none' discard='unmap'/>
  <source protocol='rbd' name='$PLACE/bare-$1'><host $host/><auth username='$RBDUSER'><secret type='ceph' uuid='$SECRET'/></auth></source>
  <target dev='vdc' bus='virtio'/>
</disk>
X
  virsh -q attach-device "$GUEST" "$D/disk.xml" --live --config
}

snapshot() {
  if [ "$TYPE" = rbd ]; then ceph_rbd snap create --no-progress "$PLACE/bare-$1@s"; return; fi
  virsh -q snapshot-create-as "$GUEST" --disk-only --atomic --no-metadata --diskspec "vdc,snapshot=external,file=$(file "$1-s")" \
    --diskspec vda,snapshot=no --diskspec vdb,snapshot=no
}

grow() { virsh -q blockresize "$GUEST" vdc 2G; }

drop() {
  local i
  virsh -q detach-disk "$GUEST" vdc --live --config || true
  for ((i = 0; i < 300; i++)); do
    virsh -q domblklist "$GUEST" | grep -q '^ *vdc ' || break
    [ $((i % 30)) != 29 ] || virsh -q detach-disk "$GUEST" vdc --live 2>/dev/null || true # a guest that was not listening is asked again
    sleep 0.1
  done
  if [ "$TYPE" = dir ]; then rm -f "$(file "$1")" "$(file "$1-s")"; return; fi
  ceph_rbd snap purge --no-progress "$PLACE/bare-$1"
  ceph_rbd rm --no-progress "$PLACE/bare-$1"
}

case $1 in
prepare) shift; prepare "$@" >&2; echo 0 ;;
clone | attach | snapshot | grow | drop)
  # shellcheck disable=SC1091
  . "$D/what"
  timed "$1" "$2"
  ;;
*) echo "bare-storage.sh: $1?" >&2; exit 2 ;;
esac
