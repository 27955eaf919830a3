#!/usr/bin/env bash
# bench.sh — what `make bench` calls: brings the sandbox up if it is not, measures it, and runs the Go benchmarks.
# STORAGE=ceph: with Ceph, as make up. BENCH_FLAGS: more flags for test/bench, as "-only storage -n 20"; then no Go benchmarks.
set -euo pipefail
cd "$(dirname "$0")/../.."
deploy/dev/up.sh
# shellcheck disable=SC1091
. .dev/env
read -ra FLAGS <<< "${BENCH_FLAGS:-}"
go run ./test/bench -root "$PWD" "${FLAGS[@]}"
[ ${#FLAGS[@]} = 0 ] || exit 0
printf '\nGo benchmarks (ns/op and what each reports):\n'
go test -run '^$' -bench . -benchtime 2s ./api/server ./api/store ./workflows/placement | grep -E '^(Benchmark|ok|FAIL)'
