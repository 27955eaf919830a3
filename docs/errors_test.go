package docs_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api/problem"
)

// What stands between these lines in docs/errors.md is made from the table in api/problem.
const (
	tableBegin = "<!-- table of kinds: begin -->\n"
	tableEnd   = "<!-- table of kinds: end -->\n"
)

// TestErrorTableIsTheOneInTheCode compares docs/errors.md with api/problem. UPDATE_DOCS=1 writes the page anew.
func TestErrorTableIsTheOneInTheCode(t *testing.T) {
	const page = "errors.md"
	after := generated(t, page, tableBegin, tableEnd, errorTable())
	for _, k := range problem.Kinds() {
		require.Contains(t, after, fmt.Sprintf("### `%s`", k), "%s does not explain this kind", page)
	}
}

// generated checks that what stands between two lines of a page is what it should be, or makes it so with UPDATE_DOCS=1. It
// returns what follows.
func generated(t *testing.T, page, begin, end, want string) (after string) {
	t.Helper()
	text := read(t, page)
	before, rest, ok := strings.Cut(text, begin)
	require.True(t, ok, "%s has no line %q", page, begin)
	have, after, ok := strings.Cut(rest, end)
	require.True(t, ok, "%s has no line %q", page, end)
	if os.Getenv("UPDATE_DOCS") != "" {
		require.NoError(t, os.WriteFile(page, []byte(before+begin+want+end+after), 0o644))
		return after
	}
	require.Equal(t, want, have, "run: UPDATE_DOCS=1 go test ./docs")
	return after
}

func errorTable() string {
	kinds := problem.Kinds()
	slices.SortFunc(kinds, func(a, b problem.Kind) int {
		x, y := problem.TraitsOf(a), problem.TraitsOf(b)
		if x.Exit != y.Exit {
			return x.Exit - y.Exit
		}
		return strings.Compare(string(a), string(b))
	})
	var b strings.Builder
	b.WriteString("| Kind (`code`) | HTTP status | Exit code of `gnext` | A step is tried again | Title |\n|---|---|---|---|---|\n")
	for _, k := range kinds {
		tr := problem.TraitsOf(k)
		retry := "no"
		if tr.Retry {
			retry = "yes"
		}
		fmt.Fprintf(&b, "| `%s` | %d | %d | %s | %s |\n", k, tr.Status, tr.Exit, retry, tr.Title)
	}
	return b.String()
}
