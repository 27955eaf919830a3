#!/usr/bin/env bash
# down.sh — ends what up.sh started and removes its state ("make down").
#
#   down.sh
#
# Virtual machines, agent, control plane, network namespaces and cgroups go; .dev/cache (the guest image, libvirt's
# knowledge of qemu) stays. Exits 1 and prints what is left if anything is. Repeat it as you like.
set -euo pipefail

# shellcheck source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
START=$EPOCHREALTIME

[ "$(id -u)" = 0 ] || { echo "down: needs root" >&2; exit 1; }
if [ ! -d "$DEV" ]; then echo "down: nothing is up"; exit 0; fi
exec 8> "$DEV/.up.lock"
flock -n 8 || { echo "down: another up.sh or down.sh is at work" >&2; exit 1; }

# the agents first: they would report machines that vanish as failures
for n in $(node_names); do stop "$(agent "$n")" "$BIN/gnext" & done
wait
stop nextstack "$BIN/nextstack"
sandbox down --purge

left=
for p in "$DEV"/*.pid; do [ ! -e "$p" ] || left="$left $p"; done
[ -z "$left" ] || { echo "down: still there:$left" >&2; exit 1; }
rm -rf "$DEV/control" "$DEV"/agent-node* "$DEV/pool" "$DEV/shared" "$DEV/nodes" "$DEV/storage" "$DEV/log" "$DEV/env" "$DEV/join-token" "$DEV/admin-password" "$DEV/.up.lock"
echo "down in $(secs "$START") s, nothing left"
