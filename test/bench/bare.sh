#!/usr/bin/env bash
# bare.sh — what one would write by hand: the calls that make a VM of the same XML, on the same image, on the same switch.
#   bare.sh prepare VM PORT SUBNET DIR SHA256    take a running VM as the model, whose pool is a directory
#   bare.sh prepare VM PORT SUBNET CEPH-POOL SHA256 CONF   the same, whose pool is one of Ceph
#   bare.sh create|remove I ; bare.sh burst|unburst N
#   bare.sh ids I              UUID, port, MAC and address of what create made
#   bare.sh move UUID URI ADDRESS [live]   migration to the libvirt at URI, paused or live
#   bare.sh away UUID          ends a guest that is on this node now
# Runs inside the node. Prints the nanoseconds that the work itself took, and for move the guest's downtime too.
set -euo pipefail
D=/run/nextstack-bench
pool() { cat "$D/pool"; }
ceph() { [ -s "$D/ceph" ]; }
ceph_rbd() { rbd -c "$(<"$D/ceph")" "$@"; }
timed() { local t=$EPOCHREALTIME e; "$@" >&2; e=$EPOCHREALTIME; echo $((((${e/./} - ${t/./})) * 1000)); }

prepare() {
  mkdir -p "$D"
  if [ -s "$D/dir" ]; then for f in "$(<"$D/dir")"/*.ids; do [ ! -e "$f" ] || remove "$(basename "$f" .ids)" || true; done; fi # of a run that was stopped
  virsh dumpxml --inactive "$1" > "$D/model.xml"
  echo "$1" > "$D/vm"; echo "$2" > "$D/port"; echo "$3" > "$D/subnet"; echo "$4" > "$D/pool"; echo "$5" > "$D/sha"; printf %s "${6:-}" > "$D/ceph"
  local work=$D/in-ceph
  ceph || work=$(pool)/../bench
  mkdir -p "$work"
  readlink -f "$work" > "$D/dir"
  # root disk and seed, as the XML has them: file='...', or name='...' of a block device
  grep -oE "<source (protocol='rbd' name|file)='[^']*'" "$D/model.xml" | grep -oE "(name|file)='[^']*'" > "$D/files"
  local dhcp; dhcp=$(ovn-nbctl --bare --columns=dhcpv4_options find logical_switch_port name="$2"); echo "$dhcp" > "$D/dhcp"
  ovn-nbctl --bare --columns=name find port_group | head -n 1 > "$D/group" || true
}

create() {
  local i=$1 dir uuid port mac ip disk seed
  dir=$(<"$D/dir"); disk=$dir/$i.qcow2; seed=$dir/$i.iso
  uuid=$(cat /proc/sys/kernel/random/uuid); port=$(cat /proc/sys/kernel/random/uuid)
  mac=$(printf '02:be:00:00:%02x:%02x' $((i / 256)) $((i % 256))); ip=10.1.0.$((200 + i % 50))
  echo "$uuid $port" > "$dir/$i.ids"
  if ceph; then
    ceph_rbd --rbd-default-clone-format 1 clone "$(pool)/image-$(<"$D/sha")@base" "$(pool)/bare-$i"
    ceph_rbd resize --no-progress -s 1G "$(pool)/bare-$i"
  else
    qemu-img create -q -f qcow2 -F qcow2 -b "$(pool)/backing/$(<"$D/sha")" "$disk" 1G
  fi
  mkdir -p "$dir/$i.seed"
  printf 'instance-id: %s\nlocal-hostname: bare-%s\n' "$uuid" "$i" > "$dir/$i.seed/meta-data"; : > "$dir/$i.seed/user-data"
  genisoimage -quiet -o "$seed" -V cidata -J -r "$dir/$i.seed" 2>/dev/null
  disk="file='$disk'"
  if ceph; then
    ceph_rbd import --no-progress "$seed" "$(pool)/bare-$i-seed"
    disk="name='$(pool)/bare-$i'" seed="name='$(pool)/bare-$i-seed'"
  else
    seed="file='$seed'"
  fi
  ovn-nbctl lsp-add "subnet-$(<"$D/subnet")" "$port" -- lsp-set-addresses "$port" "$mac $ip" -- lsp-set-port-security "$port" "$mac $ip" -- lsp-set-dhcpv4-options "$port" "$(<"$D/dhcp")"
  sed -e "s#$(sed -n 1p "$D/files")#$disk#" -e "s#$(sed -n 2p "$D/files")#$seed#" \
    -e "s#$(<"$D/vm")#$uuid#g" -e "s#$(<"$D/port")#$port#g" -e "s#<mac address='[^']*'#<mac address='$mac'#" \
    -e "s#<target dev='tap[^']*'#<target dev='bare$i'#" "$D/model.xml" > "$dir/$i.xml"
  virsh -q define "$dir/$i.xml"
  virsh -q start "$uuid"
}

remove() {
  local i=$1 dir uuid port disk try; dir=$(<"$D/dir")
  read -r uuid port < "$dir/$i.ids"
  virsh -q destroy "$uuid" || true; virsh -q undefine --nvram "$uuid" || true
  ovn-nbctl --if-exists lsp-del "$port"
  rm -rf "$dir/$i".*
  ceph || return 0
  for disk in "$(pool)/bare-$i" "$(pool)/bare-$i-seed"; do
    ceph_rbd info "$disk" >/dev/null 2>&1 || continue
    for ((try = 0; try < 60; try++)); do ! ceph_rbd rm --no-progress "$disk" || break; sleep 1; done # a hypervisor that was killed is remembered for 30 s
  done
}

all() { local f=$1 n=$2 i; for ((i = 0; i < n; i++)); do "$f" "$i" & done; wait; }

ids() { local dir; dir=$(<"$D/dir"); read -r uuid port < "$dir/$1.ids"; printf '%s %s 02:be:00:00:%02x:%02x 10.1.0.%s\n' "$uuid" "$port" $(($1 / 256)) $(($1 % 256)) $((200 + $1 % 50)); }

move() {
  local took down
  took=$(timed virsh -q migrate ${4:+--live} --p2p --persistent --undefinesource --unsafe --migrateuri "tcp://$3" "$1" "$2")
  down=$(virsh -c "$2" domjobinfo "$1" --completed --anystats 2>/dev/null | awk '/^(Total d|D)owntime:/ {print $(NF-1)}')
  echo "$took $((${down:-0} * 1000000))"
}

case $1 in
ids) ids "$2" ;;
move) move "$2" "$3" "$4" "${5:-}" ;;
away) virsh -q destroy "$2" >&2 || true; virsh -q undefine "$2" >&2 || true; echo 0 ;;
prepare) shift; prepare "$@" >&2; echo 0 ;;
create | remove) timed "$1" "$2" ;;
burst) timed all create "$2" ;;
unburst) timed all remove "$2" ;;
esac
