#!/bin/bash
# Holds that nothing in workflows/ is non-deterministic. workflowcheck reports on functions that take a workflow.Context
# only, and does not follow the functions in a step table: so what counts here is what it finds out about every function.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=$(go run go.temporal.io/sdk/contrib/tools/workflowcheck@v0.6.0 \
	-test=false -determinism-debug -config test/house/determinism.yaml ./workflows/... 2>&1) || { echo "$out" | grep -v ' Marking ' >&2; exit 1; }
grep -q 'Checking package github.com/nextstack/nextstack/workflows$' <<<"$out" || { echo "determinism: the workflows were not looked at" >&2; exit 1; }
if grep -E 'Marking [(*]*github.com/nextstack/nextstack/workflows' <<<"$out" >&2; then
	echo "determinism: ask for a step instead, or use what package workflow has for it" >&2
	exit 1
fi
