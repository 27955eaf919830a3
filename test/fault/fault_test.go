package fault

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/workflows"
)

var total struct {
	sync.Mutex
	Report
}

func TestMain(m *testing.M) {
	code := m.Run()
	fmt.Printf("fault points: %d, leaks: %d, stuck: %d (tried some of many second faults: left out %d)\n", total.Points, total.Leaks, total.Stuck, total.Left)
	os.Exit(code)
}

// TestEveryOperationEndsDoneOrUndone disturbs every operation at every call that it makes.
func TestEveryOperationEndsDoneOrUndone(t *testing.T) {
	ctx := context.Background()
	base, err := Base(ctx)
	require.NoError(t, err)
	all := Scenarios()
	for _, d := range workflows.All() {
		require.NotEmpty(t, all[d.Name()], "operation %s has no scenario: add one to scenarios.go", d.Name())
	}
	for _, kind := range slices.Sorted(maps.Keys(all)) {
		for _, s := range all[kind] {
			t.Run(s.Name, func(t *testing.T) {
				t.Parallel()
				report, err := s.Run(ctx, base)
				require.NoError(t, err)
				t.Logf("fault points: %d, leaks: %d, stuck: %d", report.Points, report.Leaks, report.Stuck)
				total.Lock()
				total.Add(report)
				total.Unlock()
				for _, d := range report.Details {
					t.Error(d)
				}
			})
		}
	}
}
