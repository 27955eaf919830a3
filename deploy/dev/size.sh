#!/usr/bin/env bash
# size.sh — how large the programs are, and how much memory they take when idle (the second half of "make size").
#
# Sizes are of stripped files. Memory is that of the processes that `make up` runs, by /proc/PID/smaps_rollup: RSS counts
# pages of the executable that are in memory only because the page cache has room, PSS shares out what processes have in common.
set -euo pipefail

# shellcheck source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

stripped() { # FILE: its size in bytes without symbols, whether it was built with them or not
  local t; t=$(mktemp)
  if strip -o "$t" "$1" 2>/dev/null; then stat -c %s "$t"; else stat -c %s "$1"; fi
  rm -f "$t"
}
line() { printf '  %-34s %8.2f MB\n' "$1" "$(awk -v b="$2" 'BEGIN { print b / 1e6 }')"; }

echo "programs, stripped:"
for p in "nextstack nextstack (all embedded)" "gnext gnext (CLI and agent)"; do
  f=$BIN/${p%% *}
  if [ -x "$f" ]; then line "${p#* }" "$(stripped "$f")"; else echo "  ${p#* }: not built (make build)"; fi
done
n=0
for f in "$BIN"/cross/gnext-*; do
  [ -e "$f" ] || continue
  # the host's strip knows its own architecture only; these are linked without symbols
  line "gnext, plain CLI, ${f##*-}" "$(stat -c %s "$f")"; n=$((n + 1))
done
[ $n -gt 0 ] || echo "  gnext, plain CLI: not built (make cross)"

echo "memory of running processes:"
up=
for p in "nextstack nextstack" "agent gnext"; do
  pid=$(running "${p% *}" "$BIN/${p#* }") || continue
  up=yes
  awk -v n="${p% *}" -v age="$(ps -o etimes= -p "$pid" | tr -d ' ')" '
    $1 == "Rss:" { rss = $2 } $1 == "Pss:" { pss = $2 } $1 == "Pss_Anon:" { anon = $2 }
    END { printf "  %-12s RSS %7.1f MiB   PSS %7.1f MiB   of that not from files %7.1f MiB   (up %d s)\n", n, rss / 1024, pss / 1024, anon / 1024, age }' \
    "/proc/$pid/smaps_rollup"
done
[ -n "$up" ] || echo "  nothing runs: \`make up\` first, then \`make size\` says how much memory it takes"
